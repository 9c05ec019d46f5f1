"""How the rows of a result lie in a folder: the arrays, their chunks and their files."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxscape.grid import Grid
from jaxscape.sweep._arrays import create_array, fill, open_array, whole_array
from jaxscape.sweep._manifest import OWN, Manifest, make_own_group

DONE = "done"
"""The array that says which points are there."""


class Contents(NamedTuple):
    """What is there of the rows of a store.

    Attributes:
        columns: An array for each variable, DONE the last of them.
        there: For each other variable a mask of the rows where it is: those that are done, and maybe more.
        damaged: The files that are damaged or missing. A row that needs one of them is not done.
    """

    columns: dict[str, np.ndarray]
    there: dict[str, np.ndarray]
    damaged: list[str]


@dataclass(frozen=True)
class Layout:
    """Rows, one for each point of a grid and maybe one more for params itself, as arrays in chunks.

    Attributes:
        grid: The coordinates.
        rows: The number of points of the grid, or one more.
        chunk: Points that share a file, at most.
        kinds: For each variable its dtype and the further axes of a row.
    """

    grid: Grid
    rows: int
    chunk: int
    kinds: Mapping[str, tuple[np.dtype, tuple[int, ...]]]

    @classmethod
    def of(cls, grid: Grid, columns: Mapping[str, np.ndarray], chunk: int) -> "Layout":
        """The layout of columns with a row for each point.

        Args:
            grid: The coordinates.
            columns: An array for each variable, rows along its first axis.
            chunk: Points that share a file, at most.

        Returns:
            The layout.
        """
        kinds = {name: (column.dtype, column.shape[1:]) for name, column in columns.items()}
        rows = len(next(iter(columns.values())))
        return cls(grid, rows, chunk, {**kinds, DONE: (np.dtype(bool), ())})

    @property
    def shares(self) -> list[slice]:
        """The rows of each chunk: whole lines, planes ..., and a part of the axis before them, one after another."""
        num = int(np.prod(self.grid.shape))
        numbers = np.arange(num).reshape(self.grid.shape)
        starts = numbers[tuple(slice(None, None, step) for step in self.chunk_shape)].ravel().tolist()
        return [slice(a, b) for a, b in itertools.pairwise([*starts, *range(num, self.rows), self.rows])]

    @property
    def chunk_shape(self) -> tuple[int, ...]:
        """The points of a chunk along each axis: as many as fit along the last axes, 1 along the first."""
        left, steps = self.chunk, []
        for length in reversed(self.grid.shape):
            steps.append(min(left, length))
            left = left // length if steps[-1] == length else 1
        return tuple(max(step, 1) for step in reversed(steps))

    def empty(self) -> Contents:
        """No row at all: NaN, or 0 where there is no NaN."""
        columns = {name: np.full((self.rows, *more), fill(kind)) for name, (kind, more) in self.kinds.items()}
        return Contents(columns, {name: np.zeros(self.rows, bool) for name in columns if name != DONE}, [])

    def create(self, folder: Path, long_names: Mapping[str, str]) -> None:
        """Make the arrays, and those of the coordinates.

        Args:
            folder: Where.
            long_names: What a variable is, for plots.
        """
        names, shape = self.grid.names, self.grid.shape
        for name, axis in zip(names, self.grid.axes, strict=True):
            create_array(folder / name, (name,), axis.shape, axis.shape, axis.dtype, {})[:] = axis
        make_own_group(folder)
        for name, (kind, more) in self.kinds.items():
            attrs: dict[str, Any] = {"long_name": long_names[name]} if name in long_names else {}
            if np.issubdtype(kind, np.integer):
                attrs["_FillValue"] = 0  # then xarray gives NaN where a point is missing
            dims = (*names, "row", "column")[: len(names) + len(more)]
            chunks = (*self.chunk_shape, *more)
            create_array(folder / name, dims, (*shape, *more), chunks, kind, attrs)
            if self.rows > np.prod(shape):  # what was computed at params, which the grid lacks
                create_array(folder / OWN / name, None, (1, *more), (1, *more), kind, attrs)

    def mend_axes(self, folder: Path) -> list[str]:
        """Write coordinates anew that are damaged or missing.

        Args:
            folder: Where.

        Returns:
            Their files.
        """
        damaged = self.damaged_axes(folder)
        for name, axis in zip(self.grid.names, self.grid.axes, strict=True):
            if f"{name}/c/0" in damaged:
                open_array(folder / name, write=True)[:] = axis
        return damaged

    def damaged_axes(self, folder: Path) -> list[str]:
        """The files of coordinates that are damaged or missing."""
        return [
            f"{name}/c/0"
            for name, axis in zip(self.grid.names, self.grid.axes, strict=True)
            if not np.array_equal(whole_array(folder / name), axis)
        ]

    def place(self, name: str, share: slice) -> tuple[str, tuple[slice, ...], str]:
        """Where a variable's values of a share are.

        Args:
            name: The variable.
            share: One of `shares`.

        Returns:
            The path of the array, its part, and the path of the file.
        """
        more = self.kinds[name][1]
        zeros = "/0" * len(more)
        if share.start >= np.prod(self.grid.shape):
            return f"{OWN}/{name}", (slice(None),), f"{OWN}/{name}/c/0{zeros}"
        first = [int(i) for i in np.unravel_index(share.start, self.grid.shape)]
        steps = self.chunk_shape
        part = tuple(slice(i, min(i + step, n)) for i, step, n in zip(first, steps, self.grid.shape, strict=True))
        number = "/".join(str(i // step) for i, step in zip(first, steps, strict=True))
        return name, part, f"{name}/c/{number}{zeros}"

    def write(self, folder: Path, name: str, shares: Sequence[slice], column: np.ndarray) -> None:
        """Write a variable's values of some shares, each in one step.

        Args:
            folder: Where.
            name: The variable.
            shares: Some of `shares`.
            column: The values of all rows.
        """
        arrays: dict[str, Any] = {}
        for share in shares:
            path, part, _ = self.place(name, share)
            if path not in arrays:
                arrays[path] = open_array(folder / path, write=True)
            arrays[path][part] = column[share].reshape(*self._lengths(part), *column.shape[1:])

    def _lengths(self, part: tuple[slice, ...]) -> tuple[int, ...]:
        """The lengths of a part along the axes of the grid."""
        return tuple(1 if axis == slice(None) else axis.stop - axis.start for axis in part)

    def read(self, folder: Path, name: str, wanted: np.ndarray | None = None) -> tuple[np.ndarray, list[str]]:
        """Read a variable.

        Args:
            folder: Where.
            name: The variable.
            wanted: Which rows must be there; None: those whose files exist.

        Returns:
            The column, and the files that are damaged, or missing though such a row is in it.
        """
        kind, more = self.kinds[name]
        column = np.full((self.rows, *more), fill(kind))
        arrays: dict[str, Any] = {}
        damaged = []
        for share in self.shares:
            path, part, file = self.place(name, share)
            exists = (folder / file).is_file()
            if not (exists if wanted is None else wanted[share].any()):
                continue
            try:
                if path not in arrays:
                    arrays[path] = open_array(folder / path)
                column[share] = arrays[path][part].reshape(-1, *more)
            except Exception:  # noqa: BLE001  # zarr has no common class for what is broken
                exists = False
            if not exists:  # zarr would read a missing file as the fill value
                damaged.append(file)
        return column, damaged

    def read_all(self, folder: Path, manifest: Manifest) -> Contents:
        """Read all rows that are there.

        Args:
            folder: Where.
            manifest: What the folder says of itself.

        Returns:
            What is there, and which files are damaged.
        """
        done, damaged = self.read(folder, DONE, np.ones(self.rows, bool) if manifest.complete else None)
        there = {name: mask_of(manifest.earlier.get(name, []), self.rows) for name in self.kinds if name != DONE}
        columns = {}
        for name in there:
            columns[name], files = self.read(folder, name, done | there[name])
            damaged += files
        for share in self.shares:
            lost = [name for name in self.kinds if self.place(name, share)[2] in damaged]
            done[share] &= not lost
            for name in there:
                there[name][share] &= name not in lost
        return Contents({**columns, DONE: done}, {name: mask | done for name, mask in there.items()}, damaged)


def mask_of(ranges: Sequence[Sequence[int]], rows: int) -> np.ndarray:
    """A mask of rows, from ranges ``[first, last + 1]``."""
    mask = np.zeros(rows, bool)
    for first, stop in ranges:
        mask[first:stop] = True
    return mask


def ranges_of(mask: np.ndarray) -> list[list[int]]:
    """The ranges of `mask_of`."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(int), [0]])))
    return edges.reshape(-1, 2).tolist()


def stored_layout(manifest: Manifest) -> Layout:
    """Where the rows of a store are.

    Args:
        manifest: What its folder says of itself.

    Returns:
        The layout.
    """
    grid = Grid(tuple(np.asarray(axis) for axis in manifest.recipe["grid"].values()))
    kinds = {name: (np.dtype(kind), tuple(more)) for name, (kind, more) in manifest.recipe["variables"].items()}
    return Layout(grid, manifest.recipe["rows"], manifest.chunk, kinds)
