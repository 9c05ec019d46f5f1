"""Lines of the verdict that a sampled plane answers: its center, its range, its errors, its seeds."""

import functools
import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import xarray as xr

from jaxscape.plot._field import pick
from jaxscape.report_page._line import Line, Question

LOWEST = Question(
    "lowest",
    "Is the center the lowest point of the plane?",
    "L(0, 0) - min L over the points of the plane. Good: at most 1 % of L(0, 0); of sampled losses, or 3 standard "
    "errors of the lowest one.",
)
LEVEL = Question(
    "level",
    "Is the plane level at its center?",
    "The slope is the norm of the central differences of L at the center, for a coordinate of 1. Along each axis the "
    "parabola through the three middle points has its lowest point some steps of the grid away: the larger of the two "
    "distances is measured. Good: at most half a step.",
)
RANGE = Question(
    "range",
    "Does the range show the valley around the center?",
    "The share of the plane's area (trapezoid rule) where L is at most 2 L(0, 0). Good: at most a half, and at least 9 "
    "points.",
)
BORDER = Question(
    "border",
    "Is the border far above the center?",
    "The lowest loss on the border of the plane, divided by L(0, 0). Good: at least 2.",
)
CLIPPED = Question(
    "clipped",
    "How many points do the pictures cut off?",
    "The share of the finite points whose loss is above the largest height of the pictures. Good: less than a half.",
)
SEEDS = Question(
    "seeds",
    "Do other random directions show the same?",
    "The standard deviation of L over the seeds (denominator n - 1), its mean over the grid divided by the mean of L, "
    "where all are finite. Good: at most 0.2.",
)
ERRORS = Question(
    "errors",
    "How large are the error bars?",
    "The largest loss_stderr divided by the range of the finite losses. It is the error against all examples where "
    "losses are sampled (rtol); otherwise that of the data as a sample of what could be drawn, s / sqrt(N). Good: at "
    "most 0.05.",
)

_SAME = ("split", "directions", "norm", "ignore", "rtol", "compute_dtype")  # attrs of surfaces that only a seed tells
_KEYS = ("direction_key", "seed", "fingerprint")  # attrs that a seed changes, the best one first


class Plane(NamedTuple):
    """The losses of a plane, with ascending coordinates.

    Attributes:
        x: Coordinates of the rows.
        y: Coordinates of the columns.
        loss: Shape ``(len(x), len(y))``; NaN where it is not computed yet.
        stderr: The standard errors, like the losses; None: there are none.
        center: The loss at params; NaN: it is not known.
        sampled: Whether the losses are those of samples.
    """

    x: np.ndarray
    y: np.ndarray
    loss: np.ndarray
    stderr: np.ndarray | None
    center: float
    sampled: bool

    @classmethod
    def of(cls, result: xr.Dataset) -> "Plane":
        """The plane of a result over two coordinates."""
        array = pick(result, "loss")
        x, y = (np.asarray(array[dim], float) for dim in array.dims)
        stderr = pick(result, "loss_stderr").values if "loss_stderr" in result else None
        at = [np.flatnonzero(values == 0) for values in (x, y)]
        there = float(array.values[at[0][0], at[1][0]]) if all(map(len, at)) else math.nan
        center = float(result.attrs.get("center_loss", there))
        return cls(x, y, array.values, stderr, center, result.attrs.get("rtol") is not None)


