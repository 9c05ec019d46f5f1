"""The barrier between two minimizers."""

from typing import NamedTuple

import numpy as np
import xarray as xr

from jaxscape.arguments import checked

_SAME = 1e-9  # what rounding makes of a coordinate


class Barrier(NamedTuple):
    """The barrier between the ends of a line.

    Attributes:
        value: Its height.
        stderr: Its standard error, at most.
        alpha: Where the line is highest.
    """

    value: float
    stderr: float
    alpha: float


@checked
def loss_barrier(line: xr.Dataset, *, metric: str = "loss") -> Barrier:
    """The height of the loss between two minimizers above the mean of both (Frankle et al. 2020, section 2).

    ``max over 0 <= alpha <= 1 of L(alpha) - (L(0) + L(1)) / 2``, over the points of the line: a barrier between two
    points is not seen. With the metric ``accuracy`` it is that of the error, ``1 - accuracy``.

    >>> import jax.numpy as jnp
    >>> from jaxscape import Grid, interpolate
    >>> double_well = lambda p, x: (p**2 - 1) ** 2 + 0 * x
    >>> line = interpolate(jnp.float32(-1), jnp.float32(1), double_well, jnp.ones(4), grid=Grid.line(0, 1, 5))
    >>> loss_barrier(line)
    Barrier(value=1.0, stderr=0.0, alpha=0.5)

    Args:
        line: A result of `interpolate` with points at alpha = 0 and 1.
        metric: One of its variables.

    Returns:
        The height and where it is; 0 where the line is nowhere above both ends' mean. The standard error is a bound,
        ``s(alpha) + (s(0) + s(1)) / 2``, which holds however the three losses, of the same examples, are correlated.
        That the highest of several uncertain points is taken adds a bias upwards, which it does not have in it. NaN
        where the line is not finite, or has no standard errors.

    Raises:
        ValueError: The line lacks the metric or an end, or has another dimension than ``alpha``.
        TypeError: It is no Dataset.
    """
    if not isinstance(line, xr.Dataset):
        raise TypeError(f"line is {type(line).__name__}, expected the Dataset of js.interpolate.")
    if metric not in line:
        raise ValueError(f"metric is {metric!r}, expected one of the variables of line {sorted(map(str, line))}.")
    if line[metric].ndim != 1:
        raise ValueError(
            f"line has the dimensions {line[metric].dims}, expected one, alpha, as js.interpolate gives it."
        )
    ends = [place for end in (0.0, 1.0) if (place := place_of(line, end)) is not None]
    if len(ends) < 2:
        raise ValueError(
            "line has no points at alpha = 0 and 1, expected both ends: js.Grid.line(0, 1, 51), for example."
        )
    alphas = line.alpha.values
    height = line[metric].values if metric != "accuracy" else 1 - line[metric].values
    error = line[f"{metric}_stderr"].values if f"{metric}_stderr" in line else np.full(len(alphas), np.nan)
    between = np.flatnonzero((alphas >= -_SAME) & (alphas <= 1 + _SAME))
    if not np.isfinite(height[between]).all():
        return Barrier(float("nan"), float("nan"), float("nan"))
    top = between[np.argmax(height[between])]
    value, stderr = height[top] - height[ends].mean(), error[top] + error[ends].mean()
    return Barrier(max(float(value), 0.0), float(stderr), float(alphas[top]))


def place_of(line: xr.Dataset, alpha: float) -> int | None:
    """Which point of a line has this coordinate, up to rounding.

    Args:
        line: A result over ``alpha``.
        alpha: The coordinate.

    Returns:
        Its number; None where there is none.
    """
    if not line.sizes.get("alpha"):
        return None
    nearest = int(np.abs(line.alpha.values - alpha).argmin())
    return nearest if abs(line.alpha.values[nearest] - alpha) <= _SAME else None
