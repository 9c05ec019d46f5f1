"""Drawing of one surface into axes, on a scale; each drawing function returns a note on what it could not show."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.contour import ContourSet
from matplotlib.transforms import Bbox, BboxBase
from mpl_toolkits.mplot3d import Axes3D

from jaxscape.plot._field import SIGNED, Field
from jaxscape.plot._scale import Scale
from jaxscape.plot._style import count_note, join_notes, number

CMAP, DIVERGING = "viridis", "RdBu_r"


def draw(kind: str, ax: Axes, surface: Field, scale: Scale) -> str:
    """Draw one surface with its labels; return a note that counts the points that could not be drawn."""
    ax.set(xlabel=surface.labels[0], ylabel=surface.labels[1], title=surface.title)
    note = KINDS[kind](ax, surface, scale)
    top = number(scale.levels[-1])
    cut = f"above {top}, cut off there" if kind == "surface3d" else f"above {top}"
    bad = count_note(surface.nonfinite, "not finite"), count_note(surface.missing, "not computed yet")
    return join_notes(*bad, count_note(surface.z > scale.levels[-1], cut), note)


def _draw_contour(ax: Axes, surface: Field, scale: Scale) -> str:
    _hatch(ax, surface)
    ax.set(xlim=surface.x[[0, -1]], ylim=surface.y[[0, -1]])
    crossed = [level for level in scale.levels if (surface.z < level).any() and (surface.z > level).any()]
    if not crossed:  # contour would draw nothing and may warn; the note says the value
        return "" if surface.bad.all() else f"no level is crossed: {_range(surface.z)}"
    z = np.ma.masked_invalid(_floored(surface.z, scale))
    lines = ax.contour(surface.x, surface.y, z, crossed, norm=scale.norm(), cmap=CMAP, linewidths=1.0)
    labels = ax.clabel(lines, crossed[:: -(-len(crossed) // 7)], fontsize=7, fmt=number, inline=False, colors="0.15")
    for label in labels:
        label.set_bbox({"facecolor": "w", "edgecolor": "none", "pad": 0.3})
    return ""


def _draw_contourf(ax: Axes, surface: Field, scale: Scale) -> str:
    _hatch(ax, surface)
    ax.set(xlim=surface.x[[0, -1]], ylim=surface.y[[0, -1]])
    if not surface.bad.all():
        z = np.ma.masked_invalid(_floored(surface.z, scale))
        ax.contourf(surface.x, surface.y, z, scale.levels, norm=scale.norm(), cmap=CMAP, extend=scale.extend)
    return ""


def _draw_heatmap(ax: Axes, surface: Field, scale: Scale) -> str:
    _hatch(ax, surface)
    z = np.ma.masked_invalid(_floored(surface.z, scale)).clip(-1e300, 1e300)  # the colour map multiplies
    ax.pcolormesh(edges(surface.x), edges(surface.y), z, norm=scale.norm(), cmap=_cmap(surface), rasterized=True)
    rows, columns = np.nonzero(surface.unconverged)
    ax.plot(surface.x[columns], surface.y[rows], ".", color="0.2", ms=2)
    return count_note(surface.unconverged, "not converged (dots)")


def _cmap(surface: Field) -> str:
    return DIVERGING if surface.metric == SIGNED else CMAP


def _draw_surface3d(ax: Axes, surface: Field, scale: Scale) -> str:
    if not isinstance(ax, Axes3D):
        raise ValueError('ax is not 3-D, expected one made with projection="3d".')
    height: Callable[[Any], Any] = np.log10 if scale.log else np.asarray
    bottom, top = height(scale.levels[[0, -1]])
    if not surface.bad.all():
        z = height(np.clip(surface.z, scale.levels[0], scale.levels[-1]))
        colours = Normalize(bottom, top)
        x, y = np.meshgrid(surface.x, surface.y)
        ax.plot_surface(
            x, y, z, rstride=1, cstride=1, cmap=CMAP, norm=colours, edgecolor=(0, 0, 0, 0.25), linewidth=0.2
        )
    rows, columns = np.nonzero(surface.nonfinite)
    ax.scatter(surface.x[columns], surface.y[rows], bottom, marker="x", color="0.35", s=12, linewidths=0.7)
    ticks = _ticks(scale)
    ax.set_zlim(bottom, top)
    ax.set_zticks(height(ticks), [number(v) for v in ticks])
    # Long labels do not fit along slanted axes, so only the symbols are shown. The colour bar names the height.
    x, y = (label.partition(" (")[0].replace(" component", "") for label in surface.labels[:2])
    ax.set(xlabel=x, ylabel=y)
    # Keep tick labels apart where two axes meet: x and y in front, y and z on the right.
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
    """Remove contour labels that touch another label, a large marker or the frame; call it when the layout is final."""
    for ax in axes:
        labels = [label for lines in ax.collections if isinstance(lines, ContourSet) for label in lines.labelTexts]
        labels = [label for label in labels if label in ax.texts]  # an earlier call may have removed some
        if not labels:
            continue
        ax.figure.figure.draw_without_rendering()
        boxes: list[BboxBase] = _large_markers(ax)
        frame = ax.get_window_extent()
        for label in labels:
            box = label.get_window_extent()
            inside = frame.contains(box.x0, box.y0) and frame.contains(box.x1, box.y1)
            if inside and not any(box.overlaps(other) for other in boxes):
                boxes.append(box)
            else:
                label.remove()


def _large_markers(ax: Axes) -> list[BboxBase]:
    """The boxes of markers that would hide a label, such as the ends of a path."""
    boxes: list[BboxBase] = []
    for line in ax.lines:
        half = line.get_markersize() * ax.figure.figure.dpi / 72 / 2
        if line.get_marker() in ("s", "*"):
            points = ax.transData.transform(line.get_xydata())
            boxes += [Bbox.from_extents(*(point - half), *(point + half)) for point in points]
    return boxes


def colour_bar(axes: list[Axes], surface: Field, scale: Scale) -> None:
    """Add one colour bar for all these axes; its ticks are levels, and its label names the metric."""
    ticks = _ticks(scale)
    space = {"pad": 0.1, "shrink": 0.7} if axes[0].name == "3d" else {}
    bar = axes[0].figure.colorbar(ScalarMappable(scale.norm(), _cmap(surface)), ax=axes, extend=scale.extend, **space)  # type: ignore[arg-type]
    bar.set_ticks(list(ticks), labels=[number(v) for v in ticks])
    bar.ax.minorticks_off()
    bar.set_label(surface.labels[2] + (", log scale" if scale.log else ""))


def _ticks(scale: Scale) -> np.ndarray:
    """At most nine of the levels; the last level is always one of them, since values may be cut off there."""
    return scale.levels[:: -int(np.ceil(len(scale.levels) / 9))][::-1]


def _hatch(ax: Axes, surface: Field) -> None:
    """Draw hatched cells where there is no number, below everything else: grey if not finite, white if missing."""
    for where, shade, hatch in ((surface.nonfinite, "0.88", "////"), (surface.missing, "1.0", "....")):
        if where.any():
            cells = np.ma.masked_where(~where, np.zeros(surface.z.shape))
            look: dict[str, Any] = {"cmap": ListedColormap([shade]), "hatch": hatch, "edgecolor": "0.6", "linewidth": 0}
            ax.pcolor(edges(surface.x), edges(surface.y), cells, zorder=0, **look)


def hatch_interpolated(ax: Axes, surface: Field) -> str:
    """Hatch the cells of interpolated points, above everything else; return a note that counts them."""
    if surface.interpolated.any():
        cells = np.ma.masked_where(~surface.interpolated, np.zeros(surface.z.shape))
        look: dict[str, Any] = {"hatch": "////", "facecolor": "none", "edgecolor": "0.45", "linewidth": 0, "zorder": 3}
        limits = ax.get_xlim(), ax.get_ylim()
        ax.pcolor(edges(surface.x), edges(surface.y), cells, cmap=ListedColormap([(0, 0, 0, 0)])).set(**look)
        ax.set(xlim=limits[0], ylim=limits[1])
    return count_note(surface.interpolated, "interpolated (hatched)")


def edges(points: np.ndarray) -> np.ndarray:
    """The bounds of the cells around the points: the midpoints between neighbours."""
    middle = (points[1:] + points[:-1]) / 2
    return np.concatenate([[2 * points[0] - middle[0]], middle, [2 * points[-1] - middle[-1]]])


def _floored(z: np.ndarray, scale: Scale) -> np.ndarray:
    """Replace zeros on a log scale by a value far below the first level, where the colour bar extends."""
    return np.where(z <= 0, 1e-6 * scale.levels[0], z) if scale.log else z


def _range(z: np.ndarray) -> str:
    low, high = np.nanmin(z), np.nanmax(z)
    return number(low) if low == high else f"{number(low)} to {number(high)}"
