"""The levels of a contour plot: round numbers, chosen for the values that it is to show."""

import numpy as np
from numpy.typing import ArrayLike

FRACTIONS = ("accuracy", "error")
"""Metrics that loss_fn returns as fractions of the examples; plots show them in percent, on a linear scale."""

# A linear scale shows a range of about 50: values below 1/50 of its height look like a flat floor (12 levels).
_STEEP = 50.0
_LARGEST = 1e300  # matplotlib squares and adds what it draws
# The levels within a decade, from coarse to fine; each set is about evenly spaced in the logarithm.
_MANTISSAS = ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 3.0, 5.0, 7.0))


def choose_levels(
    finite: np.ndarray,
    metric: str,
    fixed: ArrayLike | None = None,
    log: bool | None = None,
    loss_max: float | None = None,
    num: int = 12,
) -> tuple[np.ndarray, bool]:
    """Choose levels for values, or check those that are given.

    >>> choose_levels(np.array([0.0, 10.0]), "loss", num=5)
    (array([ 0.,  2.,  4.,  6.,  8., 10.]), False)

    Args:
        finite: Finite values, in the units of the plot.
        metric: The name of the variable that they belong to.
        fixed: Ascending levels; None: levels are chosen here.
        log: Whether the scale is logarithmic; None: it is if the values, or the fixed levels, span more than a factor
            of 50.
        loss_max: The last level; None: the levels span all values. Not with fixed levels.
        num: The approximate number of levels that are chosen here.

    Returns:
        Ascending levels, and whether the scale is logarithmic.

    Raises:
        ValueError: Both ``fixed`` and ``loss_max`` are given, an option does not fit the values, or the values are too
            large to be drawn.
    """
    if fixed is not None and loss_max is not None:
        raise ValueError("levels and loss_max are both given; expected one of them: the last level is the maximum.")
    chosen = None if fixed is None else _checked(fixed)
    spanned = finite if chosen is None else chosen
    log = _is_log(spanned, metric, loss_max) if log is None else log
    if log and spanned.size and spanned.min() < 0:
        raise ValueError(f"log is True with values down to {spanned.min():g}, expected none below 0; pass log=False.")
    if log and chosen is not None and chosen[0] <= 0:
        raise ValueError(f"log is True with a level at {chosen[0]:g}, expected levels above 0; pass log=False.")
    if chosen is None:
        if loss_max is None and np.abs(finite).max(initial=0) > _LARGEST:
            extreme = finite[np.abs(finite).argmax()]
            raise ValueError(f"the values reach {extreme:.3g}, more than can be drawn; pass loss_max or levels.")
        chosen = _span(finite, log, loss_max, num)
    return chosen, log


def _checked(levels: ArrayLike) -> np.ndarray:
    try:
        array = np.asarray(levels, dtype=float)
    except (TypeError, ValueError) as error:
        raise TypeError(f"levels is {type(levels).__name__}, expected ascending numbers.") from error
    if array.ndim != 1 or len(array) < 2 or not np.isfinite(array).all() or not (np.diff(array) > 0).all():
        raise ValueError(f"levels is {levels!r}, expected two or more ascending, finite numbers.")
    return array


def _is_log(values: np.ndarray, metric: str, loss_max: float | None) -> bool:
    positive = values[values > 0]
    if metric in FRACTIONS or not positive.size or values.min() < 0:
        return False
    top = positive.max() if loss_max is None else min(loss_max, positive.max())
    return bool(top > _STEEP * positive.min())


def _span(finite: np.ndarray, log: bool, loss_max: float | None, num: int) -> np.ndarray:
    """Round levels that cover the smallest and the largest value; loss_max, if it is smaller, is the last level."""
    used = finite[finite > 0] if log else finite  # on a log scale zeros are below the first level
    if not used.size:
        return np.array([1.0, 10.0]) if log else np.array([0.0, 1.0])
    low, high = float(used.min()), float(used.max())
    if loss_max is not None and loss_max <= low:
        raise ValueError(f"loss_max is {loss_max:g}, expected more than the smallest value shown, {low:g}.")
    if loss_max is not None and loss_max < high:
        high = loss_max
    if high - low <= 1e-12 * abs(high):  # constant values: span a range around them, to give them a colour
        low, high = (low / 2, high * 2) if log else (low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1))
    ticks = _log_levels(low, high, num) if log else _linear_levels(low, high, num)
    if high == loss_max:
        return np.append(ticks[ticks < high], high)
    return ticks


def _linear_levels(low: float, high: float, num: int) -> np.ndarray:
    from matplotlib.ticker import MaxNLocator  # here: surfaces import this module, and need no matplotlib

    ticks = MaxNLocator(num, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    return np.array([float(f"{tick:.12g}") for tick in ticks])  # 0.9, not 0.9000000000000001


def _log_levels(low: float, high: float, num: int) -> np.ndarray:
    """The finest set of round levels with at most num levels; if the decades are too many, every n-th decade."""
    decades = np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
    stride = int(np.ceil(len(decades) / num))
    thinned = decades[0] + stride * np.arange(np.ceil((len(decades) - 1) / stride) + 1)
    ticks = 10.0 ** np.minimum(thinned, 308.0)  # the largest power of ten of a float
    for mantissas in _MANTISSAS:
        finer = np.outer(10.0 ** np.minimum(decades, 307.0), mantissas).ravel()
        first, last = np.searchsorted(finer, low, "right") - 1, np.searchsorted(finer, high, "left")
        finer = finer[max(first, 0) : last + 1]
        if len(finer) <= num:
            ticks = finer
    return ticks
