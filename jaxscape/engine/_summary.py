"""What is kept of a batch, so that weighted means and their standard errors over all batches come out exactly.

With m the weighted mean of a batch of examples with values x and weights w, five sums: ``sum(w)``, ``sum(w x)``,
``sum(w^2 (x - m)^2)``, ``sum(w^2 (x - m))`` and ``sum(w^2)``. They are closed under joining batches (Chan, Golub and
LeVeque 1983 for weights of 1), and the variance of the ratio ``R = sum(w x) / sum(w)`` needs no more: to first order it
is ``N / (N - 1) * sum(w^2 (x - R)^2) / sum(w)^2`` (Cochran 1977, Sampling Techniques, section 2.11).
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

SUMS = 5


def summarize(values: Array, weights: Array) -> Float[Array, "5"]:
    """The sums of one batch, on the device; of the third the root.

    The sum, not the mean: that of a hit-or-miss metric is exact. The deviations are scaled before they are squared:
    losses far from a minimizer pass 1e19, where squares overflow in float32.

    Args:
        values: Of each example, shape ``(batch,)``; or their mean, a scalar: then nothing is known of their spread.
        weights: Of each example, shape ``(batch,)``; an example of weight 0 adds nothing, whatever its value.

    Returns:
        The sums, in at least float32.
    """
    total = jnp.sum(weights)
    if not values.ndim:
        zero = jnp.zeros_like(values)
        return jnp.stack([total, jnp.where(total > 0, values * total, 0), zero, zero, zero])
    counted = weights != 0
    weighted = jnp.sum(jnp.where(counted, weights * values, 0))
    mean = weighted / jnp.where(total != 0, total, 1)
    deviations = jnp.where(counted, weights * (values - mean), 0)
    scale = jnp.max(jnp.abs(deviations))
    root = scale * jnp.sqrt(jnp.sum((deviations / jnp.where(scale > 0, scale, 1)) ** 2))
    return jnp.stack([total, weighted, root, jnp.sum(weights * deviations), jnp.sum(weights**2)])


def from_device(summaries: np.ndarray) -> np.ndarray:
    """The sums of batches in float64, the root squared; sums along the first axis.

    Args:
        summaries: Shape ``(..., 5)``.

    Returns:
        Shape ``(5, ...)``.
    """
    sums = np.moveaxis(summaries.astype(np.float64), -1, 0)
    with np.errstate(all="ignore"):  # a NaN or infinite loss is a result
        sums[2] **= 2
    return sums


def join(sums: np.ndarray) -> np.ndarray:
    """The sums of several batches together.

    Args:
        sums: Shape ``(5, ..., batches)``.

    Returns:
        Shape ``(5, ...)``.
    """
    weights, weighted, squares, deviations, squared_weights = sums
    with np.errstate(all="ignore"):
        total, weighted_total = weights.sum(-1), weighted.sum(-1)
        mean = (weighted_total / total)[..., None]
        shift = np.where(weights != 0, weighted / np.where(weights != 0, weights, 1) - mean, 0)
        squares = squares + 2 * shift * deviations + shift**2 * squared_weights
        deviations = deviations + shift * squared_weights
    return np.stack([total, weighted_total, squares.sum(-1), deviations.sum(-1), squared_weights.sum(-1)])


def mean_and_stderr(sums: np.ndarray, examples: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean, and its standard error, the examples taken as a sample.

    Args:
        sums: Of all examples, shape ``(5, ...)``.
        examples: Their number.

    Returns:
        Two arrays of shape ``(...)``; the standard error of a single example is NaN.
    """
    with np.errstate(all="ignore"):
        mean = sums[1] / sums[0]
        return mean, np.sqrt(np.maximum(sums[2], 0) * (np.float64(examples) / (examples - 1))) / np.abs(sums[0])
