"""What is kept of a batch, so that weighted means and their standard errors over all batches come out exactly.

With m the weighted mean of a batch of examples with values x and weights w, five sums: ``sum(w)``, ``sum(w x)``,
``sum(w^2 (x - m)^2)``, ``sum(w^2 (x - m))`` and ``sum(w^2)``. They are closed under joining batches (Chan, Golub and
LeVeque 1983 for weights of 1), and the variance of the ratio ``R = sum(w x) / sum(w)`` needs no more: to first order it
is ``N / (N - 1) * sum(w^2 (x - R)^2) / sum(w)^2`` (Cochran 1977, Sampling Techniques, section 2.11).
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxscape import trees

SUMS = 5


def summarize(values: Array, weights: Array) -> Float[Array, "7"]:
    """The sums of one batch, on the device; of the third the root. They are of values and weights over powers of two.

    The sum, not the mean: that of a hit-or-miss metric is exact. Powers of two keep every digit: without them a sum of
    losses of 1e37 is infinite in float32, and squares are from 1e19 on.

    Args:
        values: Of each example, shape ``(batch,)``; or their mean, a scalar: then nothing is known of their spread.
        weights: Of each example, shape ``(batch,)``; an example of weight 0 adds nothing, whatever its value.

    Returns:
        The sums, and the powers of two of values and of weights, in at least float32.
    """
    counted = weights != 0
    values = jnp.where(counted, values, 0) if values.ndim else values
    value_scale, weight_scale = trees.power_of_two(values).reshape(()), trees.power_of_two(weights).reshape(())
    values, weights = values / value_scale, weights / weight_scale
    total = jnp.sum(weights)
    if not values.ndim:
        zero = jnp.zeros_like(values)
        weighted = jnp.where(total > 0, values * total, 0)
        return jnp.stack([total, weighted, zero, zero, zero, value_scale, weight_scale])
    weighted = jnp.sum(weights * values)
    mean = weighted / jnp.where(total != 0, total, 1)
    deviations = jnp.where(counted, weights * (values - mean), 0)
    root = jnp.sqrt(jnp.sum(deviations**2))
    sums = [total, weighted, root, jnp.sum(weights * deviations), jnp.sum(weights**2)]
    return jnp.stack([*sums, value_scale, weight_scale])


def from_device(summaries: np.ndarray) -> np.ndarray:
    """The sums of batches in float64, times their powers of two, the root squared; sums along the first axis.

    Args:
        summaries: Shape ``(..., 7)``.

    Returns:
        Shape ``(5, ...)``.
    """
    *sums, values, weights = np.moveaxis(summaries.astype(np.float64), -1, 0)
    total, weighted, root, deviations, squared_weights = sums
    with np.errstate(all="ignore"):  # a NaN or infinite loss is a result
        both = values * weights
        return np.stack(
            [
                total * weights,
                weighted * both,
                (root * both) ** 2,
                deviations * both * weights,
                squared_weights * weights**2,
            ]
        )


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
