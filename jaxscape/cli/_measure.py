"""Commands that measure: they write a result into the folder of the run, and draw it."""

import shutil
from pathlib import Path
from typing import Annotated, Any

import jax
import typer
import xarray as xr

import jaxscape as js
from jaxscape import plot
from jaxscape.cli import _options as options
from jaxscape.cli._app import command
from jaxscape.cli._files import check_replaceable, draw, write
from jaxscape.cli._targets import data_of, load_target, name_of, splits_of


@command("jaxscape surface runs/mine --points 51", distributed=True)
def surface(
    run: options.Target,
    points: options.Points = "51",
    range: options.Range = (-1.0, 1.0),
    refine: options.Refine = None,
    split: options.OfSplit = "train",
    seed: options.Seed = 0,
    norm: options.Norms = "filter",
    ignore: options.Ignore = "bias_norm",
    rtol: options.Rtol = None,
    atol: options.Atol = 0.0,
    compute_dtype: options.ComputeDtype = None,
    batch_size: options.BatchSize = "auto",
    dry_run: options.DryRun = False,
    out: options.Out = None,
) -> dict[str, Any]:
    """The loss over a plane of two random directions."""
    target = load_target(run)
    data, grid = data_of(target, split), plane_of(points, range)
    if dry_run:
        return show_budget(target, data, batch_size, grid=grid, compute_dtype=compute_dtype)
    file = Path(out or target.path / "surface.zarr")
    check_replaceable(file)
    result = js.surface(
        target.params,
        target.loss_fn,
        data,
        directions=directions_of(target.params, 2, seed, norm, ignore),
        grid=grid,
        store=partial(file),
        refine=refine,
        **evaluating(rtol, atol, compute_dtype, batch_size),
    )
    if jax.process_index():
        return {}  # process 0 writes
    result.attrs |= {"title": f"{name_of(target)}, {split}", "split": split}
    write(result, file)
    shutil.rmtree(partial(file), ignore_errors=True)  # the complete result is written
    stem = stem_of(file)
    pictures = [
        draw(plot.contour(result), stem.with_name(f"{stem.name}_contour.png")),
        draw(plot.surface3d(result), stem.with_name(f"{stem.name}_3d.png")),
    ]
    measures = _convexity(result)
    print(summary_of(result))
    if measures:
        print(
            f"negative curvature at {measures['negative_curvature']:.1%} of the plane, local minima: "
            f"{measures['local_minima']:.0f}, area with a loss of at most 0.1 above the center: "
            f"{measures['level_set_area']:.3g}"
        )
    return {"result": file, "pictures": pictures, **numbers_of(result), **measures}


def _convexity(plane: xr.Dataset) -> dict[str, float]:
    """How far from convex a plane is, where it has at least 3 points around the center along each axis."""
    for name in plane.loss.dims:
        coords = plane[name]
        if coords.size < 3 or not coords.min() <= 0 <= coords.max():
            return {}
    value = js.plane_measures(plane).value
    return {name: float(value[name]) for name in ("negative_curvature", "local_minima", "level_set_area")}


