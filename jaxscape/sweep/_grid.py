"""From directions and a grid to points, and from columns over points to a dataset."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from jaxscape.directions import Directions, as_directions, random_directions
from jaxscape.grid import Grid
from jaxscape.types import Params


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
        ValueError: Their numbers differ, there is no default grid, or a direction is not like params.
    """
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
