"""The command ``trajectory``: one run in its principal plane, or several runs side by side or in one plane."""

import argparse
import dataclasses
import itertools
import shutil
from pathlib import Path
from typing import Any

import jax
import matplotlib.pyplot as plt
import xarray as xr

import jaxscape as js
from jaxscape import plot
from jaxscape.cli._files import check_replaceable, draw, print_table, write
from jaxscape.cli._measure import data_of, directions_of, evaluating, name_of, partial

DIRECTIONS = "of the plane: principal, two random ones, or from the end to the start and a random one (default: pca)"
_OPTIONS = ("arch", "noshort", "optimizer", "batch_size", "weight_decay", "lr", "momentum", "loss", "dataset", "seed")


def trajectory(args: argparse.Namespace) -> None:
    """Write a result and a picture for each run; for several runs also one picture of all. Print a table."""
    runs = [_run(path, args) for path in args.runs]
    suffix = "" if args.directions == "pca" else f"_{args.directions}"
    outs = [run.path / f"trajectory{suffix}.zarr" for run in runs]
    for out in outs:
        check_replaceable(out)
    if args.animate and len(runs) > 1 and not args.together:
        raise ValueError("--animate is one picture, but each run has a plane of its own; add --together.")
    if args.out is not None:
        plot.check_format(Path(args.out))
    if args.animate is not None:
        plot.check_format(Path(args.animate), animation=True)
    titles = _titles(runs)
    shared = _plane(args, runs) if args.together else {}
    results = {}
    for run, title, out in zip(runs, titles, outs, strict=True):
        plane = shared or _plane(args, [run])
        result = js.trajectory(
            run,
            data=data_of(run, args.split),
            center=args.center,
            ignore=_ignore(args),
            batch_stats=args.batch_stats,
            points=tuple(args.points * 2)[:2],
            margin=args.margin,
            store=partial(out),
            **plane,
            **evaluating(args),
        )
        results[title] = result.assign_attrs(title=title, split=args.split)
        if not jax.process_index():
            write(results[title], out)
            shutil.rmtree(partial(out), ignore_errors=True)  # the complete result is written
    if jax.process_index():
        return
    for result, out in zip(results.values(), outs, strict=True) if not args.together else ():
        draw(plot.trajectory(result), out.with_suffix(".png"))
        draw(plot.trajectory3d(result), out.with_name(f"{out.stem}_3d.png"))
    if args.animate is not None:
        animation = plot.trajectory_animation(results if args.together else results[titles[0]])
        print(plot.save(animation, args.animate))
        plt.close("all")
    if len(runs) > 1:
        picture = plot.trajectory(results) if args.together else plot.trajectories(results)
        draw(picture, Path(args.out or f"trajectories{suffix}.png"))
    _print(results)


def _run(path: str, args: argparse.Namespace) -> Any:
    """Load a run; with ``--steps`` its checkpoints are those between the epochs."""
    run = js.load_run(path)
    if not args.steps:
        return run
    if not len(run.steps):
        raise ValueError(f"{path} has no steps; train it with --save-steps N, or leave --steps out.")
    return dataclasses.replace(run, checkpoints=run.steps)


def _plane(args: argparse.Namespace, runs: list[Any]) -> dict[str, Any]:
    """The directions and, for several runs, the origin; empty for one run in its principal plane."""
    paths = [run.checkpoints.with_batch_stats() if args.batch_stats else run.checkpoints for run in runs]
    origin = paths[0][-1]
    together = {"origin": origin} if len(runs) > 1 else {}
    if args.directions == "pca":
        if not together:
            return {}
        directions = js.pca_directions(itertools.chain(*paths), center="mean", ignore=_ignore(args))[0]
    elif args.directions == "random":
        directions = directions_of(args, origin, 2)
    else:
        both = [js.direction_between(origin, paths[0][0]), directions_of(args, origin, 1)]
        recipe = (("directions", "solution"), ("axis_labels", "end to start | random direction"))
        directions = js.Directions(js.Directions.stack(both).basis, recipe=recipe)
    return {"directions": directions, **together}


def _ignore(args: argparse.Namespace) -> Any:
    """The leaves to leave out of principal directions: none, unless ``--ignore`` says otherwise."""
    return None if args.ignore == "none" else args.ignore


def _titles(runs: list[Any]) -> list[str]:
    """Titles of the options in which the runs differ; the folders, if these titles are not distinct."""
    differ = [name for name in _OPTIONS if len({run.config.get(name) for run in runs}) > 1]
    titles = [", ".join(_described(run, name) for name in differ) for run in runs]
    if len(runs) == 1:
        return [name_of(runs[0])]
    return titles if len(set(titles)) == len(titles) else [str(run.path) for run in runs]


def _described(run: Any, name: str) -> str:
    """An option of a run in words, for a title."""
    value = run.config.get(name)
    if name == "noshort":
        return "without shortcuts" if value else "with shortcuts"
    words = {"batch_size": "batch ", "weight_decay": "decay ", "lr": "rate ", "momentum": "momentum ", "seed": "seed "}
    return words.get(name, "") + (f"{value:g}" if isinstance(value, float) else str(value))


def _print(results: dict[str, xr.Dataset]) -> None:
    """Print a table with the shares of the variance and the losses of each path."""
    header = "run", "1st PC %", "2nd PC %", "in plane %", "off plane", "true loss", "in-plane loss", "checkpoints"
    rows: list[tuple[str, ...]] = [header]
    for title, result in results.items():
        ratios = result.explained_variance_ratio if "explained_variance_ratio" in result else result.axis_variance
        shares = [float(100 * share) for share in (*ratios.values[:2], result.attrs["variance_captured"])]
        start = [float(result[name][0]) for name in ("off_plane_distance", "true_loss", "in_plane_loss")]
        rows.append((title, *(f"{x:.4g}" for x in (*shares, *start)), str(result.sizes["step"])))
    if next(iter(results.values())).attrs.get("directions") != "PCA":
        rows[0] = ("run", "1st axis %", "2nd axis %", *header[3:])
    print_table(rows, left=1)
    print("off plane and the losses are those of the first checkpoint, shares those of the path's squared distances")
