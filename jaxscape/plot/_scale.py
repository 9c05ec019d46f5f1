"""Levels and colours, chosen once for one surface or for several surfaces that are compared."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import xarray as xr
from matplotlib.colors import LogNorm, Normalize
from numpy.typing import ArrayLike

from jaxscape.levels import choose_levels
from jaxscape.plot._field import field


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
    chosen, log = choose_levels(finite, metric, fixed, log, loss_max, num)
    below = bool(finite.size) and finite.min() < chosen[0]
    above = bool(finite.size) and finite.max() > chosen[-1]
    extend = "both" if below and above else "min" if below else "max" if above else "neither"
    return Scale(chosen, log, extend)  # type: ignore[arg-type]
