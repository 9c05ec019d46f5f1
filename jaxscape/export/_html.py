"""Surfaces as interactive pages: one file with the numbers, the pictures and the program that draws them."""

import html as markup
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from jaxscape.arguments import checked
from jaxscape.export._files import optional, target, write
from jaxscape.export._heights import OFFSET, Path3D, heights, path_on, raised
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
# A browser that obeys this opens no connection, whatever the scripts do. plotly.js compiles code at run time.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; img-src data: blob:; "
    "font-src data:; form-action 'none'; base-uri 'none'"
)
# plotly.js has a button that sends the figure to a server of its makers.
_CONFIG = {"responsive": True, "displaylogo": False, "showSendToCloud": False, "plotlyServerURL": ""}
_LINES = 20  # contour lines, about
_APART = 0.05  # of the height of the picture: ticks that are nearer would overlap
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{title}</title>
<style>
body {{ margin: 1em; font-family: sans-serif; color: #222; }}
h1 {{ font-size: 1.2em; margin: 0; }}
p {{ margin: 0.3em 0; color: #555; }}
td {{ padding: 0 1em 0 0; vertical-align: top; }}
</style>
</head>
<body>
<h1>{title}</h1>
<p>{notes}</p>
{figure}
<details><summary>How it was made</summary><table>
{rows}
</table></details>
</body>
</html>
"""


@checked
def html(
    result: xr.Dataset, path: str | Path, *, metric: str = "loss", clip: float | None = None, log: bool = False
) -> Path:
    """Write a surface as one interactive page: 3-D surface and contours, to turn, to zoom and to read values from.

    The page is one file of about 5 MB that holds the numbers and plotly.js. It works without a network: it loads
    nothing, and tells the browser to allow no connection.

    Heights and colours are ``z = min(value, clip)``, and ``ln(min(value, clip) + 0.1)`` with ``log``, as `vtk` has
    them. Ticks and the values under the pointer are those of the metric, neither clipped nor logarithmic. The path of
    a result of `jaxscape.trajectory` is drawn on both pictures, at the heights of ``in_plane_loss``, if the metric is
    the loss. Points that are NaN or infinite are holes; the page counts them, and the points above ``clip``. It lists
    the attrs of the result.

    >>> import tempfile
    >>> axes = {"alpha": [-1.0, 0.0, 1.0], "beta": [0.0, 2.0]}
    >>> result = xr.Dataset({"loss": (("alpha", "beta"), np.ones((3, 2)))}, axes)
    >>> file = html(result, Path(tempfile.mkdtemp()) / "surface.html", clip=10.0, log=True)
    >>> "<title>loss surface</title>" in file.read_text()
    True

    Args:
        result: A surface over two axes, with any spacing and order of the coordinates.
        path: The file. Its suffix is ``.html`` or ``.htm``.
        metric: The variable to draw.
        clip: The largest height, before the logarithm: higher values become a plateau. None: no limit.
        log: Whether heights and colours are ``ln(z + 0.1)``.

    Returns:
        The path.

    Raises:
        ValueError: The suffix is another, the result is not 2-D or does not have the metric, no value is finite, or
            ``log`` is True with a height of -0.1 or less.
        TypeError: An argument is of another type.
        ImportError: plotly is not installed: ``pip install "jax-losscape[export]"``.
    """
    path = target(path, ".html", ".htm")
    surface, z = raised(result, metric, clip, log)
    line = path_on(result, metric, clip, log)
    optional("plotly")
    drawn = _figure(surface, z, _ticks(surface, clip, log), line, result)
    page = _PAGE.format(
        policy=_POLICY,
        title=markup.escape(surface.title or f"{metric} surface"),
        notes=markup.escape(_notes(surface, clip, log)),
        figure=drawn.to_html(_CONFIG, full_html=False, include_plotlyjs=True, div_id="surface", default_height="80vh"),
        rows=_rows(result.attrs),
    )
    return write(path, page.encode())


def _figure(surface: Field, z: np.ndarray, ticks: dict[str, Any], line: Path3D | None, result: xr.Dataset) -> Any:
    """The two pictures side by side, with common colours."""
    graphs, subplots = optional("plotly.graph_objects"), optional("plotly.subplots")
    x, y, name = (_plain(label) for label in surface.labels)
    values = np.array([f"{value:.6g}" for value in surface.z.ravel()], object).reshape(surface.z.shape)
    drawn = subplots.make_subplots(
        1, 2, specs=[[{"type": "scene"}, {"type": "xy"}]], column_widths=[0.55, 0.45], horizontal_spacing=0.08
    )
    hover = f"α %{{x:.4g}}<br>β %{{y:.4g}}<br>{name} %{{text}}<extra></extra>"
    low, high = float(np.nanmin(z)), float(np.nanmax(z))
    common = {"x": surface.x, "y": surface.y, "z": z, "text": values, "hovertemplate": hover, "colorscale": _COLOURS}
    drawn.add_trace(graphs.Surface(**common, cmin=low, cmax=high, showscale=False), 1, 1)
    step = (high - low) / _LINES or 1.0
    lines = {"start": low + step, "end": high - step / 2, "size": step}  # none at the top, along the edge of a plateau
    bar = {"title": {"text": name, "side": "right"}, **ticks}
    contour = graphs.Contour(**common, zmin=low, zmax=high, contours=lines, line_width=0.5, colorbar=bar)
    drawn.add_trace(contour, 1, 2)
    if line is not None:
        for column, trace in enumerate(_path_traces(line, name, result), start=1):
            drawn.add_trace(trace, 1, column)
    shape = {"x": 1.0, "y": 1.0, "z": 0.7}
    axes = {"xaxis_title": x.partition(" (")[0], "yaxis_title": y.partition(" (")[0], "zaxis": {"title": name, **ticks}}
    drawn.update_layout(scene={**axes, "aspectmode": "manual", "aspectratio": shape}, showlegend=False)
    drawn.update_layout(xaxis_title=x, yaxis_title=y, margin={"l": 0, "r": 0, "t": 20, "b": 0}, template="plotly_white")
    drawn.update_xaxes(range=[surface.x[0], surface.x[-1]])
    drawn.update_yaxes(range=[surface.y[0], surface.y[-1]])
    return drawn


def _path_traces(line: Path3D, name: str, result: xr.Dataset) -> list[Any]:
    """The path in 3-D and in the plane; a lost checkpoint is a gap."""
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


def _ticks(surface: Field, clip: float | None, log: bool) -> dict[str, Any]:
    """Round values of the metric as ticks at their heights."""
    finite = surface.z[np.isfinite(surface.z)]
    shown = finite if clip is None else np.minimum(finite, clip)
    levels, _ = choose_levels(shown, surface.metric, log=log and bool(shown.min() > 0), num=8)
    levels = levels[levels > -OFFSET] if log else levels
    at = heights(levels, None, log)
    kept: list[int] = []
    for i in reversed(range(len(levels))):  # from the top
        if not kept or at[kept[-1]] - at[i] >= _APART * np.ptp(at):
            kept.append(i)
    return {"tickmode": "array", "tickvals": at[kept], "ticktext": [f"{levels[i]:.4g}" for i in kept]}


def _notes(surface: Field, clip: float | None, log: bool) -> str:
    above = np.zeros(surface.z.shape, bool) if clip is None else surface.z > clip
    notes = [
        count_note(surface.nonfinite, "not finite"),
        count_note(surface.missing, "not computed yet"),
        count_note(above, f"above {clip:g}, cut off there") if clip is not None else "",
        "heights are ln(z + 0.1)" if log else "",
    ]
    return "; ".join(filter(None, notes))


def _rows(attrs: Mapping[Any, Any]) -> str:
    cells = ((markup.escape(str(name)), markup.escape(str(value))) for name, value in attrs.items())
    return "\n".join(f"<tr><td>{name}</td><td>{value}</td></tr>" for name, value in cells)


def _plain(label: str) -> str:
    """A label without LaTeX, which a page could draw with MathJax only."""
    label = markup.escape(label, quote=False)
    for latex, symbol in _SYMBOLS.items():
        label = label.replace(latex, symbol)
    return label