@command("jaxscape line runs/mine --points 101", distributed=True)
def line(
    run: options.Target,
    points: options.Count = 101,
    range: options.Range = (-1.0, 1.0),
    seed: options.Seed = 0,
    norm: options.Norms = "filter",
    ignore: options.Ignore = "bias_norm",
    rtol: options.Rtol = None,
    atol: options.Atol = 0.0,
    compute_dtype: options.ComputeDtype = None,
    batch_size: options.BatchSize = "auto",
    dry_run: options.DryRun = False,
) -> dict[str, Any]:
    """Train and test loss along one random direction."""
    target = load_target(run)
    grid = js.Grid.line(*range, points)
    if dry_run:
        return show_budget(target, data_of(target, "train"), batch_size, grid=grid, compute_dtype=compute_dtype)
    directions = directions_of(target.params, 1, seed, norm, ignore)
    results, files = {}, {split: target.path / f"line_{split}.zarr" for split in splits_of(target)}
    for file in files.values():
        check_replaceable(file)
    for split, file in files.items():
        result = js.surface(
            target.params,
            target.loss_fn,
            data_of(target, split),
            directions=directions,
            grid=grid,
            store=partial(file),
            **evaluating(rtol, atol, compute_dtype, batch_size),
        )
        result.attrs |= {"title": f"{name_of(target)}, {split}", "split": split}
        if not jax.process_index():
            write(result, file)
            shutil.rmtree(partial(file), ignore_errors=True)  # the complete result is written
        results[split] = result.assign_attrs(title=name_of(target))
    if jax.process_index():
        return {}
    picture = draw(plot.line(results), target.path / "line.png")
    for split, result in results.items():
        print(f"{split}: {summary_of(result)}")
    return {"pictures": [picture], **{s: {"result": files[s], **numbers_of(r)} for s, r in results.items()}}


@command("jaxscape hessian runs/mine --subset 512 --spectrum", distributed=True)
def hessian(
    run: options.Target,
    points: options.Points = "11",
    range: options.Range = (-1.0, 1.0),
    split: options.OfSplit = "train",
    pilot: Annotated[int | None, typer.Option(metavar="N", help="Look for the ends on so many examples first.")] = None,
    subset: Annotated[
        int | None, typer.Option(metavar="N", help="So many examples, drawn with --seed. [default: all]")
    ] = None,
    tol: Annotated[float, typer.Option(metavar="X", help="Relative residual.")] = 1e-2,
    max_matvecs: Annotated[int, typer.Option(metavar="N", help="Products at each point, at most.")] = 100,
    weights_only: Annotated[
        bool, typer.Option("--weights-only", help="No curvature in biases and norms, as in the paper.")
    ] = False,
    spectrum: Annotated[
        bool, typer.Option("--spectrum", help="The density of all eigenvalues at the center, too.")
    ] = False,
    seed: options.Seed = 0,
    norm: options.Norms = "filter",
    ignore: options.Ignore = "bias_norm",
    batch_size: options.BatchSize = "auto",
    dry_run: options.DryRun = False,
    out: options.Out = None,
) -> dict[str, Any]:
    """The smallest and the largest eigenvalue of the Hessian over a plane."""
    target = load_target(run)
    data, grid = data_of(target, split), plane_of(points, range)
    if dry_run:
        part = data
        if subset is not None and not isinstance(data, js.Stream):
            part = jax.tree.map(lambda x: x[:subset], data)
        matvecs = grid.points().shape[0] * max_matvecs
        return show_budget(target, part, batch_size, call="eigenvalues", max_matvecs=matvecs)
    file = Path(out or target.path / "hessian.zarr")
    of_spectrum = target.path / "spectrum.zarr" if out is None else Path(f"{stem_of(file)}_spectrum.zarr")
    for each in (file, of_spectrum) if spectrum else (file,):
        check_replaceable(each)
    leaves: Any = "bias_norm" if weights_only else None
    result = js.eigenvalue_map(
        target.params,
        target.loss_fn,
        data,
        directions=directions_of(target.params, 2, seed, norm, ignore),
        grid=grid,
        tol=tol,
        max_matvecs=max_matvecs,
        subset=subset,
        pilot=pilot,
        ignore=leaves,
        batch_size=batch_size,
        store=partial(file),
        seed=seed,
    )
    if spectrum:
        density = js.spectral_density(
            target.params, target.loss_fn, data, ignore=leaves, batch_size=batch_size, key=seed
        )
    if jax.process_index():
        return {}
    about = {"title": f"{name_of(target)}, {split}", "split": split}
    write(result.assign_attrs(about), file)
    shutil.rmtree(partial(file))  # the complete result is written
    pictures = [draw(plot.eigenvalue_map(result.assign_attrs(about)), Path(f"{stem_of(file)}.png"))]
    if spectrum:
        write(density.assign_attrs(about), of_spectrum)
        pictures.append(draw(plot.spectrum(density.assign_attrs(about)), Path(f"{stem_of(of_spectrum)}.png")))
    numbers = {
        "points": result.ratio.size,
        "seconds": result.attrs["seconds"],
        "products": int(result.num_matvecs.sum()),
        "min_eigenvalue": float(result.min_eigenvalue.min()),
        "max_eigenvalue": float(result.max_eigenvalue.max()),
        "median_ratio": float(result.ratio.median()),
        "unconverged_points": result.attrs["unconverged_points"],
        "nonfinite_points": result.attrs["nonfinite_points"],
    }
    print(
        f"{numbers['points']} points in {numbers['seconds']:.1f} s, {numbers['products']} products, eigenvalues from "
        f"{numbers['min_eigenvalue']:.4g} to {numbers['max_eigenvalue']:.4g}, ratio in the median "
        f"{numbers['median_ratio']:.4g}, {numbers['unconverged_points']} points not converged, "
        f"{numbers['nonfinite_points']} not finite"
    )
    return {"result": file, "pictures": pictures, **({"spectrum": of_spectrum} if spectrum else {}), **numbers}


