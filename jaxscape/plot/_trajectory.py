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

from jaxscape.plot._draw import colour_bar, draw, thin_labels
from jaxscape.plot._field import Field, field
from jaxscape.plot._scale import Scale, choose
from jaxscape.plot._several import Results, named
from jaxscape.plot._style import add_note, count_note, join_notes, new_axes, style

_COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:purple", "tab:brown", "tab:pink", "tab:cyan", "tab:olive")
_DROP = "tab:red"
_DOT, _LARGE = 3, 5  # points


def trajectory(
    result: Results,
    ax: Axes | None = None,
    *,
    metric: str = "loss",
    levels: ArrayLike | None = None,
    log: bool | None = None,
    loss_max: float | None = None,
) -> Axes:
    """The path over contours of the loss, levels evenly spaced in the logarithm (paper figure 9).

    A dot is a checkpoint, a red one the last before the learning rate fell; a square is the start, a star the end. The
    axes say how much of the path's variance lies along them, the line on top how much the plane holds.

    Args:
        result: What `jaxscape.trajectory` gave; or label -> result, or a list of results, paths in one plane: their
            ``origin`` and ``directions`` must be the same. The contours are those of the first. The labels of a list
            are its results' ``attrs["title"]``, or else their places in it, from 0 on.
        ax: Where to draw; None: a new figure.
        metric: As in `contour`.
        levels: As in `contour`.
        log: As in `contour`, but None: if no value is negative.
        loss_max: As in `contour`.

    Returns:
        The axes.

    Raises:
        ValueError: There is no result, one has no path, or their planes differ; or as in `contour`.
        TypeError: This is no result, mapping or list of results.
    """
    paths = _in_planes(result, "result", one_plane=True)
    first = next(iter(paths.values()))
    one, scale = _ground(first, metric, levels, log, loss_max)
    with style():
        ax = new_axes() if ax is None else ax
        _draw_paths(ax, paths, one, scale)
        colour_bar([ax], one, scale)
        thin_labels([ax])
    return ax


