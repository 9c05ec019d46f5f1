"""Surfaces over a plane: contour lines, filled contours, heatmaps and 3-D, alone or side by side."""

from typing import Literal

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from jaxscape.arguments import checked
from jaxscape.plot._draw import KINDS, colour_bar, draw, edges, hatch_interpolated, thin_labels
from jaxscape.plot._field import field
from jaxscape.plot._scale import choose
from jaxscape.plot._several import Results, named
from jaxscape.plot._style import add_note, join_notes, new_axes, style

Kind = Literal["contour", "contourf", "heatmap", "surface3d"]


@checked
def contour(
    result: xr.Dataset,
    ax: Axes | None = None,
    *,
    metric: str = "loss",
    levels: ArrayLike | None = None,
    log: bool | None = None,
    loss_max: float | None = None,
    hatch: bool = False,
) -> Axes:
    """Labelled contour lines (paper figures 5 and 6).

    Args:
        result: A surface over two dimensions, with any spacing and order of the coordinates.
        ax: The axes to draw into; None: a new figure.
        metric: The variable of the result to draw.
        levels: Ascending contour levels, for example those that `levels` chose for several results; None: levels are
            chosen for this result.
        log: Whether colours and levels follow the logarithm; None: they do if the values span more than a factor of
            50.
        loss_max: The last level, if ``levels`` is None; larger values are counted, not drawn. None: all values are
            drawn.
        hatch: Whether to hatch, and to count, the points of ``surface(..., refine=...)`` that are interpolated.

    Returns:
        The axes.

    Raises:
        ValueError: The result is not 2-D or does not have the metric, the levels do not ascend, or an option does not
            fit the values.
    """
    return _draw_surface("contour", result, ax, metric, levels, log, loss_max, hatch)


@checked
def contourf(
    result: xr.Dataset,
    ax: Axes | None = None,
    *,
    metric: str = "loss",
    levels: ArrayLike | None = None,
    log: bool | None = None,
    loss_max: float | None = None,
    hatch: bool = False,
) -> Axes:
    """Filled contours.

    Args:
        result: A surface over two dimensions, with any spacing and order of the coordinates.
        ax: The axes to draw into; None: a new figure.
        metric: The variable of the result to draw.
        levels: Ascending contour levels, for example those that `levels` chose for several results; None: levels are
            chosen for this result.
        log: Whether colours and levels follow the logarithm; None: they do if the values span more than a factor of
            50.
        loss_max: The last level, if ``levels`` is None; larger values have the colour of the end of the colour bar,
            and are counted. None: the levels span all values.
        hatch: Whether to hatch, and to count, the points of ``surface(..., refine=...)`` that are interpolated.

    Returns:
        The axes.

    Raises:
        ValueError: The result is not 2-D or does not have the metric, the levels do not ascend, or an option does not
            fit the values.
    """
    return _draw_surface("contourf", result, ax, metric, levels, log, loss_max, hatch)


@checked
def heatmap(
    result: xr.Dataset,
    ax: Axes | None = None,
    *,
    metric: str = "loss",
    levels: ArrayLike | None = None,
    log: bool | None = None,
    loss_max: float | None = None,
    hatch: bool = False,
) -> Axes:
    """One coloured cell for each point, without interpolation.

    Args:
        result: A surface over two dimensions, with any spacing and order of the coordinates.
        ax: The axes to draw into; None: a new figure.
        metric: The variable of the result to draw.
        levels: Ascending levels, for example those that `levels` chose for several results. They bound the colours and
            are the ticks of the colour bar. None: levels are chosen for this result.
        log: Whether colours and levels follow the logarithm; None: they do if the values span more than a factor of
            50.
        loss_max: The last level, if ``levels`` is None; larger values have the colour of the end of the colour bar,
            and are counted. None: the levels span all values.
        hatch: Whether to hatch, and to count, the points of ``surface(..., refine=...)`` that are interpolated.

    Returns:
        The axes.

    Raises:
        ValueError: The result is not 2-D or does not have the metric, the levels do not ascend, or an option does not
            fit the values.
    """
    return _draw_surface("heatmap", result, ax, metric, levels, log, loss_max, hatch)


