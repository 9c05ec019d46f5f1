"""The covariances of the errors of estimates that are regressed on one another, from nested samples of one order.

The error of a point is that of its neighbours' means times its slopes b, and that of its own sample's mean of the
residuals r: ``e = b . e_neighbours + E``, ``E = sum_S r / pi / N - mean(r)``. Of two points with samples S of
probabilities pi and a smaller S' of pi' within it,

``Cov(E, E') = sum_S' r' r (1 / pi - 1) / pi' / N^2``

(an example is in both samples with the probability pi'). The sum is linear in r, so that a point's residuals and
those of its neighbours, times the slopes, each with its own ``1 / pi - 1``, can be added up once, example by example:
its shares.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxscape.engine._draw import Draw

AT_ONCE = 2**21  # values that are looked at together: 16 MB


class Regression(NamedTuple):
    """How a point was estimated.

    Attributes:
        neighbours: Numbers of the points it was regressed on, shape ``(k,)``.
        slopes: Shape ``(k,)``.
        residuals: Those of its sample, shape ``(n,)``; empty where all examples were evaluated.
        taken: The number of its examples.
        stderr: Its standard error.
    """

    neighbours: np.ndarray
    slopes: np.ndarray
    residuals: np.ndarray
    taken: int
    stderr: float


class Covariances:
    """Those of the errors of points, in the order in which they come.

    Attributes:
        matrix: Shape ``(points, points)``.
        shares: What each example of a point's sample has to do with its error; empty where there is none.
    """

    def __init__(self, draw: Draw) -> None:
        """There is no point yet.

        Args:
            draw: The order of the examples.
        """
        self.matrix = np.zeros((0, 0))
        self.shares: list[np.ndarray] = []
        self._residuals: list[np.ndarray] = []  # those of the neighbours times the slopes included, like the shares
        self._counts: list[int] = []
        self._draw = draw

    def extend(self, points: Sequence[Regression]) -> None:
        """Add points, each regressed on points that are there.

        Args:
            points: How each was estimated.
        """
        before = len(self.shares)
        slopes = np.zeros((len(points), before))
        own, own_shares = [], []
        for row, point in zip(slopes, points, strict=True):
            row[point.neighbours] = point.slopes
            n = len(point.residuals)
            pi = self._draw.inclusion(n, n)
            own.append(point.residuals / pi)
            own_shares.append(point.residuals * (1 / pi - 1))
            used = point.slopes != 0
            terms = point.neighbours[used], point.slopes[used]
            self._residuals.append(point.residuals + _combination(self._residuals, terms, n))
            self.shares.append(own_shares[-1] + _combination(self.shares, terms, n))
        self._counts += [point.taken for point in points]
        fewer = np.array(self._counts[before:])[:, None] <= np.array(self._counts)[None]
        weighed = [x / self._draw.inclusion(len(x), len(x)) for x in self._residuals[:before]]
        earlier = (
            np.where(fewer[:, :before], _products(own, self.shares[:before]), _products(own_shares, weighed))
            / len(self._draw.order) ** 2
        )
        among = _products(own, own_shares)
        among = np.where(fewer[:, before:], among, among.T) / len(self._draw.order) ** 2
        cross = slopes @ self.matrix + earlier
        block = slopes @ self.matrix @ slopes.T + slopes @ earlier.T + earlier @ slopes.T + among
        np.fill_diagonal(block, np.nan_to_num([point.stderr**2 for point in points]))
        self.matrix = np.block([[self.matrix, cross.T], [cross, block]])


def beginnings(rows: Sequence[np.ndarray], chosen: np.ndarray, length: int) -> np.ndarray:
    """The first entries of chosen rows, zeros where a row is shorter.

    Args:
        rows: Of any lengths.
        chosen: Numbers of rows, of any shape.
        length: How many entries.

    Returns:
        Shape ``(*chosen.shape, length)``, float64.
    """
    result = np.zeros((*chosen.shape, length))
    for index, number in np.ndenumerate(chosen):
        row = rows[number][:length]
        result[index][: len(row)] = row
    return result


def _combination(rows: Sequence[np.ndarray], terms: tuple[np.ndarray, np.ndarray], length: int) -> np.ndarray:
    """The sum of the first entries of chosen rows times factors."""
    chosen, factors = terms
    return factors @ beginnings(rows, chosen, length)


def _products(left: Sequence[np.ndarray], right: Sequence[np.ndarray]) -> np.ndarray:
    """The inner products of rows of any lengths, each over the shorter one's length."""
    result = np.zeros((len(left), len(right)))
    longest = min(max((len(x) for x in rows), default=0) for rows in (left, right))
    size = max(1, AT_ONCE // max(len(left), len(right), 1))
    for start in range(0, longest, size):
        width = min(size, longest - start)
        a, b = (
            beginnings([row[start : start + width] for row in rows], np.arange(len(rows)), width)
            for rows in (left, right)
        )
        result += a @ b.T
    return result
