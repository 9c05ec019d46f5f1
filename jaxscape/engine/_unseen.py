"""What may change without a sample that shows it: a part of the error bars of 0/1 metrics."""

import numpy as np

ONE_MORE = 0.5  # examples that are taken to have changed; what it does to error bars: `_regression`


class Unseen:
    """What the values of one metric at the roots say about changes that are rare.

    Values that are whole numbers, or two numbers for each example, as those of 0/1 metrics with weights, do not
    change by little: a sample in which no example has changed looks like one of a metric that does not change. So a
    part of a change is added, twice: of one of the examples that differ between roots, and, divided by the number of
    roots, of one of all examples, since those that are the same at all roots may differ between them.
    """

    def __init__(self, values: np.ndarray) -> None:
        """Look at the roots.

        Args:
            values: Those that are finite, shape ``(roots, N)``, in the order of the draw.
        """
        roots, self._total = values.shape
        values = values.astype(np.float64)
        self._changes = np.ptp(values, axis=0) ** 2 if roots else np.zeros(self._total)
        low, high = (values.min(0), values.max(0)) if roots else (values, values)
        steps = (values == np.round(values)).all() or (roots > 2 and ((values == low) | (values == high)).all())
        changed = self._changes[self._changes > 0]
        self._one_more = ONE_MORE * bool(steps)
        self._anywhere = self._one_more * (changed.mean() if changed.size else 1.0) / max(roots, 1)

    def variances(self, inclusion: np.ndarray) -> tuple[float, float]:
        """The variance of a mean over a sample.

        Args:
            inclusion: The probability of each example to be in the sample, shape ``(N,)``.

        Returns:
            That from one example that changes as much as between roots; and that to be added to every error bar.
        """
        odds = (1 - inclusion) / inclusion
        one = odds / inclusion / self._total**2 * self._changes
        with np.errstate(all="ignore"):  # where no example differs between roots
            change = float(np.nan_to_num((inclusion * one**2).sum() / (inclusion * one).sum()))
        return change, self._one_more * change + self._anywhere * float(odds.mean()) / self._total**2
