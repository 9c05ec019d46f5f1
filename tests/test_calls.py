"""Malformed calls: every argument of every public call refuses what it cannot be, and names itself."""

import functools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import pytest
import xarray as xr

import jaxscape as js
from tests.problems import slow_unless

PARAMS = {"w": jnp.ones((3, 2)), "b": jnp.zeros(2)}
DATA = np.random.default_rng(0).normal(size=(6, 3))


def loss(p, x):
    return ((x @ p["w"] + p["b"]) ** 2).sum(-1)


class Odd:
    """Something that nobody expects."""


DIRECTIONS = js.random_directions(0, PARAMS)
GRID, LINE = js.Grid.plane((-1, 1, 2), (-1, 1, 2)), js.Grid.line(0, 1, 3)
PATH = [jax.tree.map(lambda x, s=s: x * s + s * s, PARAMS) for s in (1.0, 2.0, 3.0, 5.0)]
PROBLEM = {"params": PARAMS, "loss_fn": loss, "data": DATA}
COMMON = {"batch_size": 2, "mesh": None, "progress": False}
RECORDS = [{"epoch": 1, "train_loss": 1.0, "test_loss": 2.0, "train_error": 1.0, "test_error": 2.0}]


@functools.cache
def result(name):
    """A result to draw."""
    if name == "line":
        return js.surface(**PROBLEM, directions=DIRECTIONS[:1], grid=LINE, progress=False)
    if name == "trajectory":
        return js.trajectory(PATH, loss, DATA, points=(3, 3), progress=False)
    if name == "spectrum":
        return js.spectral_density(**PROBLEM, progress=False)
    call = js.eigenvalue_map if name == "map" else js.surface
    return call(**PROBLEM, directions=DIRECTIONS, grid=GRID, progress=False)


