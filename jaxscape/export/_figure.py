"""Figures for print: PDF, SVG and PNG files that journals accept."""

import io
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase

from jaxscape.arguments import checked
from jaxscape.export._files import target, write

# Type 42 fonts in PDF, since some journals refuse Type 3; text as text in SVG; ids that do not change from run to run.
_PRINT: dict[Any, Any] = {"pdf.fonttype": 42, "svg.fonttype": "none", "svg.hashsalt": "jaxscape"}


@checked
def figure(picture: Axes | Figure, path: str | Path, *, dpi: int = 300, title: str = "", author: str = "") -> Path:
    """Write a figure at the quality of print, in the format of the suffix.

    The box is tight around what is drawn. Text stays text: PDF files embed their fonts as TrueType (type 42), SVG files
    name theirs. The file has no date: a figure that is drawn anew from the same numbers gives the same bytes.
    `jaxscape.plot.save` writes at 200 dots per inch with the margins of the figure, and animations.

    >>> import tempfile, numpy as np, xarray as xr
    >>> from jaxscape import plot
    >>> axes = {"alpha": [-1.0, 0.0, 1.0], "beta": [0.0, 2.0]}
    >>> result = xr.Dataset({"loss": (("alpha", "beta"), np.arange(6.0).reshape(3, 2))}, axes)
    >>> figure(plot.contour(result), Path(tempfile.mkdtemp()) / "surface.pdf", title="ResNet-56").name
    'surface.pdf'

    Args:
        picture: A figure, or axes of it; functions of `jaxscape.plot` return them.
        path: The file. Its suffix is ``.pdf``, ``.svg`` or ``.png``.
        dpi: Dots per inch of a PNG file, and of the images in a PDF or SVG file, such as the cells of a heatmap.
        title: The title in the metadata of the file.
        author: The author in the metadata of the file.

    Returns:
        The path.

    Raises:
        ValueError: The suffix is another, or ``dpi`` is not positive.
        TypeError: An argument is of another type.
    """
    path = target(path, ".pdf", ".svg", ".png")
    if not isinstance(picture, Axes | FigureBase):
        raise TypeError(f"picture is {type(picture).__name__}, expected a matplotlib figure, or axes of it.")
    for name, value in (("title", title), ("author", author)):
        if not isinstance(value, str):
            raise TypeError(f"{name} is {type(value).__name__}, expected a text.")
    kind = path.suffix.lower().removeprefix(".")
    buffer = io.BytesIO()
    with mpl.rc_context(_PRINT):
        drawn = picture.figure.figure  # of axes, or of a subfigure
        drawn.savefig(buffer, format=kind, dpi=dpi, bbox_inches="tight", metadata=_metadata(kind, title, author))
    return write(path, buffer.getvalue())


def _metadata(kind: str, title: str, author: str) -> dict[str, str | None]:
    """The entries that a format has; None takes out what matplotlib would write, such as the date."""
    program = f"jaxscape, matplotlib {mpl.__version__}"
    entries: dict[str, dict[str, str | None]] = {
        "pdf": {"Title": title, "Author": author, "Creator": program, "CreationDate": None},
        "svg": {"Title": title, "Creator": author, "Date": None},
        "png": {"Title": title, "Author": author, "Software": program},
    }
    return {name: value for name, value in entries[kind].items() if value != ""}
