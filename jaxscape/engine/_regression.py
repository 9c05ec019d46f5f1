"""An estimate of a mean over N examples from a sample, by regression on the values at neighbouring points.

A neighbour's mean is known, or estimated from a larger sample, with an error of its own. Let ``avg`` be the weighted
mean over the sample S of the point (weights ``1 / pi``, see `_draw`), y the values at the point, x those at its neighbours
and 1, m the means of x. Then ``Z = avg(x) - m`` has the expectation 0, and for any b

``mean = avg(y) - b . Z``,   ``variance = Var(avg(y - b . x)) + b . C . b + 2 b . Cov(m, avg(y - b . x))``

with C the covariances of the errors of m. b minimizes it, but for a weak pull towards interpolation weights b0: where the
sample holds too little to say more. (Cochran 1977, chapter 7, the regression estimator, and chapter 12, double sampling;
several levels: Giles 2015, Multilevel Monte Carlo methods.)

The first term is estimated from the residuals ``r = y - b . x``, and so from what was seen. What was not seen is bounded by
what is known of it: the spread D of the neighbours' values around b0 . x is known for the examples of the larger samples,
and ``c^2 = sum r^2 / sum D^2`` over the sample, one further residual of D itself in both sums, says how much of it the
residuals have. The mean of both estimates is taken. The largest residual counts twice more, as what the next example may bring.
"""

from typing import NamedTuple

import numpy as np

PULL = 0.1  # towards b0, in examples: 0.01 left error rates within 2 standard errors at 91 % of the points, this at 96 %
AS_LARGE = 1.0  # so often the largest residual is counted once more
EVENT = 1.0
LARGER = 10.0
TINY = 1e-12
UNSEEN = 0.2  # residuals as large as the neighbours' spread that are added to those seen


class Neighbours(NamedTuple):
    """What is known at the neighbours of P points, k for each.

    Attributes:
        values: Shape ``(P, k, m)``: of the first examples of the order; 0 where they are not known.
        means: Shape ``(P, k)``.
        covariances: Of the errors of the means, shape ``(P, k, k)``.
        shares: Shape ``(P, k, n)``: what each example of the point's sample has to do with the errors of the means;
            ``sum(shares * y / pi) / N^2`` is the covariance with ``avg(y)``.
        weights: Interpolation weights b0, shape ``(P, k)``, with a sum of 1.
        inclusion: Shape ``(P, m)``: the probability that an example's values are known at all neighbours; infinite where
            they are not known.
    """

    values: np.ndarray
    means: np.ndarray
    covariances: np.ndarray
    shares: np.ndarray
    weights: np.ndarray
    inclusion: np.ndarray


class Fit(NamedTuple):
    """Estimates at P points.

    Attributes:
        mean: Shape ``(P,)``.
        stderr: Shape ``(P,)``.
        slopes: Those of the neighbours, b, shape ``(P, k)``.
        residuals: ``y - b . x``, shape ``(P, n)``.
    """

    mean: np.ndarray
    stderr: np.ndarray
    slopes: np.ndarray
    residuals: np.ndarray


