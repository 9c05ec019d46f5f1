"""A store that becomes one of more points, more metrics or a smaller tolerance, with all that it holds."""

import dataclasses
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from jaxscape.files import LOCK
from jaxscape.sweep._layout import DONE, Contents, Layout, ranges_of, stored_layout
from jaxscape.sweep._manifest import OWN, Manifest, difference, nodes_below, write_manifest
from jaxscape.sweep._tolerances import are_smaller

EXAMPLES = f"{OWN}/examples"
"""The folder in a store that has the values of single examples."""
_SAME = 1e-9  # of the least distance between two points: what rounding makes of a coordinate
_TOLERANCES = ("rtol", "atol")


def obstacles(manifest: Manifest, recipe: Mapping[str, Any], new: Layout) -> dict[str, str]:
    """What differs between a store and a recipe so that the store cannot be extended to it.

    A store can get a grid that has all of its points, further metrics beside those that it has, or smaller tolerances.

    Args:
        manifest: What the store says of itself.
        recipe: What the numbers of the larger one depend on.
        new: Where the rows of the larger one are.

    Returns:
        By name, in words.
    """
    before = manifest.recipe
    names = difference(manifest, recipe)
    sound = {"grid", "rows"} if places(stored_layout(manifest), new) is not None else set()
    if "rtol" not in before and all(_is_within(before.get(n), recipe.get(n)) for n in ("loss_fn", "variables")):
        sound |= {"loss_fn", "variables"}
    if all(n in before and n in recipe and are_smaller(recipe[n], before[n]) for n in _TOLERANCES):
        sound |= set(_TOLERANCES)
    return {name: text for name, text in names.items() if name not in sound}


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
    points = old.grid.points()
    center = np.zeros((old.rows - len(points), points.shape[1]))  # params itself, if it is a row of its own
    rows = rows_at(new, np.concatenate([points, center]))
    return rows if (rows >= 0).all() else None


def rows_at(layout: Layout, coords: Float[np.ndarray, "points axes"]) -> Int[np.ndarray, "points"]:
    """The rows of some coordinates.

    Args:
        layout: Where the rows are.
        coords: Coordinates.

    Returns:
        For each the number of its row; -1 where there is none.
    """
    indices, there = [], np.ones(len(coords), bool)
    for axis, column in zip(layout.grid.axes, coords.T, strict=True):
        order = np.argsort(axis)
        ascending = axis[order]
        spacing = np.diff(ascending).min() if len(axis) > 1 else 1.0
        place = np.clip(np.searchsorted(ascending, column - _SAME * spacing), 0, len(axis) - 1)
        there &= np.abs(ascending[place] - column) <= _SAME * spacing
        indices.append(order[place])
    num = int(np.prod(layout.grid.shape))
    center = num if layout.rows > num else -1
    outside = np.where((coords == 0).all(1), center, -1)
    return np.where(there, np.ravel_multi_index(indices, layout.grid.shape), outside)


def extend(
    path: Path,
    old: Manifest,
    contents: Contents,
    manifest: Manifest,
    new: Layout,
    long_names: Mapping[str, str],
) -> None:
    """Replace a store by a larger one that holds its rows; a crash leaves the one or the other.

    The points of a store with a tolerance stay as they are, with their errors, but they are not done any more.

    Args:
        path: The folder, locked.
        old: What it says of itself.
        contents: What is there of its rows.
        manifest: What the larger one says of itself; there are no `obstacles`.
        new: Where the rows of the larger one are.
        long_names: What a variable is, for plots.
    """
    rows, (columns, there, _) = places(stored_layout(old), new), new.empty()
    for name, mask in contents.there.items():
        columns[name][rows], there[name][rows] = contents.columns[name], mask
    if "rtol" not in manifest.recipe:
        columns[DONE] = np.all(list(there.values()), axis=0)
    earlier = {name: ranges_of(mask & ~columns[DONE]) for name, mask in there.items() if (mask & ~columns[DONE]).any()}
    larger, _ = _beside(path)
    shutil.rmtree(larger, ignore_errors=True)
    new.create(larger, long_names)
    for name, column in columns.items():
        mask = there.get(name, columns[DONE])
        new.write(larger, name, [share for share in new.shares if mask[share].any()], column)
    nodes = nodes_below(larger)
    write_manifest(larger, dataclasses.replace(manifest, nodes=nodes, complete=False, earlier=earlier))
    shutil.copy(path / OWN / LOCK, larger / OWN / LOCK)
    _replace(path)


def recover(path: Path) -> None:
    """Put a store in its place that a crash has left beside it while it was extended."""
    if _is_between(path):
        _replace(path)


def found(path: Path) -> Path:
    """Where a store is: in its place, or beside it if a crash has left it there while it was extended."""
    return _beside(path)[0] if _is_between(path) else path


def remove_smaller(path: Path) -> None:
    """Remove what a crash has left of the store before an extension.

    Args:
        path: The folder, locked.
    """
    if os.path.exists(before := _beside(path)[1]):
        shutil.rmtree(before, ignore_errors=True)


def _is_between(path: Path) -> bool:
    return not path.exists() and all(map(os.path.exists, _beside(path)))


def _beside(path: Path) -> tuple[Path, Path]:
    """Where a larger store is made, and where the one before goes."""
    return path.with_name(f".{path.name}.larger"), path.with_name(f".{path.name}.smaller")


def _replace(path: Path) -> None:
    """Put the larger store, which is whole, in the place of the one before; goes on from wherever it was cut off."""
    larger, before = _beside(path)
    if path.exists():
        shutil.rmtree(before, ignore_errors=True)
        path.rename(before)
    if (before / EXAMPLES).exists():
        (before / EXAMPLES).rename(larger / EXAMPLES)
    larger.rename(path)
    shutil.rmtree(before)


def _is_within(few: Any, many: Any) -> bool:
    """Whether each item of a mapping is in another one."""
    return isinstance(few, Mapping) and isinstance(many, Mapping) and few.items() <= many.items()
