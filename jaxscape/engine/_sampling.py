"""One term at every point, level by level and round by round, until each point is to the tolerance."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from jaxscape.engine._draw import draw
from jaxscape.engine._estimates import Estimates
from jaxscape.engine._levels import nearest
from jaxscape.engine._source import Source
from jaxscape.engine._stream import StreamSource

NEIGHBOURS = 8
FIRST_EXAMPLES = 64  # of the first round
STEP = 1.3  # from one number of batches to the next: few numbers make full calls, many spare examples
MARGIN = 1.05  # more examples than the standard error asks for, since it is an estimate itself
GROWTH = 4  # a round takes a point to at most so many times the examples it had
SHARE = 0.85  # of the tolerance, for points on which others will be regressed
KEPT = 1024  # such points at most: their losses and the covariances of their errors are in memory
IN_MEMORY = 2**25  # values of single examples that the points of the last levels have in memory, per metric: 128 MB

Samples = dict[str, dict[int, np.ndarray]]
"""For each metric the values of the examples that a point has taken, by point."""


class Sampling:
    """The estimates of a term's metrics.

    Attributes:
        source: The values of single examples, or of the batches of a stream.
        counts: The number of evaluated examples, or batches, at each point, shape ``(points,)``.
        estimates: For each metric the means and standard errors; empty before the roots are evaluated.
    """

    def __init__(
        self, source: Source | StreamSource, levels: np.ndarray, rtol: Mapping[str, float], atol: Mapping[str, float]
    ) -> None:
        """Nothing is evaluated yet.

        Args:
            source: The values of single examples.
            levels: The level of each point; those of level 0, the roots, are evaluated on all examples.
            rtol: Relative tolerances by the names of metrics; a metric without one is not looked at.
            atol: Absolute tolerances by the names of metrics.
        """
        self.source, self._levels, self._rtol, self._atol = source, levels, rtol, atol
        self.counts = np.zeros(len(levels), int)
        self.estimates: dict[str, Estimates] = {}
        extent = np.ptp(source.coords, axis=0)
        self._coords = source.coords / np.where(extent > 0, extent, 1)
        self._kept = np.zeros(0, int)

    def run(self, seed: int, advance: Callable[[int], Any] = lambda points: None) -> Iterator[np.ndarray]:
        """Estimate everywhere.

        Args:
            seed: Of the order of the examples.
            advance: Gets the number of points that are done in addition.

        Yields:
            Points that are finished; all roots together, since they share the order that is drawn from them.
        """
        yield self._start(seed, advance)
        for level in range(1, int(self._levels.max()) + 1):
            for finished in self._level(level):
                advance(len(finished))
                yield finished

    def _start(self, seed: int, advance: Callable[[int], Any]) -> np.ndarray:
        """Evaluate the roots, and draw the order of the examples by what they say."""
        roots, total = np.flatnonzero(self._levels == 0), int(self.source.counts[-1])
        values = self._all_values(roots, advance)
        order = draw(list(values.values()), total, seed)
        self.source.rearrange(order)
        self.counts[roots], self._kept = total, roots
        self.estimates = {
            name: Estimates(order, len(self._levels), roots, x[:, order.order]) for name, x in values.items()
        }
        return roots

    def _level(self, level: int) -> Iterator[np.ndarray]:
        """Bring the points of a level to the tolerance; keep them for the next level, if they are not too many."""
        rows = np.flatnonzero(self._levels == level)
        if level < self._levels.max() and len(self._kept) + len(rows) <= KEPT:
            samples: Samples = {name: {} for name in self.estimates}
            yield from self._to_tolerance(rows, SHARE, samples)
            for name, each in self.estimates.items():
                each.keep(rows, [samples[name][row] for row in rows.tolist()])
            self._kept = np.append(self._kept, rows)
            return
        size = max(1, IN_MEMORY // int(self.source.counts[-1]))
        for i in range(0, len(rows), size):
            yield from self._to_tolerance(rows[i : i + size], 1.0, {name: {} for name in self.estimates})
            for each in self.estimates.values():
                each.forget()

    def _all_values(self, roots: np.ndarray, advance: Callable[[int], Any]) -> dict[str, np.ndarray]:
        """The values at the roots, shape ``(roots, N)``, in the order of the data."""
        total, batches = int(self.source.counts[-1]), len(self.source.counts) - 1
        result: dict[str, np.ndarray] = {}
        place = {int(row): i for i, row in enumerate(roots)}
        for rows, values in self.source.values(roots, 0, batches):
            for name, x in values.items():
                whole = result.setdefault(name, np.zeros((len(roots), total), x.dtype))
                whole[[place[int(row)] for row in rows]] = x
            advance(len(rows))
        return result

    def _to_tolerance(self, rows: np.ndarray, share: float, samples: Samples) -> Iterator[np.ndarray]:
        """Rounds for points of one level, until each has a standard error of a share of the tolerance."""
        counts = self.source.counts
        done = np.zeros(len(self._levels), int)  # batches that each point has taken
        target = np.zeros_like(done)
        target[rows] = np.searchsorted(counts, min(FIRST_EXAMPLES, counts[-1]))
        while rows.size:
            for first, last in sorted({(done[row], target[row]) for row in rows}):
                same = rows[(done[rows] == first) & (target[rows] == last)]
                for block, values in self.source.values(same, first, last):
                    for name, x in values.items():
                        for row, each in zip(block.tolist(), x, strict=True):
                            before = samples[name].get(row)
                            samples[name][row] = each if before is None else np.concatenate([before, each])
            done[rows], self.counts[rows] = target[rows], counts[target[rows]]
            for last in np.unique(done[rows]):
                self._solve(rows[done[rows] == last], samples)
            excess = self._excess(rows) / share
            over = (excess > 1) & (self.counts[rows] < counts[-1])
            yield rows[~over]
            rows = rows[over]
            wanted = examples_for(self.counts[rows], excess[over], counts[-1])
            target[rows] = _few_sizes(np.maximum(np.searchsorted(counts, wanted), done[rows] + 1), len(counts) - 1)

    def _excess(self, rows: np.ndarray) -> np.ndarray:
        """The largest standard error of a metric over its tolerance; 0 where there is no standard error."""
        excess = np.zeros(len(rows))
        for name in self._rtol.keys() | self._atol.keys():
            mean, stderr = self.estimates[name].mean[rows], self.estimates[name].stderr[rows]
            tolerance = np.maximum(self._rtol.get(name, 0.0) * np.abs(mean), self._atol.get(name, 0.0))
            with np.errstate(all="ignore"):  # no error at all may be allowed, or the mean not finite
                excess = np.fmax(excess, np.where(stderr > 0, stderr / tolerance, 0.0))
        return excess

    def _solve(self, rows: np.ndarray, samples: Samples) -> None:
        """Estimate points with the same number of examples."""
        enough = np.flatnonzero(self.counts[self._kept] >= self.counts[rows[0]])
        near = enough[nearest(self._coords[rows], self._coords[self._kept[enough]], NEIGHBOURS)]
        apart = ((self._coords[rows][:, None] - self._coords[self._kept[near]]) ** 2).sum(-1)
        weights = 1 / np.maximum(apart, 1e-12)  # the same point twice: it is its own neighbour
        weights /= weights.sum(1, keepdims=True)
        for name, each in self.estimates.items():
            each.solve(rows, np.stack([samples[name][int(row)] for row in rows]), near, weights)


def examples_for(counts: np.ndarray, excess: np.ndarray, total: int) -> np.ndarray:
    """How many examples bring a standard error down to the tolerance, and MARGIN more.

    Args:
        counts: How many there are now.
        excess: The standard error over the tolerance.
        total: How many there are in all; with them the error is 0.

    Returns:
        At most GROWTH times as many as now.
    """
    with np.errstate(all="ignore"):
        wanted = 1 / ((1 / counts - 1 / total) / excess**2 + 1 / total)
    return np.minimum(MARGIN * np.nan_to_num(wanted, nan=total), GROWTH * counts)


def _few_sizes(batches: np.ndarray, most: int) -> np.ndarray:
    """The next larger of few numbers of batches, so that calls are full."""
    steps = np.unique(np.append(np.ceil(STEP ** np.arange(120)).clip(max=most), most)).astype(int)
    return steps[np.minimum(np.searchsorted(steps, batches), len(steps) - 1)]
