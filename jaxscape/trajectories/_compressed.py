"""A point of a path in little memory: its difference from the first point in 16 bits, or random projections of it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array

from jaxscape import trees
from jaxscape.shards import Part, bits, folded_rows, on_shards, rows_of
from jaxscape.types import Params


class Difference(NamedTuple):
    """``point - start`` in 16 bits.

    A float16 has 11 binary digits. Each leaf is divided by a power of two near its largest entry, so an entry is wrong
    by at most 2**-11 of itself or 2**-24 of the largest entry of its leaf, whichever is larger.

    Attributes:
        leaves: Float16, each at most 2 in magnitude where it is finite.
        scales: A power of two for each leaf, float64, shape ``(leaves,)``: a move of 1e-40 has none in float32.
        distance: ``norm(point - start)``, summed in float64.
    """

    leaves: list[Array]
    scales: Array
    distance: Array


@trees.in_float64
def difference(point: Params, start: Params) -> Difference:
    """A point in 16 bits.

    Args:
        point: A pytree of floating arrays.
        start: A pytree with the same leaves.

    Returns:
        Its leaves are cut as those of ``start``.
    """
    pairs = zip(jax.tree.leaves(point), jax.tree.leaves(start), strict=True)
    moves = [_move(x, s) for x, s in pairs]
    scales = [trees.power_of_two(x).reshape(()) for x in moves]
    leaves = [(x / scale).astype(jnp.float16) for x, scale in zip(moves, scales, strict=True)]
    return Difference(leaves, jnp.stack(scales), _length(moves))


@trees.in_float64
def restored(start: Params, leaves: list[Array], scales: Array) -> Params:
    """The point of a difference, with the dtypes of ``start``."""
    first, treedef = jax.tree.flatten(start)

    def leaf(s: Array, x: Array, scale: Array) -> Array:
        return (s.astype(jnp.float64) + scale * x.astype(jnp.float64)).astype(s.dtype)

    return jax.tree.unflatten(
        treedef, [leaf(s, x, scales[i]) for i, (s, x) in enumerate(zip(first, leaves, strict=True))]
    )


class Projections(NamedTuple):
    """Random projections of ``point - start``.

    Attributes:
        sums: Shape ``(num,)``.
        distance: ``norm(point - start)``, summed in float64.
    """

    sums: Array
    distance: Array


def _projections(point: Params, start: Params, words: Array, specs: tuple[PartitionSpec, ...], num: int) -> Projections:
    """Random projections: each entry, with a random sign, is added to one of ``num`` sums that is drawn for it.

    The inner product of two such vectors of sums estimates that of the points without bias, with a variance of at most
    ``2 / num`` times the product of their squared norms (Charikar, Chen and Farach-Colton 2002; Weinberger et al. 2009,
    "Feature hashing"). It takes one pass over the entries, whatever ``num`` is.

    Args:
        point: A pytree of floating arrays.
        start: A pytree with the same leaves.
        words: Those of a key for each leaf, shape ``(leaves, 2)``.
        specs: How each leaf is cut over the ambient mesh.
        num: How many.

    Returns:
        The projections, the same however the leaves are cut, but for rounding.
    """
    total, moves = jnp.zeros(num), []
    for i, (x, s, spec) in enumerate(zip(jax.tree.leaves(point), jax.tree.leaves(start), specs, strict=True)):
        part = Part(x.shape, spec)
        names = tuple(name for axis in range(x.ndim) for name in part.names(axis))

        def on_device(words: Array, x: Array, s: Array, part: Part = part, names: tuple[str, ...] = names) -> Array:
            sums = _sums(words, x, s, part, num)
            return lax.psum(sums, names) if names else sums

        out = PartitionSpec() if names else None
        total += on_shards(on_device, (None, spec, spec), out)(words[i], x, s)
        moves.append(_move(x, s))
    return Projections(total, _length(moves))


projections = trees.in_float64(_projections, static_argnums=(3, 4))


def _sums(words: Array, x: Array, start: Array, part: Part, num: int) -> Array:
    """The sums of one leaf, block by block."""

    def add(sums: Array, first: Any, count: int, is_new: Array) -> Array:
        drawn = bits(words, part.rows(first, count))
        moves = _move(rows_of(x, first, count), rows_of(start, first, count))
        signed = jnp.where(is_new, jnp.where(drawn >> 31, -moves, moves), 0)
        return sums.at[(drawn % np.uint32(2**31)) % np.uint32(num)].add(signed)

    return folded_rows(x.shape, add, jnp.zeros(num))


def _move(x: Array, start: Array) -> Array:
    return x.astype(jnp.float64) - start.astype(jnp.float64)


def _length(moves: list[Array]) -> Array:
    return jnp.sqrt(trees.dot64(moves, moves))
