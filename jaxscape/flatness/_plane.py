"""Measures of a sampled line or plane: how large its level set is, and where it is not convex."""

import math
from typing import Any

import contourpy
import numpy as np
import pandas as pd
import scipy
import xarray as xr

from jaxscape.arguments import checked
from jaxscape.flatness._notes import joined

_BORDER = "it reaches the border: a lower bound"


@checked
def plane_measures(result: xr.Dataset, *, level: float = 0.1, metric: str = "loss") -> pd.DataFrame:
    """Measures of a line or plane around a minimizer, a row each.

    The level set has all points whose loss is at most ``level`` above that of the center.

    - ``level_set_area`` (of a plane): its area, in units of the coordinates; with filter-normalized directions a
      coordinate of 1 is the norm of the weights.
    - ``width_alpha``, ``width_beta``: its width along each axis through the center, between the first crossings.
    - ``negative_curvature``: the share of the inner points with a negative curvature in some direction of the plane:
      the smaller eigenvalue of the 2x2 matrix of second differences is negative by more than rounding of the loss in
      float32, and with ``rtol`` by more than 3 standard errors. An `eigenvalue_map` that has ``min_eigenvalue`` gives
      the share of the points at which the whole Hessian has a negative eigenvalue, by more than its residual.
    - ``local_minima``: how many inner points, or connected sets of equal ones, are lower than all their neighbours.

    What lies between the points is interpolated linearly. A narrow valley between two points is not seen.

    >>> import jax.numpy as jnp
    >>> from jaxscape import Grid, surface
    >>> def loss(p, x):
    ...     return x * (p**2).sum()
    >>> axes = [jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0])]
    >>> result = surface(jnp.zeros(2), loss, jnp.ones(3), directions=axes, progress=False)
    >>> plane_measures(result, level=0.25).value.round(2).to_dict()
    {'level_set_area': 0.78, 'width_alpha': 1.0, 'width_beta': 1.0, 'negative_curvature': 0.0, 'local_minima': 1.0}

    Args:
        result: A result over one or two coordinates that holds 0, as `surface` gives it, or an `eigenvalue_map` that
            has ``min_eigenvalue``; this gives ``negative_curvature`` alone.
        level: Height above the center, in units of the loss.
        metric: The variable.

    Returns:
        A table indexed by ``measure`` with ``value``, ``stderr`` (NaN: nothing in it is random) and ``note``.
        A loss of NaN is taken as infinite, and counted in the note.

    Raises:
        ValueError: The result has another number of coordinates, lacks the metric, has fewer than 3 points along one,
            or the center is not within it; ``level`` is not positive.
        TypeError: It is no Dataset, or ``level`` is no number.
    """
    if not isinstance(result, xr.Dataset):
        raise TypeError(f"result is {type(result).__name__}, expected the Dataset of js.surface.")
    if metric not in result and "min_eigenvalue" in result:
        rows = {"negative_curvature": _share_of_map(result)}
    else:
        losses, coords, names = _checked(result, metric)
        stderr = np.zeros(losses.shape)
        if result.attrs.get("rtol") is not None and f"{metric}_stderr" in result:
            stderr = np.asarray(result[f"{metric}_stderr"].sortby(list(names)), np.float64)
        rows = _of_losses(losses, stderr, coords, names, level)
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["value", "stderr", "note"]).rename_axis("measure")
    table.attrs = {**result.attrs, "level": level, "metric": metric}
    return table


Rows = dict[str, tuple[float, float, str]]


def _checked(result: xr.Dataset, metric: str) -> tuple[np.ndarray, list[np.ndarray], tuple[str, ...]]:
    """The losses, the coordinates and their names."""
    if metric not in result:
        raise ValueError(f"metric is {metric!r}, expected one of the variables of result {sorted(map(str, result))}.")
    losses = result[metric]
    if losses.ndim not in (1, 2):
        raise ValueError(f"result has the dimensions {losses.dims}, expected one or two coordinates.")
    coords = [np.asarray(result[name], np.float64) for name in losses.dims]
    for name, values in zip(losses.dims, coords, strict=True):
        if len(values) < 3 or not values.min() <= 0 <= values.max():
            raise ValueError(
                f"{name} has {len(values)} points from {values.min()} to {values.max()}, expected at least 3 around 0."
            )
    ascending = losses.sortby(list(losses.dims))
    return np.asarray(ascending, np.float64), [np.sort(values) for values in coords], tuple(map(str, losses.dims))


def _of_losses(
    losses: np.ndarray, stderr: np.ndarray, coords: list[np.ndarray], names: tuple[str, ...], level: float
) -> Rows:
    undefined = int(np.isnan(losses).sum())
    note = f"{undefined} points are NaN" if undefined else ""
    sampled = "sampled losses: noise can make minima" if np.any(stderr > 0) else ""
    losses = np.where(np.isnan(losses), np.inf, losses)
    lines = [_through_center(losses, coords, axis) for axis in range(len(names))]
    center = float(np.interp(0, coords[0], lines[0]))
    rows: Rows = {}
    if len(names) == 2:
        with np.errstate(invalid="ignore", over="ignore"):
            rows["level_set_area"] = _area((losses - center) / level, coords, note)
    for name, line, values in zip(names, lines, coords, strict=True):
        rows[f"width_{name}"] = _width(line, values, center + level, note)
    if not math.isfinite(center):
        rows = {name: (math.nan, math.nan, joined("the center is not finite", note)) for name in rows}
    rows["negative_curvature"] = (_negative_share(losses, stderr, coords), math.nan, note)
    rows["local_minima"] = (float(_local_minima(losses)), math.nan, joined(note, sampled))
    return rows


