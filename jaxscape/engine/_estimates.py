"""The estimates of one metric at all points, from coarse to fine."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxscape.engine._covariances import AT_ONCE, Covariances, Regression, beginnings
from jaxscape.engine._draw import Draw
from jaxscape.engine._regression import Neighbours, fit
from jaxscape.engine._unseen import Unseen


class Some(NamedTuple):
    """Points, their neighbours with interpolation weights, and of how many examples all neighbours are known."""

    rows: np.ndarray
    near: np.ndarray
    weights: np.ndarray
    known: np.ndarray


class Estimates:
    """One metric at every point, from samples of any sizes that begin one order of the examples.

    Some points are kept as neighbours for others: the roots, then those of each level but the last ones. Kept points
    have numbers in the order in which they come.

    Attributes:
        mean: Shape ``(points,)``; NaN where there is none yet.
        stderr: Shape ``(points,)``; 0 where all examples were evaluated.
    """

    def __init__(self, draw: Draw, points: int, roots: np.ndarray, values: np.ndarray) -> None:
        """Start from the roots.

        Args:
            draw: The order of the examples.
            points: The number of points.
            roots: Those that are evaluated on all examples.
            values: Theirs, shape ``(roots, N)``, in the order.
        """
        self._draw, self._total = draw, values.shape[1]
        self.mean, self.stderr = np.full((2, points), np.nan)
        self._values: list[np.ndarray] = []  # of the kept points
        self._means, self._usable = np.zeros(0), np.zeros(0, bool)
        self._errors = Covariances(draw)
        self._last: dict[int, Regression] = {}
        self._unseen = Unseen(values[np.isfinite(values).all(1)])
        nobody = np.zeros((len(roots), 0), int)
        self.solve(roots, values, nobody, nobody.astype(float))
        self.keep(roots, list(values))

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
        if n == self._total:
            for row in rows.tolist():
                self._last[row] = Regression(np.zeros(0, int), np.zeros(0), np.zeros(0), n, 0.0)
            self.stderr[rows] = 0.0
        else:
            known = np.array([min(len(self._values[number]) for number in each) for each in near])
            order = np.argsort(known)  # points of one call have samples of about one length
            size = max(1, AT_ONCE // (near.shape[1] * int(known.max())))
            for part in (order[i : i + size] for i in range(0, len(order), size)):
                some = Some(rows[part], near[part], weights[part], known[part])
                self._fit(some, np.where(finite[part, None], values[part], 0.0))
            self.stderr[rows[~finite]] = np.nan
        plain = (n == self._total) | ~finite
        with np.errstate(all="ignore"):  # a NaN or infinite loss is a result
            self.mean[rows[plain]] = values[plain].mean(1)

    def _fit(self, some: Some, values: np.ndarray) -> None:
        """Regress finite values on those of the neighbours."""
        rows, near, weights, known = some
        n, m = values.shape[1], int(known.max())
        inclusion = np.full((len(rows), m), np.inf)
        for row, first in zip(inclusion, known.tolist(), strict=True):
            row[:first] = self._draw.inclusion(first, first)
        weights = weights * self._usable[near]
        total = weights.sum(1, keepdims=True)
        pi = self._draw.inclusion(n, self._total)
        neighbours = Neighbours(
            values=beginnings(self._values, near, m),
            inclusion=inclusion,
            means=self._means[near],
            variances=self._variances(near, pi),
            covariances=self._errors.matrix[near[:, :, None], near[:, None, :]],
            shares=beginnings(self._errors.shares, near, n),
            weights=weights / np.where(total > 0, total, 1),
        )
        result = fit(values, neighbours, pi[:m], self._total, *self._unseen.variances(pi))
        self.mean[rows], self.stderr[rows] = result.mean, result.stderr
        for i, row in enumerate(rows.tolist()):
            self._last[row] = Regression(near[i], result.slopes[i], result.residuals[i], n, result.stderr[i])

    def _variances(self, near: np.ndarray, inclusion: np.ndarray) -> np.ndarray:
        """Of the plain means of kept points over a sample, as far as their values are known."""
        numbers, at = np.unique(near, return_inverse=True)
        variances = []
        for number in numbers:
            values = self._values[number].astype(np.float64)
            odds = 1 / inclusion[: len(values)] - 1
            variances.append((values**2 * odds / self._draw.inclusion(len(values), len(values))).sum())
        return np.array(variances)[at.reshape(near.shape)] / self._total**2

    def keep(self, rows: np.ndarray, values: Sequence[np.ndarray]) -> None:
        """Keep points as neighbours for others; those that are not finite are of no use, but have their numbers.

        Args:
            rows: The points, solved.
            values: Those of each point's sample.
        """
        usable = np.array([bool(np.isfinite(x).all()) for x in values])
        self._values += [x if good else np.zeros_like(x) for x, good in zip(values, usable, strict=True)]
        self._means = np.append(self._means, np.where(usable, self.mean[rows], 0.0))
        self._usable = np.append(self._usable, usable)
        self._errors.extend([self._last[row] for row in rows.tolist()])
        self.forget()

    def forget(self) -> None:
        """Let go of what `keep` would need of the points solved last."""
        self._last.clear()
