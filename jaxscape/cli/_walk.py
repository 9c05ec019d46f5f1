"""The command ``trajectory``: one run in its principal plane, or several runs side by side or in one plane."""

import dataclasses
import itertools
import shutil
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import matplotlib.pyplot as plt
import typer
import xarray as xr

import jaxscape as js
from jaxscape import plot
from jaxscape.cli import _options as options
from jaxscape.cli._app import command
from jaxscape.cli._files import check_replaceable, draw, print_table, write
from jaxscape.cli._measure import directions_of, evaluating, partial
from jaxscape.cli._targets import Problem, config_of, data_of, load_target, name_of

_OPTIONS = ("arch", "noshort", "optimizer", "batch_size", "weight_decay", "lr", "momentum", "loss", "dataset", "seed")


@command("jaxscape trajectory runs/mine", distributed=True)
def trajectory(
    runs: options.Targets,
    together: Annotated[
        bool, typer.Option("--together", help="All paths in one plane, on the loss of the first run.")
    ] = False,
    steps: Annotated[
        bool, typer.Option("--steps", help="The weights that --save-steps kept, not those of epochs.")
    ] = False,
    batch_stats: Annotated[
        bool, typer.Option("--batch-stats", help="Running statistics are coordinates as well.")
    ] = False,
    directions: Annotated[
        Literal["pca", "random", "solution"],
        typer.Option(help="Of the plane: principal, two random ones, or from the end to the start and a random one."),
    ] = "pca",
    center: Annotated[Literal["last", "mean"], typer.Option(help="Of the principal directions.")] = "last",
    points: options.Points = "25",
    margin: Annotated[float, typer.Option(metavar="X", help="Around the path, of its extent.")] = 0.15,
    split: options.OfSplit = "train",
    animate: Annotated[
        str | None, typer.Option(metavar="FILE.gif|.mp4", help="The growing path, of one run or --together.")
    ] = None,
    seed: options.Seed = 0,
    norm: options.Norms = "filter",
    ignore: Annotated[
        options.Leaves | None,
        typer.Option(help="Leaves left alone. [default: bias_norm for random directions, none for principal ones]"),
    ] = None,
    rtol: options.Rtol = None,
    atol: options.Atol = 0.0,
    compute_dtype: options.ComputeDtype = None,
    batch_size: options.BatchSize = "auto",
    out: Annotated[str | None, typer.Option(metavar="FILE.png|.pdf|.svg", help="The picture of several runs.")] = None,
) -> dict[str, Any]:
    """The path of training in its principal plane, on the loss around it."""
    targets = [_walked(run, steps) for run in runs]
    suffix = "" if directions == "pca" else f"_{directions}"
    files = [target.path / f"trajectory{suffix}.zarr" for target in targets]
    for file in files:
        check_replaceable(file)
    if animate and len(runs) > 1 and not together:
        raise ValueError("--animate is one picture, but each run has a plane of its own; add --together.")
    if out is not None:
        plot.check_format(Path(out))
    if animate is not None:
        plot.check_format(Path(animate), animation=True)
    leaves = None if ignore == "none" else ignore
    how = _Plane(directions, leaves, batch_stats, seed, norm, ignore)
    titles = _titles(targets)
    shared = _plane(how, targets) if together else {}
    results = {}
    for target, title, file in zip(targets, titles, files, strict=True):
        result = js.trajectory(
            target.checkpoints if isinstance(target, Problem) else target,
            **({"loss_fn": target.loss_fn, "origin": target.params} if isinstance(target, Problem) else {}),
            data=data_of(target, split),
            center=center,
            ignore=leaves,
            batch_stats=batch_stats,
            points=tuple(points * 2)[:2],
            margin=margin,
            store=partial(file),
            **(shared or _plane(how, [target])),
            **evaluating(rtol, atol, compute_dtype, batch_size),
        )
        results[title] = result.assign_attrs(title=title, split=split)
        if not jax.process_index():
            write(results[title], file)
            shutil.rmtree(partial(file), ignore_errors=True)  # the complete result is written
    if jax.process_index():
        return {}
    pictures = []
    for result, file in zip(results.values(), files, strict=True) if not together else ():
        pictures.append(draw(plot.trajectory(result), file.with_suffix(".png")))
        pictures.append(draw(plot.trajectory3d(result), file.with_name(f"{file.stem}_3d.png")))
    if animate is not None:
        animation = plot.trajectory_animation(results if together else results[titles[0]])
        pictures.append(plot.save(animation, animate))
        print(pictures[-1])
        plt.close("all")
    if len(runs) > 1:
        picture = plot.trajectory(results) if together else plot.trajectories(results)
        pictures.append(draw(picture, Path(out or f"trajectories{suffix}.png")))
    _print(results)
    return {"results": files, "pictures": pictures, "paths": {title: _numbers(r) for title, r in results.items()}}