def trajectories(
    results: Results,
    *,
    columns: int = 4,
    metric: str = "loss",
    log: bool | None = None,
    loss_max: float | None = None,
) -> Figure:
    """Several runs, each path in a plane of its own, side by side (paper figure 9).

    Args:
        results: Title -> what `jaxscape.trajectory` gave; or a list of that, whose titles are ``attrs["title"]``, or
            else the places in the list, from 0 on.
        columns: Panels in a row.
        metric: As in `trajectory`.
        log: As in `trajectory`.
        loss_max: As in `trajectory`.

    Returns:
        A new figure with one axes for each result; contours are labelled with their own levels.

    Raises:
        ValueError: As in `trajectory`, or ``columns`` is not positive.
        TypeError: This is no result, mapping or list of results.
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
            one, scale = _ground(result, metric, None, log, loss_max)
            x, y = (re.sub(r".*\((.*?)(,.*)?\)", r"\1", label) for label in one.labels[:2])
            one = one._replace(title=title, labels=(x, y, one.labels[2]))
            _draw_paths(ax, {"": result}, one, scale, legend=False)
            ax.title.set_fontsize(8.5)  # a panel is narrow
        for ax in axes.flat[len(paths) :]:
            ax.set_axis_off()
        thin_labels(axes.flat)
    return figure


def trajectory3d(
    result: xr.Dataset,
    ax: Axes | None = None,
    *,
    metric: str = "loss",
    levels: ArrayLike | None = None,
    log: bool | None = None,
    loss_max: float | None = None,
) -> Axes:
    """The path on the surface in 3-D, at the loss that the plane has under it.

    Args:
        result: What `jaxscape.trajectory` gave.
        ax: Where to draw, axes with ``projection="3d"``; None: a new figure.
        metric: ``"loss"``; of another metric the height of the path is not known.
        levels: As in `surface3d`.
        log: As in `trajectory`.
        loss_max: As in `surface3d`; the path is cut off there, too.

    Returns:
        The axes.

    Raises:
        ValueError: As in `trajectory`, or ``metric`` is not ``"loss"``.
        TypeError: This is not one result.
    """
    if metric != "loss":
        raise ValueError(f"metric is {metric!r}, expected 'loss': the path has no other height.")
    if not isinstance(result, xr.Dataset):
        raise TypeError(
            f"result is {type(result).__name__}, expected one Dataset of js.trajectory; draw each by itself."
        )
    _in_planes(result, "result", one_plane=True)
    one, scale = _ground(result, metric, levels, log, loss_max)
    with style():
        ax = new_axes("3d") if ax is None else ax
        ax.computed_zorder = False  # type: ignore[attr-defined]  # the path before the surface, never behind it
        said = draw("surface3d", ax, one, scale)
        heights: Any = np.clip(result.in_plane_loss.values, scale.levels[0], scale.levels[-1])
        x, y = _coordinates(result)
        z = np.log10(heights) if scale.log else heights
        ax.plot(x, y, z, "-", color="0.1", lw=0.8, zorder=5)
        for colour, chosen, size in _dots(result):
            ax.plot(x[chosen], y[chosen], z[chosen], "o", color=colour, ms=size, zorder=6)
        add_note(ax, join_notes(said, _path_note(result, one)))
        colour_bar([ax], one, scale)
    return ax


def trajectory_animation(
    result: Results,
    *,
    fps: float = 10,
    metric: str = "loss",
    levels: ArrayLike | None = None,
    log: bool | None = None,
    loss_max: float | None = None,
) -> FuncAnimation:
    """The path as it grows, one checkpoint a frame; `save` writes it as GIF or MP4.

    Args:
        result: What `jaxscape.trajectory` gave; or label -> result, or a list of results, paths in one plane.
        fps: Frames in a second.
        metric: As in `trajectory`.
        levels: As in `trajectory`.
        log: As in `trajectory`.
        loss_max: As in `trajectory`.

    Returns:
        The animation.

    Raises:
        ValueError: As in `trajectory`, or ``fps`` is not positive.
        TypeError: This is no result, mapping or list of results.
    """
    if not fps > 0:
        raise ValueError(f"fps is {fps}, expected a positive number.")
    paths = _in_planes(result, "result", one_plane=True)
    frames = max(one.sizes["step"] for one in paths.values())
    with style():
        ax = trajectory(result, metric=metric, levels=levels, log=log, loss_max=loss_max)
        moving = [(line, np.array(line.get_data()), str(line.get_gid())) for line in ax.lines if line.get_gid()]
        title, longest = ax.get_title(), max(paths.values(), key=lambda one: one.sizes["step"])

    def show(frame: int) -> list[Line2D]:
        for line, points, steps in moving:
            line.set_data(points[:, np.array(steps.split(), int) <= frame])
        when = f"epoch {longest.epoch.values[frame]:g}" if "epoch" in longest else f"checkpoint {frame}"
        ax.title.set_text(f"{title}, {when}" if title else when)
        return [line for line, *_ in moving]

    return FuncAnimation(ax.figure.figure, show, frames=frames, interval=1000 / fps)


def _in_planes(results: Any, name: str, *, one_plane: bool) -> dict[str, xr.Dataset]:
    """Label -> result, each with a path; in one plane if they are to be drawn so."""
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


def _ground(
    result: xr.Dataset, metric: str, levels: ArrayLike | None, log: bool | None, loss_max: float | None
) -> tuple[Field, Scale]:
    """What is under the path; axes that are no principal components say what they capture."""
    one = field(result, metric)
    finite = one.z[np.isfinite(one.z)]
    log = bool(finite.size and finite.min() >= 0 and finite.max() > 0) if log is None and levels is None else log
    if result.attrs.get("directions") != "PCA":
        x, y = (_percent(share) for share in result.axis_variance.values)
        one = one._replace(labels=(f"{one.labels[0]}: {x}", f"{one.labels[1]}: {y}", one.labels[2]))
    return one, choose([one.z], metric, levels, log, loss_max)


def _draw_paths(ax: Axes, paths: Mapping[str, xr.Dataset], one: Field, scale: Scale, *, legend: bool = True) -> None:
    said = draw("contour", ax, one, scale)
    keys = []
    for colour, (label, result) in zip(_COLOURS * len(paths), paths.items(), strict=False):
        _draw_path(ax, result, colour)
        keys += [_key("o-", colour, label)] if label else []
    drops = any(bool(result.lr_drop.any()) for result in paths.values() if "lr_drop" in result)
    keys += [_key("s", "0.1", "start"), _key("*", "0.1", "end")]
    keys += [_key("o", _DROP, "learning rate drops")] * drops
    if legend:
        ax.legend(handles=keys, loc="best", framealpha=0.85)
    notes = [_path_note(result, one, label) for label, result in paths.items()]
    add_note(ax, join_notes(said, *notes))


def _draw_path(ax: Axes, result: xr.Dataset, colour: str) -> None:
    """A line through all, and dots; each artist's gid has the steps of its points, which an animation needs."""
    x, y = _coordinates(result)
    steps = np.arange(len(x))
    ends = np.flatnonzero(np.isfinite(x))[[0, -1]] if np.isfinite(x).any() else np.array([], int)

    def mark(chosen: np.ndarray, form: str, **look: Any) -> None:
        ax.plot(x[chosen], y[chosen], form, gid=" ".join(map(str, steps[chosen])), **look)

    mark(steps, "-", color=colour, lw=0.7, zorder=3)
    for dot, chosen, size in _dots(result, colour):
        mark(np.flatnonzero(chosen), "o", color=dot, ms=size, mew=0, zorder=4)
    mark(ends[:1], "s", color="0.1", mfc="w", ms=_LARGE, zorder=5)
    mark(ends[1:], "*", color="0.1", mfc="w", ms=2 * _LARGE, mew=0.8, zorder=5)