@checked
def surface3d(
    result: xr.Dataset,
    ax: Axes | None = None,
    *,
    metric: str = "loss",
    levels: ArrayLike | None = None,
    log: bool | None = None,
    loss_max: float | None = None,
) -> Axes:
    """The surface in 3-D; every point of the grid is a vertex.

    Args:
        result: A surface over two dimensions, with any spacing and order of the coordinates.
        ax: The axes to draw into, created with ``projection="3d"``; None: a new figure.
        metric: The variable of the result to draw.
        levels: Ascending levels, for example those that `levels` chose for several results. They bound the colours and
            the heights, and are the ticks. None: levels are chosen for this result.
        log: Whether colours and heights follow the logarithm; None: they do if the values span more than a factor of
            50.
        loss_max: The last level, if ``levels`` is None; larger values are drawn as a plateau at this height, and are
            counted. None: the levels span all values.

    Returns:
        The axes.

    Raises:
        ValueError: The result is not 2-D or does not have the metric, ``ax`` is not 3-D, the levels do not ascend, or
            an option does not fit the values.
    """
    return _draw_surface("surface3d", result, ax, metric, levels, log, loss_max)


@checked
def compare(
    results: Results,
    kind: Kind = "contour",
    *,
    metric: str = "loss",
    levels: ArrayLike | None = None,
    log: bool | None = None,
    loss_max: float | None = None,
    columns: int = 5,
) -> Figure:
    """Several surfaces side by side, with the same levels, colours and limits (paper figures 1, 5 and 17).

    Args:
        results: A mapping from title to surface, drawn in this order; or a list of surfaces, whose titles are
            ``attrs["title"]``, or their indices if these titles are missing or repeat; or one result of
            ``surface(..., num_seeds=...)``, whose repeats are drawn.
        kind: The picture of each surface: ``"contour"``, ``"contourf"``, ``"heatmap"`` or ``"surface3d"``.
        metric: The variable of the results to draw.
        levels: Ascending levels for all surfaces; None: levels are chosen for all results together.
        log: Whether colours and levels follow the logarithm; None: they do if the values span more than a factor of
            50.
        loss_max: The last level, if ``levels`` is None; larger values are counted, and drawn as the function named by
            ``kind`` draws them. None: the levels span all values.
        columns: Surfaces in one row, at most.

    Returns:
        A new figure with one axes for each result and one colour bar.

    Raises:
        ValueError: There are no results, the kind is unknown, a result is not 2-D or does not have the metric, the
            levels do not ascend, or an option does not fit the values.
        TypeError: ``results`` is not a mapping or a list of results.
    """
    surfaces = named(results)
    if kind not in KINDS:
        raise ValueError(
            f"kind is {kind!r}, expected one of {sorted(KINDS)}; lines share axes in js.plot.line(results)."
        )
    fields = {title: field(result, metric) for title, result in surfaces.items()}
    scale = choose([f.z for f in fields.values()], metric, levels, log, loss_max)
    with style():
        across = min(len(fields), columns)
        down = -(-len(fields) // across)
        figure, grid = plt.subplots(
            down,
            across,
            figsize=(3.4 * across + 0.9, 3.4 * down),
            layout="constrained",
            squeeze=False,
            subplot_kw={"projection": _projection(kind)},
        )
        axes = list(grid.flat)
        for unused in axes[len(fields) :]:
            unused.remove()
        axes = axes[: len(fields)]
        ends = edges if kind == "heatmap" else np.asarray  # the cells of a heatmap extend beyond its points
        x, y = (np.concatenate([ends(getattr(f, axis)) for f in fields.values()]) for axis in ("x", "y"))
        notes = [
            draw(kind, ax, surface._replace(title=title), scale)
            for ax, (title, surface) in zip(axes, fields.items(), strict=True)
        ]
        lines = max(note.count("\n") + bool(note) for note in notes)  # the same space above each axes
        for ax, note in zip(axes, notes, strict=True):
            ax.set(xlim=(x.min(), x.max()), ylim=(y.min(), y.max()))
            add_note(ax, note, lines)
        colour_bar(axes, next(iter(fields.values())), scale)
        thin_labels(axes)
    return figure


def _draw_surface(
    kind: Kind,
    result: xr.Dataset,
    ax: Axes | None,
    metric: str,
    levels: ArrayLike | None,
    log: bool | None,
    loss_max: float | None,
    hatch: bool = False,
) -> Axes:
    surface = field(result, metric)
    scale = choose([surface.z], metric, levels, log, loss_max)
    with style():
        ax = new_axes(_projection(kind)) if ax is None else ax
        add_note(ax, join_notes(draw(kind, ax, surface, scale), hatch_interpolated(ax, surface) if hatch else ""))
        colour_bar([ax], surface, scale)
        thin_labels([ax])
    return ax


def _projection(kind: str) -> str | None:
    return "3d" if kind == "surface3d" else None
