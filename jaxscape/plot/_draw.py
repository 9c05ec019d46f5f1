"""How one surface is drawn into given axes, on a given scale; each kind returns what it could not show."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.contour import ContourSet
from matplotlib.transforms import BboxBase
from mpl_toolkits.mplot3d import Axes3D

from jaxscape.plot._field import SIGNED, Field
from jaxscape.plot._scale import Scale
from jaxscape.plot._style import count_note, join_notes, number

CMAP, DIVERGING = "viridis", "RdBu_r"


def draw(kind: str, ax: Axes, one: Field, scale: Scale) -> str:
    """Draw one surface with its labels; what must be said about it is returned."""
    ax.set(xlabel=one.labels[0], ylabel=one.labels[1], title=one.title)
    said = KINDS[kind](ax, one, scale)
    top = number(scale.levels[-1])
    cut = f"above {top}, cut off there" if kind == "surface3d" else f"above {top}"
    return join_notes(count_note(one.bad, "not finite"), count_note(one.z > scale.levels[-1], cut), said)


def _draw_contour(ax: Axes, one: Field, scale: Scale) -> str:
    _hatch(ax, one)
    ax.set(xlim=one.x[[0, -1]], ylim=one.y[[0, -1]])
    crossed = [level for level in scale.levels if (one.z < level).any() and (one.z > level).any()]
    if not crossed:  # matplotlib may warn here; the reader needs the value instead
        return "" if one.bad.all() else f"no level is crossed: {_range(one.z)}"
    z = np.ma.masked_invalid(_floored(one.z, scale))
    lines = ax.contour(one.x, one.y, z, crossed, norm=scale.norm(), cmap=CMAP, linewidths=1.0)
    labels = ax.clabel(lines, crossed[:: -(-len(crossed) // 7)], fontsize=7, fmt=number, inline=False, colors="0.15")
    for label in labels:
        label.set_bbox({"facecolor": "w", "edgecolor": "none", "pad": 0.3})
    return ""


def _draw_contourf(ax: Axes, one: Field, scale: Scale) -> str:
    _hatch(ax, one)
    ax.set(xlim=one.x[[0, -1]], ylim=one.y[[0, -1]])
    if not one.bad.all():
        z = np.ma.masked_invalid(_floored(one.z, scale))
        ax.contourf(one.x, one.y, z, scale.levels, norm=scale.norm(), cmap=CMAP, extend=scale.extend)
    return ""


def _draw_heatmap(ax: Axes, one: Field, scale: Scale) -> str:
    _hatch(ax, one)
    z = np.ma.masked_invalid(_floored(one.z, scale))
    ax.pcolormesh(edges(one.x), edges(one.y), z, norm=scale.norm(), cmap=_cmap(one), rasterized=True)
    rows, columns = np.nonzero(one.unconverged)
    ax.plot(one.x[columns], one.y[rows], ".", color="0.2", ms=2)
    return count_note(one.unconverged, "not converged (dots)")


def _cmap(one: Field) -> str:
    return DIVERGING if one.metric == SIGNED else CMAP


def _draw_surface3d(ax: Axes, one: Field, scale: Scale) -> str:
    if not isinstance(ax, Axes3D):
        raise ValueError('ax is not 3-D, expected one made with projection="3d".')
    height: Callable[[Any], Any] = np.log10 if scale.log else np.asarray
    bottom, top = height(scale.levels[[0, -1]])
    if not one.bad.all():
        z = height(np.clip(one.z, scale.levels[0], scale.levels[-1]))
        colours = Normalize(bottom, top)
        x, y = np.meshgrid(one.x, one.y)
        ax.plot_surface(
            x, y, z, rstride=1, cstride=1, cmap=CMAP, norm=colours, edgecolor=(0, 0, 0, 0.25), linewidth=0.2
        )
    rows, columns = np.nonzero(one.bad)
    ax.scatter(one.x[columns], one.y[rows], bottom, marker="x", color="0.35", s=12, linewidths=0.7)
    ticks = _ticks(scale)
    ax.set_zlim(bottom, top)
    ax.set_zticks(height(ticks), [number(v) for v in ticks])
    # Long labels leave the picture along slanted axes: the symbols must do. The colour bar names the height.
    x, y = (label.partition(" (")[0].replace(" component", "") for label in one.labels[:2])
    ax.set(xlabel=x, ylabel=y)
    # Labels stand away from each other where two axes meet: x and y in front, y and z on the right.
    for axis, side, pad in ((ax.xaxis, "right", -3), (ax.yaxis, "left", 1)):
        axis.set_tick_params(pad=pad)
        for label in axis.get_ticklabels():
            label.set_horizontalalignment(side)
    ax.set_box_aspect(None, zoom=0.92)
    return ""


KINDS: dict[str, Callable[[Axes, Field, Scale], str]] = {
    "contour": _draw_contour,
    "contourf": _draw_contourf,
    "heatmap": _draw_heatmap,
    "surface3d": _draw_surface3d,
}


def thin_labels(axes: Iterable[Axes]) -> None:
    """Leave out labels of contours that touch another one or the frame: the last step, when all has its place."""
    for ax in axes:
        ax.figure.figure.draw_without_rendering()
        kept: list[BboxBase] = []
        frame = ax.get_window_extent()
        labels = [label for lines in ax.collections if isinstance(lines, ContourSet) for label in lines.labelTexts]
        for label in (label for label in labels if label in ax.texts):  # those of an earlier call may be gone
            box = label.get_window_extent()
            inside = frame.contains(box.x0, box.y0) and frame.contains(box.x1, box.y1)
            if inside and not any(box.overlaps(other) for other in kept):
                kept.append(box)
            else:
                label.remove()


def colour_bar(axes: list[Axes], one: Field, scale: Scale) -> None:
    """One colour bar for all these axes; its ticks are levels, its label says what they measure."""
    ticks = _ticks(scale)
    space = {"pad": 0.1, "shrink": 0.7} if axes[0].name == "3d" else {}
    bar = axes[0].figure.colorbar(ScalarMappable(scale.norm(), _cmap(one)), ax=axes, extend=scale.extend, **space)  # type: ignore[arg-type]
    bar.set_ticks(list(ticks), labels=[number(v) for v in ticks])
    bar.ax.minorticks_off()
    bar.set_label(one.labels[2] + (", log scale" if scale.log else ""))


def _ticks(scale: Scale) -> np.ndarray:
    """At most nine of the levels, among them the last one, where values may be cut off."""
    return scale.levels[:: -int(np.ceil(len(scale.levels) / 9))][::-1]


def _hatch(ax: Axes, one: Field) -> None:
    """Grey hatched cells where the value is not finite, under whatever is drawn."""
    if one.bad.any():
        cells = np.ma.masked_where(~one.bad, np.zeros(one.z.shape))
        grey = ListedColormap(["0.88"])
        ax.pcolor(edges(one.x), edges(one.y), cells, cmap=grey, edgecolor="0.6", linewidth=0, hatch="////", zorder=0)


def edges(points: np.ndarray) -> np.ndarray:
    """The bounds of the cells around the points: half way to the neighbours."""
    middle = (points[1:] + points[:-1]) / 2
    return np.concatenate([[2 * points[0] - middle[0]], middle, [2 * points[-1] - middle[-1]]])


def _floored(z: np.ndarray, scale: Scale) -> np.ndarray:
    """On a log scale a zero has no place: lift it to well below the first level, where the colour bar extends."""
    return np.where(z <= 0, 1e-6 * scale.levels[0], z) if scale.log else z


def _range(z: np.ndarray) -> str:
    low, high = np.nanmin(z), np.nanmax(z)
    return number(low) if low == high else f"{number(low)} to {number(high)}"
