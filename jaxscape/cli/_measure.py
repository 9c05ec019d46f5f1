"""Commands that measure: they write a result into the folder of the run, and draw it."""

import argparse
import shutil
from pathlib import Path
from typing import Any

import jax
import xarray as xr

import jaxscape as js
from jaxscape import plot
from jaxscape.cli._files import check_replaceable, draw, write
from jaxscape.interpolation import place_of


def surface(args: argparse.Namespace) -> None:
    """Measure and draw the loss over a plane."""
    run = js.load_run(args.run)
    if args.dry_run:
        show_budget(args, run, data_of(run, args.split), grid=_plane(args), compute_dtype=args.compute_dtype)
        return
    out = Path(args.out or run.path / "surface.zarr")
    check_replaceable(out)
    result = js.surface(
        run.params,
        run.loss_fn,
        data_of(run, args.split),
        directions=directions_of(args, run.params, 2),
        grid=_plane(args),
        store=partial(out),
        refine=args.refine,
        **evaluating(args),
    )
    if jax.process_index():
        return  # process 0 writes
    result.attrs |= {"title": f"{name_of(run)}, {args.split}", "split": args.split}
    write(result, out)
    shutil.rmtree(partial(out), ignore_errors=True)  # the complete result is written
    stem = out.with_suffix("")
    draw(plot.contour(result), stem.with_name(f"{stem.name}_contour.png"))
    draw(plot.surface3d(result), stem.with_name(f"{stem.name}_3d.png"))
    print(f"{_summary(result)}{_convexity(result)}")


def _convexity(plane: xr.Dataset) -> str:
    """How far from convex a plane is, where it has at least 3 points around the center along each axis."""
    for name in plane.loss.dims:
        coords = plane[name]
        if coords.size < 3 or not coords.min() <= 0 <= coords.max():
            return ""
    value = js.plane_measures(plane).value
    return (
        f"\nnegative curvature at {value.negative_curvature:.1%} of the plane, local minima: {value.local_minima:.0f}, "
        f"area with a loss of at most 0.1 above the center: {value.level_set_area:.3g}"
    )


def line(args: argparse.Namespace) -> None:
    """Measure and draw the train and the test loss along a line."""
    run = js.load_run(args.run)
    start, stop = args.range
    grid = js.Grid.line(start, stop, args.points)
    if args.dry_run:
        show_budget(args, run, data_of(run, "train"), grid=grid, compute_dtype=args.compute_dtype)
        return
    directions = directions_of(args, run.params, 1)
    results = {}
    for split in ("train", "test"):
        out = run.path / f"line_{split}.zarr"
        check_replaceable(out)
        data = data_of(run, split)
        store = partial(out)
        result = js.surface(
            run.params, run.loss_fn, data, directions=directions, grid=grid, store=store, **evaluating(args)
        )
        result.attrs |= {"title": f"{name_of(run)}, {split}", "split": split}
        if not jax.process_index():
            write(result, out)
            shutil.rmtree(partial(out), ignore_errors=True)  # the complete result is written
        results[split] = result.assign_attrs(title=name_of(run))
    if jax.process_index():
        return
    draw(plot.line(results), run.path / "line.png")
    for split, result in results.items():
        print(f"{split}: {_summary(result)}")


def interpolate(args: argparse.Namespace) -> None:
    """Measure and draw the train and the test loss on the line through two runs, and print the barrier between them."""
    runs = [js.load_run(path) for path in (args.run, args.other)]
    for name in ("dataset", "loss", "label_noise"):
        one, other = (run.config.get(name) for run in runs)
        if one != other:
            raise ValueError(f"{name} is {one!r} in {args.run} and {other!r} in {args.other}; expected the same.")
    paths = [str(run.path.resolve()) for run in runs]
    ends = [run.params if args.statistics == "frozen" else run.variables for run in runs]
    folder, grid = Path(args.out or runs[0].path), js.Grid.line(args.range[0], args.range[1], args.points)
    stem = f"interpolate_{runs[1].path.name}"
    outs = {split: folder / f"{stem}_{split}.zarr" for split in ("train", "test")}
    for out in outs.values():
        check_replaceable(out)
        if out.exists() and (before := js.load(out).attrs.get("runs", paths)) != paths:
            raise ValueError(f"{out} is the line from {before[0]} to {before[1]}; choose another --out.")
    folder.mkdir(parents=True, exist_ok=True)
    results = {}
    for split, out in outs.items():
        result = js.interpolate(
            ends[0],
            ends[1],
            runs[0].loss_fn,
            data_of(runs[0], split),
            grid=grid,
            statistics=args.statistics,
            statistics_data=runs[0].data,
            store=partial(out),
            **evaluating(args),
        )
        results[split] = result.assign_attrs(title=f"{name_of(runs[0])}: {runs[0].path.name} to {runs[1].path.name}")
        if not jax.process_index():
            write(results[split].assign_attrs(split=split, runs=paths), out)
            shutil.rmtree(partial(out), ignore_errors=True)  # the complete result is written
    if jax.process_index():
        return
    draw(plot.interpolation(results), folder / f"{stem}.png")
    for split, result in results.items():
        print(f"{split}: {_summary(result)}{_barrier(result)}")


