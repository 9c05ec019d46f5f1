"""The path of training on the contours of the loss (paper figures 8 and 9)."""

import re
from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.animation import FuncAnimation
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import ArrayLike

from jaxscape.arguments import checked
from jaxscape.plot._draw import colour_bar, draw, thin_labels
from jaxscape.plot._field import Field, field
from jaxscape.plot._scale import Scale, choose
from jaxscape.plot._several import Results, named
from jaxscape.plot._style import add_note, count_note, join_notes, new_axes, style

_COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:purple", "tab:brown", "tab:pink", "tab:cyan", "tab:olive")
_DROP = "tab:red"
_DOT, _LARGE = 3, 5  # sizes of the markers, in points


@checked
def trajectory(
    result: Results,
    ax: Axes | None = None,
    *,
    metric: str = "loss",
    levels: ArrayLike | None = None,
    log: bool | None = None,
    loss_max: float | None = None,
) -> Axes:
    """The path over contour lines of the loss, whose levels are evenly spaced in the logarithm (paper figure 9).

    Each dot is a checkpoint. A red dot is the last checkpoint before the learning rate fell. A square marks the start,
    a star marks the end. The labels of the axes give the share of the path's variance along each axis, and the line
    above the picture gives the share in the plane.

    Args:
        result: The result of `jaxscape.trajectory`; or several results, paths in one plane: a mapping from label to
            result, or a list. Their ``origin`` and ``directions`` must be the same. The contours are those of the
            first result. The labels of a list are ``attrs["title"]`` of its results, or their indices if these titles
            are missing or repeat.
        ax: The axes to draw into; None: a new figure.
        metric: The variable of the result to draw as contours.
        levels: Ascending contour levels; None: levels are chosen for this result.
        log: Whether colours and levels follow the logarithm; None: they do if no value is negative, or, with
            ``levels``, if these span more than a factor of 50.
        loss_max: The last level, if ``levels`` is None; larger values are counted, not drawn. None: all values are
            drawn.

    Returns:
        The axes.

    Raises:
        ValueError: There is no result, a result has no path, the planes differ, a result does not have the metric, the
            levels do not ascend, or an option does not fit the values.
        TypeError: ``result`` is not a result, a mapping or a list of results.
    """
    paths = _in_planes(result, "result", one_plane=True)
    first = next(iter(paths.values()))
    surface, scale = _surface_under(first, metric, levels, log, loss_max)
    with style():
        ax = new_axes() if ax is None else ax
        _draw_paths(ax, paths, surface, scale)
        colour_bar([ax], surface, scale)
        thin_labels([ax])
    return ax