def _through_center(losses: np.ndarray, coords: list[np.ndarray], axis: int) -> np.ndarray:
    """The losses along an axis, where the other coordinate is 0."""
    if losses.ndim == 1:
        return losses
    rows, other = np.moveaxis(losses, axis, 0), coords[1 - axis]
    place = int(np.searchsorted(other, 0, side="right")) - 1
    if other[place] == 0:
        return rows[:, place]
    share = -other[place] / (other[place + 1] - other[place])
    return (1 - share) * rows[:, place] + share * rows[:, place + 1]


def _area(heights: np.ndarray, coords: list[np.ndarray], note: str) -> tuple[float, float, str]:
    """The area with a height of at most 1, between the contours that contourpy draws."""
    finite = np.where(np.isnan(heights), 1e30, np.minimum(heights, 1e30))  # contourpy leaves out what is not finite
    generator: Any = contourpy.contour_generator(coords[0], coords[1], finite.T, fill_type="OuterOffset")
    polygons, offsets = generator.filled(-np.inf, 1)
    area = 0.0
    for points, starts in zip(polygons, offsets, strict=True):
        rings = [points[a:b] for a, b in zip(starts[:-1], starts[1:], strict=True)]
        area += _ring(rings[0]) - sum(map(_ring, rings[1:]))
    edges = np.concatenate([heights[0], heights[-1], heights[:, 0], heights[:, -1]])
    return area, math.nan, joined(note, _BORDER if edges.min() <= 1 else "")


def _ring(points: np.ndarray) -> float:
    """The area within a closed polygon (the shoelace formula)."""
    x, y = points.T
    return abs(float(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1]))) / 2


def _width(line: np.ndarray, values: np.ndarray, level: float, note: str) -> tuple[float, float, str]:
    right, at_right = _crossing(values, line, level)
    left, at_left = _crossing(-values[::-1], line[::-1], level)
    return right + left, math.nan, joined(note, _BORDER if at_right or at_left else "")


def _crossing(values: np.ndarray, line: np.ndarray, level: float) -> tuple[float, bool]:
    """Where the line first passes the level, from 0 to the right; and whether it does not."""
    inside = values > 0
    x, y = np.concatenate([[0.0], values[inside]]), np.concatenate([[np.interp(0, values, line)], line[inside]])
    above = np.flatnonzero(y > level)
    if not above.size:
        return float(x[-1]), True
    i = above[0]
    if not np.isfinite(y[i]):
        return float(x[i - 1]), False
    return float(x[i - 1] + (x[i] - x[i - 1]) * (level - y[i - 1]) / (y[i] - y[i - 1])), False


def _negative_share(losses: np.ndarray, stderr: np.ndarray, coords: list[np.ndarray]) -> float:
    """The share of the inner points at which second differences have a negative eigenvalue, for sure."""
    inner = (slice(1, -1),) * losses.ndim
    with np.errstate(invalid="ignore"):
        second = [_second(losses, coords[axis], axis) for axis in range(losses.ndim)]
        smallest = second[0]
        if losses.ndim == 2:
            first = np.gradient(losses, coords[0], axis=0)
            mixed = np.gradient(first, coords[1], axis=1)[inner]
            a, b = second
            smallest = (a + b) / 2 - np.hypot((a - b) / 2, mixed)
        steps = sum(1 / np.diff(values).min() ** 2 for values in coords)
        rounding = 8 * np.finfo(np.float32).eps * np.abs(losses[inner])
        noise = 3 * math.sqrt(6) * scipy.ndimage.maximum_filter(stderr, size=3)[inner]  # sqrt(6): of 1, -2 and 1
        error = (rounding + noise) * steps
        known = np.isfinite(smallest)
        return float(np.mean(smallest[known] < -error[known])) if known.any() else math.nan


def _second(losses: np.ndarray, values: np.ndarray, axis: int) -> np.ndarray:
    """Second differences along an axis, of the inner points; the spacing may vary."""
    y = np.moveaxis(losses, axis, 0)
    step = np.diff(values).reshape(-1, *(1,) * (losses.ndim - 1))
    slope = np.diff(y, axis=0) / step
    second = np.moveaxis(2 * np.diff(slope, axis=0) / (step[1:] + step[:-1]), 0, axis)
    others = tuple(slice(None) if i == axis else slice(1, -1) for i in range(losses.ndim))
    return second[others]


def _local_minima(losses: np.ndarray) -> int:
    """How many connected sets of equal inner points are lower than all points around them."""
    lowest = scipy.ndimage.minimum_filter(losses, size=3, mode="nearest")
    around = np.ones((3,) * losses.ndim)
    regions, count = scipy.ndimage.label(losses == lowest, around)
    total = 0
    for i in range(1, count + 1):
        region = regions == i
        rim = scipy.ndimage.binary_dilation(region, around) & ~region
        at_border = any(np.take(region, [0, -1], axis).any() for axis in range(losses.ndim))
        total += bool(rim.any() and not at_border and losses[rim].min() > losses[region].max())
    return total


def _share_of_map(result: xr.Dataset) -> tuple[float, float, str]:
    values = result.min_eigenvalue.values
    residuals = result.min_residual.values if "min_residual" in result else np.zeros(values.shape)
    known = np.isfinite(values)
    note = "" if known.all() else f"{int((~known).sum())} points are not finite"
    share = float(np.mean(values[known] < -residuals[known])) if known.any() else math.nan
    return share, math.nan, note
