"""Estimates of means from subsets, by regression on anchors (Cochran 1977, Sampling Techniques, chapter 7).

An anchor is a point whose mean over all examples is known.
"""

import numpy as np


class Sample:
    """A sample of one metric at every point, and the estimate of its mean over all N examples.

    Let y be the values at a point, and x the values at its anchors, both over the n examples that were drawn without
    replacement. Then

    ``mean = avg(y) + b . e``,  ``e = anchors' mean over all N examples - avg(x)``

    with b from least squares, and

    ``stderr^2 = s^2 * ((1/n - 1/N) + e . inverse(Sxx) . e)``

    where s^2 is the variance of the residuals with n - 1 - rank degrees of freedom, and Sxx is the scatter of x. The
    first term is the sampling error with the finite-population correction. The second term is the error of the
    coefficients b. If the plain mean has a smaller error, it is the estimate. Only sums of products are stored, in
    float64; values are differences from the mean of the nearest anchor, in units of its standard deviation.

    Attributes:
        mean: The estimated mean at each point, shape ``(points,)``.
        stderr: The standard error of the mean against the mean over all examples, shape ``(points,)``; 0 where all
            examples were evaluated.
        counts: The number of evaluated examples at each point, shape ``(points,)``.
    """

    def __init__(self, anchors: np.ndarray, exact: np.ndarray, nearest: np.ndarray) -> None:
        """Start from the anchors.

        Args:
            anchors: The values at the anchors, shape ``(anchors, N)``.
            exact: A mask of the points, true for the anchors.
            nearest: The anchors that each point is regressed on, nearest first, shape ``(points, k)``.
        """
        self.total = anchors.shape[1]
        with np.errstate(all="ignore"):  # a NaN or infinite loss is a result
            means, spreads = anchors.mean(1, dtype=np.float64), anchors.std(1, dtype=np.float64)
        usable = np.isfinite(means) & np.isfinite(spreads) & (spreads > 0)
        self.shift = np.where(usable, means, 0.0)
        self.scale = np.where(usable, spreads, 1.0)
        # An anchor that is not finite, or is constant, carries no information: its shifted values become zeros, which
        # have no effect on the regression.
        self.anchors = np.where(usable[:, None], anchors, self.shift[:, None].astype(anchors.dtype))
        self.nearest = nearest
        points, k = nearest.shape
        self.products = np.zeros((points, k + 2, k + 2))  # sums of products of 1, x and y
        self.mean, self.stderr = np.full((2, points), np.nan)
        self.counts = np.zeros(points)
        self.mean[exact], self.stderr[exact], self.counts[exact] = means, 0.0, self.total

    def add(self, points: np.ndarray, examples: np.ndarray, values: np.ndarray) -> None:
        """Add values, shape ``(points, examples)``, at these points and for these rows of the anchors' examples."""
        near = self.nearest[points]
        x = (self.anchors[near][..., examples] - self.shift[near][..., None]) / self.scale[near][..., None]
        y = (values - self.shift[near[:, :1]]) / self.scale[near[:, :1]]
        rows = np.concatenate([np.ones((len(points), 1, len(examples))), x, y[:, None]], axis=1)
        with np.errstate(all="ignore"):
            self.products[points] += rows @ rows.swapaxes(1, 2)
        self.counts[points] += len(examples)

    def examples_for(self, points: np.ndarray, rtol: float, atol: float) -> np.ndarray:
        """Estimate the number of examples that reduces the standard error of these points to the tolerance."""
        with np.errstate(all="ignore"):
            spread2 = self.stderr[points] ** 2 / (1 / self.counts[points] - 1 / self.total)
            tolerance2 = np.maximum(rtol * np.abs(self.mean[points]), atol) ** 2
            return np.nan_to_num(1 / (tolerance2 / spread2 + 1 / self.total), nan=self.total)

    def solve(self, points: np.ndarray) -> None:
        """Update the mean and the standard error of these points."""
        sums, n = self.products[points], self.counts[points]
        near = self.nearest[points, 0]
        with np.errstate(all="ignore"):
            average = sums[:, 0] / n[:, None]
            scatter = sums[:, 1:, 1:] - n[:, None, None] * average[:, 1:, None] * average[:, None, 1:]
        finite = np.isfinite(scatter).all((1, 2))
        scatter = np.where(finite[:, None, None], scatter, 0.0)
        offset = np.where(finite[:, None], -average[:, 1:-1], 0.0)  # the anchors' mean over all is 0 here
        inverse = np.linalg.pinv(scatter[:, :-1, :-1], rcond=1e-10, hermitian=True)
        rank = np.linalg.matrix_rank(scatter[:, :-1, :-1], hermitian=True)
        slopes = np.einsum("pij,pj->pi", inverse, scatter[:, :-1, -1])
        unexplained = scatter[:, -1, -1] - np.einsum("pi,pi->p", slopes, scatter[:, :-1, -1])
        chance = 1 / n - 1 / self.total
        unknown = np.einsum("pi,pij,pj->p", offset, inverse, offset)
        with np.errstate(all="ignore"):
            residual2 = np.maximum(unexplained, 0) / (n - 1 - rank)
            plain2 = np.maximum(scatter[:, -1, -1], 0) / (n - 1)
            regressed = residual2 * (chance + unknown) < plain2 * chance
            variance = np.where(regressed, residual2 * (chance + unknown), plain2 * chance)
        mean = average[:, -1] + np.where(regressed, np.einsum("pi,pi->p", slopes, offset), 0.0)
        all_seen = n >= self.total
        mean = np.where(all_seen, average[:, -1], mean)
        self.mean[points] = self.shift[near] + self.scale[near] * mean
        self.stderr[points] = self.scale[near] * np.where(
            all_seen & finite, 0.0, np.where(finite, np.sqrt(variance), np.nan)
        )
