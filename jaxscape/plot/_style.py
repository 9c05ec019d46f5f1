"""The style of the pictures: explicit arguments and a local rc context, which leave the user's settings unchanged."""

from contextlib import AbstractContextManager
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.animation import Animation, writers
from matplotlib.axes import Axes
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.figure import Figure


def style() -> AbstractContextManager[None]:
    """A context with sizes for a column of a paper (about 4 inches): text of 8 to 9 points, as in a caption."""
    return mpl.rc_context(
        {
            "font.size": 9.0,
            "axes.labelsize": 9.0,
            "axes.titlesize": 9.5,
            "xtick.labelsize": 8.0,
            "ytick.labelsize": 8.0,
            "legend.fontsize": 8.0,
            "legend.edgecolor": "none",
            "axes.linewidth": 0.7,
            "hatch.linewidth": 0.5,
        }
    )


def new_axes(projection: str | None = None) -> Axes:
    """One axes in a new figure."""
    return plt.subplots(figsize=(4.2, 3.4), layout="constrained", subplot_kw={"projection": projection})[1]


def add_note(ax: Axes, text: str, lines: int | None = None) -> None:
    """Write a note between the title and the axes, with space for ``lines`` lines (None: the lines of the text)."""
    lines = text.count("\n") + 1 if lines is None and text else lines or 0
    if not lines:
        return
    ax.set_title(ax.get_title(), pad=5 + 10 * lines)
    ax.annotate(text, (0.5, 1), (0, 3), "axes fraction", "offset points", size=7.5, color="0.3", ha="center")
    if ax.name != "3d":  # the power of ten of the ticks, which stands where the note is
        ax.yaxis.get_offset_text().set(x=-0.02, horizontalalignment="right")


def join_notes(*notes: str) -> str:
    """One line for each note that is not empty."""
    return "\n".join(filter(None, notes))


def number(value: float) -> str:
    r"""A short label: ``0.05``, ``300``, ``$3\times10^{5}$``."""
    if value == 0 or 1e-3 <= abs(value) < 1e4 or not np.isfinite(value):
        return f"{value:.4g}"
    mantissa, exponent = f"{value:.2e}".split("e")
    mantissa = f"{float(mantissa):g}"
    power = f"10^{{{int(exponent)}}}"
    return f"${power}$" if mantissa == "1" else f"${mantissa}\\times{power}$"


def count_note(mask: np.ndarray, what: str) -> str:
    """A note such as ``3 of 625 points not finite``; empty if the mask is false everywhere."""
    count = int(np.count_nonzero(mask))
    return f"{count} of {mask.size} points {what}" if count else ""


_WRITERS = {".gif": "pillow", ".mp4": "ffmpeg"}


def check_format(path: Path, *, animation: bool = False) -> None:
    """Check that a file can be written in the format of its suffix.

    Args:
        path: The file.
        animation: Whether it is to hold an animation.

    Raises:
        ValueError: It has another suffix or none, or it is ``.mp4`` and ffmpeg is not installed.
    """
    name = repr(path.name)
    if not animation and path.suffix.removeprefix(".") not in FigureCanvasBase.get_supported_filetypes():
        raise ValueError(f"path is {name}, which is no format of a picture; expected .png, .pdf or .svg.")
    if animation and (path.suffix not in _WRITERS or not writers.is_available(_WRITERS[path.suffix])):
        reason = "has no ffmpeg to write it with" if path.suffix in _WRITERS else "is no format of an animation"
        raise ValueError(f"path is {name}, which {reason}; expected .gif, or .mp4 where ffmpeg is installed.")


def save(picture: Axes | Figure | Animation, path: str | Path, *, dpi: int = 200) -> Path:
    """Write a picture or an animation to a file; vector formats keep text as text.

    Args:
        picture: A figure, axes of a figure, or an animation of `trajectory_animation`.
        path: The file. Its suffix is the format: ``.pdf``, ``.svg`` or ``.png`` for a picture; ``.gif`` or, with
            ffmpeg, ``.mp4`` for an animation. Missing folders are created.
        dpi: Dots per inch of pixel formats.

    Returns:
        The path.

    Raises:
        ValueError: The suffix is no format of a picture or of an animation, or it is ``.mp4`` and ffmpeg is not
            installed.
    """
    path = Path(path)
    check_format(path, animation=isinstance(picture, Animation))
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(picture, Animation):
        picture.save(path, writer=_WRITERS[path.suffix], dpi=dpi)
        return path
    # Write TrueType fonts into PDF files: some journals refuse Type 3 outlines.
    with mpl.rc_context({"pdf.fonttype": 42, "ps.fonttype": 42, "svg.fonttype": "none"}):
        picture.figure.figure.savefig(path, dpi=dpi)  # picture may be axes or a subfigure
    return path
