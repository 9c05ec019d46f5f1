"""A Krylov basis in the memory of the host: a device then holds a few vectors, however many the basis has.

NumPy multiplies it where it is, in blocks of columns, with sums in float64. To move a basis of 30 vectors to the device
and back for each product would take longer: the host's memory is faster than its way to the device. Each process has
the parts of the vectors that its own devices have, and the inner products are summed over all processes.
"""

from collections.abc import Iterator

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array

from jaxscape.linalg import _vectors as vectors
from jaxscape.shards import Columns, put
from jaxscape.types import Vector

_COLUMNS = 2**16  # at once: 40 rows in float32 take 10 MB, near what the caches hold


class HostBasis:
    """Rows of equal shape, each a vector; all arithmetic is NumPy's."""

    def __init__(self, like: Vector, rows: int, mesh: Mesh | None, specs: vectors.Specs) -> None:
        """Begin with rows of zeros.

        Args:
            like: A vector: all rows have its shape and dtype.
            rows: How many.
            mesh: The one that vectors are cut over; None: they are whole.
            specs: How each leaf of a vector is cut.
        """
        self._shardings = [NamedSharding(mesh, spec) for spec in specs or ()] if mesh is not None else None
        self._columns, self._structure = Columns(self._leaves(like), mesh), jax.tree.structure(like)
        self.dtype = vectors.dtype(like)
        self._rows = np.zeros((rows, self._columns.count), self.dtype)

    def put(self, row: int, vector: Vector) -> None:
        """Make a vector one of the rows."""
        self._rows[row] = self._flat(vector)

    def outside(self, vector: Vector, known: int) -> tuple[Vector, np.ndarray]:
        """What a vector has outside of the first rows, which are orthonormal, and its coordinates in them.

        Args:
            vector: The vector.
            known: How many rows.

        Returns:
            The rest, and as many coordinates as there are rows, 0 from ``known`` on.
        """
        rest = self._flat(vector).astype(np.float64)
        within = np.zeros(len(self._rows))
        for _ in range(2):  # twice is enough against rounding
            part = self._coordinates(rest, known)
            for columns in self._blocks():
                rest[columns] -= part @ self._rows[:known, columns]
            within[:known] += part
        return self._vector(rest), within.astype(self._rows.dtype)

    def combined(self, weights: Array) -> Vector:
        """Sums of the rows, with weights ``(k, rows)``: a basis on the device."""
        sums = np.empty((len(weights), self._rows.shape[1]), self._rows.dtype)
        for columns in self._blocks():
            sums[:, columns] = self._combined(weights, columns)
        return jax.tree.unflatten(self._structure, self._columns.arrays(sums))

    def combine(self, weights: Array) -> None:
        """Replace the first rows by sums of all rows, with weights ``(k, rows)``."""
        for columns in self._blocks():
            self._rows[: len(weights), columns] = self._combined(weights, columns)

    def _combined(self, weights: Array, columns: slice) -> np.ndarray:
        return np.asarray(weights, np.float64) @ self._rows[:, columns]

    def _coordinates(self, flat: np.ndarray, known: int) -> np.ndarray:
        own = np.zeros(known)
        for columns in self._blocks(self._columns.counted):
            own += self._rows[:known, columns] @ flat[columns]
        return self._columns.summed(own)

    def _blocks(self, stop: int | None = None) -> Iterator[slice]:
        stop = self._rows.shape[1] if stop is None else stop
        return (slice(start, min(start + _COLUMNS, stop)) for start in range(0, stop, _COLUMNS))

    def _flat(self, vector: Vector) -> np.ndarray:
        return self._columns.row(self._leaves(vector), self._rows.dtype)

    def _leaves(self, vector: Vector) -> list[Array]:
        """The leaves, cut as they should be: a compiled program may have cut them otherwise."""
        leaves = jax.tree.leaves(vector)
        if self._shardings is None:
            return leaves
        return [put(x, sharding) for x, sharding in zip(leaves, self._shardings, strict=True)]

    def _vector(self, flat: np.ndarray) -> Vector:
        return jax.tree.unflatten(self._structure, self._columns.arrays(flat.astype(self._rows.dtype)))
