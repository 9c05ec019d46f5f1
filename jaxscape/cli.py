"""The command line: ``jaxscape surface|line|hessian|plot|report``, each a short use of the library."""

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import matplotlib.pyplot as plt
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import jaxscape as js
from jaxscape import engine, plot, trees

_PICTURES = (".png", ".pdf", ".svg")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: The arguments; None: those of the process.

    Returns:
        The exit status: 0, or 2 after a mistake in what was asked, told in one line.
    """
    args = _parser().parse_args(argv)
    engine.use_all_cores()
    try:
        if getattr(args, "distributed", False):
            jax.distributed.initialize()
        args.command(args)
    except (ValueError, OSError, ImportError) as error:
        print(f"jaxscape: error: {error}", file=sys.stderr)
        return 2
    return 0


def _surface(args: argparse.Namespace) -> None:
    run = js.load_run(args.run)
    out = Path(args.out or run.path / "surface.zarr")
    _check_replaceable(out)
    num_alpha, num_beta = args.points if len(args.points) == 2 else args.points * 2
    result = js.surface(
        run.params,
        run.loss_fn,
        _data(run, args.split),
        directions=_directions(args, run, 2),
        grid=js.Grid.plane((*args.range, num_alpha), (*args.range, num_beta)),
        **_options(args),
    )
    if jax.process_index():
        return  # process 0 writes
    result.attrs |= {"title": f"{_name(run)}, {args.split}", "split": args.split}
    _write(result, out)
    stem = out.with_suffix("")
    _draw(plot.contour(result), stem.with_name(f"{stem.name}_contour.png"))
    _draw(plot.surface3d(result), stem.with_name(f"{stem.name}_3d.png"))
    print(_summary(result))


def _line(args: argparse.Namespace) -> None:
    run = js.load_run(args.run)
    directions = _directions(args, run, 1)
    start, stop = args.range
    grid = js.Grid.line(start, stop, args.points)
    results = {}
    for split in ("train", "test"):
        out = run.path / f"line_{split}.zarr"
        _check_replaceable(out)
        data = _data(run, split)
        result = js.surface(run.params, run.loss_fn, data, directions=directions, grid=grid, **_options(args))
        result.attrs |= {"title": f"{_name(run)}, {split}", "split": split}
        if not jax.process_index():
            _write(result, out)
        results[split] = result.assign_attrs(title=_name(run))
    if jax.process_index():
        return
    _draw(plot.line(results), run.path / "line.png")
    for split, result in results.items():
        print(f"{split}: {_summary(result)}")


def _hessian(args: argparse.Namespace) -> None:
    run = js.load_run(args.run)
    out = Path(args.out or run.path / "hessian.zarr")
    _check_replaceable(out)
    num_alpha, num_beta = args.points if len(args.points) == 2 else args.points * 2
    ignore: Any = "bias_norm" if args.weights_only else None
    kept = out.with_suffix(".partial")
    result = js.eigenvalue_map(
        run.params,
        run.loss_fn,
        _data(run, args.split),
        directions=_directions(args, run, 2),
        grid=js.Grid.plane((*args.range, num_alpha), (*args.range, num_beta)),
        tol=args.tol,
        max_matvecs=args.max_matvecs,
        subset=args.subset,
        ignore=ignore,
        batch_size=args.batch_size,
        store=kept,
        seed=args.seed,
    )
    if args.spectrum:
        density = js.spectral_density(
            run.params, run.loss_fn, _data(run, args.split), ignore=ignore, batch_size=args.batch_size, key=args.seed
        )
    if jax.process_index():
        return
    told = {"title": f"{_name(run)}, {args.split}", "split": args.split}
    _write(result.assign_attrs(told), out)
    shutil.rmtree(kept)  # the whole result is there
    _draw(plot.eigenvalue_map(result.assign_attrs(told)), out.with_suffix(".png"))
    if args.spectrum:
        _write(density.assign_attrs(told), run.path / "spectrum.zarr")
        _draw(plot.spectrum(density.assign_attrs(told)), run.path / "spectrum.png")
    points, attrs = result.ratio.size, result.attrs
    print(
        f"{points} points in {attrs['seconds']:.1f} s, {int(result.num_matvecs.sum())} products, eigenvalues from "
        f"{float(result.min_eigenvalue.min()):.4g} to {float(result.max_eigenvalue.max()):.4g}, ratio in the median "
        f"{float(result.ratio.median()):.4g}, {attrs['unconverged_points']} points not converged, "
        f"{attrs['nonfinite_points']} not finite"
    )


def _plot(args: argparse.Namespace) -> None:
    results = [_read(Path(file)) for file in args.files]
    named = dict(zip(_titles(args, results), results, strict=True))
    kind: Any = args.kind or _default_kind(results[0], args)
    options: dict[str, Any] = {"metric": args.metric, "log": args.log, "loss_max": args.loss_max}
    picture: Axes | Figure
    if kind == "spectrum":
        if len(named) > 1:
            raise ValueError(f"{len(named)} files for --kind spectrum; expected one.")
        title, result = named.popitem()
        picture = plot.spectrum(result.assign_attrs(title=title))
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
    _draw(picture, Path(args.out or default))


def _report(args: argparse.Namespace) -> None:
    runs = [js.load_run(run) for run in args.runs]
    header = "run", "arch", "shortcuts", "epochs", "params", "train loss", "train err %", "test loss", "test err %"
    rows = [header, *map(_report_row, runs)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [cell.ljust(w) if i < 3 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))]
        print("  ".join(cells).rstrip())
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


def _directions(args: argparse.Namespace, run: Any, num: int) -> js.Directions:
    norm, ignore = (None if option == "none" else option for option in (args.norm, args.ignore))
    return js.random_directions(args.seed, run.params, num=num, norm=norm, ignore=ignore)


def _options(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "rtol": args.rtol,
        "atol": args.atol,
        "batch_size": args.batch_size,
        "compute_dtype": args.compute_dtype,
    }


def _batch_size(text: str) -> Any:
    return text if text == "auto" else int(text)


def _data(run: Any, split: str) -> Any:
    return run.data if split == "train" else run.test_data


def _name(run: Any) -> str:
    return run.config["arch"] + (" without shortcuts" if run.config["noshort"] else "")


def _summary(result: xr.Dataset) -> str:
    points, seconds = result.loss.size, result.attrs["seconds"]
    return (
        f"{points} points in {seconds:.1f} s ({points / max(seconds, 1e-3):.3g} points/s), "
        f"center loss {result.attrs['center_loss']:.4g}, {result.attrs['nonfinite_points']} points not finite"
    )


def _default_kind(result: xr.Dataset, args: argparse.Namespace) -> str:
    """By what the result holds; of a metric that it lacks the plot itself tells."""
    for kind, variable in (("spectrum", "density"), ("eigenvalue_map", "min_eigenvalue")):
        if variable in result and args.metric not in result:
            return kind
    metric = args.metric if args.metric in result else "loss"
    return "line" if metric in result and result[metric].ndim == 1 else "contour"


def _titles(args: argparse.Namespace, results: list[xr.Dataset]) -> list[str]:
    """Those asked for; else those of the results, if they tell them apart; else the files."""
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


def _read(path: Path) -> xr.Dataset:
    if not path.exists():
        raise FileNotFoundError(f"{path} not found; `jaxscape surface RUN` makes RUN/surface.zarr.")
    if not (path / "zarr.json").exists():
        raise ValueError(f"{path} is no result; expected a .zarr folder that jaxscape wrote.")
    return xr.open_zarr(path, consolidated=False).load()


def _check_replaceable(path: Path) -> None:
    """Before the work, not after it: what is there must be an earlier result."""
    if path.exists() and not (path / "zarr.json").exists():
        raise ValueError(f"{path} exists and is no result of jaxscape; choose another --out.")


def _write(result: xr.Dataset, path: Path) -> None:
    """Write beside it and rename: an earlier result goes only when the new one is complete."""
    new, old = (path.with_name(f".{path.name}.{state}") for state in ("new", "old"))
    shutil.rmtree(new, ignore_errors=True)
    result.to_zarr(new, mode="w", consolidated=False)
    if path.exists():
        shutil.rmtree(old, ignore_errors=True)
        path.rename(old)
    new.rename(path)
    shutil.rmtree(old, ignore_errors=True)
    print(path)


def _draw(picture: Axes | Figure, path: Path) -> None:
    print(plot.save(picture, path))
    plt.close(picture.figure.figure)


def _points(text: str) -> list[int]:
    """``51`` or ``51x31``."""
    parts = text.split("x")
    if len(parts) > 2 or not all(part.isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of points; expected e.g. 51 or 51x31")
    return [int(part) for part in parts]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="jaxscape", description="Measure and draw the loss landscape of a run.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    surface = commands.add_parser("surface", help="the loss over a plane of two random directions")
    _add_measuring(surface, _surface)
    surface.add_argument("--points", type=_points, default=[51], metavar="N[xM]", help="points per axis (default: 51)")
    surface.add_argument("--split", choices=("train", "test"), default="train", help="the data (default: train)")
    surface.add_argument("--out", metavar="FILE.zarr", help="the result (default: RUN/surface.zarr)")

    line = commands.add_parser("line", help="train and test loss along one random direction")
    _add_measuring(line, _line)
    line.add_argument("--points", type=int, default=101, help="points on the line (default: 101)")

    hessian = commands.add_parser("hessian", help="the smallest and largest eigenvalue of the Hessian over a plane")
    _add_plane(hessian, _hessian)
    hessian.add_argument("--points", type=_points, default=[11], metavar="N[xM]", help="points per axis (default: 11)")
    hessian.add_argument("--split", choices=("train", "test"), default="train", help="the data (default: train)")
    hessian.add_argument("--subset", type=int, metavar="N", help="so many examples, drawn with --seed (default: all)")
    hessian.add_argument("--tol", type=float, default=1e-2, help="relative residual (default: 0.01)")
    hessian.add_argument("--max-matvecs", type=int, default=100, metavar="N", help="products a point (default: 100)")
    hessian.add_argument(
        "--weights-only", action="store_true", help="no curvature in biases and norms, as in the paper"
    )
    hessian.add_argument("--spectrum", action="store_true", help="the density of all eigenvalues at the center, too")
    hessian.add_argument("--out", metavar="FILE.zarr", help="the result (default: RUN/hessian.zarr)")

    draw = commands.add_parser("plot", help="draw a result, or several side by side on the same levels")
    draw.set_defaults(command=_plot)
    draw.add_argument("files", nargs="+", metavar="FILE", help=".zarr results")
    kinds = ("contour", "contourf", "heatmap", "surface3d", "line", "eigenvalue_map", "spectrum")
    draw.add_argument("--kind", choices=kinds, help="the picture (default: by what the result holds)")
    draw.add_argument("--signed", action="store_true", help="of an eigenvalue map: min / max with its sign")
    draw.add_argument("--metric", default="loss", help="variable of the results (default: loss)")
    draw.add_argument("--log", action=argparse.BooleanOptionalAction, help="logarithmic scale (default: if steep)")
    draw.add_argument("--loss-max", type=float, metavar="X", help="cut off and count larger values")
    draw.add_argument("--titles", nargs="+", metavar="TITLE", help="one for each file")
    draw.add_argument("--out", metavar="FILE.png|.pdf|.svg", help="the picture's file")

    report = commands.add_parser("report", help="a table of runs, and the pictures in their folders")
    report.set_defaults(command=_report)
    report.add_argument("runs", nargs="+", metavar="RUN", help="run folders")
    return parser


def _add_measuring(parser: argparse.ArgumentParser, command: Any) -> None:
    """What surface and line have in common."""
    _add_plane(parser, command)
    parser.add_argument("--rtol", type=float, metavar="X", help="relative standard error to reach (default: exact)")
    parser.add_argument("--atol", type=float, default=0.0, metavar="X", help="absolute one, with --rtol (default: 0)")
    parser.add_argument("--compute-dtype", choices=tuple(engine.PRECISIONS), help="precision (default: JAX's setting)")


def _add_plane(parser: argparse.ArgumentParser, command: Any) -> None:
    """What everything in random directions has in common."""
    parser.set_defaults(command=command)
    parser.add_argument("run", metavar="RUN", help="a run's folder, made by train.py")
    parser.add_argument("--range", type=float, nargs=2, default=(-1.0, 1.0), metavar=("LO", "HI"), help="default: -1 1")
    parser.add_argument("--seed", type=int, default=0, help="of the random directions (default: 0)")
    norms = ("filter", "layer", "weight", "dfilter", "dlayer", "none")
    parser.add_argument("--norm", choices=norms, default="filter", help="of the directions (default: filter)")
    ignored = ("bias_norm", "none")
    parser.add_argument("--ignore", choices=ignored, default="bias_norm", help="leaves left alone (default: bias_norm)")
    parser.add_argument(
        "--batch-size",
        type=_batch_size,
        default="auto",
        metavar="N",
        help="examples at a time (default: auto, measured)",
    )
    parser.add_argument(
        "--distributed", action="store_true", help="one of several processes: `srun jaxscape ... --distributed`"
    )
