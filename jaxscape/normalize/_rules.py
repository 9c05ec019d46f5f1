"""What is done to each leaf: which filters it has, and whether it is left out."""

import math
import warnings
from collections.abc import Sequence
from typing import Any, get_args

import jax
from jaxtyping import Array

from jaxscape import trees
from jaxscape.arguments import blamed
from jaxscape.normalize._bias_norm import is_named_like_ignored, read_leaves, reason_to_ignore
from jaxscape.normalize._layouts import Filters, filters_of, looks_output_first
from jaxscape.normalize._names import Leaf
from jaxscape.types import FilterAxis, Ignore, KeyPath, Library, Norm, Params

NORMS: tuple[str | None, ...] = (*get_args(Norm), None)
LIBRARIES: tuple[str | None, ...] = (*get_args(Library), None)


def check_norm(norm: Any, name: str = "norm") -> None:
    """Refuse an unknown normalization.

    Args:
        norm: What the caller passed.
        name: What the caller's argument is called, for the message.

    Raises:
        ValueError: It is none of the known ones, which the message lists.
    """
    if not (norm is None or isinstance(norm, str)) or norm not in NORMS:
        raise ValueError(f"{name} is {norm!r}, expected one of {', '.join(map(repr, NORMS))}.")


def reasons_to_ignore(params: Params, ignore: Ignore) -> list[str | None]:
    """Which leaves get a zero direction, and why.

    Args:
        params: A pytree of floating arrays.
        ignore: ``"bias_norm"``: biases and normalization parameters (the paper's footnote 2), that is leaves of rank
            at most 1 and those that `jaxscape.normalize` knows by name and shape; None: no leaf; or a predicate on
            (path, leaf).

    Returns:
        For each leaf, in order, the reason, or None if it is perturbed.

    Raises:
        ValueError: ``ignore`` is something else.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    if ignore is None:
        return [None] * len(leaves)
    if callable(ignore):
        with blamed("ignore", "with the path of a leaf and the leaf"):
            return ["predicate" if ignore(path, leaf) else None for path, leaf in leaves]
    if ignore == "bias_norm":
        return [reason_to_ignore(leaf) for leaf in read_leaves(params)]
    raise ValueError(f"ignore is {ignore!r}, expected 'bias_norm', None or a predicate on (path, leaf).")


def filters_of_leaves(params: Params, filter_axis: FilterAxis) -> list[Filters]:
    """The axes of each leaf that index its filters; the norm of a filter runs over all the other axes.

    In a leaf of rank 1 each entry is a filter, unless a function says otherwise.

    Args:
        params: A pytree of floating arrays.
        filter_axis: None: by name and shape, else the last axis; ``"flax"``, ``"equinox"``, ``"haiku"``, ``"keras"``
            or ``"huggingface"``: by that library's names and layouts (`jaxscape.normalize`); an int: that axis of
            every leaf; or a function of (path, leaf) that gives an axis, several axes, or None for a leaf that is one
            single filter.

    Returns:
        For each leaf, in order, the axes and what was assumed to find them.

    Raises:
        ValueError: The library is unknown, or an axis is outside its leaf's rank; the message has the leaf's path.
    """
    if filter_axis is None or isinstance(filter_axis, str):
        if filter_axis not in LIBRARIES:
            known = ", ".join(map(repr, get_args(Library)))
            raise ValueError(f"filter_axis is {filter_axis!r}, expected None, an int, a function or one of {known}.")
        return [filters_of(leaf, filter_axis) for leaf in read_leaves(params)]
    return [
        Filters(_axes_as_given(path, leaf, filter_axis)) for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    ]


def _axes_as_given(path: KeyPath, leaf: Array, filter_axis: Any) -> tuple[int, ...]:
    """Axes that an int or a function gives, in ``range(leaf.ndim)``, ascending."""
    axis: Any = filter_axis
    if callable(filter_axis):
        with blamed("filter_axis", "with the path of a leaf and the leaf"):
            axis = filter_axis(path, leaf)
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


def described(option: Any) -> str:
    """An option as text; a function by its name."""
    return getattr(option, "__name__", "function") if callable(option) else str(option)


def explanation(norm: Norm | None, shape: tuple[int, ...], reason: str | None, filters: Filters) -> str:
    """What is done to a leaf, in words.

    >>> explanation("filter", (8, 2, 4), None, Filters((1, 2)))
    'filter: 8 over axes 1, 2'

    Args:
        norm: Which rule scales it.
        shape: Of the leaf.
        reason: Why it is ignored; None if it is perturbed.
        filters: Its filters.

    Returns:
        One line.
    """
    if reason is not None:
        return f"ignored: {reason}"
    if norm not in ("filter", "dfilter"):
        return str(norm)
    axes = ", ".join(map(str, filters.axes)) or "none"
    number = math.prod(shape[a] for a in filters.axes)
    assumed = f" (assumed: {filters.assumption})" if filters.assumption else ""
    return f"{norm}: {number} over {'axes' if len(filters.axes) > 1 else 'axis'} {axes}{assumed}"


def warn_of_doubts(
    params: Params,
    norm: Norm | None,
    ignore: Ignore,
    filter_axis: FilterAxis,
    reasons: Sequence[str | None],
    filters: Sequence[Filters],
) -> None:
    """Warn of leaves whose names speak against what is done to them.

    That is: with ``ignore="bias_norm"``, leaves that are perturbed though they are named like a bias or a
    normalization parameter; and with filters along the last axis, kernels that seem to be (out, in), if they are more
    than half of all.

    Args:
        params: A pytree of floating arrays.
        norm: As the caller passed it.
        ignore: As the caller passed it.
        filter_axis: As the caller passed it.
        reasons: What `reasons_to_ignore` gives for them.
        filters: What `filters_of_leaves` gives for them.
    """
    rows = list(zip(trees.leaf_names(params), read_leaves(params), reasons, filters, strict=True))
    perturbed = [(name, leaf, part) for name, leaf, reason, part in rows if reason is None and len(leaf.shape) > 1]
    doubtful = [f"params{name} {leaf.shape}" for name, leaf, _ in perturbed if is_named_like_ignored(leaf)]
    if ignore == "bias_norm" and doubtful:
        warnings.warn(
            f"ignore='bias_norm' perturbs {_first_few(doubtful)}, named like a bias or a normalization parameter, but "
            "neither its module nor its shape settles it. Say which leaves are held by a predicate, for example "
            "ignore=lambda path, leaf: leaf.ndim <= 1.",
            UserWarning,
            stacklevel=4,  # the caller of random_directions, which is decorated
        )
    turned = [f"params{name} {leaf.shape}" for name, leaf, part in perturbed if _is_turned(leaf, part)]
    by_rule = filter_axis is None or isinstance(filter_axis, str)
    if by_rule and norm in ("filter", "dfilter") and 2 * len(turned) > len(perturbed):
        warnings.warn(
            f"{len(turned)} of {len(perturbed)} kernels look like (out, in), as in Equinox and PyTorch, but "
            f"filter_axis={filter_axis!r} takes the last axis for their filters: {_first_few(turned)}. Pass "
            "filter_axis='equinox' (the first axis), or -1 if the last axis is right.",
            UserWarning,
            stacklevel=4,  # the caller of random_directions, which is decorated
        )


def _is_turned(leaf: Leaf, filters: Filters) -> bool:
    return looks_output_first(leaf) and len(leaf.shape) - 1 in filters.axes


def _first_few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
