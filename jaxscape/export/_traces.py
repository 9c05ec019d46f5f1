"""The parts of a plotly figure of a surface: solid, contours, the path of training, and ticks."""

import html as markup
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from jaxscape.export._files import optional
from jaxscape.export._heights import OFFSET, Path3D, heights
from jaxscape.levels import choose_levels
from jaxscape.plot._field import Field
from jaxscape.plot._style import count_note

_COLOURS, _PATH = "Viridis", "#d62728"
_SYMBOLS = {
    r"$\alpha$": "α",
    r"$\beta$": "β",
    r"$|\lambda_{\min} / \lambda_{\max}|$": "|λ<sub>min</sub> / λ<sub>max</sub>|",
    r"$\lambda_{\min}$": "λ<sub>min</sub>",
    r"$\lambda_{\max}$": "λ<sub>max</sub>",
}
_LINES = 20  # contour lines, about
_APART = 0.05  # of the height of the picture: ticks that are nearer would overlap


class Limits(NamedTuple):
    """The heights that the colours span."""

    low: float
    high: float


def solid(surface: Field, z: np.ndarray, limits: Limits) -> Any:
    """The surface in 3-D.

    Args:
        surface: The values.
        z: Their heights, shape ``(len(y), len(x))``.
        limits: Heights of the first and the last colour.

    Returns:
        A trace of plotly.
    """
    graphs = optional("plotly.graph_objects")
    return graphs.Surface(**_common(surface, z), cmin=limits.low, cmax=limits.high, showscale=False)


def contours(surface: Field, z: np.ndarray, limits: Limits, bar: dict[str, Any]) -> Any:
    """The surface as filled contours.

    Args:
        surface: The values.
        z: Their heights, shape ``(len(y), len(x))``.
        limits: Heights of the first and the last colour; lines are evenly spaced between them.
        bar: Options of the colour bar.

    Returns:
        A trace of plotly.
    """
    graphs = optional("plotly.graph_objects")
    low, high = limits
    step = (high - low) / _LINES or 1.0
    lines = {"start": low + step, "end": high - step / 2, "size": step}  # none at the top, along the edge of a plateau
    colours = {"zmin": low, "zmax": high, "colorbar": bar}
    return graphs.Contour(**_common(surface, z), **colours, contours=lines, line_width=0.5)


def _common(surface: Field, z: np.ndarray) -> dict[str, Any]:
    values = np.array([f"{value:.6g}" for value in surface.z.ravel()], object).reshape(surface.z.shape)
    hover = f"α %{{x:.4g}}<br>β %{{y:.4g}}<br>{plain(surface.labels[2])} %{{text}}<extra></extra>"
    return {
        "x": surface.x,
        "y": surface.y,
        "z": z,
        "text": values,
        "hovertemplate": hover,
        "colorscale": _COLOURS,
    }


def path_traces(line: Path3D, name: str, result: xr.Dataset) -> list[Any]:
    """The path in 3-D and in the plane; a lost checkpoint is a gap.

    Args:
        line: The path.
        name: The name of its values, as markup.
        result: The result with the epochs of the checkpoints, where they are known.

    Returns:
        Two traces of plotly.
    """
    graphs = optional("plotly.graph_objects")
    epochs = [f", epoch {result.epoch.values[i]:g}" if "epoch" in result else "" for i in line.step]
    text = [
        f"checkpoint {i}{epoch}<br>{name} {loss:.6g}"
        for i, epoch, loss in zip(line.step, epochs, line.loss, strict=True)
    ]
    gaps = np.flatnonzero(np.diff(line.step) > 1) + 1
    x, y, z = (np.insert(array, gaps, np.nan) for array in line[:3])
    labels = np.insert(np.array(text, object), gaps, "")
    look = {"mode": "lines+markers", "text": labels, "hovertemplate": "%{text}<extra></extra>", "connectgaps": False}
    thick = {"line": {"color": _PATH, "width": 5}, "marker": {"color": _PATH, "size": 3}}
    thin = {"line": {"color": _PATH, "width": 1.5}, "marker": {"color": _PATH, "size": 5}}
    return [graphs.Scatter3d(x=x, y=y, z=z, **look, **thick), graphs.Scatter(x=x, y=y, **look, **thin)]


def ticks(values: np.ndarray, metric: str, clip: float | None, log: bool) -> dict[str, Any]:
    """Round values of the metric as ticks at their heights.

    Args:
        values: Values of the metric, of any shape; those that are not finite do not count.
        metric: Its name.
        clip: The largest height before the logarithm; None: no limit.
        log: Whether heights are logarithmic.

    Returns:
        Options of an axis or of a colour bar of plotly.
    """
    finite = values[np.isfinite(values)]
    shown = finite if clip is None else np.minimum(finite, clip)
    levels, _ = choose_levels(shown, metric, log=log and bool(shown.min() > 0), num=8)
    levels = levels[levels > -OFFSET] if log else levels
    at = heights(levels, None, log)
    kept: list[int] = []
    for i in reversed(range(len(levels))):  # from the top
        if not kept or at[kept[-1]] - at[i] >= _APART * np.ptp(at):
            kept.append(i)
    return {"tickmode": "array", "tickvals": at[kept], "ticktext": [f"{levels[i]:.4g}" for i in kept]}


def notes(surface: Field, clip: float | None, log: bool) -> str:
    """What one must know to read the picture: points that are not drawn or cut off, and a logarithm."""
    above = np.zeros(surface.z.shape, bool) if clip is None else surface.z > clip
    parts = [
        count_note(surface.nonfinite, "not finite"),
        count_note(surface.missing, "not computed yet"),
        count_note(above, f"above {clip:g}, cut off there") if clip is not None else "",
        "heights are ln(z + 0.1)" if log else "",
    ]
    return "; ".join(filter(None, parts))


def plain(label: str) -> str:
    """A label without LaTeX, which a page could draw with MathJax only."""
    label = markup.escape(label, quote=False)
    for latex, symbol in _SYMBOLS.items():
        label = label.replace(latex, symbol)
    return label
