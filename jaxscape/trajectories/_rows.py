"""A matrix that does not fit in memory: it is written to a file row by row, and read in blocks of columns."""

from collections.abc import Iterator
from typing import IO, Any

import numpy as np


class Rows:
    """The rows of a matrix in a file; all have the same length and dtype."""

    def __init__(self, file: IO[bytes], columns: int, dtype: Any) -> None:
        """Begin an empty matrix in an empty file that is open for reading and writing."""
        self.columns, self.dtype = columns, np.dtype(dtype)
        self._file, self._count = file, 0

    def __len__(self) -> int:
        return self._count

    def append(self, row: np.ndarray) -> None:
        """Write one more row."""
        self._file.seek(0, 2)
        self._file.write(np.ascontiguousarray(row, self.dtype).data)
        self._count += 1

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield blocks of neighbouring columns with all rows; a block is about half as large as a row."""
        width = max(1, self.columns // (2 * len(self)))
        for start in range(0, self.columns, width):
            block = np.empty((len(self), min(width, self.columns - start)), self.dtype)
            for i, part in enumerate(block):
                self._file.seek((i * self.columns + start) * self.dtype.itemsize)
                self._file.readinto(part.data)  # type: ignore[attr-defined]
            yield block
