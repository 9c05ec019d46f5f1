"""The order in which all points take the examples: those that matter are likely to come early.

Priority sampling (Duffield, Lund, Thorup 2007): example i with the size s_i gets the priority u_i / s_i, where u_i is
uniform in (0, 1); a sample is the n examples of least priority. With t the priority of the next example, the sum of
``y_i / min(1, t * s_i)`` over the sample is an unbiased estimate of the sum of y over all examples, whatever n. An
example whose size is large is in every sample, with certainty. All samples are beginnings of one order, so they are
nested.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

UNIFORM = 0.5  # the share of the sizes that all examples have: no weight is more than twice that of a plain sample
FEW = 0.05  # of the examples: where more are not finite at a root, it is the point that is bad, not they
CERTAIN = 1e3  # times the number of examples: a size that is in every sample
STREAM = 0x6C6F7373  # the seed's stream is its own: with that of the caller's data the sample was correlated with it


class Draw(NamedTuple):
    """Examples in the order in which they are taken.

    Attributes:
        order: Numbers of the examples, shape ``(N,)``.
        sizes: Their sizes, in this order.
        priorities: Ascending, shape ``(N + 1,)``; the last one is infinite.
    """

    order: np.ndarray
    sizes: np.ndarray
    priorities: np.ndarray

    def inclusion(self, taken: int, first: int) -> np.ndarray:
        """The probability of each of the first examples to be in a sample.

        Args:
            taken: The number of examples in the sample.
            first: Of how many examples the probability is wanted, in the order.

        Returns:
            Shape ``(first,)``.
        """
        return np.minimum(1.0, self.priorities[taken] * self.sizes[:first])


def draw(values: Sequence[np.ndarray], examples: int, seed: int) -> Draw:
    """Draw the order by what the roots say of each example.

    Args:
        values: Of each metric all examples' values at the roots, shape ``(roots, examples)``.
        examples: How many there are.
        seed: Of the random numbers.

    Returns:
        The order.
    """
    sizes = importance(values, examples)
    priorities = np.random.default_rng([seed, STREAM]).random(examples) / sizes
    order = np.argsort(priorities, kind="stable")
    return Draw(order, sizes[order], np.append(priorities[order], np.inf))


def importance(values: Sequence[np.ndarray], examples: int) -> np.ndarray:
    """How much each example matters for estimates by regression on the roots.

    One half is the same for all. One quarter is the norm of the example's values, each root in units of its
    root mean square: an example that carries the loss has to be seen. One quarter is its leverage, the diagonal of
    ``X (X' X)^-1 X'`` with the values and a constant as columns: an example that no other one is like has to be seen,
    or the regression cannot learn of it (Cochran 1977, section 7; Ma, Mahoney, Yu 2015). The few examples that are not
    finite at a root are in every sample.

    Args:
        values: Of each metric all examples' values at the roots, shape ``(roots, examples)``.
        examples: How many there are.

    Returns:
        Shape ``(examples,)``; the mean is 1 but for examples that are not finite.
    """
    rows = np.concatenate([np.asarray(x, np.float64) for x in values])
    rows = rows[np.isfinite(rows).mean(1) > 1 - FEW]
    bad = ~np.isfinite(rows).all(0)
    rows = np.where(np.isfinite(rows), rows, 0.0)
    rows = rows / np.maximum(np.abs(rows).max(1, initial=0.0, keepdims=True), np.finfo(float).tiny)
    power = (rows**2).mean(1)
    rows = rows[power > 0] / np.sqrt(power[power > 0, None])
    norm = np.sqrt((rows**2).sum(0))
    columns = np.concatenate([np.ones((1, examples)), rows])
    eigenvalues, vectors = np.linalg.eigh(columns @ columns.T / examples)
    real = eigenvalues > 1e-8 * eigenvalues[-1]  # float32 values know no more
    leverage = ((vectors[:, real].T @ columns) ** 2 / eigenvalues[real, None]).sum(0)
    norm = norm / norm.mean() if len(rows) else np.ones(examples)
    sizes = UNIFORM + (1 - UNIFORM) * (norm + leverage / leverage.mean()) / 2
    return np.where(bad, CERTAIN * examples, sizes)
