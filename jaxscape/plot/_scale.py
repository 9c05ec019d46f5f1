"""Levels and colours, chosen once for one surface or for several surfaces that are compared."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import xarray as xr
from matplotlib.colors import LogNorm, Normalize
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from jaxscape.plot._field import FRACTIONS, field

# A linear scale shows a range of about 50: values below 1/50 of its height look like a flat floor (12 levels).
_STEEP = 50.0
_LARGEST = 1e300  # matplotlib squares and adds what it draws
# The levels within a decade, from coarse to fine; each set is about evenly spaced in the logarithm.
_MANTISSAS = ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 3.0, 5.0, 7.0))


class Scale(NamedTuple):
    """The scale that maps values to levels, colours and heights.

    Attributes:
        levels: Ascending levels; the first and the last level bound the colours.
        log: Whether colours and heights follow the logarithm.
        extend: The sides on which there are values outside the levels.
    """

    levels: np.ndarray
    log: bool
    extend: Literal["neither", "min", "max", "both"]

    def norm(self) -> Normalize:
        """The normalization that maps values to colours."""
        return (LogNorm if self.log else Normalize)(self.levels[0], self.levels[-1])


def levels(
    *results: xr.Dataset,
    metric: str = "loss",
    num: int = 12,
    log: bool | None = None,
    loss_max: float | None = None,
) -> np.ndarray:
    """Round contour levels that span the finite values of all results, so that pictures can share them.

    Args:
        *results: Surfaces over two dimensions.
        metric: The variable of the results.
        num: The approximate number of levels.
        log: Whether the levels are evenly spaced in the logarithm; None: they are if the largest value is more than 50
            times the smallest.
        loss_max: The last level; None: the levels span all values.

    Returns:
        Ascending levels, two or more; in percent for accuracy and error.

    Raises:
        ValueError: There are no results, a result is not a surface or does not have the metric, ``log`` is True with
            negative values, ``num`` is below 2, or ``loss_max`` is below all values.
    """
    if not results:
        raise ValueError("results is empty; expected at least one surface.")
    if num < 2:
        raise ValueError(f"num is {num}, expected at least 2 levels.")
    return choose([field(result, metric).z for result in results], metric, None, log, loss_max, num).levels


def choose(
    values: Sequence[np.ndarray],
    metric: str,
    fixed: ArrayLike | None,
    log: bool | None,
    loss_max: float | None,
    num: int = 12,
) -> Scale:
    """Choose one scale for the values of all pictures, with fixed levels or with levels that are chosen here.

    Args:
        values: The values of each picture.
        metric: The name of the variable that the values belong to.
        fixed: Ascending levels; None: levels are chosen here.
        log: Whether the scale is logarithmic; None: it is if the values, or the fixed levels, span more than a factor
            of 50.
        loss_max: The last level; None: the levels span all values. Not with fixed levels.
        num: The approximate number of levels that are chosen here.

    Returns:
        The scale.

    Raises:
        ValueError: Both ``fixed`` and ``loss_max`` are given, an option does not fit the values, or the values are too
            large to be drawn.
    """
    finite = np.concatenate([z[np.isfinite(z)] for z in values])
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
    below = bool(finite.size) and finite.min() < chosen[0]
    above = bool(finite.size) and finite.max() > chosen[-1]
    extend = "both" if below and above else "min" if below else "max" if above else "neither"
    return Scale(chosen, log, extend)  # type: ignore[arg-type]


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
