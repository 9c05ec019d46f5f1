"""Lines and curves through two minimizers, as weighted sums of their corners."""

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from jaxscape.grid import Grid
from jaxscape.sweep import Chart
from jaxscape.types import Params

Kind = Literal["bezier", "polygon"]


class Curve(NamedTuple):
    """A curve from one minimizer to another that bends towards a third point (Garipov et al. 2018, section 3).

    Attributes:
        control: The third point, a pytree like both minimizers.
        kind: ``"bezier"``, ``(1 - t)^2 a + 2 t (1 - t) control + t^2 b``, which is also the quadratic polynomial
            ``(1 - t) a + t b + t (1 - t) c`` with ``c = 2 control - a - b``; or ``"polygon"``, straight from a to
            control, where t is 1/2, and straight on to b.
        losses: The loss in each step of `connect`, of a batch at a random point of the curve; None for a curve that
            was not trained.
    """

    control: Params
    kind: Kind = "bezier"
    losses: np.ndarray | None = None


def check_kind(kind: object) -> None:
    """Refuse what is no kind of a curve.

    Args:
        kind: What the caller passed.

    Raises:
        ValueError: It is unknown.
    """
    if kind not in get_args(Kind):
        raise ValueError(f"the kind of a curve is {kind!r}, expected one of {', '.join(get_args(Kind))}.")


def corner_weights(kind: Kind | None, t: np.ndarray) -> np.ndarray:
    """How much each corner of a curve counts at some of its points.

    >>> corner_weights(None, np.array([0.25])).tolist()
    [[0.75, 0.25]]
    >>> corner_weights("polygon", np.array([0.25])).tolist()
    [[0.5, 0.5, 0.0]]

    Args:
        kind: Of the curve; None for the line, which has two corners.
        t: Where, shape ``(points,)``; 0 is the first corner and 1 the last one.

    Returns:
        Shape ``(points, corners)``; each row has the sum 1.
    """
    if kind is None:
        return np.stack([1 - t, t], axis=1)
    if kind == "bezier":
        return np.stack([(1 - t) ** 2, 2 * t * (1 - t), t**2], axis=1)
    first = t <= 0.5
    return np.stack(
        [np.where(first, 1 - 2 * t, 0), np.where(first, 2 * t, 2 - 2 * t), np.where(first, 0, 2 * t - 1)], axis=1
    )


def chart_of(corners: Sequence[Params], kind: Kind | None, grid: Grid) -> Chart:
    """The points of a line or a curve; at its ends they are those of its corners to the bit.

    Args:
        corners: Two minimizers, or three points.
        kind: Of the curve; None for a line.
        grid: Where, along the one axis.

    Returns:
        The chart.
    """
    basis = jax.tree.map(lambda *leaves: jnp.stack(leaves), *corners)
    origin = jax.tree.map(jnp.zeros_like, corners[0])
    attrs = {"directions": "params_b - params_a"} if kind is None else {"directions": f"{kind} curve"}
    return Chart(
        grid,
        origin,
        basis,
        lambda points: corner_weights(kind, points[:, 0]),
        attrs,
        "surface" if kind is None else f"{kind} curve",
    )