def _barrier(line: xr.Dataset) -> str:
    """The barrier, where both ends are points of a line."""
    if any(place_of(line, end) is None for end in (0.0, 1.0)):
        return ""
    height = js.loss_barrier(line)
    return f", barrier {height.value:.4g} (standard error at most {height.stderr:.2g}) at alpha = {height.alpha:.3g}"


def hessian(args: argparse.Namespace) -> None:
    """Measure and draw the extreme eigenvalues of the Hessian over a plane and, if asked, its spectrum."""
    run = js.load_run(args.run)
    if args.dry_run:
        points = _plane(args).points().shape[0]
        data, subset = data_of(run, args.split), slice(args.subset)
        data = jax.tree.map(lambda x: x[subset], data)
        show_budget(args, run, data, call="eigenvalues", max_matvecs=points * args.max_matvecs)
        return
    out = Path(args.out or run.path / "hessian.zarr")
    check_replaceable(out)
    ignore: Any = "bias_norm" if args.weights_only else None
    store = partial(out)
    result = js.eigenvalue_map(
        run.params,
        run.loss_fn,
        data_of(run, args.split),
        directions=directions_of(args, run.params, 2),
        grid=_plane(args),
        tol=args.tol,
        max_matvecs=args.max_matvecs,
        subset=args.subset,
        pilot=args.pilot,
        ignore=ignore,
        batch_size=args.batch_size,
        store=store,
        seed=args.seed,
    )
    if args.spectrum:
        density = js.spectral_density(
            run.params, run.loss_fn, data_of(run, args.split), ignore=ignore, batch_size=args.batch_size, key=args.seed
        )
    if jax.process_index():
        return
    attrs_of_run = {"title": f"{name_of(run)}, {args.split}", "split": args.split}
    write(result.assign_attrs(attrs_of_run), out)
    shutil.rmtree(store)  # the complete result is written
    draw(plot.eigenvalue_map(result.assign_attrs(attrs_of_run)), out.with_suffix(".png"))
    if args.spectrum:
        write(density.assign_attrs(attrs_of_run), run.path / "spectrum.zarr")
        draw(plot.spectrum(density.assign_attrs(attrs_of_run)), run.path / "spectrum.png")
    points, attrs = result.ratio.size, result.attrs
    print(
        f"{points} points in {attrs['seconds']:.1f} s, {int(result.num_matvecs.sum())} products, eigenvalues from "
        f"{float(result.min_eigenvalue.min()):.4g} to {float(result.max_eigenvalue.max()):.4g}, ratio in the median "
        f"{float(result.ratio.median()):.4g}, {attrs['unconverged_points']} points not converged, "
        f"{attrs['nonfinite_points']} not finite"
    )


def show_budget(args: argparse.Namespace, run: Any, data: Any, **options: Any) -> None:
    """Print what a command will take, from one timed point or product; nothing is written.

    Raises:
        ValueError: It does not fit.
    """
    budget = js.estimate(run.params, run.loss_fn, data, batch_size=args.batch_size, timed=True, **options)
    print(budget._replace(cure=""))
    if budget.cure:
        raise ValueError(budget.cure)


def directions_of(args: argparse.Namespace, params: Any, num: int) -> js.Directions:
    """The random directions that the options describe."""
    norm: Any = None if args.norm == "none" else args.norm
    ignore: Any = None if args.ignore == "none" else args.ignore or "bias_norm"
    return js.random_directions(args.seed, params, num=num, norm=norm, ignore=ignore)


def _plane(args: argparse.Namespace) -> js.Grid:
    """The grid of the plane; one number in ``--points`` is the number of points along both axes."""
    num_alpha, num_beta = args.points if len(args.points) == 2 else args.points * 2
    return js.Grid.plane((*args.range, num_alpha), (*args.range, num_beta))


def partial(out: Path) -> Path:
    """The folder that stores points until the result is complete."""
    return out.with_suffix(".partial")


def evaluating(args: argparse.Namespace) -> dict[str, Any]:
    """The options of `surface` that say how the loss is evaluated."""
    return {
        "rtol": args.rtol,
        "atol": args.atol,
        "batch_size": args.batch_size,
        "compute_dtype": args.compute_dtype,
    }


def data_of(run: Any, split: str) -> Any:
    """The train or the test split of a run."""
    return run.data if split == "train" else run.test_data


def name_of(run: Any) -> str:
    """The name of the network of a run."""
    return run.config["arch"] + (" without shortcuts" if run.config["noshort"] else "")


def _summary(result: xr.Dataset) -> str:
    """One line with the number of points, the time and the loss at the center."""
    points, seconds = result.loss.size, result.attrs["seconds"]
    shown = f"{result.attrs['evaluated_points']} of {points}" if "refine" in result.attrs else points
    return (
        f"{shown} points in {seconds:.1f} s ({points / max(seconds, 1e-3):.3g} points/s), "
        f"center loss {result.attrs['center_loss']:.4g}, {result.attrs['nonfinite_points']} points not finite"
    )
