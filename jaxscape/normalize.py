"""Scaling a random direction to the weights it perturbs (paper section 4; appendix A.2)."""

from typing import Any, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxscape.trees import working_dtype
from jaxscape.types import FilterAxis, Ignore, KeyPath, Norm

NORMS: tuple[str | None, ...] = (*get_args(Norm), None)


def check_norm(norm: Any) -> None:
    """Refuse an unknown normalization.

    Args:
        norm: What the caller passed.

    Raises:
        ValueError: It is none of the known ones, which the message lists.
    """
    if norm not in NORMS:
        raise ValueError(f"norm is {norm!r}, expected one of {', '.join(map(repr, NORMS))}.")


def is_ignored(path: KeyPath, leaf: Array, ignore: Ignore) -> bool:
    """Whether a leaf gets a zero direction.

    Args:
        path: Where the leaf is.
        leaf: The leaf of params.
        ignore: ``"bias_norm"``: leaves of rank at most 1, that is biases and normalization parameters (the
            paper's footnote 2); None: no leaf; or a predicate on (path, leaf).

    Returns:
        True if the leaf is not perturbed.

    Raises:
        ValueError: ``ignore`` is something else.
    """
    if ignore is None:
        return False
    if ignore == "bias_norm":
        return leaf.ndim <= 1
    if callable(ignore):
        return bool(ignore(path, leaf))
    raise ValueError(f"ignore is {ignore!r}, expected 'bias_norm', None or a predicate on (path, leaf).")


def filter_axes(path: KeyPath, leaf: Array, filter_axis: FilterAxis) -> tuple[int, ...]:
    """The axes of a leaf that index its filters; the norm of a filter runs over all the other axes.

    By default the last axis: the output channel of a HWIO convolution kernel, the output neuron of an (in, out)
    Dense kernel. In a leaf of rank 1 each entry is a filter, whatever integer is given.

    Args:
        path: Where the leaf is.
        leaf: The leaf of params.
        filter_axis: None for the last axis; an int (0 for PyTorch and Equinox layouts); or a function of
            (path, leaf) that gives an axis, several axes, or None for a leaf that is one single filter.

    Returns:
        Axes in ``range(leaf.ndim)``, ascending.

    Raises:
        ValueError: An axis is outside the leaf's rank; the message has the leaf's path.
    """
    axis = filter_axis(path, leaf) if callable(filter_axis) else -1 if filter_axis is None else filter_axis
    if axis is None:
        return ()
    if not callable(filter_axis) and leaf.ndim <= 1:
        return tuple(range(leaf.ndim))
    axes = (axis,) if isinstance(axis, int) else tuple(axis)
    if not all(-leaf.ndim <= a < leaf.ndim for a in axes):
        raise ValueError(
            f"filter_axis {axis!r} is outside params{jax.tree_util.keystr(path)} of shape {leaf.shape}; expected "
            f"axes in [{-leaf.ndim}, {leaf.ndim}). Pass a function of (path, leaf) for mixed layouts."
        )
    return tuple(sorted({a % leaf.ndim for a in axes}))


def rescale(
    direction: Float[Array, "*shape"], weights: Float[Array, "*shape"], norm: Norm | None, axes: tuple[int, ...]
) -> Float[Array, "*shape"]:
    """Scale one leaf of a direction to one leaf of params.

    With ``d`` the direction, ``w`` the weights and ``f`` a filter:

    - ``"filter"``: ``d_f * ||w_f|| / ||d_f||`` (the paper's equation in section 4)
    - ``"layer"``: ``d * ||w|| / ||d||`` (appendix A.2)
    - ``"weight"``: ``d * w``, entry by entry
    - ``"dfilter"``: ``d_f / ||d_f||``
    - ``"dlayer"``: ``d / ||d||``
    - None: ``d``

    A filter of zero weights gets a zero direction under ``"filter"``.

    Args:
        direction: One leaf of the direction.
        weights: Its counterpart in params.
        norm: Which rule.
        axes: The axes that index filters, as `filter_axes` gives them.

    Returns:
        The scaled leaf, in the direction's dtype.
    """
    if norm is None:
        return direction
    w = weights.astype(working_dtype(weights))
    if norm == "weight":
        return (direction * w).astype(direction.dtype)
    kept = axes if norm in ("filter", "dfilter") else ()
    reduced = tuple(a for a in range(direction.ndim) if a not in kept)

    def length(x: Array) -> Array:
        return jnp.sqrt(jnp.sum(x * x, axis=reduced, keepdims=True))

    target = length(w) if norm in ("filter", "layer") else 1.0
    own = length(direction)
    scale = jnp.where(own > 0, target / jnp.where(own > 0, own, 1.0), 0.0)
    return (direction * scale).astype(direction.dtype)