def _walked(run: str, steps: bool) -> Any:
    """A run, or a problem; with ``--steps`` its checkpoints are those between the epochs."""
    target = load_target(run)
    if isinstance(target, Problem):
        if target.checkpoints is None:
            raise ValueError(f"{run} has no checkpoints; return a dict with the key checkpoints, e.g. a js.Recorder.")
        return target
    if not steps:
        return target
    if not len(target.steps):
        raise ValueError(f"{run} has no steps; train it with --save-steps N, or leave --steps out.")
    return dataclasses.replace(target, checkpoints=target.steps)


@dataclasses.dataclass(frozen=True)
class _Plane:
    """What the options say of the plane.

    Attributes:
        directions: Principal, random, or from the end to the start and a random one.
        leaves: Leaves that principal directions leave out.
        batch_stats: Whether running statistics are coordinates.
        seed: Of random directions.
        norm: Of random directions.
        ignore: Leaves that random directions leave alone.
    """

    directions: str
    leaves: Any
    batch_stats: bool
    seed: int
    norm: str
    ignore: str | None


def _plane(how: _Plane, targets: list[Any]) -> dict[str, Any]:
    """The directions and, for several runs, the origin; empty for one run in its principal plane."""
    if how.directions == "pca" and len(targets) == 1:
        return {}
    paths = [target.checkpoints.with_batch_stats() if how.batch_stats else target.checkpoints for target in targets]
    origin = paths[0][-1]
    together = {"origin": origin} if len(targets) > 1 else {}
    if how.directions == "pca":
        directions = js.pca_directions(itertools.chain(*paths), center="mean", ignore=how.leaves)[0]
    elif how.directions == "random":
        directions = directions_of(origin, 2, how.seed, how.norm, how.ignore)
    else:
        random = directions_of(origin, 1, how.seed, how.norm, how.ignore)
        both = [js.direction_between(origin, paths[0][0]), random]
        recipe = (("directions", "solution"), ("axis_labels", "end to start | random direction"))
        directions = js.Directions(js.Directions.stack(both).basis, recipe=recipe)
    return {"directions": directions, **together}


def _titles(runs: list[Any]) -> list[str]:
    """Titles of the options in which the runs differ; the folders, if these titles are not distinct."""
    differ = [name for name in _OPTIONS if len({config_of(run).get(name) for run in runs}) > 1]
    titles = [", ".join(_described(run, name) for name in differ) for run in runs]
    if len(runs) == 1:
        return [name_of(runs[0])]
    return titles if len(set(titles)) == len(titles) else [str(run.path) for run in runs]


def _described(run: Any, name: str) -> str:
    """An option of a run in words, for a title."""
    value = config_of(run).get(name)
    if name == "noshort":
        return "without shortcuts" if value else "with shortcuts"
    words = {"batch_size": "batch ", "weight_decay": "decay ", "lr": "rate ", "momentum": "momentum ", "seed": "seed "}
    return words.get(name, "") + (f"{value:g}" if isinstance(value, float) else str(value))


def _numbers(result: xr.Dataset) -> dict[str, float]:
    """The shares of the variance, and what the plane does not show of the first checkpoint."""
    ratios = result.explained_variance_ratio if "explained_variance_ratio" in result else result.axis_variance
    first = {name: float(result[name][0]) for name in ("off_plane_distance", "true_loss", "in_plane_loss")}
    return {
        "first_share": float(ratios[0]),
        "second_share": float(ratios[1]),
        "variance_captured": float(result.attrs["variance_captured"]),
        **first,
        "checkpoints": result.sizes["step"],
    }


def _print(results: dict[str, xr.Dataset]) -> None:
    """Print a table with these numbers of each path."""
    header = "run", "1st PC %", "2nd PC %", "in plane %", "off plane", "true loss", "in-plane loss", "checkpoints"
    rows: list[tuple[str, ...]] = [header]
    for title, result in results.items():
        *numbers, checkpoints = _numbers(result).values()
        cells = [100 * share for share in numbers[:3]] + numbers[3:]
        rows.append((title, *(f"{x:.4g}" for x in cells), str(checkpoints)))
    if next(iter(results.values())).attrs.get("directions") != "PCA":
        rows[0] = ("run", "1st axis %", "2nd axis %", *header[3:])
    print_table(rows, left=1)
    print("off plane and the losses are those of the first checkpoint, shares those of the path's squared distances")