def fit(y: np.ndarray, near: Neighbours, inclusion: np.ndarray, total: int, at_least: float, whole: bool) -> Fit:
    """Estimate the means at P points from the first n examples of the order.

    Args:
        y: The values at the points, shape ``(P, n)``.
        near: Their neighbours.
        inclusion: Of the first m examples, the probability to be among the first n, shape ``(m,)``.
        total: N.
        at_least: The variance of avg(r) where the neighbours agree about every example.

    Returns:
        The estimates.
    """
    points, n = y.shape
    pi = inclusion[:n]
    weights = 1 / (pi * total)
    noise = weights**2 * (1 - pi)  # the variance of avg(r) is the sum of noise * r^2 over the sample
    x = np.concatenate([np.ones((points, 1, n)), near.values[..., :n]], axis=1)
    scale = np.sqrt(x**2 @ noise / max(noise.sum(), TINY))
    scale = np.where(scale > 0, scale, 1.0)
    x = x / scale[..., None]
    own = (x * noise) @ x.swapaxes(1, 2)
    own_y = np.einsum("pkn,pn->pk", x * noise, y)
    shares = near.shares * (weights / total) / scale[:, 1:, None]
    shared = _pad(shares @ x.swapaxes(1, 2), 1)
    shared_y = _pad(np.einsum("pkn,pn->pk", shares, y), 1)
    known = _pad(_pad(near.covariances / scale[:, 1:, None] / scale[:, None, 1:], 1), 2)
    spreads = known - shared - shared.swapaxes(1, 2) + own  # the covariances of Z
    size = np.sqrt(y**2 @ noise / max(noise.sum(), TINY))[:, None]
    alike = np.where(size > 0, np.minimum(scale, LARGER * size), scale)  # a neighbour 1e20 times as large is none
    start = np.pad(near.weights * alike[:, 1:], ((0, 0), (1, 0)))
    pull = np.diag(np.append(TINY, np.full(x.shape[1] - 1, PULL / n**2)))
    inverse = np.linalg.inv(spreads + pull)
    b = start + np.einsum("pij,pj->pi", inverse, own_y - shared_y - np.einsum("pij,pj->pi", spreads, start))
    residuals = y - np.einsum("pk,pkn->pn", b, x)
    offset = x @ weights - np.concatenate([np.ones((points, 1)), near.means], 1) / scale
    mean = y @ weights - (b * offset).sum(1)
    squares = noise * residuals**2
    by_means = np.einsum("pi,pij,pj->p", b, known, b) + 2 * (
        (b * shared_y).sum(1) - np.einsum("pi,pij,pj->p", b, shared, b)
    )
    by_sample = (squares.sum(1) + _unseen(squares, near, inclusion, noise, total, at_least)) / 2
    by_sample += EVENT * at_least * whole
    counted = (squares > 0).sum(1)
    left = np.maximum(counted - np.einsum("pij,pji->p", inverse, spreads), 1)
    slopes_unknown = np.maximum(np.einsum("pi,pij,pj->p", offset, inverse, offset), 0) / left
    variance = np.maximum(by_means + by_sample, 0) * np.maximum(counted, 1) / left * (1 + slopes_unknown)
    variance += AS_LARGE * squares.max(1) + (np.finfo(np.float32).eps * (np.abs(y) @ weights)) ** 2
    return Fit(mean, np.sqrt(variance), b[:, 1:] / scale[:, 1:], residuals)


def _unseen(
    squares: np.ndarray, near: Neighbours, inclusion: np.ndarray, noise: np.ndarray, total: int, at_least: float
) -> np.ndarray:
    """The variance of avg(r) by the spread of the neighbours' values, over all examples for which it is known."""
    n, m = squares.shape[1], near.values.shape[2]
    x = near.values
    apart = ((x - np.einsum("pk,pkm->pm", near.weights, x)[:, None]) ** 2 * near.weights[..., None]).sum(1)
    per_example = apart / near.inclusion  # so that sums are those over all examples
    pi = inclusion[:m]
    everywhere = (per_example * (1 / pi - 1)).sum(1) / total**2
    typical = (per_example * apart * (1 / pi - 1) ** 2 / pi).sum(1) / total**4  # of one residual that is seen
    with np.errstate(all="ignore"):
        typical = UNSEEN * np.where(everywhere > 0, typical / everywhere, 0)
        ratio = (squares.sum(1) + typical) / ((apart[:, :n] * noise).sum(1) + typical)
        return np.where(everywhere > 0, ratio * everywhere, squares.sum(1) + at_least)


def _pad(x: np.ndarray, axis: int) -> np.ndarray:
    """A zero before the first entry of an axis: the constant has no error."""
    widths = [(0, 0)] * x.ndim
    widths[axis] = (1, 0)
    return np.pad(x, widths)
