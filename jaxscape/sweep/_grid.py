"""From directions and a grid to points, and from columns over points to a dataset."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from jaxscape import checks
from jaxscape.directions import Directions, as_directions, random_directions
from jaxscape.grid import Grid
from jaxscape.sweep._layout import DONE
from jaxscape.sweep._manifest import NODE, OWN
from jaxscape.types import Params

_FOLDER = re.compile(r"[^./\\\0][^/\\\0]*")
_LONGEST = 200  # bytes of a name; file systems take 255


def on_grid(directions: Any, grid: Grid | None, params: Params, seed: int) -> tuple[Directions, Grid]:
    """The directions and coordinates of a result, as the caller gave them or by default.

    Args:
        directions: What `as_directions` takes; None: random filter-normalized ones, as many as the grid has axes.
        grid: None: 51x51 points over [-1, 1] for two directions and 401 for one.
        params: What the directions must be like.
        seed: Of random directions.

    Returns:
        As many directions as the grid has axes.

    Raises:
        ValueError: Their numbers differ, there is no default grid, a direction is not like params, or the seed is
            negative.
        TypeError: The grid is no `Grid`, or the seed is no integer.
    """
    if grid is not None and not isinstance(grid, Grid):
        raise TypeError(
            f"grid is {type(grid).__name__}, expected a js.Grid: js.Grid.line(-1, 1, 51), js.Grid.plane((-1, 1, 51), "
            "(-1, 1, 51)), or js.Grid((array, ...)) with an array of coordinates for each direction."
        )
    checks.check_count(seed, "seed", 0)
    if directions is None:
        directions = random_directions(seed, params, num=len(grid.axes) if grid else 2)
    directions = as_directions(directions, params)
    if grid is None and len(directions) > 2:
        raise ValueError(
            f"grid is missing: {len(directions)} directions have no default grid; pass e.g. js.Grid(axes)."
        )
    grid = grid or (Grid.line() if len(directions) == 1 else Grid.plane())
    if len(grid.axes) != len(directions):
        raise ValueError(
            f"grid has {len(grid.axes)} axes for {len(directions)} directions; expected one axis for each direction."
        )
    return directions, grid


def check_names(metrics: Sequence[str], reserved: Sequence[str], *, stored: bool = False) -> None:
    """Refuse metrics whose names the result needs for something else, or a store could not have as folders.

    Args:
        metrics: The names of all variables that the loss gives.
        reserved: The names of axes and of further variables of the result.
        stored: Whether the result goes into a store.

    Raises:
        ValueError: A metric has one of these names, or that of the standard error of another metric, or two metrics
            have the same name; or a name could be no folder.
    """
    taken = dict.fromkeys((*reserved, "num_examples", DONE), "a name of jaxscape's own")
    taken |= {f"{name}_stderr": f"the standard error of {name!r}" for name in metrics}
    taken |= {name: "also a metric of another term" for name in metrics if metrics.count(name) > 1}
    for name in metrics:
        if name in taken:
            raise ValueError(f"loss_fn returned a metric named {name!r}, which is {taken[name]}; give it another name.")
        if stored and (not _FOLDER.fullmatch(name) or name in (OWN, NODE) or len(name.encode()) > _LONGEST):
            raise ValueError(
                f"loss_fn returned a metric named {name!r}, which a store cannot have: each metric is a folder there. "
                "Leave out slashes, a dot in front, and the names 'jaxscape' and 'zarr.json'; or leave out store."
            )


def to_dataset(columns: Mapping[str, np.ndarray], grid: Grid, long_names: Mapping[str, str]) -> xr.Dataset:
    """Lay columns out on their grid.

    Args:
        columns: For each variable its values, points along the first axis; further axes are named ``row``, ``column``.
        grid: The coordinates.
        long_names: What a variable is, for plots.

    Returns:
        The dataset, without attributes.
    """
    variables = {}
    for name, column in columns.items():
        dims = (*grid.names, "row", "column")[: len(grid.names) + column.ndim - 1]
        attrs = {"long_name": long_names[name]} if name in long_names else {}
        variables[name] = (dims, column.reshape(*grid.shape, *column.shape[1:]), attrs)
    return xr.Dataset(variables, dict(zip(grid.names, grid.axes, strict=True)))