def show_budget(target: Any, data: Any, batch_size: Any, **call: Any) -> dict[str, Any]:
    """Print what a command will take, from one timed point or product; nothing is written.

    Args:
        target: The run or problem.
        data: The data.
        batch_size: Examples at a time, or ``"auto"``.
        **call: What else `jaxscape.estimate` takes.

    Returns:
        The numbers.

    Raises:
        ValueError: It does not fit.
    """
    budget = js.estimate(target.params, target.loss_fn, data, batch_size=batch_size, timed=True, **call)
    print(budget._replace(cure=""))
    if budget.cure:
        raise ValueError(budget.cure)
    return budget._asdict()


def directions_of(params: Any, num: int, seed: int, norm: str, ignore: str | None) -> js.Directions:
    """The random directions that the options describe."""
    rule: Any = None if norm == "none" else norm
    leaves: Any = None if ignore == "none" else ignore or "bias_norm"
    return js.random_directions(seed, params, num=num, norm=rule, ignore=leaves)


def plane_of(points: list[int], range: tuple[float, float]) -> js.Grid:
    """The grid of the plane; one number of points is that along both axes."""
    num_alpha, num_beta = points if len(points) == 2 else points * 2
    return js.Grid.plane((*range, num_alpha), (*range, num_beta))


def partial(file: Path) -> Path:
    """The folder that stores points until the result is complete."""
    return stem_of(file).with_name(f"{stem_of(file).name}.partial")


def stem_of(file: Path) -> Path:
    """The path of a result without .zarr: other dots belong to its name."""
    return file.with_name(file.name.removesuffix(".zarr"))


def evaluating(rtol: float | None, atol: float, compute_dtype: str | None, batch_size: Any) -> dict[str, Any]:
    """The options of `surface` that say how the loss is evaluated."""
    return {"rtol": rtol, "atol": atol, "batch_size": batch_size, "compute_dtype": compute_dtype}


def numbers_of(result: xr.Dataset) -> dict[str, Any]:
    """The number of points, the time and the loss at the center."""
    numbers = {"points": result.loss.size, "seconds": result.attrs["seconds"]}
    if "refine" in result.attrs:
        numbers["evaluated_points"] = result.attrs["evaluated_points"]
    return {**numbers, **{name: result.attrs[name] for name in ("center_loss", "nonfinite_points")}}


def summary_of(result: xr.Dataset) -> str:
    """One line with these numbers."""
    points, seconds = result.loss.size, result.attrs["seconds"]
    shown = f"{result.attrs['evaluated_points']} of {points}" if "refine" in result.attrs else points
    return (
        f"{shown} points in {seconds:.1f} s ({points / max(seconds, 1e-3):.3g} points/s), "
        f"center loss {result.attrs['center_loss']:.4g}, {result.attrs['nonfinite_points']} points not finite"
    )
