"""Commands that show results and runs which exist already."""

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import jaxscape as js
from jaxscape import plot as pictures
from jaxscape import trees
from jaxscape.cli._app import command
from jaxscape.cli._files import draw, print_table, read_result
from jaxscape.export._files import target
from jaxscape.report_page import report as write_report

_PICTURES = (".png", ".pdf", ".svg")
Kind = Literal["contour", "contourf", "heatmap", "surface3d", "line", "eigenvalue_map", "spectrum", "trajectory"]


@command("jaxscape plot a.zarr b.zarr --kind surface3d")
def plot(
    files: Annotated[
        list[str], typer.Argument(metavar="FILE...", help=".zarr results, or .h5 files of the original tool.")
    ],
    kind: Annotated[Kind | None, typer.Option(help="The picture. [default: by what the result holds]")] = None,
    metric: Annotated[str, typer.Option(metavar="NAME", help="Variable of the results.")] = "loss",
    log: Annotated[
        bool | None, typer.Option("--log/--no-log", help="Logarithmic scale. [default: if the values are steep]")
    ] = None,
    loss_max: Annotated[float | None, typer.Option(metavar="X", help="Cut off and count larger values.")] = None,
    signed: Annotated[bool, typer.Option("--signed", help="Of an eigenvalue map: min / max with its sign.")] = False,
    title: Annotated[list[str] | None, typer.Option(metavar="TEXT", help="Of each file in turn; repeat it.")] = None,
    out: Annotated[str | None, typer.Option(metavar="FILE.png|.pdf|.svg", help="The picture's file.")] = None,
) -> dict[str, Any]:
    """Draw a result, or several side by side on the same levels."""
    if out is not None:
        pictures.check_format(Path(out))
    results = [read_result(file) for file in files]
    named = dict(zip(_titles(title, files, results), results, strict=True))
    what: Any = kind or default_kind(results[0], metric)
    options: dict[str, Any] = {"metric": metric, "log": log, "loss_max": loss_max}
    first = Path(files[0]).with_suffix("")
    default = first.with_name(f"{first.name}_{what}.png") if len(results) == 1 else Path(f"compare_{what}.png")
    picture = picture_of(named, what, options, signed)
    return {"pictures": [draw(picture, Path(out or default))]}


def picture_of(named: dict[str, xr.Dataset], kind: Any, options: dict[str, Any], signed: bool = False) -> Axes | Figure:
    """One result, or several in one picture."""
    several = len(named) > 1
    title, result = next(iter(named.items()))
    titled: Any = result.assign_attrs(title=title)
    if kind == "spectrum":
        if several:
            raise ValueError(f"{len(named)} files for --kind spectrum; expected one.")
        return pictures.spectrum(titled)
    if kind == "trajectory":
        return pictures.trajectories(named, **options) if several else pictures.trajectory(titled, **options)
    if kind == "eigenvalue_map":
        return pictures.eigenvalue_map(named if several else titled, signed=signed)
    if kind == "line":
        return pictures.line(named if several else result, **options)
    return pictures.compare(named, kind, **options) if several else getattr(pictures, kind)(titled, **options)


@command("jaxscape report runs/a runs/b --out report.html")
def report(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Runs' folders.")],
    clip: Annotated[
        float | None, typer.Option(metavar="X", help="The largest loss in pictures. [default: none]")
    ] = None,
    gradient: Annotated[
        bool, typer.Option("--gradient", help="Measure the gradient at the center too: one pass over the data.")
    ] = False,
    out: Annotated[
        str | None,
        typer.Option(metavar="FILE.html", help="The page. [default: report.html, of one run in its folder]"),
    ] = None,
) -> dict[str, Any]:
    """A page with all results of runs and a verdict on each, and a table of the runs."""
    file = (Path(runs[0]) if len(runs) == 1 else Path()) / "report.html" if out is None else Path(out)
    target(file, ".html", ".htm")
    loaded = [js.load_run(run) for run in runs]
    header = "run", "arch", "shortcuts", "epochs", "params", "train loss", "train err %", "test loss", "test err %"
    rows = [header, *map(_report_row, loaded)]
    found = {str(run.path): sorted(str(f) for f in run.path.iterdir() if f.suffix in _PICTURES) for run in loaded}
    print_table(rows, left=3)
    for path, files in found.items():
        print("\n".join([f"\npictures in {path}:", *(files or ["none"])]))
    numbers = {"runs": [dict(zip(header, row, strict=True)) for row in rows[1:]], "pictures": found}
    try:
        page = write_report(loaded, file, clip=clip, gradient=gradient)
    except ImportError as error:
        print(f"no page: {error}", file=sys.stderr)
        return {**numbers, "page": None}
    print(page)
    return {**numbers, "page": page}


def _report_row(run: Any) -> tuple[str, ...]:
    last = run.metrics[-1] if run.metrics else {}
    numbers = [last.get(name) for name in ("train_loss", "train_error", "test_loss", "test_error")]
    return (
        run.path.name,
        str(run.config["arch"]),
        "no" if run.config["noshort"] else "yes",
        str(last.get("epoch", 0)),
        f"{trees.size(run.params):,}",
        *("-" if value in (None, "") else f"{float(value):.4g}" for value in numbers),
    )


def default_kind(result: xr.Dataset, metric: str) -> str:
    """The kind of picture that fits the variables of a result; the plot itself refuses a metric that is missing."""
    for kind, variable in (("spectrum", "density"), ("eigenvalue_map", "min_eigenvalue")):
        if variable in result and metric not in result:
            return kind
    if "coordinates" in result:
        return "trajectory"
    metric = metric if metric in result else "loss"
    return "line" if metric in result and result[metric].ndim == 1 else "contour"


def _titles(given: list[str] | None, files: list[str], results: list[xr.Dataset]) -> list[str]:
    """The titles that were given; without them the titles of the results, if they are distinct; else the files."""
    if given:
        if len(given) != len(results):
            raise ValueError(f"--title has {len(given)} titles for {len(results)} files; expected one for each.")
        titles = given
    else:
        titles = [str(result.attrs.get("title", "")) for result in results]
        if "" in titles or len(set(titles)) < len(titles):
            titles = files
    if len(set(titles)) < len(titles):
        raise ValueError(f"the titles {titles} repeat; tell the pictures apart with --title, once for each file.")
    return titles