def plane_lines(surfaces: Mapping[str, xr.Dataset], clip: float | None, place: str) -> list[Line]:
    """The lines that surfaces answer, the first of which is the one that is judged.

    Args:
        surfaces: Those of a run, by their names.
        clip: The largest height of the pictures; None: no limit.
        place: What a command calls the run.

    Returns:
        A line for each question.
    """
    questions = (LOWEST, LEVEL, RANGE, BORDER, CLIPPED, ERRORS, SEEDS)
    if not surfaces:
        return [question.not_measured(f"jaxscape surface {place}") for question in questions]
    plane = Plane.of(next(iter(surfaces.values())))
    if min(plane.loss.shape) < 2:
        return [question.only_told("the plane has fewer than 2 x 2 points", None) for question in questions]
    if not np.isfinite(plane.loss).any():
        return [question.only_told("no point is finite", None) for question in questions]
    seeds = _seeds(surfaces, place)
    if not math.isfinite(plane.center):
        told = [question.only_told("the loss at the center is not known", None) for question in questions[:4]]
        return [*told, _clipped(plane, clip), _errors(plane), seeds]
    return [
        _lowest(plane),
        _level(plane, place),
        _range(plane, place),
        _border(plane, place),
        _clipped(plane, clip),
        _errors(plane),
        seeds,
    ]


def _lowest(plane: Plane) -> Line:
    i, j = np.unravel_index(np.nanargmin(np.where(np.isfinite(plane.loss), plane.loss, np.nan)), plane.loss.shape)
    lowest = float(plane.loss[i, j])
    drop = plane.center - lowest
    noise = 3 * float(plane.stderr[i, j]) if plane.sampled and plane.stderr is not None else 0.0
    good = drop <= max(0.01 * abs(plane.center), noise)
    if drop <= 0:
        return LOWEST.answered(f"no point is below the center, {plane.center:.4g}", 0.0, good=True)
    answer = f"{lowest:.4g} at ({plane.x[i]:.3g}, {plane.y[j]:.3g}), {drop:.3g} below the center, {plane.center:.4g}"
    return LOWEST.answered(answer, drop, good=good, cure="The plane is one around no minimum.")


def _level(plane: Plane, place: str) -> Line:
    i, j = _inner_zero(plane.x), _inner_zero(plane.y)
    if i is None or j is None:
        return LEVEL.only_told(
            "the center is no inner point of the grid", None, f"jaxscape surface {place} --points 25"
        )
    axes = ((plane.x, plane.loss[:, j], i), (plane.y, plane.loss[i, :], j))
    three = [(values[at - 1 : at + 2], line[at - 1 : at + 2]) for values, line, at in axes]
    if not all(np.isfinite(losses).all() for _, losses in three):
        return LEVEL.only_told("a neighbor of the center is not finite", None)
    slopes, steps = zip(*(_parabola(*parts) for parts in three), strict=True)
    slope, distance = math.hypot(*slopes), max(steps)
    where = "no lowest point: it bends down" if math.isinf(distance) else f"its lowest point {distance:.2f} steps away"
    answer = f"slope {slope:.3g}; the parabola has {where}"
    return LEVEL.answered(answer, distance, good=distance <= 0.5, cure="The lowest point of the plane is elsewhere.")


def _inner_zero(values: np.ndarray) -> int | None:
    at = np.flatnonzero(values[1:-1] == 0)
    return int(at[0]) + 1 if len(at) else None