def _dots(result: xr.Dataset, colour: str = _COLOURS[0]) -> list[tuple[str, np.ndarray, int]]:
    """Colour, checkpoints and size of the dots."""
    drops = result.lr_drop.values.astype(bool) if "lr_drop" in result else np.zeros(result.sizes["step"], bool)
    return [(colour, ~drops, _DOT), (_DROP, drops, _LARGE)]


def _coordinates(result: xr.Dataset) -> tuple[np.ndarray, np.ndarray]:
    x, y = result.coordinates.transpose("axis", "step").values
    return x, y


def _path_note(result: xr.Dataset, one: Field, label: str = "") -> str:
    x, y = _coordinates(result)
    finite = np.isfinite(x) & np.isfinite(y)
    with np.errstate(invalid="ignore"):
        out = finite & ((x < one.x[0]) | (x > one.x[-1]) | (y < one.y[0]) | (y > one.y[-1]))
    told = [f"{_percent(result.attrs['variance_captured'])} of the variance in the plane"]
    told += [
        note.replace("points", "checkpoints")
        for note in (count_note(~finite, "not finite"), count_note(out, "outside"))
    ]
    text = ", ".join(filter(None, told))
    return f"{label}: {text}" if label else text


def _percent(share: float) -> str:
    """With three digits where it is small: random directions hold little."""
    return f"{100 * share:.1f} %" if share >= 0.1 or share == 0 else f"{100 * share:.2g} %"


def _key(form: str, colour: str, label: str) -> Line2D:
    marker, line = form[0], "-" if "-" in form else ""
    face = "w" if marker in "s*" else colour
    size = {"s": _LARGE, "*": 1.6 * _LARGE}.get(marker, _DOT)
    return Line2D([], [], color=colour, marker=marker, ls=line, lw=0.7, mfc=face, ms=size, label=label)
