"""The command ``export``: a result as a file of another program."""

from pathlib import Path
from typing import Annotated, Any

import matplotlib.pyplot as plt
import typer

from jaxscape import export as exports
from jaxscape.cli._app import command
from jaxscape.cli._files import read_result
from jaxscape.cli._show import default_kind, picture_of

_HEIGHTS = {".vtp": exports.vtk, ".vtr": exports.vtk, ".vti": exports.vtk, ".obj": exports.mesh, ".stl": exports.mesh}
_FIGURES = (".png", ".pdf", ".svg")


@command("jaxscape export runs/mine/surface.zarr surface.vtp --log")
def export(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A .zarr result, or an .h5 file of the original tool.")],
    out: Annotated[
        str,
        typer.Argument(
            metavar="OUT", help="Its suffix says what: .vtp .vtr .vti .obj .stl .html .h5, or .png .pdf .svg for print."
        ),
    ],
    metric: Annotated[str, typer.Option(metavar="NAME", help="Variable of the result.")] = "loss",
    clip: Annotated[float | None, typer.Option(metavar="X", help="The largest height. [default: none]")] = None,
    log: Annotated[bool, typer.Option("--log", help="Heights are ln(z + 0.1), as in the original tool.")] = False,
) -> dict[str, Any]:
    """Write a result as a file of another program, an interactive page, or a figure for print."""
    result, suffix = read_result(file), Path(out).suffix.lower()
    if suffix in _HEIGHTS or suffix == ".html":
        written = _HEIGHTS.get(suffix, exports.html)(result, out, metric=metric, clip=clip, log=log)
    elif suffix in (".h5", ".hdf5"):
        written = exports.h5(result, out)
    elif suffix in _FIGURES:
        options = {"metric": metric, "log": log or None, "loss_max": clip}
        try:
            written = exports.figure(picture_of({"": result}, default_kind(result, metric), options), out)
        finally:
            plt.close("all")
    else:
        known = ", ".join([*_HEIGHTS, ".html", ".h5", *_FIGURES])
        raise ValueError(f"OUT is {out}, expected a name that ends with one of {known}.")
    print(written)
    return {"file": written}
