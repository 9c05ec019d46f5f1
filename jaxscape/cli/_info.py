"""The command ``info``: what a run, a result or a folder of checkpoints is, and what is missing of it."""

from pathlib import Path
from typing import Annotated, Any

import jax
import typer
import xarray as xr

import jaxscape as js
from jaxscape import trees
from jaxscape.cli._app import command
from jaxscape.cli._files import print_table, read_result
from jaxscape.runs import CONFIG

_ATTRS = (
    *("title", "split", "directions", "norm", "ignore", "seed", "rtol", "atol", "refine", "compute_dtype", "tol"),
    *("center_loss", "nonfinite_points", "unconverged_points", "variance_captured", "seconds", "fingerprint"),
    *("jaxscape_version", "jax_version", "created"),
)
_EXPECTED = {  # what the commands write into the folder of a run
    "surface.zarr": "jaxscape surface",
    "line_train.zarr": "jaxscape line",
    "hessian.zarr": "jaxscape hessian",
    "trajectory.zarr": "jaxscape trajectory",
    "sharpness.csv": "jaxscape sharpness",
}


@command("jaxscape info runs/mine")
def info(
    paths: Annotated[list[str], typer.Argument(metavar="PATH...", help="Runs, results, or folders of checkpoints.")],
) -> dict[str, Any]:
    """What a run, a result or a folder of checkpoints is, and what is missing of it."""
    found = {path: _described(Path(path)) for path in paths}
    for path, facts in found.items():
        print(f"{path}:")
        print_table([(f"  {name}", _text(value)) for name, value in facts.items()], left=2)
    return found


def _described(path: Path) -> dict[str, Any]:
    if (path / CONFIG).is_file():
        return _of_run(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} not found; expected a run, a result, or a folder of orbax checkpoints.")
    if (path / "zarr.json").is_file() or path.suffix == ".partial":
        return _of_result(js.load(path))
    if path.suffix in (".h5", ".hdf5"):
        return _of_result(read_result(str(path)))
    results = sorted(p.name for p in path.glob("*") if p.suffix in (".zarr", ".partial", ".csv", ".png", ".pdf"))
    if results:
        return {"kind": "folder of results", "results": ", ".join(results)}
    try:
        return _of_checkpoints(path)
    except (ValueError, FileNotFoundError) as error:
        raise ValueError(f"{path} is no run (it has no {CONFIG}), no result, and no checkpoints: {error}") from None


def _of_run(path: Path) -> dict[str, Any]:
    run = js.load_run(path)
    last = run.metrics[-1] if run.metrics else {}
    results = sorted(p.name for p in path.iterdir() if p.suffix in (".zarr", ".partial", ".csv", ".png", ".pdf"))
    options = {name: value for name, value in run.config.items() if value not in (None, "", False)}
    missing = [f"{name} ({command})" for name, command in _EXPECTED.items() if not (path / name).exists()]
    return {
        "kind": "run of train.py",
        "parameters": trees.size(run.params),
        "epochs": last.get("epoch", 0),
        "planned epochs": run.config.get("epochs", "unknown"),
        **{name: last[name] for name in ("train_loss", "train_error", "test_loss", "test_error") if name in last},
        "checkpoints": len(run.checkpoints),
        "steps between epochs": len(run.steps),
        "options": ", ".join(f"{name}={value}" for name, value in options.items()),
        "results": ", ".join(results) or "none",
        "missing": ", ".join(missing) or "nothing",
    }


def _of_result(result: xr.Dataset) -> dict[str, Any]:
    total = int(result[next(iter(result.data_vars))].size)
    facts: dict[str, Any] = {
        "kind": _kind(result),
        "size": " x ".join(f"{name} {size}" for name, size in result.sizes.items()),
        "variables": ", ".join(map(str, result.data_vars)),
        "missing points": int(result.attrs.get("missing_points", 0)),
    }
    for name in result.sizes:
        if name in result.coords and result[name].dtype.kind == "f":
            facts[str(name)] = f"{float(result[name].min()):.6g} to {float(result[name].max()):.6g}"
    if "loss" in result and total:
        facts["loss"] = f"{float(result.loss.min()):.6g} to {float(result.loss.max()):.6g}"
    return facts | {name: result.attrs[name] for name in _ATTRS if name in result.attrs}


def _kind(result: xr.Dataset) -> str:
    if "coordinates" in result:
        return "trajectory"
    if "density" in result:
        return "spectral density"
    if "min_eigenvalue" in result:
        return "eigenvalue map"
    return {1: "line", 2: "surface"}.get(result.loss.ndim, "volume") if "loss" in result else "result"


def _of_checkpoints(path: Path) -> dict[str, Any]:
    checkpoints = js.checkpoints(path)
    first = checkpoints[0]
    dtypes = sorted({str(leaf.dtype) for leaf in jax.tree.leaves(first)})
    return {
        "kind": "orbax checkpoints",
        "checkpoints": len(checkpoints),
        "steps": f"{checkpoints.steps[0]} to {checkpoints.steps[-1]}",
        "parameters": trees.size(first),
        "leaves": len(trees.leaf_names(first)),
        "dtypes": ", ".join(dtypes),
    }


def _text(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
