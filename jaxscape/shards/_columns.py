"""How arrays become a row of numbers on this process, and rows become arrays again.

Arrays that are whole on a device are a row on every process alike. Of arrays that are cut over devices each process has
the parts that its devices hold: the rows of the processes together are the arrays. A part that several processes hold
counts on one of them.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxscape.shards._mesh import is_cut, mesh_and_spec

Index = tuple[tuple[int, int], ...]


class Piece(NamedTuple):
    """A part of an array.

    Attributes:
        array: Which array.
        bounds: Where it starts and stops along each axis.
        counted: Whether it counts on this process.
    """

    array: int
    bounds: Index
    counted: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return tuple(stop - start for start, stop in self.bounds)


class Columns:
    """The columns of the rows on this process, those that count on it first.

    Attributes:
        mesh: The one that arrays are cut over; None: all are whole.
        count: How many columns there are.
        counted: How many of them count on this process.
    """

    def __init__(self, arrays: Sequence[Any], mesh: Mesh | None) -> None:
        """The columns of some arrays.

        Args:
            arrays: All later ones have their shapes, and are cut as they are.
            mesh: The one that some of them are cut over; None: all are whole.
        """
        self.mesh = mesh
        pieces = [piece for i, array in enumerate(arrays) for piece in _pieces(i, array)]
        self._pieces = sorted(pieces, key=lambda piece: not piece.counted)
        self._shapes = [np.shape(array) for array in arrays]
        self._places = [_place_of(array, mesh) for array in arrays]
        sizes = [math.prod(piece.shape) for piece in self._pieces]
        self._stops = np.cumsum(sizes, dtype=int)
        self.count = sum(sizes)
        self.counted = sum(size for size, piece in zip(sizes, self._pieces, strict=True) if piece.counted)

    def row(self, arrays: Sequence[Any], dtype: Any) -> np.ndarray:
        """The row of some arrays, part by part: none that is cut is put together."""
        parts = [_part(arrays[piece.array], piece.bounds) for piece in self._pieces]
        return np.concatenate([part.reshape(-1).astype(dtype, copy=False) for part in parts])

    def summed(self, own: np.ndarray) -> np.ndarray:
        """The sum over all processes of what each has of its own columns."""
        return gather(own).sum(0) if self.mesh is not None else own

    def arrays(self, rows: np.ndarray) -> list[jax.Array]:
        """The arrays of a row, or those of rows ``(num, columns)`` with a leading axis, where they were."""
        lead = rows.shape[:-1]
        parts: dict[tuple[int, Index], np.ndarray] = {}
        for piece, part in zip(self._pieces, np.split(rows, self._stops[:-1], axis=-1), strict=True):
            parts[piece.array, piece.bounds] = part.reshape((*lead, *piece.shape))
        arrays: list[jax.Array] = []
        for i, (shape, place) in enumerate(zip(self._shapes, self._places, strict=True)):
            if self.mesh is not None:

                def part_of(index: Any, i: int = i, shape: tuple[int, ...] = shape) -> np.ndarray:
                    return parts[i, _bounds(index[len(lead) :], shape)]

                where = NamedSharding(self.mesh, PartitionSpec(*(None,) * len(lead), *place))
                arrays.append(jax.make_array_from_callback((*lead, *shape), where, part_of))
            else:
                whole = parts[i, _bounds((slice(None),) * len(shape), shape)]
                arrays.append(jnp.asarray(whole) if place is None else jax.device_put(whole, place))
        return arrays


def gather(array: np.ndarray) -> np.ndarray:
    """The arrays of all processes, which have one shape and dtype: shape ``(processes, ...)``."""
    if jax.process_count() == 1:
        return array[None]
    # As bytes: JAX would round float64.
    parts = multihost_utils.process_allgather(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    return np.asarray(parts).view(array.dtype).reshape(-1, *array.shape)


def _place_of(array: Any, mesh: Mesh | None) -> Any:
    """Where an array is: how it is cut over the mesh, its only device, or None: the default device."""
    if mesh is None:
        sharding = getattr(array, "sharding", None)
        return sharding if isinstance(sharding, jax.sharding.SingleDeviceSharding) else None
    return mesh_and_spec(array)[1] if is_cut(array) else PartitionSpec()


def _pieces(number: int, array: Any) -> list[Piece]:
    """The different parts of an array on this process."""
    if not is_cut(array):
        here = not _on_mesh(array) or _is_first(array)
        return [Piece(number, _bounds((slice(None),) * np.ndim(array), np.shape(array)), here)]
    counted: dict[Index, bool] = {}
    for shard in array.addressable_shards:
        index = _bounds(shard.index, array.shape)
        counted[index] = counted.get(index, False) or shard.replica_id == 0
    return [Piece(number, index, own) for index, own in counted.items()]


def _on_mesh(array: Any) -> bool:
    return isinstance(array, jax.Array) and isinstance(array.sharding, NamedSharding)


def _is_first(array: jax.Array) -> bool:
    """Whether this process has the first copy of an array that is whole on each device of a mesh."""
    return any(shard.replica_id == 0 for shard in array.addressable_shards)


def _part(array: Any, index: Index) -> np.ndarray:
    if not is_cut(array) or all(bounds == (0, n) for bounds, n in zip(index, array.shape, strict=True)):
        return np.asarray(array)
    shards = (shard for shard in array.addressable_shards if _bounds(shard.index, array.shape) == index)
    return np.asarray(next(shards).data)


def _bounds(index: Any, shape: tuple[int, ...]) -> Index:
    return tuple((part.indices(length)[:2]) for part, length in zip(index, shape, strict=True))