DRAWN = {"ax": None, "metric": "loss", "levels": None, "log": None, "loss_max": None}
CALLS = {
    "surface": lambda: (
        js.surface,
        PROBLEM
        | COMMON
        | {"directions": DIRECTIONS, "grid": GRID, "rtol": None, "atol": 0.0, "points_per_step": 1, "seed": 0}
        | {"compute_dtype": None, "check": True, "store": None},
    ),
    "interpolate": lambda: (
        js.interpolate,
        {"params_a": PARAMS, "params_b": PATH[1], "loss_fn": loss, "data": DATA, "grid": LINE, **COMMON}
        | {"statistics": "interpolate", "statistics_data": None, "curve": None, "seed": 0},
    ),
    "connect": lambda: (
        js.connect,
        {"params_a": PARAMS, "params_b": PATH[1], "loss_fn": loss, "data": DATA, "optimizer": optax.sgd(0.1)}
        | {
            "kind": "bezier",
            "num_steps": 1,
            "batch_size": 2,
            "statistics": "interpolate",
            "seed": 0,
            "progress": False,
        },
    ),
    "align": lambda: (
        js.align,
        {"a": PARAMS, "b": PATH[1], "spec": {"['b']": ("h",), "['w']": (None, "h")}, "seed": 0},
    ),
    "permutation_spec": lambda: (js.permutation_spec, {"function": lambda p: p["w"], "params": PARAMS}),
    "hvp": lambda: (js.hvp, PROBLEM | {"batch_size": 2, "mesh": None, "ignore": None, "linearize": None}),
    "ggn_product": lambda: (
        js.ggn_product,
        {"model_fn": lambda p, x: x @ p["w"], "loss_fn": lambda o, x: (o**2).sum(-1), "params": PARAMS, "data": DATA},
    ),
    "lanczos": lambda: (
        js.lanczos,
        {"matvec": lambda v: v, "like": PARAMS, "key": 0, "max_matvecs": 10, "tol": 1e-3},
    ),
    "extreme_eigenvalues": lambda: (
        js.extreme_eigenvalues,
        PROBLEM | COMMON | {"key": 0, "tol": 1e-2, "max_matvecs": 10, "ignore": None},
    ),
    "top_eigenpairs": lambda: (js.top_eigenpairs, PROBLEM | COMMON | {"k": 1, "which": "LA", "tol": 1e-2}),
    "hessian_trace": lambda: (
        js.hessian_trace,
        PROBLEM | COMMON | {"method": "hutchinson", "num_matvecs": 5, "key": 0},
    ),
    "spectral_density": lambda: (js.spectral_density, PROBLEM | COMMON | {"key": 0}),
    "eigenvalue_map": lambda: (
        js.eigenvalue_map,
        PROBLEM
        | COMMON
        | {"directions": DIRECTIONS, "grid": GRID, "key": 0, "tol": 1e-2, "max_matvecs": 10, "max_basis": 8}
        | {"subset": None, "ignore": None, "store": None, "seed": 0},
    ),
    "plane_hessian": lambda: (
        js.plane_hessian,
        PROBLEM | COMMON | {"directions": DIRECTIONS, "grid": GRID, "subset": None, "store": None, "seed": 0},
    ),
    "sharpness": lambda: (
        js.sharpness,
        PROBLEM
        | COMMON
        | {"measures": ["keskar", "critical", "relative_flatness"], "rho": 0.05, "epsilon": 1e-3, "sigma": 0.01}
        | {"num_samples": 2, "num_steps": 1, "m": 2, "layer": None, "preconditioner": None, "update": None}
        | {"filter_axis": None, "key": 0, "ignore": None},
    ),
    "plane_measures": lambda: (js.plane_measures, {"result": result("line"), "level": 0.1, "metric": "loss"}),
    "normalizations": lambda: (
        js.normalizations,
        {"minimizers": {"a": PARAMS}, "loss_fn": loss, "data": DATA, "norms": ("filter",), "grid": LINE}
        | {"ignore": "bias_norm", "filter_axis": None, "seed": 0, "store": None, "progress": False},
    ),
    "weight_histogram": lambda: (js.weight_histogram, {"params": PARAMS, "bins": 3, "ignore": "bias_norm"}),
    "weight_norms": lambda: (js.weight_norms, {"source": [PARAMS]}),
    "plot.weight_histogram": lambda: (
        js.plot.weight_histogram,
        {"results": js.weight_histogram(PARAMS), "ax": None, "leaf": "all", "log": False},
    ),
    "plot.weight_norms": lambda: (
        js.plot.weight_norms,
        {"results": js.weight_norms([PARAMS]), "ax": None, "leaf": "all", "against": "epoch", "layers": False},
    ),
    "random_directions": lambda: (
        js.random_directions,
        {"key": 0, "params": PARAMS, "num": 2, "norm": "filter", "ignore": "bias_norm", "filter_axis": None},
    ),
    "direction_between": lambda: (js.direction_between, {"a": PARAMS, "b": PATH[1]}),
    "pca_directions": lambda: (js.pca_directions, {"checkpoints": PATH, "num": 2, "center": "last", "ignore": None}),
    "project": lambda: (js.project, {"checkpoints": PATH, "origin": PARAMS, "directions": DIRECTIONS}),
    "trajectory": lambda: (
        js.trajectory,
        {"run": PATH, "loss_fn": loss, "data": DATA, "points": (3, 3), "margin": 0.1, "center": "last"}
        | {"directions": None, "grid": None, "origin": None, "progress": False},
    ),
    "Grid.line": lambda: (js.Grid.line, {"start": 0, "stop": 1, "num": 3}),
    "Grid": lambda: (js.Grid, {"axes": (np.arange(3.0),)}),
    "load": lambda: (js.load, {"path": "/nowhere"}),
    "load_run": lambda: (js.load_run, {"path": "/nowhere"}),
    "datasets.load": lambda: (js.datasets.load, {"name": "digits", "data_dir": None}),
    "plot.contour": lambda: (js.plot.contour, {"result": result("plane"), **DRAWN}),
    "plot.contourf": lambda: (js.plot.contourf, {"result": result("plane"), **DRAWN}),
    "plot.heatmap": lambda: (js.plot.heatmap, {"result": result("plane"), **DRAWN}),
    "plot.surface3d": lambda: (js.plot.surface3d, {"result": result("plane"), **DRAWN}),
    "plot.line": lambda: (
        js.plot.line,
        {"results": result("line"), "ax": None, "metric": "loss", "log": None, "loss_max": None},
    ),
    "plot.compare": lambda: (js.plot.compare, {"results": [result("plane")] * 2, "kind": "contour", "metric": "loss"}),
    "plot.eigenvalue_map": lambda: (
        js.plot.eigenvalue_map,
        {"result": result("map"), "ax": None, "signed": False, "ratio_max": None},
    ),
    "plot.spectrum": lambda: (js.plot.spectrum, {"result": result("spectrum"), "ax": None, "outliers": 3}),
    "plot.trajectory": lambda: (js.plot.trajectory, {"result": result("trajectory"), "ax": None, "metric": "loss"}),
    "plot.training_curves": lambda: (js.plot.training_curves, {"metrics": RECORDS, "ax": None}),
}
# What an argument is called in messages, where that is not its own name.
OTHER = {
    **dict.fromkeys(("axes", "start", "stop", "num"), ("axis",)),
    "name": ("dataset",),
    "run": ("checkpoints", "origin", "loss_fn"),
    "origin": ("params", "loss_fn"),
    "params_a": ("params_b",),
    "results": ("result",),
    "path": ("run folder",),
}
VALUES = [
    *(None, 0, -1, 3.5, float("nan"), float("inf"), True, "x", "", b"x", [], {}, (), [1, 2], Odd(), object),
    *(lambda: 0, np.arange(3), np.array(5), jnp.ones(2), 2**70, -(2**70), xr.Dataset(attrs={"dtype": "x"}), PARAMS),
    *(DATA, "auto", [None], {"a": None}, 1j, slice(2), xr.DataArray([1.0])),
]
QUICK = ("surface", "Grid", "load", "plot.line", "random_directions")


# 31 values for each of 200 arguments; those that compile nothing are quick
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [slow_unless(name in QUICK, name) for name in CALLS])
def test_a_malformed_call_names_the_argument(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # some values are the names of stores
    function, arguments = CALLS[name]()
    wrong = []
    for argument in arguments:
        for value in VALUES:
            try:
                function(**{**arguments, argument: value})
            except (ValueError, TypeError, FileNotFoundError, ImportError) as error:
                message = f"{error} {' '.join(getattr(error, '__notes__', []))}"
                if not any(name in message for name in (argument, *OTHER.get(argument, ()))):
                    wrong.append(f"{argument}={value!r}: {type(error).__name__}: {message}")
            except Exception as error:  # noqa: BLE001  # that is what must not come
                wrong.append(f"{argument}={value!r}: {type(error).__name__}: {error}")
            plt.close("all")
    assert not wrong, "\n".join(wrong)
