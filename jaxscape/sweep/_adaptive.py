"""An adaptive grid: which points are evaluated next, what the others are by interpolation, and how far off they may be.

The points go by levels, from coarse to fine (`jaxscape.engine.levels`). Between evaluated points the values are those
of radial basis functions (cubic ones, Wendland 2005, section 8.3) through the nearest NEIGHBOURS of them. Each point
that is evaluated shows how far off its interpolated value was. The error at a point that is not evaluated is the
largest of the nearest such differences, scaled by a power of the distances, which the differences at several levels
show. When the goal is reached, points at random check it: if they are further off, the work goes on.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxscape.engine import levels
from jaxscape.levels import choose_levels

# Chosen on stored 51x51 surfaces; what they give is in benchmarks/README.md, under `benchmarks.refine`.
NEIGHBOURS = 40
NEAR = 8  # differences, of which the largest counts
SAFETY = 1.5
ORDER = 2.0  # the largest power of the distance
FIRST_LEVELS = 3  # always evaluated: 9x9 points of a plane
REACH = 0.75
MOVED = 0.5  # cells of the grid that a level line may be displaced, by the estimated error
CHECKS = 24  # points at random, at the end: they find what the first levels have missed on 10 % of the plane by 92 %
ROUNDING = 1e-9  # of the span of the values: what is smaller is no error of the interpolation


class Goal(NamedTuple):
    """What an adaptive grid must show right.

    Attributes:
        levels: The level lines, none of which is displaced by more than MOVED cells; None: those that a plot chooses.
        rtol: The largest error, relative to the value; None: the lines count.
    """

    levels: np.ndarray | None = None
    rtol: float | None = None


class AdaptiveGrid:
    """The points of a grid that are evaluated, and the others.

    Attributes:
        done: Which points are evaluated.
    """

    def __init__(self, shape: tuple[int, ...], goal: Goal) -> None:
        """No point is evaluated yet.

        Args:
            shape: The number of points along each axis.
            goal: What the grid must show right.
        """
        self._shape, self._goal = shape, goal
        self._cells = np.stack(np.unravel_index(np.arange(np.prod(shape)), shape), 1).astype(float)
        self._level = levels(shape).ravel()
        self._next = 0  # level
        self._random, self._checked = np.random.default_rng(0), False
        self.done = np.zeros(len(self._cells), bool)
        self._values = np.full(len(self._cells), np.nan)
        self._expected = np.full(len(self._cells), np.nan)  # interpolated, before the point was evaluated
        self._apart = np.full(len(self._cells), np.nan)  # cells to the nearest evaluated point, then

    def next_rows(self) -> Int[np.ndarray, " rows"]:
        """The points to evaluate next, none where the goal is reached and a check has found nothing else."""
        rows = self._next_wrong()
        if rows.size or self._checked:
            self._checked = False
            return rows
        self._checked = True
        rest = np.flatnonzero(~self.done)
        return np.sort(self._random.choice(rest, min(CHECKS, rest.size), replace=False))

    def _next_wrong(self) -> Int[np.ndarray, " rows"]:
        """The points that the goal asks for next."""
        last = int(self._level.max())
        while self._next <= min(FIRST_LEVELS - 1, last):
            self._next += 1
            rows = np.flatnonzero((self._level == self._next - 1) & ~self.done)
            if rows.size:
                return rows
        wrong = self._wrong()
        while self._next <= last and wrong.any():
            self._next += 1
            rows = np.flatnonzero((self._level == self._next - 1) & ~self.done & self._beside(wrong, self._next - 1))
            if rows.size:
                return rows
        return np.flatnonzero(wrong)

    def add(self, rows: Int[np.ndarray, " rows"], values: Float[np.ndarray, " rows"]) -> None:
        """Take the values of points.

        Args:
            rows: The points.
            values: The values; NaN and infinity are no values.
        """
        if self.done.any():
            self._expected[rows] = self.interpolate(self._values)[rows]
            self._apart[rows] = self._distance()[rows]
        self.done[rows] = True
        self._values[rows] = np.where(np.isfinite(values), values, np.nan)

    def interpolate(self, values: Float[np.ndarray, " points"]) -> Float[np.ndarray, " points"]:
        """Values everywhere.

        Args:
            values: Those of the evaluated points count.

        Returns:
            At evaluated points the values, elsewhere the interpolated ones; NaN where no evaluated point around has a
            finite value.
        """
        from scipy.interpolate import RBFInterpolator

        known = self.done & np.isfinite(values)
        result = np.where(self.done, values, np.nan)
        rest = np.flatnonzero(~self.done)
        rest = rest[self._finite_share(known)[rest] > 0]
        if not known.any() or not rest.size:
            return result
        scale = _Scale.of(values[known])
        heights = scale.to(values[known])
        if np.ptp(heights) <= scale.rounding:  # level lines through rounding errors would be noise
            result[rest] = values[known][0]
            return result
        count = min(NEIGHBOURS, int(known.sum()))
        axes = np.flatnonzero(np.array(self._shape) > 1)
        at, between = self._cells[known][:, axes], self._cells[rest][:, axes]
        try:
            surface = RBFInterpolator(at, heights, count, kernel="cubic", degree=1)(between)
        except (np.linalg.LinAlgError, ValueError):  # the points around one are on a line, or fewer than it takes
            surface = RBFInterpolator(at, heights, count, kernel="linear", degree=0)(between)
        result[rest] = scale.back(surface)
        return result

    def error(self) -> Float[np.ndarray, " points"]:
        """The estimated error of the interpolated values, 0 where they are evaluated, infinite where it is unknown."""
        finite = self._values[np.isfinite(self._values)]
        if not finite.size:
            return np.where(self.done, 0.0, np.inf)
        scale = _Scale.of(finite)
        return np.where(self.done, 0.0, self._error(scale) * scale.slope(self.interpolate(self._values)))

    def _wrong(self) -> Bool[np.ndarray, " points"]:
        """The points that are not evaluated, and may spoil the goal."""
        finite = self._values[np.isfinite(self._values)]
        if not finite.size:
            return ~self.done & False
        share = self._finite_share(self.done & np.isfinite(self._values))
        at_border = (share > 0) & (share < 1)
        values = self.interpolate(self._values)
        scale = _Scale.of(finite)
        error = self._error(scale)
        if self._goal.rtol is not None:
            wrong = error * scale.slope(values) > self._goal.rtol * np.abs(values)
        else:
            drawn = scale.levels if self._goal.levels is None else self._goal.levels
            wrong = self._displaced(scale.to(values), error, scale.to(drawn))
        return (wrong | at_border) & ~self.done & (share > 0)

    def _displaced(self, heights: np.ndarray, error: np.ndarray, drawn: np.ndarray) -> np.ndarray:
        """Where a level line may pass, and be more than MOVED cells off."""
        field = np.where(np.isfinite(heights), heights, np.nanmean(heights)).reshape(self._shape)
        slope, bend = _slope_and_bend(field)
        error = np.minimum(error, 1e300)
        # By d cells, where the height changes by the error: slope * d + bend * d**2 / 2 = error.
        moved = 2 * error / (slope + np.sqrt(slope**2 + 2 * bend * error) + 1e-300)
        gap = np.min(np.abs(heights[:, None] - drawn), axis=1)
        return (gap <= 0.75 * slope + 0.5 * bend + error) & (moved > MOVED)

    def _error(self, scale: "_Scale") -> np.ndarray:
        """The estimated error at all points, in the units of a scale."""
        from scipy.spatial import cKDTree

        finite = np.isfinite(self._expected) & np.isfinite(self._values)
        if not finite.any():
            return np.where(self.done, 0.0, np.inf)
        seen = np.abs(scale.to(self._expected[finite]) - scale.to(self._values[finite]))
        seen = np.where(seen > scale.rounding, seen, 0.0)
        apart = self._apart[finite]
        _, near = cKDTree(self._cells[finite]).query(self._cells, min(NEAR, len(seen)))
        near = near.reshape(len(self._cells), -1)
        scaled = seen[near] * (self._distance()[:, None] / apart[near]) ** _order(seen, apart)
        return np.where(self.done, 0.0, SAFETY * scaled.max(1))

    def _distance(self) -> np.ndarray:
        """Cells to the nearest evaluated point."""
        from scipy.spatial import cKDTree

        return cKDTree(self._cells[self.done]).query(self._cells)[0]

    def _finite_share(self, known: np.ndarray) -> np.ndarray:
        """The share of the nearest evaluated points whose values are finite."""
        from scipy.spatial import cKDTree

        if known.sum() == self.done.sum():
            return np.ones(len(self._cells))
        _, near = cKDTree(self._cells[self.done]).query(self._cells, min(NEAR, int(self.done.sum())))
        return known[self.done][near.reshape(len(self._cells), -1)].mean(1)

    def _beside(self, wrong: np.ndarray, level: int) -> np.ndarray:
        """The points that have a wrong one within REACH of the distance between points of a level, along each axis."""
        from scipy.spatial import cKDTree

        spacing = np.maximum((np.array(self._shape) - 1) / 2 ** (level + 1), 1.0)
        cells = self._cells / spacing
        return cKDTree(cells[wrong]).query(cells, p=np.inf)[0] <= REACH + 1e-9


class _Scale(NamedTuple):
    """The scale of a plot: the values themselves, or close to their logarithm, ``asinh(value / unit)``.

    Attributes:
        levels: The levels that a plot chooses.
        unit: Where the logarithm begins; None: the values themselves.
        rounding: Differences of heights that are none.
    """

    levels: np.ndarray
    unit: float | None
    rounding: float

    @classmethod
    def of(cls, finite: np.ndarray) -> "_Scale":
        """The scale for some values."""
        drawn, log = choose_levels(np.clip(finite, -1e300, 1e300), "loss")
        scale = cls(drawn, float(drawn[0]) if log else None, 0.0)
        heights = scale.to(finite)
        rounding = ROUNDING * np.ptp(heights) + 1e-12 * np.abs(heights).max()
        return scale._replace(rounding=float(rounding))

    def to(self, values: np.ndarray) -> np.ndarray:
        """The heights of values."""
        return values if self.unit is None else np.arcsinh(values / self.unit)

    def back(self, heights: np.ndarray) -> np.ndarray:
        """The values at heights."""
        return heights if self.unit is None else self.unit * np.sinh(heights)

    def slope(self, values: np.ndarray) -> np.ndarray:
        """How fast a value changes with its height."""
        return np.ones_like(values) if self.unit is None else np.hypot(values, self.unit)


def _order(seen: np.ndarray, apart: np.ndarray) -> float:
    """The power of the distance by which the differences get smaller: of their medians at the two finest levels."""
    distances = [x for x in np.unique(apart) if (apart == x).sum() >= NEAR]
    if len(distances) < 2:
        return ORDER
    fine, coarse = distances[0], distances[-1]
    medians = [float(np.median(seen[apart == x])) for x in (fine, coarse)]
    if not min(medians) > 0:
        return ORDER
    return float(np.clip(np.log(medians[1] / medians[0]) / np.log(coarse / fine), 0.0, ORDER))


def _slope_and_bend(field: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The length of the gradient and the largest second difference at each point, by cells."""
    squares, bend = np.zeros(field.shape), np.zeros(field.shape)
    for axis, size in enumerate(field.shape):
        if size > 1:
            squares += np.gradient(field, axis=axis) ** 2
        if size > 2:
            pad = [(1, 1) if k == axis else (0, 0) for k in range(field.ndim)]
            bend = np.maximum(bend, np.pad(np.abs(np.diff(field, 2, axis=axis)), pad, mode="edge"))
    return np.sqrt(squares).ravel(), bend.ravel()
