"""Surfaces as interactive pages: one file with the numbers, the pictures and the program that draws them."""

import html as markup
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from jaxscape.arguments import checked
from jaxscape.export._files import optional, target, write
from jaxscape.export._heights import Path3D, path_on, raised
from jaxscape.export._page import CONFIG, POLICY, attr_rows
from jaxscape.export._traces import Limits, contours, notes, path_traces, plain, solid, ticks
from jaxscape.plot._field import Field

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
    drawn = _figure(surface, z, ticks(surface.z, surface.metric, clip, log), line, result)
    page = _PAGE.format(
        policy=POLICY,
        title=markup.escape(surface.title or f"{metric} surface"),
        notes=markup.escape(notes(surface, clip, log)),
        figure=drawn.to_html(CONFIG, full_html=False, include_plotlyjs=True, div_id="surface", default_height="80vh"),
        rows=attr_rows(result.attrs),
    )
    return write(path, page.encode())


def _figure(surface: Field, z: np.ndarray, marks: dict[str, Any], line: Path3D | None, result: xr.Dataset) -> Any:
    """The two pictures side by side, with common colours."""
    subplots = optional("plotly.subplots")
    x, y, name = (plain(label) for label in surface.labels)
    drawn = subplots.make_subplots(
        1, 2, specs=[[{"type": "scene"}, {"type": "xy"}]], column_widths=[0.55, 0.45], horizontal_spacing=0.08
    )
    limits = Limits(float(np.nanmin(z)), float(np.nanmax(z)))
    drawn.add_trace(solid(surface, z, limits), 1, 1)
    drawn.add_trace(contours(surface, z, limits, {"title": {"text": name, "side": "right"}, **marks}), 1, 2)
    if line is not None:
        for column, trace in enumerate(path_traces(line, name, result), start=1):
            drawn.add_trace(trace, 1, column)
    shape = {"x": 1.0, "y": 1.0, "z": 0.7}
    axes = {"xaxis_title": x.partition(" (")[0], "yaxis_title": y.partition(" (")[0], "zaxis": {"title": name, **marks}}
    drawn.update_layout(scene={**axes, "aspectmode": "manual", "aspectratio": shape}, showlegend=False)
    drawn.update_layout(xaxis_title=x, yaxis_title=y, margin={"l": 0, "r": 0, "t": 20, "b": 0}, template="plotly_white")
    drawn.update_xaxes(range=[surface.x[0], surface.x[-1]])
    drawn.update_yaxes(range=[surface.y[0], surface.y[-1]])
    return drawn
