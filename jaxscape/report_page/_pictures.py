"""The pictures of a page: a plotly figure for each, on scales that all runs share."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from jaxscape.export._files import optional
from jaxscape.export._heights import OFFSET, heights, path_on, raised
from jaxscape.export._traces import Limits, contours, notes, path_traces, plain, solid, ticks
from jaxscape.levels import choose_levels
from jaxscape.plot._field import field, pick
from jaxscape.report_page._content import Content

PATH = "path"
"""The mark of the traces that a reader switches on and off."""
_BLUE, _ORANGE, _PATH = "#0072b2", "#d55e00", "#d55e00"  # Okabe and Ito: seen apart by the colour-blind
_MOST_SCENES = 12  # browsers draw at most 16 pictures in 3-D on a page
_SPLITS = {"train": (_BLUE, "solid"), "test": (_ORANGE, "dash")}
_PANELS = ("loss", "error")
_DECADES = 8  # of a density below its top


class Picture(NamedTuple):
    """A picture of the page.

    Attributes:
        title: The run, and what is drawn of it.
        figure: The figure of plotly; None: there is nothing to draw.
        note: What one must know to read it.
        switched: Whether the figure has a path that is switched on and off.
    """

    title: str
    figure: Any
    note: str = ""
    switched: bool = False


def curves(runs: list[Content]) -> list[Picture]:
    """Loss and error over the epochs."""
    found = {run.title: _columns(run.metrics) for run in runs if run.metrics}
    columns = {title: c for title, c in found.items() if len(c) > 1}
    if not columns:
        return []
    panels = [name for name in _PANELS if any(f"{s}_{name}" in c for c in columns.values() for s in _SPLITS)]
    axes = {name: _axis([c.get(f"{s}_{name}", []) for c in columns.values() for s in _SPLITS], name) for name in panels}
    last = max(c["epoch"].max() for c in columns.values())
    return [Picture(title, _curves(c, axes, last)) for title, c in columns.items()]


def _columns(metrics: list[dict[str, float]]) -> dict[str, np.ndarray]:
    """The epochs, and what is known of the losses and errors; other columns are not drawn."""
    names = ["epoch", *(f"{split}_{name}" for split in _SPLITS for name in _PANELS)]
    there = [name for name in names if any(name in record for record in metrics)]
    return {name: np.array([record.get(name, np.nan) for record in metrics], float) for name in there}


def _curves(columns: Mapping[str, np.ndarray], axes: Mapping[str, Any], last: float) -> Any:
    graphs, subplots = optional("plotly.graph_objects"), optional("plotly.subplots")
    axes = {name: axis for name, axis in axes.items() if any(f"{split}_{name}" in columns for split in _SPLITS)}
    figure = subplots.make_subplots(len(axes), 1, shared_xaxes=True, vertical_spacing=0.08)
    for row, (name, axis) in enumerate(axes.items(), start=1):
        for split, (colour, dash) in _SPLITS.items():
            if f"{split}_{name}" in columns:
                line = {"color": colour, "dash": dash, "width": 2}
                marks = {"mode": "lines+markers", "marker": {"size": 4}, "showlegend": row == 1, "name": split}
                values = columns[f"{split}_{name}"]
                figure.add_trace(graphs.Scatter(x=columns["epoch"], y=values, line=line, **marks), row, 1)
        figure.update_yaxes(**axis, row=row, col=1)
    figure.update_xaxes(range=[-0.02 * last, 1.02 * last or 1])
    figure.update_xaxes(title="epoch", row=len(axes), col=1)
    return _laid_out(figure)


def lines(runs: list[Content]) -> list[Picture]:
    """The loss along one direction: the train and the test line of a name in one picture."""
    drawn = [(run.title, group, named) for run in runs for group, named in _groups(run.of("line")).items()]
    values = [pick(result, "loss").values for *_, named in drawn for result in named.values()]
    axis = _axis(values, "loss")
    return [Picture(f"{title}: {group}", _line(named, axis)) for title, group, named in drawn]


def _groups(named: Mapping[str, xr.Dataset]) -> dict[str, dict[str, xr.Dataset]]:
    """Lines that differ by the split only, by the name they share."""
    groups: dict[str, dict[str, xr.Dataset]] = {}
    for name, result in named.items():
        split = next((split for split in _SPLITS if name == split or name.endswith(f"_{split}")), "")
        group = name.removesuffix(f"_{split}") if split else name
        groups.setdefault(group, {})[split or str(result.attrs.get("split", "loss"))] = result
    return groups


def _line(named: Mapping[str, xr.Dataset], axis: dict[str, Any]) -> Any:
    graphs = optional("plotly.graph_objects")
    figure = graphs.Figure()
    for split, result in sorted(named.items(), reverse=True):  # train before test
        colour, dash = _SPLITS.get(split, (_BLUE, "solid"))
        array = pick(result, "loss")
        values = np.where(np.isfinite(array.values), array.values, np.nan)
        line = {"color": colour, "dash": dash, "width": 2}
        figure.add_trace(
            graphs.Scatter(x=array[array.dims[0]].values, y=values, line=line, name=split, showlegend=True)
        )
    figure.update_layout(xaxis_title="α", yaxis=axis)
    return _laid_out(figure)


class Scale(NamedTuple):
    """Heights and colours that several surfaces share.

    Attributes:
        clip: The largest height before the logarithm; None: no limit.
        log: Whether heights are logarithmic.
        limits: The lowest and the largest height.
        marks: Ticks of the height.
    """

    clip: float | None
    log: bool
    limits: Limits
    marks: dict[str, Any]

    @classmethod
    def of(cls, values: Iterable[np.ndarray], metric: str, clip: float | None) -> "Scale":
        """The scale of some values, not all of which are NaN."""
        joined = np.concatenate([np.ravel(array) for array in values])
        finite = joined[np.isfinite(joined)]
        shown = finite if clip is None else np.minimum(finite, clip)
        log = metric == "loss" and bool(choose_levels(shown, metric)[1] and shown.min() > -OFFSET)
        at = heights(shown, None, log)
        return cls(clip, log, Limits(float(at.min()), float(at.max())), ticks(finite, metric, clip, log))


def surfaces(runs: list[Content], kind: str, metric: str, clip: float | None) -> list[Picture]:
    """Surfaces over planes: the first of each run in 3-D and as contours, its others as contours.

    Args:
        runs: The contents.
        kind: Which results: ``"surface"``, ``"trajectory"`` or ``"hessian"``.
        metric: The variable.
        clip: The largest height.

    Returns:
        The pictures.
    """
    named = [(run, name, result) for run in runs for name, result in run.of(kind).items()]
    values = [result[metric].values for *_, result in named]
    if not any(np.isfinite(array).any() for array in values):
        return [Picture(f"{run.title}: {name}", None, "no point is finite") for run, name, _ in named]
    scale = Scale.of(values, metric, clip)
    solids = {run.title: name for run, name, _ in reversed(named)} if kind != "hessian" else {}
    solids = dict(list(reversed(solids.items()))[: _MOST_SCENES // 2])
    found = []
    for run, name, result in named:
        found += _surface(f"{run.title}: {name}", result, metric, scale, solid_too=solids.get(run.title) == name)
    return found


def _surface(title: str, result: xr.Dataset, metric: str, scale: Scale, *, solid_too: bool) -> list[Picture]:
    try:
        surface, z = raised(result, metric, scale.clip, scale.log)
    except ValueError as error:  # it is too small, or nothing of it is finite
        return [Picture(title, None, str(error))]
    name = plain(surface.labels[2])
    line = path_on(result, metric, scale.clip, scale.log)
    of_path = [] if line is None else [trace.update(meta=PATH) for trace in path_traces(line, name, result)]
    note = "; ".join(filter(None, (notes(surface, scale.clip, scale.log), _unconverged(result, metric))))
    flat = _flat(contours(surface, z, scale.limits, {"title": {"text": name, "side": "right"}, **scale.marks}), surface)
    found = [Picture(title, flat, note, bool(of_path))]
    if solid_too:
        deep = _deep(solid(surface, z, scale.limits), surface, scale)
        found.insert(0, Picture(f"{title}, 3-D", deep, note, bool(of_path)))
    for picture, trace in zip(found, of_path if solid_too else of_path[1:], strict=False):
        picture.figure.add_trace(_outlined(trace))
    return found


def _outlined(trace: Any) -> Any:
    """A path that is seen on dark and on bright ground."""
    return trace.update(marker={"color": _PATH, "line": {"color": "white", "width": 1}}, line={"color": _PATH})


def _flat(trace: Any, surface: Any) -> Any:
    graphs = optional("plotly.graph_objects")
    figure = graphs.Figure(trace)
    x, y, _ = (plain(label) for label in surface.labels)
    figure.update_layout(xaxis_title=x, yaxis_title=y)
    figure.update_xaxes(range=[surface.x[0], surface.x[-1]])
    figure.update_yaxes(range=[surface.y[0], surface.y[-1]])
    return _laid_out(figure)


def _deep(trace: Any, surface: Any, scale: Scale) -> Any:
    graphs = optional("plotly.graph_objects")
    figure = graphs.Figure(trace)
    x, y, _ = (plain(label).partition(" (")[0].partition(" component")[0] for label in surface.labels)
    height = {"title": "", "range": [scale.limits.low, scale.limits.high], **scale.marks}
    camera = {"eye": {"x": 1.65, "y": 1.65, "z": 1.3}, "center": {"x": 0, "y": 0, "z": -0.05}}
    shape = {"aspectmode": "manual", "aspectratio": {"x": 1.0, "y": 1.0, "z": 0.7}, "camera": camera}
    x_axis, y_axis = ({"title": name, "nticks": 5} for name in (x, y))
    figure.update_layout(scene={"xaxis": x_axis, "yaxis": y_axis, "zaxis": height, **shape})
    return _laid_out(figure)


def _unconverged(result: xr.Dataset, metric: str) -> str:
    count = int(field(result, metric).unconverged.sum())
    return f"points that did not converge: {count}" if count else ""


def spectra(runs: list[Content]) -> list[Picture]:
    """The density of the eigenvalues, on a logarithmic axis."""
    named = [(run, name, result) for run in runs for name, result in run.of("spectrum").items()]
    tops = [np.nanmax(result.density.values, initial=0) for *_, result in named]
    top = float(max(tops, default=0))
    if not (np.isfinite(top) and top > 0):
        return [Picture(f"{run.title}: {name}", None, "the density is not finite") for run, name, _ in named]
    ends = np.concatenate([result.eigenvalue.values[[0, -1]] for *_, result in named])
    floor = top * 10.0**-_DECADES
    limits = [float(np.log10(floor)), float(np.log10(2 * top))], [float(ends.min()), float(ends.max())]
    return [Picture(f"{run.title}: {name}", _spectrum(result, floor, *limits)) for run, name, result in named]


def _spectrum(result: xr.Dataset, floor: float, heights: list[float], ends: list[float]) -> Any:
    graphs = optional("plotly.graph_objects")
    density = np.maximum(result.density.values.astype(float), floor)
    line = {"color": _BLUE, "width": 2}
    figure = graphs.Figure(graphs.Scatter(x=result.eigenvalue.values.astype(float), y=density, line=line, mode="lines"))
    axis = {"type": "log", "range": heights, "title": "density", "exponentformat": "power", "dtick": 1}
    figure.update_layout(yaxis=axis, xaxis={"title": "eigenvalue λ", "range": ends})
    return _laid_out(figure)


def _axis(values: Iterable[Any], name: str) -> dict[str, Any]:
    """An axis over all finite values, with some room; it is logarithmic for losses that span more than 50."""
    joined = np.concatenate([np.ravel(np.asarray(array, float)) for array in values] or [np.zeros(0)])
    finite = joined[np.isfinite(joined)]
    log = name == "loss" and bool(finite.size and finite.min() > 0 and choose_levels(finite, name)[1])
    ends = np.log10(finite) if log else finite
    low, high = (float(ends.min()), float(ends.max())) if ends.size else (0.0, 1.0)
    room = 0.04 * (high - low) or 0.5
    scale = {"type": "log", "dtick": 1, "exponentformat": "power"} if log else {}
    return {"title": "error (%)" if name == "error" else name, "range": [low - room, high + room], **scale}


def _laid_out(figure: Any) -> Any:
    """A figure with small margins, dark text on white, and a legend above that does not cover values."""
    legend = {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"}
    figure.update_layout(template="plotly_white", margin={"l": 0, "r": 0, "t": 30, "b": 0}, legend=legend)
    figure.update_layout(font={"color": "#222", "size": 12}, paper_bgcolor="white")
    figure.update_xaxes(automargin=True)
    figure.update_yaxes(automargin=True)
    return figure
