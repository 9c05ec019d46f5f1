"""A store of a larger or finer grid, from one whose points are all among its own."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from jaxscape.files import LOCK
from jaxscape.sweep._layout import DONE, Layout
from jaxscape.sweep._manifest import OWN, Manifest, nodes_below, plain, write_manifest

_SAME = 1e-9  # of the least distance between two points: what rounding makes of a coordinate


def places(old: Layout, new: Layout) -> np.ndarray | None:
    """Where the rows of a store are in a larger one.

    Args:
        old: The layout of the store.
        new: That of the larger one.

    Returns:
        For each row the number of the row with the same coordinates; None where a point is in the store only.
    """
    if old.grid.names != new.grid.names:
        return None
    indices = [_indices(a, b) for a, b in zip(old.grid.axes, new.grid.axes, strict=True)]
    if any(index is None for index in indices):
        return None
    shape = new.grid.shape
    rows = np.ravel_multi_index(np.meshgrid(*indices, indexing="ij"), shape).ravel()
    if old.rows > len(rows):  # params itself
        center = np.flatnonzero((new.grid.points() == 0).all(1))
        rows = np.append(rows, center[0] if center.size else int(np.prod(shape)))
    return rows


def extend(path: Path, old: Manifest, layout: Layout, recipe: Mapping[str, object], new: Layout) -> Manifest:
    """Replace a store by a larger one that holds its rows; a crash leaves the one or the other.

    Args:
        path: The folder, locked.
        old: What it says of itself.
        layout: Where its rows are.
        recipe: That of the larger one.
        new: Where the rows of the larger one are.

    Returns:
        What the folder says of itself now.
    """
    columns, _ = layout.read_all(path, old.complete)
    rows, values = places(layout, new), new.empty()
    for name, column in columns.items():
        values[name][rows] = column
    larger, before = (path.with_name(f".{path.name}.{state}") for state in ("larger", "smaller"))
    shutil.rmtree(larger, ignore_errors=True)
    names = {name: node["attributes"].get("long_name", "") for name, node in old.nodes.items() if name in new.kinds}
    new.create(larger, {name: text for name, text in names.items() if text})
    shares = [share for share in new.shares if values[DONE][share].any()]
    for name, column in values.items():
        new.write(larger, name, shares, column)
    manifest = Manifest(plain(recipe), old.attrs, new.chunk, nodes_below(larger), old.notes)
    write_manifest(larger, manifest)
    shutil.copy(path / OWN / LOCK, larger / OWN / LOCK)
    shutil.rmtree(before, ignore_errors=True)
    path.rename(before)
    larger.rename(path)
    shutil.rmtree(before)
    return manifest


def recover(path: Path) -> None:
    """Put a store back in its place that a crash has left aside while it was extended."""
    before = path.with_name(f".{path.name}.smaller")
    if before.exists() and not path.exists():
        before.rename(path)


def _indices(few: np.ndarray, many: np.ndarray) -> np.ndarray | None:
    """Where each coordinate is among others; None where one is not."""
    spacing = np.diff(np.sort(many)).min() if len(many) > 1 else 1.0
    nearest = np.abs(many[None] - few[:, None]).argmin(1)
    return nearest if (np.abs(many[nearest] - few) <= _SAME * spacing).all() else None
