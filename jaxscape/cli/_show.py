"""Commands that show results and runs which exist already."""

import argparse
from pathlib import Path
from typing import Any

import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import jaxscape as js
from jaxscape import plot, trees
from jaxscape.cli._files import draw, print_table

_PICTURES = (".png", ".pdf", ".svg")


def plot_results(args: argparse.Namespace) -> None:
    """Draw one result, or several in one picture."""
    if args.out is not None:
        plot.check_format(Path(args.out))
    results = [js.load(file) for file in args.files]
    named = dict(zip(_titles(args, results), results, strict=True))
    kind: Any = args.kind or _default_kind(results[0], args)
    options: dict[str, Any] = {"metric": args.metric, "log": args.log, "loss_max": args.loss_max}
    picture: Axes | Figure
    if kind == "spectrum":
        if len(named) > 1:
            raise ValueError(f"{len(named)} files for --kind spectrum; expected one.")
        title, result = named.popitem()
        picture = plot.spectrum(result.assign_attrs(title=title))
    elif kind == "trajectory":
        title, result = next(iter(named.items()))
        titled: Any = result.assign_attrs(title=title)
        picture = plot.trajectories(named, **options) if len(named) > 1 else plot.trajectory(titled, **options)
    elif kind == "eigenvalue_map":
        title, result = next(iter(named.items()))
        signed = {"signed": args.signed}
        picture = plot.eigenvalue_map(named if len(named) > 1 else result.assign_attrs(title=title), **signed)
    elif kind == "line":
        picture = plot.line(named if len(named) > 1 else results[0], **options)
    elif len(named) > 1:
        picture = plot.compare(named, kind, **options)
    else:
        title, result = named.popitem()
        picture = getattr(plot, kind)(result.assign_attrs(title=title), **options)
    first = Path(args.files[0]).with_suffix("")
    default = first.with_name(f"{first.name}_{kind}.png") if len(results) == 1 else Path(f"compare_{kind}.png")
    draw(picture, Path(args.out or default))


def report(args: argparse.Namespace) -> None:
    """Print a table of runs, and the pictures in their folders."""
    runs = [js.load_run(run) for run in args.runs]
    header = "run", "arch", "shortcuts", "epochs", "params", "train loss", "train err %", "test loss", "test err %"
    rows = [header, *map(_report_row, runs)]
    print_table(rows, left=3)
    for run in runs:
        pictures = sorted(str(file) for file in run.path.iterdir() if file.suffix in _PICTURES)
        print("\n".join([f"\npictures in {run.path}:", *(pictures or ["none"])]))


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


def _default_kind(result: xr.Dataset, args: argparse.Namespace) -> str:
    """The kind of picture that fits the variables of a result; the plot itself refuses a metric that is missing."""
    for kind, variable in (("spectrum", "density"), ("eigenvalue_map", "min_eigenvalue")):
        if variable in result and args.metric not in result:
            return kind
    if "coordinates" in result:
        return "trajectory"
    metric = args.metric if args.metric in result else "loss"
    return "line" if metric in result and result[metric].ndim == 1 else "contour"


def _titles(args: argparse.Namespace, results: list[xr.Dataset]) -> list[str]:
    """The titles in ``--titles``; without them the titles of the results, if they are distinct; else the files."""
    if args.titles:
        if len(args.titles) != len(results):
            raise ValueError(f"--titles has {len(args.titles)} titles for {len(results)} files; expected one for each.")
        titles = args.titles
    else:
        titles = [str(result.attrs.get("title", "")) for result in results]
        if "" in titles or len(set(titles)) < len(titles):
            titles = args.files
    if len(set(titles)) < len(titles):
        raise ValueError(f"the titles {titles} repeat; tell the pictures apart with --titles.")
    return titles
