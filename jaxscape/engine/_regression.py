"""Means from subsets: regression on anchors whose means are known (Cochran 1977, Sampling Techniques, chapter 7)."""

import numpy as np


class Sample:
    """What has been seen of one metric at every point, and what it says of the mean over all N examples.

    With y the values at a point, x those of its anchors, both over the n examples drawn without replacement:
    ``mean = avg(y) + b . (anchors' mean over all - avg(x))`` with b by least squares, and

    ``stderr^2 = s^2 * ((1/n - 1/N) + e . inverse(Sxx) . e)``,  ``e = anchors' mean - avg(x)``

    with s^2 the residuals' variance on n - 1 - rank degrees of freedom and Sxx the scatter of x: the first term is
    chance with the finite-population correction, the second what the coefficients are not known by. Where the plain
    mean has the smaller error, it is taken. Only sums of products are kept, in float64, values counted from the mean
    of the nearest anchor in units of its spread.

    Attributes:
        mean: Shape ``(points,)``.
        stderr: Of the mean, against all examples; 0 where all were seen.
        counts: Examples seen.
    """

    def __init__(self, anchors: np.ndarray, exact: np.ndarray, nearest: np.ndarray) -> None:
        """Start from the anchors.

        Args:
            anchors: Their values, shape ``(anchors, N)``.
            exact: Which points they are, a mask.
            nearest: The anchors that each point is regressed on, nearest first, shape ``(points, k)``.
        """
        self.total = anchors.shape[1]
        with np.errstate(all="ignore"):  # a NaN or infinite loss is a result
            means, spreads = anchors.mean(1, dtype=np.float64), anchors.std(1, dtype=np.float64)
        usable = np.isfinite(means) & np.isfinite(spreads) & (spreads > 0)
        self.shift = np.where(usable, means, 0.0)
        self.scale = np.where(usable, spreads, 1.0)
        # An anchor that is not finite, or constant, tells nothing: zeros, which take no part in the regression.
        self.anchors = np.where(usable[:, None], anchors, self.shift[:, None].astype(anchors.dtype))
        self.nearest = nearest
        points, k = nearest.shape
        self.products = np.zeros((points, k + 2, k + 2))  # of 1, x and y
        self.mean, self.stderr = np.full((2, points), np.nan)
        self.counts = np.zeros(points)
        self.mean[exact], self.stderr[exact], self.counts[exact] = means, 0.0, self.total

    def add(self, points: np.ndarray, examples: np.ndarray, values: np.ndarray) -> None:
        """See values, shape ``(points, examples)``, of these points at these rows of the anchors' examples."""
        near = self.nearest[points]
        x = (self.anchors[near][..., examples] - self.shift[near][..., None]) / self.scale[near][..., None]
        y = (values - self.shift[near[:, :1]]) / self.scale[near[:, :1]]
        rows = np.concatenate([np.ones((len(points), 1, len(examples))), x, y[:, None]], axis=1)
        with np.errstate(all="ignore"):
            self.products[points] += rows @ rows.swapaxes(1, 2)
        self.counts[points] += len(examples)

    def examples_for(self, points: np.ndarray, rtol: float, atol: float) -> np.ndarray:
        """How many examples would bring the standard error of these points to the tolerance, as far as is known."""
        with np.errstate(all="ignore"):
            spread2 = self.stderr[points] ** 2 / (1 / self.counts[points] - 1 / self.total)
            wanted2 = np.maximum(rtol * np.abs(self.mean[points]), atol) ** 2
            return np.nan_to_num(1 / (wanted2 / spread2 + 1 / self.total), nan=self.total)

    def solve(self, points: np.ndarray) -> None:
        """Bring mean and standard error of these points up to date."""
        sums, n = self.products[points], self.counts[points]
        near = self.nearest[points, 0]
        with np.errstate(all="ignore"):
            average = sums[:, 0] / n[:, None]
            scatter = sums[:, 1:, 1:] - n[:, None, None] * average[:, 1:, None] * average[:, None, 1:]
        finite = np.isfinite(scatter).all((1, 2))
        scatter = np.where(finite[:, None, None], scatter, 0.0)
        missed = np.where(finite[:, None], -average[:, 1:-1], 0.0)  # the anchors' mean over all is 0 here
        inverse = np.linalg.pinv(scatter[:, :-1, :-1], rcond=1e-10, hermitian=True)
        rank = np.linalg.matrix_rank(scatter[:, :-1, :-1], hermitian=True)
        slopes = np.einsum("pij,pj->pi", inverse, scatter[:, :-1, -1])
        left = scatter[:, -1, -1] - np.einsum("pi,pi->p", slopes, scatter[:, :-1, -1])
        chance = 1 / n - 1 / self.total
        unknown = np.einsum("pi,pij,pj->p", missed, inverse, missed)
        with np.errstate(all="ignore"):
            residual2 = np.maximum(left, 0) / (n - 1 - rank)
            plain2 = np.maximum(scatter[:, -1, -1], 0) / (n - 1)
            regressed = residual2 * (chance + unknown) < plain2 * chance
            variance = np.where(regressed, residual2 * (chance + unknown), plain2 * chance)
        mean = average[:, -1] + np.where(regressed, np.einsum("pi,pi->p", slopes, missed), 0.0)
        whole = n >= self.total
        mean = np.where(whole, average[:, -1], mean)
        self.mean[points] = self.shift[near] + self.scale[near] * mean
        self.stderr[points] = self.scale[near] * np.where(
            whole & finite, 0.0, np.where(finite, np.sqrt(variance), np.nan)
        )
