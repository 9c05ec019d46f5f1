"""The command ``interpolate``: two minimizers, the line through them and the barrier between them."""

import shutil
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import typer
import xarray as xr

import jaxscape as js
from jaxscape import plot
from jaxscape.cli import _options as options
from jaxscape.cli._app import command
from jaxscape.cli._files import check_replaceable, draw, write
from jaxscape.cli._measure import evaluating, numbers_of, partial, summary_of
from jaxscape.cli._targets import config_of, data_of, load_target, name_of, splits_of
from jaxscape.interpolation import place_of


@command("jaxscape interpolate runs/a runs/b", distributed=True)
def interpolate(
    run: Annotated[str, typer.Argument(metavar="RUN_A", help="alpha = 0: a run, or package.module:function.")],
    other: Annotated[str, typer.Argument(metavar="RUN_B", help="alpha = 1: the same network on the same data.")],
    points: options.Count = 101,
    range: options.Range = (-0.5, 1.5),
    statistics: Annotated[
        Literal["interpolate", "frozen", "reestimate"], typer.Option(help="Of batch norm.")
    ] = "interpolate",
    rtol: options.Rtol = None,
    atol: options.Atol = 0.0,
    compute_dtype: options.ComputeDtype = None,
    batch_size: options.BatchSize = "auto",
    out: Annotated[str | None, typer.Option(metavar="FOLDER", help="For results. [default: RUN_A]")] = None,
) -> dict[str, Any]:
    """Train and test loss on the line through two runs, and the barrier between them."""
    runs = [load_target(run), load_target(other)]
    for name in ("dataset", "loss", "label_noise"):
        one, another = (config_of(each).get(name) for each in runs)
        if one != another:
            raise ValueError(f"{name} is {one!r} in {run} and {another!r} in {other}; expected the same.")
    paths = [str(each.path.resolve()) for each in runs]
    ends = [each.params if statistics == "frozen" else getattr(each, "variables", each.params) for each in runs]
    folder, grid = Path(out or runs[0].path), js.Grid.line(*range, points)
    stem = f"interpolate_{runs[1].path.name}"
    files = {split: folder / f"{stem}_{split}.zarr" for split in splits_of(runs[0])}
    for file in files.values():
        check_replaceable(file)
        if file.exists() and (before := js.load(file).attrs.get("runs", paths)) != paths:
            raise ValueError(f"{file} is the line from {before[0]} to {before[1]}; choose another --out.")
    folder.mkdir(parents=True, exist_ok=True)
    results, numbers = {}, {}
    of_statistics: dict[str, Any] = {"statistics": statistics}
    if statistics == "reestimate":
        of_statistics["statistics_data"] = runs[0].data
    for split, file in files.items():
        result = js.interpolate(
            ends[0],
            ends[1],
            runs[0].loss_fn,
            data_of(runs[0], split),
            grid=grid,
            store=partial(file),
            **of_statistics,
            **evaluating(rtol, atol, compute_dtype, batch_size),
        )
        results[split] = result.assign_attrs(title=f"{name_of(runs[0])}: {runs[0].path.name} to {runs[1].path.name}")
        if not jax.process_index():
            write(results[split].assign_attrs(split=split, runs=paths), file)
            shutil.rmtree(partial(file), ignore_errors=True)  # the complete result is written
    if jax.process_index():
        return {}
    picture = draw(plot.interpolation(results), folder / f"{stem}.png")
    for split, result in results.items():
        barrier = _barrier(result)
        print(f"{split}: {summary_of(result)}{_in_words(barrier)}")
        numbers[split] = {"result": files[split], **numbers_of(result), **barrier}
    return {"pictures": [picture], **numbers}


def _barrier(line: xr.Dataset) -> dict[str, float]:
    """The barrier, where both ends are points of a line."""
    if any(place_of(line, end) is None for end in (0.0, 1.0)):
        return {}
    height = js.loss_barrier(line)
    return {
        "barrier": float(height.value),
        "barrier_stderr": float(height.stderr),
        "barrier_alpha": float(height.alpha),
    }


def _in_words(barrier: dict[str, float]) -> str:
    if not barrier:
        return ""
    return (
        f", barrier {barrier['barrier']:.4g} (standard error at most {barrier['barrier_stderr']:.2g}) "
        f"at alpha = {barrier['barrier_alpha']:.3g}"
    )