def _parabola(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """The slope at the middle of three points, and the steps to the lowest point of the parabola through them."""
    left, right = np.diff(y) / np.diff(x)
    bend = (right - left) / (x[2] - x[0])
    slope = float(left + bend * (x[1] - x[0]))
    if bend > 0:
        return slope, float(abs(slope) / (2 * bend) / np.diff(x).min())
    return slope, 0.0 if slope == 0 and bend == 0 else math.inf


def _range(plane: Plane, place: str) -> Line:
    if plane.center <= 0:
        return RANGE.only_told(f"2 L(0, 0) is no level: the center has the loss {plane.center:.4g}", None)
    below = plane.loss <= 2 * plane.center
    area = np.outer(_widths(plane.x), _widths(plane.y))
    share, points = float(area[below].sum() / area.sum()), int(below.sum())
    answer = f"{_percent(share)} of the plane, {points} of {below.size} points, at most twice the center's loss"
    larger, smaller = (f"jaxscape surface {place} --range {r}" for r in ("-2 2", "-0.25 0.25"))
    return RANGE.answered(answer, share, good=points >= 9 and share <= 0.5, cure=larger if share > 0.5 else smaller)


def _widths(values: np.ndarray) -> np.ndarray:
    """The length of the line that each point stands for."""
    return np.diff(np.concatenate([values[:1], (values[1:] + values[:-1]) / 2, values[-1:]]))


def _border(plane: Plane, place: str) -> Line:
    if plane.center <= 0:
        return BORDER.only_told(f"no ratio: the center has the loss {plane.center:.4g}", None)
    border = np.concatenate([plane.loss[0], plane.loss[-1], plane.loss[:, 0], plane.loss[:, -1]])
    finite = border[np.isfinite(border)]
    if not finite.size:
        return BORDER.only_told("no point of the border is finite", None)
    ratio = float(finite.min()) / plane.center
    answer = f"its lowest point has {ratio:.3g} times the center's loss"
    return BORDER.answered(answer, ratio, good=ratio >= 2, cure=f"jaxscape surface {place} --range -2 2")


def _clipped(plane: Plane, clip: float | None) -> Line:
    if clip is None:
        return CLIPPED.answered("none: the pictures have no limit", 0.0, good=True)
    finite = plane.loss[np.isfinite(plane.loss)]
    share = float((finite > clip).mean())
    answer = f"{int((finite > clip).sum())} of {finite.size} points are above {clip:g}"
    return CLIPPED.answered(answer, share, good=share < 0.5, cure="A larger clip, or a smaller --range, shows more.")


def _errors(plane: Plane) -> Line:
    if plane.stderr is None or not np.isfinite(plane.stderr).any():
        return ERRORS.not_measured("A loss_fn that gives the loss of each example has error bars.")
    finite = plane.loss[np.isfinite(plane.loss)]
    span = float(np.ptp(finite))
    largest = float(np.nanmax(np.where(np.isfinite(plane.stderr), plane.stderr, np.nan)))
    if not span > 0:
        return ERRORS.only_told(f"up to {largest:.3g}, on a flat plane", None)
    answer = f"up to {largest:.3g}, {_percent(largest / span)} of the range of the loss"
    return ERRORS.answered(
        answer, largest / span, good=largest <= 0.05 * span, cure="More examples, or a smaller rtol, make them smaller."
    )


def _seeds(surfaces: Mapping[str, xr.Dataset], place: str) -> Line:
    first = next(iter(surfaces.values()))
    alike = {_seed(result): result for result in reversed(list(surfaces.values())) if _differ_by_seed(first, result)}
    if len(alike) < 2:
        cure = f"jaxscape surface {place} --seed 1 --out {place}/surface_seed1.zarr"
        return SEEDS.only_told("only one seed", None, cure)
    losses = np.stack([pick(result, "loss").values for result in alike.values()])
    finite = np.isfinite(losses).all(0)
    spread, mean = losses.std(0, ddof=1)[finite].sum(), losses.mean(0)[finite].sum()
    if not mean > 0:
        return SEEDS.only_told(f"{len(alike)} seeds, but their mean loss is not positive", None)
    share = float(spread / mean)
    answer = f"{len(alike)} seeds differ by {_percent(share)} of the loss, in the mean"
    return SEEDS.answered(answer, share, good=share <= 0.2, cure="Show several seeds, not one.")


def _seed(result: xr.Dataset) -> str:
    """What tells the directions of two surfaces of the same center apart."""
    return str(next((result.attrs[name] for name in _KEYS if name in result.attrs), None))


def _differ_by_seed(first: xr.Dataset, other: xr.Dataset) -> bool:
    """Whether two surfaces are of the same center, grid and options."""
    a, b = (pick(result, "loss") for result in (first, other))
    same = functools.partial(np.allclose, rtol=1e-9, atol=0)
    centers = [float(result.attrs.get("center_loss", math.nan)) for result in (first, other)]
    return (
        a.shape == b.shape
        and all(same(a[dim], b[dim]) for dim in a.dims)
        and all(first.attrs.get(name) == other.attrs.get(name) for name in _SAME)
        and bool(np.isclose(centers[0], centers[1], rtol=1e-3, atol=0, equal_nan=True))
    )


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