@checked
def trajectories(
    results: Results,
    *,
    columns: int = 4,
    metric: str = "loss",
    log: bool | None = None,
    loss_max: float | None = None,
) -> Figure:
    """The paths of several runs side by side, each in a separate plane (paper figure 9).

    Args:
        results: Results of `jaxscape.trajectory`: a mapping from title to result, or a list, whose titles are
            ``attrs["title"]``, or the indices if these titles are missing or repeat.
        columns: The largest number of panels in a row.
        metric: The variable of the results to draw as contours.
        log: Whether colours and levels follow the logarithm; None: they do if no value of a result is negative.
        loss_max: The last level; larger values are counted, not drawn. None: all values are drawn.

    Returns:
        A new figure with one axes for each result; the levels are chosen and labelled for each result separately.

    Raises:
        ValueError: ``columns`` is not positive, there is no result, a result has no path or does not have the metric,
            or an option does not fit the values.
        TypeError: ``results`` is not a result, a mapping or a list of results.
    """
    if columns < 1:
        raise ValueError(f"columns is {columns}, expected at least 1.")
    paths = _in_planes(results, "results", one_plane=False)
    rows = -(-len(paths) // columns)
    columns = min(columns, len(paths))
    with style():
        figure, axes = plt.subplots(
            rows, columns, figsize=(2.6 * columns, 2.75 * rows), layout="constrained", squeeze=False
        )
        for ax, (title, result) in zip(axes.flat, paths.items(), strict=False):
            surface, scale = _surface_under(result, metric, None, log, loss_max)
            x, y = (re.sub(r".*\((.*?)(,.*)?\)", r"\1", label) for label in surface.labels[:2])
            surface = surface._replace(title=title, labels=(x, y, surface.labels[2]))
            _draw_paths(ax, {"": result}, surface, scale, legend=False)
            ax.title.set_fontsize(8.5)  # a panel is narrow
        for ax in axes.flat[len(paths) :]:
            ax.set_axis_off()
        thin_labels(axes.flat)
    return figure


@checked
def trajectory3d(
    result: xr.Dataset,
    ax: Axes | None = None,
    *,
    metric: str = "loss",
    levels: ArrayLike | None = None,
    log: bool | None = None,
    loss_max: float | None = None,
) -> Axes:
    """The path on the surface in 3-D; its height is the loss at its projection onto the plane (``in_plane_loss``).

    Args:
        result: The result of `jaxscape.trajectory`.
        ax: The axes to draw into, created with ``projection="3d"``; None: a new figure.
        metric: Only ``"loss"``: the height of the path is not known for other metrics.
        levels: Ascending levels, which bound the colours and the heights, and are the ticks; None: levels are chosen
            for this result.
        log: Whether colours and heights follow the logarithm; None: they do if no value is negative, or, with
            ``levels``, if these span more than a factor of 50.
        loss_max: The last level, if ``levels`` is None; the surface and the path are cut off at this height. None: the
            levels span all values.

    Returns:
        The axes.

    Raises:
        ValueError: ``metric`` is not ``"loss"``, the result has no path, ``ax`` is not 3-D, the levels do not ascend,
            or an option does not fit the values.
        TypeError: ``result`` is not a single result.
    """
    if metric != "loss":
        raise ValueError(f"metric is {metric!r}, expected 'loss': the path has no other height.")
    if not isinstance(result, xr.Dataset):
        raise TypeError(
            f"result is {type(result).__name__}, expected one Dataset of js.trajectory; draw each by itself."
        )
    _in_planes(result, "result", one_plane=True)
    surface, scale = _surface_under(result, metric, levels, log, loss_max)
    with style():
        ax = new_axes("3d") if ax is None else ax
        ax.computed_zorder = False  # type: ignore[attr-defined]  # draw the path in front of the surface
        surface_note = draw("surface3d", ax, surface, scale)
        heights: Any = np.clip(result.in_plane_loss.values, scale.levels[0], scale.levels[-1])
        x, y = _coordinates(result)
        z = np.log10(heights) if scale.log else heights
        ax.plot(x, y, z, "-", color="0.1", lw=0.8, zorder=5)
        for colour, mask, size in _dots(result):
            ax.plot(x[mask], y[mask], z[mask], "o", color=colour, ms=size, zorder=6)
        add_note(ax, join_notes(surface_note, _path_note(result, surface)))
        colour_bar([ax], surface, scale)
    return ax


@checked
def trajectory_animation(
    result: Results,
    *,
    fps: float = 10,
    metric: str = "loss",
    levels: ArrayLike | None = None,
    log: bool | None = None,
    loss_max: float | None = None,
) -> FuncAnimation:
    """The growing path, with one more checkpoint in each frame; `save` writes it as GIF or MP4.

    Args:
        result: The result of `jaxscape.trajectory`; or several results, paths in one plane: a mapping from label to
            result, or a list. Their ``origin`` and ``directions`` must be the same. The contours are those of the
            first result.
        fps: Frames per second.
        metric: The variable of the result to draw as contours.
        levels: Ascending contour levels; None: levels are chosen for this result.
        log: Whether colours and levels follow the logarithm; None: they do if no value is negative, or, with
            ``levels``, if these span more than a factor of 50.
        loss_max: The last level, if ``levels`` is None; larger values are counted, not drawn. None: all values are
            drawn.

    Returns:
        The animation.

    Raises:
        ValueError: ``fps`` is not positive, there is no result, a result has no path, the planes differ, a result does
            not have the metric, the levels do not ascend, or an option does not fit the values.
        TypeError: ``result`` is not a result, a mapping or a list of results.
    """
    if not fps > 0:
        raise ValueError(f"fps is {fps}, expected a positive number.")
    paths = _in_planes(result, "result", one_plane=True)
    frames = max(path.sizes["step"] for path in paths.values())
    with style():
        ax = trajectory(result, metric=metric, levels=levels, log=log, loss_max=loss_max)
        moving = [(line, np.array(line.get_data()), str(line.get_gid())) for line in ax.lines if line.get_gid()]
        title, longest = ax.get_title(), max(paths.values(), key=lambda path: path.sizes["step"])

    def show(frame: int) -> list[Line2D]:
        for line, points, steps in moving:
            line.set_data(points[:, np.array(steps.split(), int) <= frame])
        when = f"epoch {longest.epoch.values[frame]:g}" if "epoch" in longest else f"checkpoint {frame}"
        ax.title.set_text(f"{title}, {when}" if title else when)
        return [line for line, *_ in moving]

    show(frames - 1)  # with its longest title
    figure = ax.figure.figure
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # it would be made anew for each frame, a quarter of the time
    return FuncAnimation(figure, show, frames=frames, interval=1000 / fps)


def _in_planes(results: Any, name: str, *, one_plane: bool) -> dict[str, xr.Dataset]:
    """A dict from label to result; check that each result has a path and, if asked, that all are in one plane."""
    paths = named(results, name)
    for result in paths.values():
        if "coordinates" not in result or result.sizes.get("axis") != 2:
            variables = sorted(map(str, result.data_vars))
            raise ValueError(f"{name} has the variables {variables}, expected those of js.trajectory in a plane.")
    planes = {result.attrs.get("fingerprint") for result in paths.values()}
    if one_plane and len(planes) > 1:
        raise ValueError(
            "the results lie in different planes; pass the same origin= and directions= to js.trajectory, or draw "
            "them side by side with js.plot.trajectories."
        )
    return paths


def _surface_under(
    result: xr.Dataset, metric: str, levels: ArrayLike | None, log: bool | None, loss_max: float | None
) -> tuple[Field, Scale]:
    """The surface under the path, and its scale; axes that are not principal components get the share they capture."""
    surface = field(result, metric)
    finite = surface.z[np.isfinite(surface.z)]
    log = bool(finite.size and finite.min() >= 0 and finite.max() > 0) if log is None and levels is None else log
    if result.attrs.get("directions") != "PCA":
        x, y = (_percent(share) for share in result.axis_variance.values)
        surface = surface._replace(labels=(f"{surface.labels[0]}: {x}", f"{surface.labels[1]}: {y}", surface.labels[2]))
    return surface, choose([surface.z], metric, levels, log, loss_max)


def _draw_paths(
    ax: Axes, paths: Mapping[str, xr.Dataset], surface: Field, scale: Scale, *, legend: bool = True
) -> None:
    surface_note = draw("contour", ax, surface, scale)
    keys = []
    for colour, (label, result) in zip(_COLOURS * len(paths), paths.items(), strict=False):
        _draw_path(ax, result, colour)
        keys += [_key("o-", colour, label)] if label else []
    drops = any(bool(result.lr_drop.any()) for result in paths.values() if "lr_drop" in result)
    keys += [_key("s", "0.1", "start"), _key("*", "0.1", "end")]
    keys += [_key("o", _DROP, "learning rate drops")] * drops
    if legend:
        ax.legend(handles=keys, loc="best", framealpha=0.85)
    notes = [_path_note(result, surface, label) for label, result in paths.items()]
    add_note(ax, join_notes(surface_note, *notes))


def _draw_path(ax: Axes, result: xr.Dataset, colour: str) -> None:
    """Draw a line through all checkpoints, and dots; the gid of each artist lists its steps for an animation."""
    x, y = _coordinates(result)
    steps = np.arange(len(x))
    ends = np.flatnonzero(np.isfinite(x))[[0, -1]] if np.isfinite(x).any() else np.array([], int)

    def mark(rows: np.ndarray, form: str, **look: Any) -> None:
        ax.plot(x[rows], y[rows], form, gid=" ".join(map(str, steps[rows])), **look)

    mark(steps, "-", color=colour, lw=0.7, zorder=3)
    for dot, rows, size in _dots(result, colour):
        mark(np.flatnonzero(rows), "o", color=dot, ms=size, mew=0, zorder=4)
    mark(ends[:1], "s", color="0.1", mfc="w", ms=_LARGE, zorder=5)
    mark(ends[1:], "*", color="0.1", mfc="w", ms=2 * _LARGE, mew=0.8, zorder=5)


def _dots(result: xr.Dataset, colour: str = _COLOURS[0]) -> list[tuple[str, np.ndarray, int]]:
    """The colour, the mask of checkpoints and the size of each kind of dots."""
    drops = result.lr_drop.values.astype(bool) if "lr_drop" in result else np.zeros(result.sizes["step"], bool)
    return [(colour, ~drops, _DOT), (_DROP, drops, _LARGE)]


def _coordinates(result: xr.Dataset) -> tuple[np.ndarray, np.ndarray]:
    x, y = result.coordinates.transpose("axis", "step").values
    return x, y


def _path_note(result: xr.Dataset, surface: Field, label: str = "") -> str:
    x, y = _coordinates(result)
    finite = np.isfinite(x) & np.isfinite(y)
    with np.errstate(invalid="ignore"):
        out = finite & ((x < surface.x[0]) | (x > surface.x[-1]) | (y < surface.y[0]) | (y > surface.y[-1]))
    parts = [f"{_percent(result.attrs['variance_captured'])} of the variance in the plane"]
    parts += [
        note.replace("points", "checkpoints")
        for note in (count_note(~finite, "not finite"), count_note(out, "outside"))
    ]
    text = ", ".join(filter(None, parts))
    return f"{label}: {text}" if label else text


def _percent(share: float) -> str:
    """A share in percent; a small share, as random directions have it, gets two significant digits."""
    return f"{100 * share:.1f} %" if share >= 0.1 or share == 0 else f"{100 * share:.2g} %"


def _key(form: str, colour: str, label: str) -> Line2D:
    marker, line = form[0], "-" if "-" in form else ""
    face = "w" if marker in "s*" else colour
    size = {"s": _LARGE, "*": 1.6 * _LARGE}.get(marker, _DOT)
    return Line2D([], [], color=colour, marker=marker, ls=line, lw=0.7, mfc=face, ms=size, label=label)
