"""Results and pictures on disk, and tables on standard output."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import jaxscape as js
from jaxscape import export, plot
from jaxscape.sweep import save


def check_replaceable(path: Path) -> None:
    """Check, before any compute, that an existing path is an earlier result."""
    if path.exists() and not (path / "zarr.json").exists():
        raise ValueError(f"{path} exists and is no result of jaxscape; choose another --out.")


def read_result(file: str) -> xr.Dataset:
    """A stored result, or a surface file of the original tool."""
    return export.read_h5(file) if Path(file).suffix in (".h5", ".hdf5") else js.load(file)


def write(result: xr.Dataset, path: Path) -> None:
    """Write a result, and print its path: an earlier result is replaced only by a complete new one."""
    save(result, path)
    print(path)


def draw(picture: Axes | Figure, path: Path) -> Path:
    """Save a picture, print its path, close the figure, and give the path."""
    try:
        saved = plot.save(picture, path)
    finally:
        plt.close(picture.figure.figure)
    print(saved)
    return Path(saved)


def print_table(rows: Sequence[Sequence[str]], left: int) -> None:
    """Print rows as an aligned table: the first ``left`` columns to the left, all others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        print("  ".join(cells).rstrip())
