"""Surfaces over a plane: contour lines, filled contours, cells and 3-D, one by one or side by side."""

from typing import Literal

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from jaxscape.plot._draw import KINDS, colour_bar, draw, edges, thin_labels
from jaxscape.plot._field import field
from jaxscape.plot._scale import choose
from jaxscape.plot._several import Results, named
from jaxscape.plot._style import add_note, new_axes, style

Kind = Literal["contour", "contourf", "heatmap", "surface3d"]


def contour(
    result: xr.Dataset,
    ax: Axes | None = None,
    *,
    metric: str = "loss",
    levels: ArrayLike | None = None,
    log: bool | None = None,
    loss_max: float | None = None,
) -> Axes:
    """Labelled contour lines (paper figures 5 and 6).

    A ValueError names what does not fit: a result that is not 2-D, an unknown metric, levels that do not ascend.

    Args:
        result: A surface over two dimensions, of any spacing and order.
        ax: Where to draw; None: a new figure.
        metric: Which variable of the result.
        levels: Ascending levels, e.g. of `levels` for several results; None: chosen here.
        log: Colours and levels by the logarithm; None: if the values span more than a factor of 50.
        loss_max: The last level chosen; values above it are counted, not drawn. None: all are drawn.

    Returns:
        The axes.
    """
    return _draw_one("contour", result, ax, metric, levels, log, loss_max)


def contourf(
    result: xr.Dataset,
    ax: Axes | None = None,
    *,
    metric: str = "loss",
    levels: ArrayLike | None = None,
    log: bool | None = None,
    loss_max: float | None = None,
) -> Axes:
    """Filled contours.

    Args:
        result: As in `contour`.
        ax: As in `contour`.
        metric: As in `contour`.
        levels: As in `contour`.
        log: As in `contour`.
        loss_max: As in `contour`; values above it have the colour of the colour bar's end.

    Returns:
        The axes.
    """
    return _draw_one("contourf", result, ax, metric, levels, log, loss_max)


def heatmap(
    result: xr.Dataset,
    ax: Axes | None = None,
    *,
    metric: str = "loss",
    levels: ArrayLike | None = None,
    log: bool | None = None,
    loss_max: float | None = None,
) -> Axes:
    """One coloured cell for each point: the numbers as they are, nothing interpolated.

    Args:
        result: As in `contour`.
        ax: As in `contour`.
        metric: As in `contour`.
        levels: As in `contour`; they bound the colours and are the ticks of the colour bar.
        log: As in `contour`.
        loss_max: As in `contourf`.

    Returns:
        The axes.
    """
    return _draw_one("heatmap", result, ax, metric, levels, log, loss_max)


def surface3d(
    result: xr.Dataset,
    ax: Axes | None = None,
    *,
    metric: str = "loss",
    levels: ArrayLike | None = None,
    log: bool | None = None,
    loss_max: float | None = None,
) -> Axes:
    """The surface in 3-D, its height by the logarithm where it is steep; every point of the grid is a vertex.

    Args:
        result: As in `contour`.
        ax: Where to draw, axes with ``projection="3d"``; None: a new figure.
        metric: As in `contour`.
        levels: As in `contour`; they bound colours and heights and are the ticks.
        log: As in `contour`.
        loss_max: Values above it are drawn as a plateau at this height, and counted.

    Returns:
        The axes.
    """
    return _draw_one("surface3d", result, ax, metric, levels, log, loss_max)


def compare(
    results: Results,
    kind: Kind = "contour",
    *,
    metric: str = "loss",
    levels: ArrayLike | None = None,
    log: bool | None = None,
    loss_max: float | None = None,
) -> Figure:
    """Several surfaces side by side, on the same levels, colours and limits (paper figures 1 and 5).

    Args:
        results: Title -> surface, drawn in this order; or a list of surfaces, whose titles are ``attrs["title"]``, or
            else the places in the list, from 0 on.
        kind: ``"contour"``, ``"contourf"``, ``"heatmap"`` or ``"surface3d"``.
        metric: As in `contour`.
        levels: As in `contour`; None: chosen for all results together.
        log: As in `contour`.
        loss_max: As in the function named by ``kind``.

    Returns:
        A new figure with one axes for each result and one colour bar.

    Raises:
        ValueError: There are no results, the kind is unknown, or as in `contour`.
        TypeError: This is no mapping or list of results.
    """
    surfaces = named(results)
    if kind not in KINDS:
        raise ValueError(
            f"kind is {kind!r}, expected one of {sorted(KINDS)}; lines share axes in js.plot.line(results)."
        )
    fields = {title: field(result, metric) for title, result in surfaces.items()}
    scale = choose([f.z for f in fields.values()], metric, levels, log, loss_max)
    with style():
        figure, axes = plt.subplots(
            1,
            len(fields),
            figsize=(3.4 * len(fields) + 0.9, 3.4),
            layout="constrained",
            squeeze=False,
            subplot_kw={"projection": _projection(kind)},
        )
        ends = edges if kind == "heatmap" else np.asarray  # a heatmap's cells reach beyond its points
        x, y = (np.concatenate([ends(getattr(f, axis)) for f in fields.values()]) for axis in ("x", "y"))
        notes = [
            draw(kind, ax, one._replace(title=title), scale)
            for ax, (title, one) in zip(axes[0], fields.items(), strict=True)
        ]
        lines = max(note.count("\n") + bool(note) for note in notes)  # the same room on top of each, in line
        for ax, note in zip(axes[0], notes, strict=True):
            ax.set(xlim=(x.min(), x.max()), ylim=(y.min(), y.max()))
            add_note(ax, note, lines)
        colour_bar(list(axes[0]), next(iter(fields.values())), scale)
        thin_labels(axes[0])
    return figure


def _draw_one(
    kind: Kind,
    result: xr.Dataset,
    ax: Axes | None,
    metric: str,
    levels: ArrayLike | None,
    log: bool | None,
    loss_max: float | None,
) -> Axes:
    one = field(result, metric)
    scale = choose([one.z], metric, levels, log, loss_max)
    with style():
        ax = new_axes(_projection(kind)) if ax is None else ax
        add_note(ax, draw(kind, ax, one, scale))
        colour_bar([ax], one, scale)
        thin_labels([ax])
    return ax


def _projection(kind: str) -> str | None:
    return "3d" if kind == "surface3d" else None
