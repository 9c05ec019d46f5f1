"""The scale of each filter of a random direction, from sums that are exact: their order does not matter.

So a direction is the same to the bit on one device and on any number of them, however its leaves are cut.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from jaxscape import trees
from jaxscape.shards import Part, normal, on_shards, reduced_rows, rows_of
from jaxscape.types import Norm

LARGEST = 16.0  # of a standard normal number of 64 bits is 8.3


def filter_axes_of(norm: Norm | None, axes: Sequence[int]) -> tuple[int, ...]:
    """The axes along which the scales of a leaf differ."""
    return tuple(axes) if norm in ("filter", "dfilter") else ()


def scales_of(
    words: Array, weights: Array, part: Part, norm: Norm | None, axes: tuple[int, ...]
) -> Float[Array, "..."]:
    """What the entries of a leaf that is drawn with a key are multiplied by, inside a function of `trees.in_float64`.

    Args:
        words: Of the key.
        weights: The leaf of params.
        part: Its shape, and how it is cut over the ambient mesh.
        norm: Which rule, as in `rescale`; not ``"weight"``, which has a scale for each entry.
        axes: The axes that index filters, in ``range(rank)``.

    Returns:
        One number for each filter, with length 1 along the other axes, in the dtype of the direction.
    """
    dtype = trees.working_dtype(weights)
    kept = filter_axes_of(norm, axes)
    summed = tuple(axis for axis in range(len(part.shape)) if axis not in kept)
    names = tuple(name for axis in summed for name in part.names(axis))
    count = math.prod(part.shape[axis] for axis in summed)

    def on_device(words: Array, weights: Array) -> Array:
        shape = weights.shape
        reduce = functools.partial(reduced_rows, shape, axes=summed)

        def length(rows: Callable[[Any, int], Array], unit: Array) -> Array:
            def limbs(start: Any, count: int) -> tuple[Array, Array]:
                units = _kept_rows(unit, shape, start, count)
                return _limbs((rows(start, count).astype(jnp.float64) / units) ** 2, bits)

            sums = reduce(limbs, kind="sum")
            return unit * _root(lax.psum(sums, names) if names else sums, bits)

        bits = _bits(count)
        each = tuple(1 if axis in summed else n for axis, n in enumerate(shape))
        drawn = length(lambda start, count: normal(words, part.rows(start, count), dtype), jnp.full(each, LARGEST))
        target: Any = 1.0
        if norm in ("filter", "layer"):
            largest = reduce(lambda start, count: jnp.abs(rows_of(weights, start, count).astype(dtype)), kind="max")
            largest = lax.pmax(largest, names) if names else largest
            target = length(lambda start, count: rows_of(weights, start, count), _unit(largest))
        return _ratio(target, drawn).astype(dtype)

    if norm is None or 0 in part.shape:
        return jnp.ones((1,) * len(part.shape), dtype)
    cut = [part.names(axis) or None if axis in kept else None for axis in range(len(part.shape))]
    spec = None if part.spec is None else PartitionSpec(*cut)
    return on_shards(on_device, (None, part.spec), spec)(words, weights)


def rescale(
    direction: Float[Array, "*shape"], weights: Float[Array, "*shape"], norm: Norm | None, axes: tuple[int, ...]
) -> Float[Array, "*shape"]:
    """Scale one leaf of a direction to one leaf of params, inside a function of `trees.in_float64`.

    With ``d`` the direction, ``w`` the weights and ``f`` a filter:

    - ``"filter"``: ``d_f * ||w_f|| / ||d_f||`` (the paper's equation in section 4)
    - ``"layer"``: ``d * ||w|| / ||d||`` (appendix A.2)
    - ``"weight"``: ``d * w``, entry by entry
    - ``"dfilter"``: ``d_f / ||d_f||``
    - ``"dlayer"``: ``d / ||d||``
    - None: ``d``

    A filter of zero weights gets a zero direction under ``"filter"``.

    Args:
        direction: One leaf of the direction, of standard normal numbers.
        weights: Its counterpart in params.
        norm: Which rule.
        axes: The axes that index filters, in ``range(rank)``; each filter runs over all the others.

    Returns:
        The scaled leaf, in the direction's dtype.
    """
    if norm is None:
        return direction
    if norm == "weight":
        return (direction * weights.astype(trees.working_dtype(weights))).astype(direction.dtype)
    summed = tuple(axis for axis in range(direction.ndim) if axis not in filter_axes_of(norm, axes))
    drawn = _length(direction, summed, jnp.full((1,) * direction.ndim, LARGEST))
    target: Any = 1.0
    if norm in ("filter", "layer"):
        largest = jnp.max(jnp.abs(weights), axis=summed, keepdims=True, initial=0)
        target = _length(weights, summed, _unit(largest))
    return direction * _ratio(target, drawn).astype(direction.dtype)


def _length(x: Array, axes: Sequence[int], unit: Array) -> Array:
    """The Euclidean norm along axes in units that no entry exceeds; the result keeps the axes with length 1."""
    bits = _bits(math.prod(x.shape[axis] for axis in axes))
    total = functools.partial(jnp.sum, axis=tuple(axes), keepdims=True)
    high, low = _limbs((x.astype(jnp.float64) / unit) ** 2, bits)
    return unit * _root((total(high), total(low)), bits)


def _unit(largest: Array) -> Array:
    """A power of two above the largest magnitude."""
    return 2 * trees.power_of_two(largest.astype(jnp.float64), axes=())


def _ratio(target: Array, drawn: Array) -> Array:
    """What a filter is multiplied by; 0 for one of length 0."""
    return jnp.where(drawn > 0, target / jnp.where(drawn > 0, drawn, 1.0), 0.0)


def _bits(count: int) -> int:
    """So many binary places leave sums of ``count`` numbers up to 1 exact in float64."""
    return 52 - max(count, 1).bit_length()


def _limbs(x: Array, bits: int) -> tuple[Array, Array]:
    """Numbers up to 1 as two whole numbers each, ``x = (high + low / 2**bits) / 2**bits``, whose sums are exact."""
    unit = 2.0**bits
    high = jnp.round(x * unit)
    return high, jnp.round((x * unit - high) * unit)


def _root(sums: tuple[Array, Array], bits: int) -> Array:
    (high, low), unit = sums, 2.0**bits
    return jnp.sqrt((high + low / unit) / unit)


def _kept_rows(scale: Array, shape: Sequence[int], start: Any, count: int) -> Array:
    """The rows of an array that has length 1 along some of the axes of another one."""
    lead = next((axis for axis, n in enumerate(shape) if n > 1), max(len(shape) - 1, 0))
    own = scale.reshape(scale.shape[lead:] or (1,))
    return lax.dynamic_slice_in_dim(own, start, count) if own.shape[0] > 1 else own
