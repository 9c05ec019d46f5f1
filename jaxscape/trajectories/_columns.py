"""How a checkpoint becomes a row of numbers on this process, and a row becomes directions again.

Leaves that are whole on a device are a row on every process alike. Of leaves that are cut over devices each process
has the parts that its devices hold: the rows of the processes together are the checkpoint. A part that several
processes hold counts on one of them.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxscape.objective import gather
from jaxscape.shards import is_cut
from jaxscape.subspace import Subspace
from jaxscape.types import Params

Index = tuple[tuple[int, int], ...]


class Piece(NamedTuple):
    """A part of a leaf.

    Attributes:
        leaf: Which free leaf.
        bounds: Where it starts and stops along each axis.
        counted: Whether it counts on this process.
    """

    leaf: int
    bounds: Index
    counted: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return tuple(stop - start for start, stop in self.bounds)


class Columns:
    """The columns of the rows on this process, those that count on it first.

    Attributes:
        subspace: The leaves that are in a row.
        count: How many columns there are.
        counted: How many of them count on this process.
    """

    def __init__(self, subspace: Subspace, params: Params) -> None:
        """The columns of a checkpoint.

        Args:
            subspace: The leaves that are in a row.
            params: A checkpoint: all are cut alike.
        """
        self.subspace = subspace
        pieces = [piece for i, leaf in enumerate(self._free(params)) for piece in _pieces(i, leaf)]
        self._pieces = sorted(pieces, key=lambda piece: not piece.counted)
        sizes = [int(np.prod(piece.shape)) for piece in self._pieces]
        self._stops = np.cumsum(sizes, dtype=int)
        self.count = sum(sizes)
        self.counted = sum(size for size, piece in zip(sizes, self._pieces, strict=True) if piece.counted)

    def row(self, params: Params) -> np.ndarray:
        """The row of a checkpoint, part by part: no leaf that is cut is put together."""
        leaves, dtype = self._free(params), self.subspace.dtype
        parts = [_part(leaves[piece.leaf], piece.bounds) for piece in self._pieces]
        return np.concatenate([part.reshape(-1).astype(dtype, copy=False) for part in parts])

    def summed(self, own: np.ndarray) -> np.ndarray:
        """The sum over all processes of what each has of its own columns."""
        return gather(own).sum(0) if self.subspace.mesh is not None else own

    def basis(self, rows: np.ndarray) -> Params:
        """A pytree like params with a leading axis, of rows ``(num, columns)``; cut as params are."""
        if self.subspace.mesh is None:
            return jax.vmap(self.subspace.embed)(jnp.asarray(rows))
        found: dict[tuple[int, Index], np.ndarray] = {}
        for piece, part in zip(self._pieces, np.split(rows, self._stops[:-1], axis=1), strict=True):
            found[piece.leaf, piece.bounds] = part.reshape(len(rows), *piece.shape)
        leaves: list[Any] = []
        free = 0
        table = zip(
            self.subspace.shapes, self.subspace.dtypes, self.subspace.specs or (), self.subspace.free, strict=True
        )
        for shape, dtype, spec, is_free in table:
            sharding = NamedSharding(self.subspace.mesh, PartitionSpec(None, *spec))
            whole = (len(rows), *shape)
            if is_free:

                def part_of(index: Any, number: int = free, shape: tuple[int, ...] = shape) -> np.ndarray:
                    return found[number, _bounds(index[1:], shape)]

                leaves.append(jax.make_array_from_callback(whole, sharding, part_of))
                free += 1
            else:
                leaves.append(jnp.zeros(whole, jnp.promote_types(dtype, jnp.float32), device=sharding))
        return jax.tree.unflatten(self.subspace.treedef, leaves)

    def _free(self, params: Params) -> list[Any]:
        return [x for x, free in zip(jax.tree.leaves(params), self.subspace.free, strict=True) if free]


def _pieces(number: int, leaf: Any) -> list[Piece]:
    """The different parts of a leaf on this process."""
    if not is_cut(leaf):
        here = not _on_mesh(leaf) or _is_first(leaf)
        return [Piece(number, _bounds((slice(None),) * np.ndim(leaf), np.shape(leaf)), here)]
    counted: dict[Index, bool] = {}
    for shard in leaf.addressable_shards:
        index = _bounds(shard.index, leaf.shape)
        counted[index] = counted.get(index, False) or shard.replica_id == 0
    return [Piece(number, index, own) for index, own in counted.items()]


def _on_mesh(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and isinstance(leaf.sharding, NamedSharding)


def _is_first(leaf: jax.Array) -> bool:
    """Whether this process has the first copy of a leaf that is whole on each device of a mesh."""
    return any(shard.replica_id == 0 for shard in leaf.addressable_shards)


def _part(leaf: Any, index: Index) -> np.ndarray:
    if not is_cut(leaf) or all(bounds == (0, n) for bounds, n in zip(index, leaf.shape, strict=True)):
        return np.asarray(leaf)
    shards = (shard for shard in leaf.addressable_shards if _bounds(shard.index, leaf.shape) == index)
    return np.asarray(next(shards).data)


def _bounds(index: Any, shape: tuple[int, ...]) -> Index:
    return tuple((part.indices(length)[:2]) for part, length in zip(index, shape, strict=True))
