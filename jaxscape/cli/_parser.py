"""The parser of the command line."""

import argparse
from typing import Any

from jaxscape.cli import _measure, _show, _walk
from jaxscape.objective import PRECISIONS


def _batch_size(text: str) -> Any:
    return text if text == "auto" else int(text)


def _points(text: str) -> list[int]:
    """Parse a number of points: ``51`` or ``51x31``."""
    parts = text.split("x")
    if len(parts) > 2 or not all(part.isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of points; expected e.g. 51 or 51x31")
    return [int(part) for part in parts]


def _refine(text: str) -> Any:
    """Parse what an adaptive grid must show right: ``contours``, or a number."""
    try:
        return text if text == "contours" else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no goal; expected contours, or a number, e.g. 0.01") from None


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands; ``args.command(args)`` runs the chosen command."""
    parser = argparse.ArgumentParser(prog="jaxscape", description="Measure and draw the loss landscape of a run.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    surface = commands.add_parser("surface", help="the loss over a plane of two random directions")
    _add_measuring(surface, _measure.surface)
    surface.add_argument("--points", type=_points, default=[51], metavar="N[xM]", help="points per axis (default: 51)")
    surface.add_argument(
        "--refine",
        type=_refine,
        metavar="X",
        help="fewer points: 'contours', or a relative error (default: all points)",
    )
    surface.add_argument("--split", choices=("train", "test"), default="train", help="the data (default: train)")
    surface.add_argument("--out", metavar="FILE.zarr", help="the result (default: RUN/surface.zarr)")

    line = commands.add_parser("line", help="train and test loss along one random direction")
    _add_measuring(line, _measure.line)
    line.add_argument("--points", type=int, default=101, help="points on the line (default: 101)")

    between = commands.add_parser("interpolate", help="train and test loss on the line through two runs")
    between.set_defaults(command=_measure.interpolate)
    between.add_argument("run", metavar="RUN_A", help="alpha = 0")
    between.add_argument("other", metavar="RUN_B", help="alpha = 1; a run of the same network on the same data")
    between.add_argument("--points", type=int, default=101, help="points on the line (default: 101)")
    between.add_argument("--range", type=float, nargs=2, default=(-0.5, 1.5), metavar=("LO", "HI"), help="of alpha")
    policies = ("interpolate", "frozen", "reestimate")
    between.add_argument("--statistics", choices=policies, default="interpolate", help="of batch norm (default: all)")
    between.add_argument("--out", metavar="FOLDER", help="for results and picture (default: RUN_A)")
    _add_evaluating(between)
    _add_tolerance(between)

    hessian = commands.add_parser("hessian", help="the smallest and largest eigenvalue of the Hessian over a plane")
    _add_plane(hessian, _measure.hessian)
    hessian.add_argument("--points", type=_points, default=[11], metavar="N[xM]", help="points per axis (default: 11)")
    hessian.add_argument("--split", choices=("train", "test"), default="train", help="the data (default: train)")
    hessian.add_argument("--pilot", type=int, metavar="N", help="look for the ends on so many examples first")
    hessian.add_argument("--subset", type=int, metavar="N", help="so many examples, drawn with --seed (default: all)")
    hessian.add_argument("--tol", type=float, default=1e-2, help="relative residual (default: 0.01)")
    hessian.add_argument("--max-matvecs", type=int, default=100, metavar="N", help="products a point (default: 100)")
    hessian.add_argument(
        "--weights-only", action="store_true", help="no curvature in biases and norms, as in the paper"
    )
    hessian.add_argument("--spectrum", action="store_true", help="the density of all eigenvalues at the center, too")
    hessian.add_argument("--out", metavar="FILE.zarr", help="the result (default: RUN/hessian.zarr)")

    walk = commands.add_parser("trajectory", help="the path of training in its principal plane, on the loss around it")
    walk.set_defaults(command=_walk.trajectory)
    walk.add_argument("runs", nargs="+", metavar="RUN", help="run folders: each in its own plane, unless --together")
    walk.add_argument("--together", action="store_true", help="all paths in one plane, on the loss of the first run")
    walk.add_argument("--steps", action="store_true", help="the weights that --save-steps kept, not those of epochs")
    walk.add_argument("--batch-stats", action="store_true", help="running statistics are coordinates as well")
    walk.add_argument("--directions", choices=("pca", "random", "solution"), default="pca", help=_walk.DIRECTIONS)
    walk.add_argument("--center", choices=("last", "mean"), default="last", help="of the rows (default: last)")
    walk.add_argument("--points", type=_points, default=[25], metavar="N[xM]", help="points per axis (default: 25)")
    walk.add_argument("--margin", type=float, default=0.15, metavar="X", help="around the path (default: 0.15)")
    walk.add_argument("--split", choices=("train", "test"), default="train", help="the data (default: train)")
    walk.add_argument("--animate", metavar="FILE.gif|.mp4", help="the growing path as well, of one run or --together")
    walk.add_argument("--out", metavar="FILE.png|.pdf|.svg", help="the picture of several runs")
    _add_ignore(walk, None)
    _add_evaluating(walk)
    _add_tolerance(walk)

    draw = commands.add_parser("plot", help="draw a result, or several side by side on the same levels")
    draw.set_defaults(command=_show.plot_results)
    draw.add_argument("files", nargs="+", metavar="FILE", help=".zarr results")
    kinds = ("contour", "contourf", "heatmap", "surface3d", "line", "eigenvalue_map", "spectrum", "trajectory")
    draw.add_argument("--kind", choices=kinds, help="the picture (default: by what the result holds)")
    draw.add_argument("--signed", action="store_true", help="of an eigenvalue map: min / max with its sign")
    draw.add_argument("--metric", default="loss", help="variable of the results (default: loss)")
    draw.add_argument("--log", action=argparse.BooleanOptionalAction, help="logarithmic scale (default: if steep)")
    draw.add_argument("--loss-max", type=float, metavar="X", help="cut off and count larger values")
    draw.add_argument("--titles", nargs="+", metavar="TITLE", help="one for each file")
    draw.add_argument("--out", metavar="FILE.png|.pdf|.svg", help="the picture's file")

    report = commands.add_parser("report", help="a table of runs, and the pictures in their folders")
    report.set_defaults(command=_show.report)
    report.add_argument("runs", nargs="+", metavar="RUN", help="run folders")
    for command in commands.choices.values():
        command.add_argument("--debug", action="store_true", help="print the traceback of an error")
    return parser


def _add_measuring(parser: argparse.ArgumentParser, command: Any) -> None:
    """Add the options that ``surface`` and ``line`` share."""
    _add_plane(parser, command)
    _add_tolerance(parser)


def _add_plane(parser: argparse.ArgumentParser, command: Any) -> None:
    """Add the options of all commands that use random directions around one run."""
    parser.set_defaults(command=command)
    parser.add_argument("run", metavar="RUN", help="a run's folder, made by train.py")
    parser.add_argument("--range", type=float, nargs=2, default=(-1.0, 1.0), metavar=("LO", "HI"), help="default: -1 1")
    parser.add_argument(
        "--dry-run", action="store_true", help="memory and time that it will take, from one timed point"
    )
    _add_ignore(parser, "bias_norm")
    _add_evaluating(parser)


def _add_ignore(parser: argparse.ArgumentParser, ignore: str | None) -> None:
    """Add the options that define the directions."""
    parser.add_argument("--seed", type=int, default=0, help="of the random directions (default: 0)")
    norms = ("filter", "layer", "weight", "dfilter", "dlayer", "none")
    parser.add_argument("--norm", choices=norms, default="filter", help="of the directions (default: filter)")
    ignored = ("bias_norm", "none")
    default = ignore or "bias_norm for random directions, none for principal ones"
    parser.add_argument("--ignore", choices=ignored, default=ignore, help=f"leaves left alone (default: {default})")


def _add_evaluating(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how the loss is evaluated."""
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


def _add_tolerance(parser: argparse.ArgumentParser) -> None:
    """Add the options for the tolerance and the precision."""
    parser.add_argument("--rtol", type=float, metavar="X", help="relative standard error to reach (default: exact)")
    parser.add_argument("--atol", type=float, default=0.0, metavar="X", help="absolute one, with --rtol (default: 0)")
    parser.add_argument("--compute-dtype", choices=tuple(PRECISIONS), help="precision (default: JAX's setting)")
