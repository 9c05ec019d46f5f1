"""Weight matching: the permutations of the units of one network under which it is nearest to another one."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment

Permutations = dict[str, np.ndarray]
_GAIN = 1e-10  # relative; a smaller one is rounding


class Piece(NamedTuple):
    """A part of a leaf whose axes have units of one kind each.

    Attributes:
        a: Of the network that stays as it is.
        b: Of the one that is permuted.
        names: The permutation of each axis; None for an axis that keeps its order.
    """

    a: np.ndarray
    b: np.ndarray
    names: tuple[str | None, ...]


def sizes_of(
    axes: Mapping[str, Sequence[Any]], shapes: Mapping[str, Sequence[int]], known: Mapping[str, int]
) -> dict[str, int]:
    """How many units each permutation has.

    Args:
        axes: What each axis of each leaf is.
        shapes: Of the leaves.
        known: Sizes that the caller knows.

    Returns:
        Sizes by name.

    Raises:
        ValueError: Two axes with the same permutation have other lengths, or the lengths do not determine all sizes.
    """
    sizes: dict[str, int] = dict(known)
    pairs = [(path, *pair) for path in axes for pair in zip(axes[path], shapes[path], strict=True) if pair[0]]
    while any(_learn(axis, size, sizes, path) for path, axis, size in pairs):
        pass
    unknown = sorted({name for _, axis, _ in pairs for name in _names(axis)} - set(sizes))
    if unknown:
        raise ValueError(f"the sizes of the permutations {', '.join(unknown)} do not follow from spec; pass a js.Spec.")
    return sizes


def _learn(axis: Any, size: int, sizes: dict[str, int], path: str) -> bool:
    """Whether the length of an axis says how large a permutation is, which was not known."""
    if isinstance(axis, str) and axis not in sizes:
        sizes[axis] = size
        return True
    unknown = [part for part in axis[1:] if set(_names(part)) - set(sizes)] if isinstance(axis, tuple) else []
    if not unknown:
        if length(axis, sizes) != size:
            raise ValueError(
                f"spec[{path!r}] has an axis {axis!r} of {length(axis, sizes)} units; the leaf has {size}."
            )
        return False
    if len(unknown) > 1:
        return False
    known = [length(part, sizes) for part in axis[1:] if part is not unknown[0]]
    rest = size - sum(known) if axis[0] == "sum" else size // math.prod(known)
    if rest < 1 or (axis[0] == "product" and size % math.prod(known)):
        raise ValueError(f"spec[{path!r}] has an axis {axis!r}, which does not fit the {size} units of the leaf.")
    return _learn(unknown[0], rest, sizes, path)


def _names(axis: Any) -> list[str]:
    if isinstance(axis, tuple):
        return [name for part in axis[1:] for name in _names(part)]
    return [axis] if isinstance(axis, str) else []


def indices(axis: Any, size: int, permutations: Mapping[str, np.ndarray], sizes: Mapping[str, int]) -> np.ndarray:
    """Where each entry of a permuted axis comes from.

    >>> indices(("product", 2, "p"), 6, {"p": np.array([2, 0, 1])}, {"p": 3}).tolist()
    [2, 0, 1, 5, 3, 4]

    Args:
        axis: What `permutation_spec` gives for it.
        size: Its length.
        permutations: By name.
        sizes: Of the permutations.

    Returns:
        Indices, shape ``(size,)``.
    """
    if axis is None or isinstance(axis, int):
        return np.arange(size)
    if isinstance(axis, str):
        return permutations[axis]
    kind, *parts = axis
    lengths = [length(part, sizes) for part in parts]
    own = [indices(part, n, permutations, sizes) for part, n in zip(parts, lengths, strict=True)]
    if kind == "sum":
        return np.concatenate([offset + i for offset, i in zip(_offsets(lengths), own, strict=True)])
    result = np.zeros(1, int)
    for n, i in zip(lengths, own, strict=True):
        result = (result[:, None] * n + i).ravel()
    return result


def length(axis: Any, sizes: Mapping[str, int]) -> int:
    """The length of an axis."""
    if isinstance(axis, int):
        return axis
    if isinstance(axis, str):
        return sizes[axis]
    kind, *parts = axis
    return (sum if kind == "sum" else math.prod)(length(part, sizes) for part in parts)


def _offsets(lengths: Sequence[int]) -> list[int]:
    return [0, *itertools.accumulate(lengths)][:-1]


def pieces_of(a: np.ndarray, b: np.ndarray, axes: Sequence[Any], sizes: Mapping[str, int]) -> list[Piece]:
    """Cut a leaf where its axes are sums, and reshape it where they are products.

    Args:
        a: The leaf of the network that stays as it is.
        b: That of the other one.
        axes: What `permutation_spec` gives for them.
        sizes: Of the permutations.

    Returns:
        The pieces with at least one axis that can be permuted.
    """
    cuts = [_cuts(axis, size, sizes) for axis, size in zip(axes, a.shape, strict=True)]
    pieces = []
    for parts in itertools.product(*cuts):
        where = tuple(part for part, _ in parts)
        factors = [factor for _, own in parts for factor in own]
        names = tuple(name for name, _ in factors)
        shape = [n for _, n in factors]
        if any(names):
            pieces.append(Piece(a[where].reshape(shape), b[where].reshape(shape), names))
    return pieces


def _cuts(axis: Any, size: int, sizes: Mapping[str, int]) -> list[tuple[slice, list[tuple[str | None, int]]]]:
    """The summands of an axis: where each is, and its factors with their sizes."""
    if not isinstance(axis, tuple) or axis[0] != "sum":
        return [(slice(0, size), _factors(axis, size, sizes))]
    lengths = [length(part, sizes) for part in axis[1:]]
    cuts = []
    for part, offset, n in zip(axis[1:], _offsets(lengths), lengths, strict=True):
        for where, factors in _cuts(None if isinstance(part, int) else part, n, sizes):
            cuts.append((slice(offset + where.start, offset + where.stop), factors))
    return cuts


def _factors(axis: Any, size: int, sizes: Mapping[str, int]) -> list[tuple[str | None, int]]:
    if not isinstance(axis, tuple):
        return [(axis if isinstance(axis, str) else None, size)]
    if axis[0] == "sum":  # inside a product: it is left in its order
        return [(None, size)]
    return [factor for part in axis[1:] for factor in _factors(part, length(part, sizes), sizes)]


def match(pieces: Sequence[Piece], sizes: Mapping[str, int], rng: np.random.Generator) -> Permutations:
    """Permutations under which the inner product of both networks is large.

    The ascent begins twice, and the better end counts: at the order of b, so that the result is never farther from a
    than b is, and at `_by_sorted_weights`. From the order of b alone 3 of 10 permuted copies of a network with 16
    layers of 8 units are not recovered, since all other layers are in a wrong order when the first one is matched.

    Args:
        pieces: Of all leaves.
        sizes: Of the permutations.
        rng: Of the order in which they are improved.

    Returns:
        The permutations: entry i of the permuted network is entry ``p[i]`` of b.
    """
    by_name = {name: [piece for piece in pieces if name in piece.names] for name in sizes}
    starts = [{name: np.arange(size) for name, size in sizes.items()}, _by_sorted_weights(by_name, sizes)]
    return max((_ascend(start, by_name, pieces, rng) for start in starts), key=lambda end: _inner(pieces, end))


def _by_sorted_weights(by_name: Mapping[str, Sequence[Piece]], sizes: Mapping[str, int]) -> Permutations:
    """Permutations for which no other one needs to be known: units are alike when their sorted weights are."""
    permutations = {}  # those of a permuted copy of a, unless two units have the same weights
    for name, size in sizes.items():
        products = np.zeros((size, size))
        for piece in by_name[name]:
            a, b = (_sorted_weights(weights, piece.names, name) for weights in (piece.a, piece.b))
            products = products + a @ b.T
        permutations[name] = linear_sum_assignment(products, maximize=True)[1]
    return permutations


def _sorted_weights(weights: np.ndarray, names: Sequence[str | None], name: str) -> np.ndarray:
    """The weights of each unit, a row each: those that other permutations mix are sorted."""
    own = names.index(name)
    mixed = [axis for axis, other in enumerate(names) if other is not None and axis != own]
    ordered = [axis for axis, other in enumerate(names) if other is None]
    groups = weights.transpose([own, *ordered, *mixed])
    groups = groups.reshape(weights.shape[own], math.prod(weights.shape[axis] for axis in ordered), -1)
    return np.sort(groups, axis=-1).reshape(weights.shape[own], -1)


def _ascend(
    permutations: Permutations,
    by_name: Mapping[str, Sequence[Piece]],
    pieces: Sequence[Piece],
    rng: np.random.Generator,
) -> Permutations:
    """Improve one permutation after another until none changes: a local maximum of the inner product."""
    scale = sum(float(np.linalg.norm(piece.a) * np.linalg.norm(piece.b)) for piece in pieces)
    names, improved = list(permutations), True
    while improved:
        improved = False
        for name in rng.permutation(names):
            products = sum(_products(piece, name, permutations) for piece in by_name[name])
            if isinstance(products, int):
                continue
            best = linear_sum_assignment(products, maximize=True)[1]
            other = {**permutations, name: best}
            # Where a leaf has the same units twice, the assignment maximizes something else: only the truth counts.
            gain = _inner(by_name[name], other) - _inner(by_name[name], permutations)
            if gain > _GAIN * scale:
                permutations, improved = other, True
    return permutations


def _inner(pieces: Sequence[Piece], permutations: Permutations) -> float:
    """The inner product of both networks."""
    return sum(float(np.vdot(piece.a, _permuted(piece, permutations))) for piece in pieces)


def _permuted(piece: Piece, permutations: Permutations, but: int | None = None) -> np.ndarray:
    """The piece of b, each axis permuted but one."""
    b = piece.b
    for axis, name in enumerate(piece.names):
        if name is not None and axis != but:
            b = b.take(permutations[name], axis)
    return b


def _products(piece: Piece, name: str, permutations: Permutations) -> Any:
    """Inner products of each unit of a with each of b, where all other axes of b are permuted already."""
    total: Any = 0
    for own in (i for i, other in enumerate(piece.names) if other == name):
        both = (piece.a, _permuted(piece, permutations, own))
        a, b = (np.moveaxis(x, own, 0).reshape(x.shape[own], -1) for x in both)
        total = total + a @ b.T
    return total
