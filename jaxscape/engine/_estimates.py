"""The estimates of one metric at all points, level by level, with the covariances of their errors."""

from collections.abc import Sequence

import numpy as np

from jaxscape.engine._draw import Draw
from jaxscape.engine._regression import Neighbours, fit

AT_ONCE = 2**21  # values that are looked at together: 16 MB


class Estimates:
    """One metric at every point, from samples of any sizes that begin one order of the examples.

    Some points are kept as neighbours for others: the roots, then those of each level but the last ones.

    Attributes:
        mean: Shape ``(points,)``; NaN where there is none yet.
        stderr: Shape ``(points,)``; 0 where all examples were evaluated.
    """

    def __init__(self, draw: Draw, points: int, roots: np.ndarray, values: np.ndarray) -> None:
        """Start from the roots.

        Args:
            draw: The order.
            points: Their number.
            roots: Those that are evaluated on all examples.
            values: Theirs, shape ``(roots, N)``, in the order.
        """
        self._draw, self._total = draw, values.shape[1]
        self.mean, self.stderr = np.full((2, points), np.nan)
        self._means = np.zeros(0)  # of the kept points, and what belongs to each:
        self._usable = np.zeros(0, bool)
        self._values: list[np.ndarray] = []
        self._residuals: list[np.ndarray] = []  # of all examples of its sample, those of its neighbours carried on
        self._shares: list[np.ndarray] = []  # the same, each residual times ``1 / pi - 1`` of its own sample
        self._covariances = np.zeros((0, 0))
        finite = values[np.isfinite(values).all(1)]
        self._spread = np.ptp(finite, axis=0).astype(np.float64) if len(finite) else np.zeros(self._total)
        self._whole = bool((finite == np.round(finite)).all())
        self._fits: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
        for row, each in zip(roots, values, strict=True):
            self.solve(np.array([row]), each[None], np.zeros((1, 0), int), np.zeros((1, 0)))
        self.keep(roots, values)

    def solve(self, rows: np.ndarray, values: np.ndarray, near: np.ndarray, weights: np.ndarray) -> None:
        """Estimate the means at some points, from the first n examples.

        Args:
            rows: The points.
            values: Shape ``(rows, n)``.
            near: The numbers of kept points, none of which has fewer examples; shape ``(rows, k)``.
            weights: Their interpolation weights, with a sum of 1.
        """
        n = values.shape[1]
        values = values.astype(np.float64)
        finite = np.isfinite(values).all(1)
        if n == self._total or not finite.any():
            with np.errstate(all="ignore"):
                self.mean[rows] = values.mean(1)
            self.stderr[rows] = np.where(finite | (n == self._total), 0.0, np.nan)
            for row, number in zip(rows, near, strict=True):
                self._fits[int(row)] = np.zeros(0), np.zeros(len(number)), number
            return
        known = np.array([min(len(self._values[j]) for j in each) for each in near])
        order = np.argsort(known)
        size = max(1, AT_ONCE // (near.shape[1] * int(known.max())))
        for part in (order[i : i + size] for i in range(0, len(order), size)):
            self._solve(rows[part], values[part], near[part], weights[part], known[part])
        with np.errstate(all="ignore"):
            self.mean[rows[~finite]] = values[~finite].mean(1)
        self.stderr[rows[~finite]] = np.nan

    def _solve(
        self, rows: np.ndarray, values: np.ndarray, near: np.ndarray, weights: np.ndarray, known: np.ndarray
    ) -> None:
        n, m = values.shape[1], int(known.max())
        inclusion = np.full((len(rows), m), np.inf)
        for each, first in zip(inclusion, known, strict=True):
            each[:first] = self._draw.inclusion(first, first)
        neighbours = Neighbours(
            values=_beginnings(self._values, near, m),
            means=self._means[near],
            covariances=self._covariances[near[:, :, None], near[:, None, :]],
            shares=_beginnings(self._shares, near, n),
            weights=_shares(weights * self._usable[near]),
            inclusion=inclusion,
        )
        values = np.where(np.isfinite(values), values, 0.0)
        pi = self._draw.inclusion(n, self._total)
        changes = (1 - pi) / (pi * self._total) ** 2 * self._spread**2
        with np.errstate(all="ignore"):  # where no example differs between roots, none is taken to change
            change = float(np.nan_to_num((pi * changes**2).sum() / (pi * changes).sum()))
        result = fit(values, neighbours, pi[:m], self._total, change, self._whole)
        self.mean[rows], self.stderr[rows] = result.mean, result.stderr
        for i, row in enumerate(rows):
            self._fits[int(row)] = result.residuals[i], result.slopes[i], near[i]

    def keep(self, rows: np.ndarray, values: Sequence[np.ndarray]) -> None:
        """Keep points as neighbours for others; those that are not finite are of no use, but have their place.

        Args:
            rows: The points, solved.
            values: Those of each point's sample.
        """
        before, fits = len(self._values), [self._fits[int(row)] for row in rows]
        counts = np.array([len(x) for x in self._values] + [len(x) for x in values])
        slopes = np.zeros((len(rows), before))
        own, own_shares = [], []
        for each, (residuals, b, near) in zip(slopes, fits, strict=True):
            each[near] = b
            pi = self._draw.inclusion(len(residuals), len(residuals))
            own.append(residuals / pi)
            own_shares.append(residuals * (1 / pi - 1))
            carried = [near[b != 0], b[b != 0]]
            self._residuals.append(residuals + _combination(self._residuals, *carried, len(residuals)))
            self._shares.append(own_shares[-1] + _combination(self._shares, *carried, len(residuals)))
        earlier = [x / self._draw.inclusion(len(x), len(x)) for x in self._residuals[:before]]
        fewer = counts[before:, None] <= counts[None]
        from_shares, from_residuals = _products(own, self._shares[:before]), _products(own_shares, earlier)
        with_earlier = np.where(fewer[:, :before], from_shares, from_residuals)
        together = _products(own, own_shares)
        together = np.where(fewer[:, before:], together, together.T)
        with_earlier, together = with_earlier / self._total**2, together / self._total**2
        cross = slopes @ self._covariances + with_earlier
        among = slopes @ self._covariances @ slopes.T + slopes @ with_earlier.T + with_earlier @ slopes.T + together
        np.fill_diagonal(among, np.where(np.isfinite(self.stderr[rows]), self.stderr[rows], 0) ** 2)
        self._covariances = np.block([[self._covariances, cross.T], [cross, among]])
        usable = np.array([bool(np.isfinite(x).all()) for x in values])
        self._values += [x if good else np.zeros_like(x) for x, good in zip(values, usable, strict=True)]
        self._means = np.append(self._means, np.where(usable, self.mean[rows], 0.0))
        self._usable = np.append(self._usable, usable)
        self.forget()

    def forget(self) -> None:
        """Let go of what `keep` would need of the points solved last."""
        self._fits.clear()


def _shares(weights: np.ndarray) -> np.ndarray:
    """Weights with a sum of 1, or 0 where all are 0."""
    total = weights.sum(1, keepdims=True)
    return weights / np.where(total > 0, total, 1)


def _beginnings(rows: Sequence[np.ndarray], chosen: np.ndarray, length: int) -> np.ndarray:
    """The first entries of chosen rows, zeros where a row is shorter; shape ``(*chosen.shape, length)``."""
    result = np.zeros((*chosen.shape, length))
    for index, number in np.ndenumerate(chosen):
        row = rows[number][:length]
        result[index][: len(row)] = row
    return result


def _combination(rows: Sequence[np.ndarray], chosen: np.ndarray, factors: np.ndarray, length: int) -> np.ndarray:
    return np.einsum("k,kn->n", factors, _beginnings(rows, chosen, length))


def _products(left: Sequence[np.ndarray], right: Sequence[np.ndarray]) -> np.ndarray:
    """The inner products of rows of any lengths, each over the shorter one's length."""
    result = np.zeros((len(left), len(right)))
    longest = min(max((len(x) for x in rows), default=0) for rows in (left, right))
    size = max(1, AT_ONCE // max(len(left), len(right), 1))
    for start in range(0, longest, size):
        a, b = ([row[start : start + size] for row in rows] for rows in (left, right))
        every = np.arange(len(a)), np.arange(len(b))
        width = min(size, longest - start)
        result += _beginnings(a, every[0], width) @ _beginnings(b, every[1], width).T
    return result
