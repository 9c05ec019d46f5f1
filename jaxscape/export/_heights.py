"""Heights of a surface and of the path on it: losses that are clipped and, if asked, logarithmic."""

from typing import NamedTuple

import numpy as np
import xarray as xr

from jaxscape.plot._field import Field, field

OFFSET = 0.1
"""What the original tool adds before it takes the logarithm, so that a loss of 0 has a height: ln(0.1) = -2.3."""


class Path3D(NamedTuple):
    """The path of training on a surface.

    Attributes:
        x: The first coordinates of the checkpoints that are finite, shape ``(checkpoints,)``.
        y: The second coordinates.
        z: The heights.
        loss: The losses in the plane, neither clipped nor logarithmic.
        step: The numbers of the checkpoints.
    """

    x: np.ndarray
    y: np.ndarray
    z: np.ndarray
    loss: np.ndarray
    step: np.ndarray

    def pieces(self) -> list[np.ndarray]:
        """The indices of each run of two or more checkpoints without a gap: a line must not bridge a lost one."""
        runs = np.split(np.arange(len(self.step)), np.flatnonzero(np.diff(self.step) > 1) + 1)
        return [run for run in runs if len(run) > 1]


def heights(values: np.ndarray, clip: float | None, log: bool) -> np.ndarray:
    """``z = min(value, clip)``, then ``ln(z + 0.1)`` if asked: the order and the offset of the original's h52vtp.py.

    Args:
        values: Values of a metric, of any shape.
        clip: The largest height before the logarithm; None: no limit.
        log: Whether to take the logarithm.

    Returns:
        The heights, NaN where a value is not finite.

    Raises:
        ValueError: ``log`` is True and a value has no logarithm.
    """
    finite = np.where(np.isfinite(values), values, np.nan)
    clipped = finite if clip is None else np.minimum(finite, clip)
    if not log:
        return clipped
    low = np.min(clipped, initial=np.inf, where=np.isfinite(clipped))
    if low <= -OFFSET:
        raise ValueError(
            f"log is True with heights down to {low:g}, expected all above {-OFFSET}: the height is ln(z + {OFFSET}); "
            "pass log=False."
        )
    return np.log(clipped + OFFSET)


def raised(result: xr.Dataset, metric: str, clip: float | None, log: bool) -> tuple[Field, np.ndarray]:
    """Take one metric of a result over a plane, and its heights.

    Args:
        result: A surface.
        metric: One of its variables.
        clip: The largest height before the logarithm; None: no limit.
        log: Whether heights are logarithmic.

    Returns:
        The field, and the heights, shape ``(len(y), len(x))``.

    Raises:
        ValueError: The result is not 2-D or does not have the metric, no value is finite, or a value has no logarithm.
        TypeError: The result is no Dataset.
    """
    surface = field(result, metric)
    if surface.bad.all():
        raise ValueError(f"result has no finite value of {metric!r}; there is no surface to write.")
    return surface, heights(surface.z, clip, log)


def path_on(result: xr.Dataset, metric: str, clip: float | None, log: bool) -> Path3D | None:
    """The path of a result of `jaxscape.trajectory`; None if there is none, or for a metric without heights of it."""
    if metric != "loss" or not {"coordinates", "in_plane_loss"} <= set(result.data_vars) or result.sizes["axis"] != 2:
        return None
    x, y = result.coordinates.transpose("axis", "step").values.astype(float)
    loss = result.in_plane_loss.values.astype(float)
    there = np.isfinite(x) & np.isfinite(y) & np.isfinite(loss)
    x, y, loss, step = (array[there] for array in (x, y, loss, np.arange(len(x))))
    return Path3D(x, y, heights(loss, clip, log), loss, step) if len(step) else None
