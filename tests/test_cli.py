"""The command line on a stand-in for a trained run: what it computes, writes, prints and refuses."""

import dataclasses
import functools
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr

import jaxscape as js
from jaxscape import cli, plot
from jaxscape.objective import use_all_cores
from jaxscape.run_checkpoints import Checkpoints
from jaxscape.sweep import save
from tests.problems import slow_but, slow_unless

PATIENCE = "--xla_cpu_collective_call_terminate_timeout_seconds"


class Split(NamedTuple):
    images: jax.Array
    labels: jax.Array


def split(seed, examples):
    key = jax.random.key(seed)
    return Split(jax.random.normal(key, (examples, 3)), jax.random.randint(key, (examples,), 0, 2))


def loss_fn(params, batch):
    logits = jnp.tanh(batch[0] @ params["hidden"]) @ params["out"] + params["bias"]
    loss = -jnp.take_along_axis(jax.nn.log_softmax(logits), batch[1][:, None], axis=1)[:, 0]
    return {"loss": loss, "accuracy": (logits.argmax(-1) == batch[1]).astype(loss.dtype)}


PARAMS = {
    "hidden": jax.random.normal(jax.random.key(0), (3, 5)),
    "out": jax.random.normal(jax.random.key(1), (5, 2)),
    "bias": jnp.zeros(2),
}
METRICS = [
    {"epoch": 1, "lr": 0.1, "train_loss": 0.9, "train_error": 50.0, "test_loss": 1.0, "test_error": 52.0},
    {"epoch": 2, "lr": 0.1, "train_loss": 0.25, "train_error": 12.5, "test_loss": 0.5, "test_error": 20.0},
]


FakeRun = dataclasses.make_dataclass(
    "FakeRun",
    ["params", "variables", "loss_fn", "data", "test_data", "config", "metrics", "path", "checkpoints", "steps"],
)


def on_the_way(index):
    """Params at an epoch: the last are PARAMS."""
    return jax.tree.map(lambda x: x * (1 + 0.1 * (3 - index) ** 2) + 0.05 * (3 - index), PARAMS)


def step(index):
    return {"params": on_the_way(index), "batch_stats": {}}


def fake_load_run(path):
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} is no run")
    config = {
        "arch": "mlp",
        "dataset": "normal",
        "loss": "mse" if path.name == "mse" else "crossentropy",
        "noshort": path.name == "plain",
        "seed": len(path.name),
    }
    return FakeRun(
        checkpoints=Checkpoints(
            (0, 1, 2, 3), lambda i: {"params": on_the_way(i), "batch_stats": {"mean": jnp.ones(2)}}
        ),
        steps=Checkpoints((), lambda _: {}) if path.name == "plain" else Checkpoints((0.0, 0.5, 1.0), step),
        params=PARAMS,
        variables=PARAMS,
        loss_fn=loss_fn,
        data=split(2, 21),
        test_data=split(3, 9),
        config=config,
        metrics=METRICS,
        path=path,
    )


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jaxscape.runs", SimpleNamespace(load_run=fake_load_run))
    # Pixels and layout are for the tests of `plot`: here they would take a second for each picture.
    monkeypatch.setattr(plot, "save", functools.partial(plot.save, dpi=40))
    monkeypatch.setattr("matplotlib.layout_engine.ConstrainedLayoutEngine.execute", lambda *_: None)
    folder = tmp_path / "run"
    folder.mkdir()
    plt.close("all")  # what a test of another file has left
    yield folder
    assert not plt.get_fignums()  # the command closes what it draws


def read(path):
    return xr.open_zarr(path, consolidated=False).load()


def is_png(path):
    return path.read_bytes().startswith(b"\x89PNG")


NUMBERS = {
    "--points": ("99999999999", "-1", "0", "x", "3x3x3", "", "0x5"),
    "--seed": (str(2**70), "x", "1.5"),
    "--range": ("nan 1", "1 1", "a b", "inf 2"),
    "--batch-size": ("0", "-1", "x"),
}
TOLERANCES = {
    "--rtol": ("nan", "-1", "x"),
    "--atol": ("1", "nan", "x"),
    "--compute-dtype": ("float8",),
}
CHOICES = ("--norm", "--ignore")
FILES = ("{missing}", "{file}", "{empty}", "{damaged}", "{foreign}")
MALFORMED = [
    *([c, "{run}", name, *v.split()] for c in ("surface", "line") for name in NUMBERS for v in NUMBERS[name]),
    *([c, "{run}", name, v] for c in ("surface", "line") for name in TOLERANCES for v in TOLERANCES[name]),
    *(["hessian", "{run}", name, *v.split()] for name in NUMBERS for v in NUMBERS[name]),
    *(["hessian", "{run}", "--tol", v] for v in ("nan", "-1", "0", "x")),
    *(["hessian", "{run}", "--max-matvecs", v] for v in ("0", "2", "x", str(2**70))),
    *(["hessian", "{run}", "--subset", v] for v in ("0", "-1", "100000", "x")),
    ["hessian", "{run}", "--seed", "-1"],
    *([c, "{run}", name, "x"] for c in ("surface", "line", "hessian") for name in CHOICES),
    *([c, "{run}", name, "x"] for c in ("surface", "hessian") for name in ("--split", "extra")),
    *(["hessian", "{run}", name, "0.1"] for name in TOLERANCES),
    *([c, "{run}", name] for c in ("surface", "line", "hessian") for name in ("--points", "--range", "--x", "-x")),
    *(["trajectory", "{run}", "--directions", "random", "--seed", v] for v in NUMBERS["--seed"]),
    *(["trajectory", "{run}", "--batch-size", v] for v in NUMBERS["--batch-size"]),
    *(["trajectory", "{run}", name, v] for name in TOLERANCES for v in TOLERANCES[name]),
    *(["trajectory", "{run}", name, "x"] for name in (*CHOICES, "--directions", "--center", "--split", "--steps")),
    *(["trajectory", "{run}", "{run}", *options] for options in (["--animate", "x.gif"], ["--out", "x.doc"])),
    *(["trajectory", "{run}", "--animate", file] for file in ("x.doc", "x", "")),
    *(["plot", "{good}", name, "x"] for name in ("--kind", "--log", "--loss-max")),
    *(["plot", "{good}", "--out", out] for out in ("", "{empty}", "x", "{good}/x.doc")),
    *(["plot", "{good}", "--kind", kind] for kind in ("eigenvalue_map", "trajectory", "x")),
    *(["plot", "{good}", "--signed", "--loss-max", v] for v in ("-inf", "nan")),
    *(["report", file] for file in ("{file}", "{empty}/mine")),
    *(["report", "{run}", "--out", file] for file in ("x.pdf", "x", "")),
    ["report", "{run}", "--clip", "x"],
    *(["trajectory", "{run}", "--margin", v] for v in ("nan", "x", "inf", "-2")),
    *(["trajectory", "{run}", "--points", v] for v in NUMBERS["--points"]),
    *([c, "{missing}"] for c in ("surface", "line", "hessian", "trajectory", "report")),
    *([c, "{run}", "--out", out] for c in ("surface", "hessian") for out in ("{file}", "{empty}")),
    *(["plot", file] for file in FILES),
    *(["plot", "{good}", file] for file in FILES),
    *(["plot", "{good}", *options] for options in (["--metric", "x"], ["--kind", "line"], ["--kind", "spectrum"])),
    *(
        ["plot", "{good}", *options]
        for options in (["--loss-max", "nan"], ["--title", "a", "--title", "b"], ["--out", "x.doc"])
    ),
    *([c] for c in ("surface", "plot", "report", "x", "")),
]


@pytest.mark.parametrize(
    "arguments", [slow_unless(i % 16 == 0, line) for i, line in enumerate(MALFORMED)], ids=" ".join
)
def test_a_malformed_command_line_is_one_line(run, tmp_path, capsys, arguments):
    result = xr.Dataset({"loss": (("alpha", "beta"), np.ones((3, 3)))}, {"alpha": [0, 1, 2], "beta": [0, 1, 2]})
    paths = {name: tmp_path / name for name in ("missing", "file", "empty", "damaged", "foreign", "good")}
    paths["file"].write_text("text")
    paths["empty"].mkdir()
    (paths["empty"] / "mine").touch()
    for name in ("damaged", "good"):
        save(result, paths[name])
    (paths["damaged"] / "loss" / "c" / "0" / "0").write_bytes(b"")
    xr.Dataset({"x": ("t", np.ones(2))}).to_zarr(paths["foreign"], consolidated=False)
    capsys.readouterr()
    before = sorted(str(path) for path in run.rglob("*"))
    assert cli.main([argument.format(run=run, **paths) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    assert "error: " in err
    assert len(err.splitlines()) == 1
    assert out == ""
    assert sorted(str(path) for path in run.rglob("*")) == before


def test_debug_prints_the_traceback(run, capsys):
    assert cli.main(["surface", str(run / "missing"), "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_surface_is_that_of_the_library(run, capsys):
    options = ["--points", "5x4", "--range", "-0.5", "1", "--seed", "7", "--norm", "layer", "--ignore", "none"]
    assert cli.main(["surface", str(run), *options, "--split", "test", "--batch-size", "4"]) == 0
    assert read(run / "surface.zarr").attrs["batch_size"] == 4
    result = read(run / "surface.zarr")
    expected = js.surface(
        PARAMS,
        loss_fn,
        split(3, 9),
        directions=js.random_directions(7, PARAMS, norm="layer", ignore=None),
        grid=js.Grid.plane((-0.5, 1, 5), (-0.5, 1, 4)),
    )
    np.testing.assert_allclose(result.loss, expected.loss, rtol=1e-6)
    np.testing.assert_array_equal(result.alpha, expected.alpha)
    np.testing.assert_array_equal(result.beta, expected.beta)
    assert result.attrs["title"] == "mlp, test"
    assert is_png(run / "surface_contour.png")
    assert is_png(run / "surface_3d.png")
    *files, summary, convexity = capsys.readouterr().out.splitlines()
    assert files == [str(run / name) for name in ("surface.zarr", "surface_contour.png", "surface_3d.png")]
    assert summary.startswith("20 points in ")
    measures = js.plane_measures(expected).value
    assert convexity == (
        f"negative curvature at {100 * measures.negative_curvature:.1f}% of the plane, "
        f"local minima: {measures.local_minima:.0f}, "
        f"area with a loss of at most 0.1 above the center: {measures.level_set_area:.3g}"
    )
    assert summary.endswith(f"center loss {expected.attrs['center_loss']:.4g}, 0 points not finite")


@pytest.mark.parametrize("command", ["surface", "line", "hessian"])
def test_a_dry_run_writes_nothing(run, capsys, monkeypatch, command):
    before = sorted(run.rglob("*"))
    assert cli.main([command, str(run), "--points", "5", "--dry-run"]) in (0, None)
    text = capsys.readouterr().out
    for name in ("params", "activations", "free on each device", "FLOP", "time"):
        assert name in text
    assert sorted(run.rglob("*")) == before
    monkeypatch.setattr("jaxscape.budgets.free_bytes", lambda devices: 100 * len(devices))
    assert cli.main([command, str(run), "--points", "5", "--dry-run"]) == 2
    assert "error: does not fit: " in capsys.readouterr().err


def test_surface_defaults_are_filter_normalized_train_data(run, tmp_path):
    out = tmp_path / "elsewhere" / "small.zarr"
    assert cli.main(["surface", str(run), "--points", "3", "--out", str(out)]) == 0
    expected = js.surface(PARAMS, loss_fn, split(2, 21), grid=js.Grid.plane((-1, 1, 3), (-1, 1, 3)))
    np.testing.assert_allclose(read(out).loss, expected.loss, rtol=1e-6)
    assert read(out).attrs["norm"] == "filter"
    assert is_png(out.with_name("small_contour.png"))


def test_an_earlier_result_is_replaced_only_by_a_complete_one(run, monkeypatch, capsys):
    small = ["surface", str(run), "--points"]
    assert cli.main([*small, "2"]) == 0
    assert cli.main([*small, "3"]) == 0
    assert read(run / "surface.zarr").sizes == {"alpha": 3, "beta": 3}

    def full_disk(*args, **kwargs):
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(xr.Dataset, "to_zarr", full_disk)
        assert cli.main([*small, "4"]) == 2
    assert "error: the disk is full (No space left on device). What was finished is kept" in capsys.readouterr().err
    assert read(run / "surface.zarr").sizes == {"alpha": 3, "beta": 3}
    there = ["surface.partial", "surface.zarr", "surface_3d.png", "surface_contour.png"]  # what was computed is kept
    assert sorted(path.name for path in run.iterdir()) == there


def test_tolerance_and_precision(run):
    options = ["--points", "3", "--rtol", "0", "--atol", "0.5", "--compute-dtype", "bfloat16"]
    assert cli.main(["surface", str(run), *options]) == 0
    attrs = read(run / "surface.zarr").attrs
    assert (attrs["rtol"], attrs["atol"], attrs["compute_dtype"]) == (0.0, 0.5, "bfloat16")


@pytest.mark.parametrize(("goal", "expected"), [("contours", "contours"), ("0.1", 0.1)])
def test_an_adaptive_grid(run, capsys, goal, expected):
    assert cli.main(["surface", str(run), "--points", "13", "--refine", goal]) == 0
    result = read(run / "surface.zarr")
    assert result.attrs["refine"] == expected
    assert int((result.evaluated == 1).sum()) == result.attrs["evaluated_points"]
    assert f"{result.attrs['evaluated_points']} of 169 points in" in capsys.readouterr().out
    assert is_png(run / "surface_contour.png")


def test_an_adaptive_grid_needs_a_goal(run, capsys):
    assert cli.main(["surface", str(run), "--refine=lines"]) == 2
    assert "'lines' is no goal; expected contours, or a number, e.g. 0.01" in capsys.readouterr().err


def test_one_of_several_processes(run, monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda: calls.append(1))
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    for command in ("surface", "line"):
        assert cli.main([command, str(run), "--points", "3", "--distributed"]) == 0
    assert calls == [1, 1]
    assert {path.suffix for path in run.iterdir()} == {".partial"}  # process 0 writes results and pictures
    assert capsys.readouterr().out == ""


def test_line_evaluates_train_and_test_along_one_direction(run, capsys):
    assert cli.main(["line", str(run), "--points", "5", "--seed", "3"]) == 0
    directions = js.random_directions(3, PARAMS, num=1)
    for name, data in (("train", split(2, 21)), ("test", split(3, 9))):
        result = read(run / f"line_{name}.zarr")
        expected = js.surface(PARAMS, loss_fn, data, directions=directions, grid=js.Grid.line(-1, 1, 5))
        np.testing.assert_allclose(result.loss, expected.loss, rtol=1e-6)
        assert result.attrs["split"] == name
    assert is_png(run / "line.png")
    assert capsys.readouterr().out.splitlines()[-1].startswith("test: 5 points in ")


@pytest.mark.parametrize("more", slow_but([False], [False, True]), ids=["map", "map and spectrum"])
@pytest.mark.slow
def test_hessian_is_that_of_the_library(run, capsys, more):
    options = ["--points", "3x2", "--range", "-0.5", "1", "--seed", "7", "--subset", "15", "--weights-only"]
    options += ["--pilot", "10"]
    assert cli.main(["hessian", str(run), *options, "--tol", "1e-5", *(["--spectrum"] if more else [])]) == 0
    result = read(run / "hessian.zarr")
    expected = js.eigenvalue_map(
        PARAMS,
        loss_fn,
        split(2, 21),
        directions=js.random_directions(7, PARAMS),
        grid=js.Grid.plane((-0.5, 1, 3), (-0.5, 1, 2)),
        tol=1e-5,
        subset=15,
        pilot=10,
        seed=7,
        ignore="bias_norm",
        progress=False,
    )
    np.testing.assert_allclose(result.min_eigenvalue, expected.min_eigenvalue, rtol=1e-5)
    assert result.attrs["title"] == "mlp, train"
    assert is_png(run / "hessian.png")
    assert not (run / "hessian.partial").exists()
    assert "6 points in " in capsys.readouterr().out
    if not more:
        return
    assert is_png(run / "spectrum.png")
    assert read(run / "spectrum.zarr").attrs["num_params"] == 25
    assert cli.main(["plot", str(run / "hessian.zarr"), "--signed", "--out", str(run / "signed.png")]) == 0
    assert cli.main(["plot", str(run / "spectrum.zarr"), "--out", str(run / "density.png")]) == 0
    both = [str(run / "hessian.zarr"), str(run / "hessian.zarr"), "--title", "a", "--title", "b"]
    assert cli.main(["plot", *both, "--kind", "eigenvalue_map", "--out", str(run / "both.png")]) == 0
    assert all(is_png(run / f"{name}.png") for name in ("signed", "density", "both"))


def test_trajectory_is_that_of_the_library(run, capsys):
    assert (
        cli.main(["trajectory", str(run), "--points", "5x4", "--margin", "0.3", "--animate", str(run / "a.gif")]) == 0
    )
    result = read(run / "trajectory.zarr")
    expected = js.trajectory(fake_load_run(run), points=(5, 4), margin=0.3, progress=False)
    np.testing.assert_allclose(result.loss, expected.loss, rtol=1e-6)
    np.testing.assert_allclose(result.coordinates, expected.coordinates, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(result.epoch, [0, 1, 2, 3])
    assert result.attrs["title"] == "mlp"
    assert is_png(run / "trajectory.png")
    assert is_png(run / "trajectory_3d.png")
    assert (run / "a.gif").read_bytes().startswith(b"GIF")
    lines = capsys.readouterr().out.splitlines()
    assert lines[-3].startswith("run  1st PC %  2nd PC %  in plane %")
    assert lines[-2].startswith("mlp")
    assert cli.main(["plot", str(run / "trajectory.zarr"), "--out", str(run / "again.png")]) == 0
    assert is_png(run / "again.png")


@pytest.mark.slow
def test_trajectories_of_several_runs(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    other = tmp_path / "another"
    other.mkdir()
    both = [str(run), str(other), "--points", "3"]
    assert cli.main(["trajectory", *both]) == 0
    assert is_png(Path("trajectories.png"))
    assert read(other / "trajectory.zarr").attrs["title"] == "seed 7"  # what they differ in
    assert cli.main(["trajectory", *both, "--together", "--out", "both.png", "--animate", "both.gif"]) == 0
    assert is_png(Path("both.png"))
    results = [read(folder / "trajectory.zarr") for folder in (run, other)]
    assert results[0].attrs["fingerprint"] == results[1].attrs["fingerprint"]
    capsys.readouterr()
    assert cli.main(["trajectory", *both, "--animate", "a.gif"]) == 2
    assert "--animate is one picture" in capsys.readouterr().err


@pytest.mark.slow
def test_trajectories_in_other_planes(run, capsys):
    small = ["trajectory", str(run), "--points", "3"]
    assert cli.main([*small, "--directions", "random", "--seed", "4"]) == 0
    result = read(run / "trajectory_random.zarr")
    expected = js.project(fake_load_run(run).checkpoints, PARAMS, js.random_directions(4, PARAMS))
    np.testing.assert_allclose(result.coordinates, expected.coordinates, rtol=1e-4, atol=1e-5)
    assert "1st axis %" in capsys.readouterr().out
    assert cli.main([*small, "--directions", "solution"]) == 0
    result = read(run / "trajectory_solution.zarr")
    np.testing.assert_allclose(result.coordinates[[0, -1]], [[1, 0], [0, 0]], atol=1e-5)  # from the start to the end
    assert result.attrs["axis_labels"] == "end to start | random direction"


@pytest.mark.slow
def test_trajectories_of_steps_and_with_batch_statistics(run, tmp_path, capsys):
    assert cli.main(["trajectory", str(run), "--points", "3", "--steps"]) == 0
    np.testing.assert_array_equal(read(run / "trajectory.zarr").epoch, [0, 0.5, 1])
    assert cli.main(["trajectory", str(run), "--points", "3", "--batch-stats"]) == 0
    assert read(run / "trajectory.zarr").attrs["num_params"] == 27 + 2
    plain = tmp_path / "plain"
    plain.mkdir()
    assert cli.main(["trajectory", str(plain), "--steps"]) == 2
    assert "has no steps; train it with --save-steps N" in capsys.readouterr().err


def test_plot_draws_one_and_compares_several(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    one, two = run / "one.zarr", run / "two.zarr"
    for seed, out in enumerate((one, two)):
        assert cli.main(["surface", str(run), "--points", "3", "--seed", str(seed), "--out", str(out)]) == 0
    assert cli.main(["line", str(run), "--points", "3"]) == 0
    lines = [str(run / f"line_{name}.zarr") for name in ("train", "test")]
    capsys.readouterr()

    assert cli.main(["plot", str(one)]) == 0
    assert cli.main(["plot", str(one), "--kind", "surface3d", "--metric", "accuracy", "--out", "a.pdf"]) == 0
    assert cli.main(["plot", lines[0], "--no-log"]) == 0
    assert (
        cli.main(["plot", str(one), str(two), "--log", "--loss-max", "50", "--title", "first", "--title", "second"])
        == 0
    )
    assert cli.main(["plot", *lines, "--out", "lines.png"]) == 0
    drawn = capsys.readouterr().out.splitlines()
    assert drawn == [
        str(run / "one_contour.png"),
        "a.pdf",
        str(run / "line_train_line.png"),
        "compare_contour.png",
        "lines.png",
    ]
    assert all(Path(path).stat().st_size > 1000 for path in drawn)


def test_plot_passes_titles_and_options_on(run, monkeypatch):
    monkeypatch.chdir(run)
    out = run / "one.zarr"
    assert cli.main(["surface", str(run), "--points", "3", "--out", str(out)]) == 0
    calls = []

    def compare(results, kind, **options):
        calls.append((list(results), kind, options))
        return plt.figure()

    monkeypatch.setattr(js.plot, "compare", compare)
    other = run / "other.zarr"
    read(out).assign_attrs(title="other").to_zarr(other, consolidated=False)
    assert cli.main(["plot", str(out), str(other), "--kind", "contourf", "--no-log", "--loss-max", "3"]) == 0
    assert cli.main(["plot", str(out), str(out), "--title", "a", "--title", "b"]) == 0
    assert calls[0] == (["mlp, train", "other"], "contourf", {"metric": "loss", "log": False, "loss_max": 3.0})
    assert calls[1][0] == ["a", "b"]


def test_report_is_a_table_with_the_pictures(run, monkeypatch, capsys):
    monkeypatch.chdir(run.parent)
    plain = run.with_name("plain")
    plain.mkdir()
    (run / "line.png").touch()
    (run / "metrics.csv").touch()
    assert cli.main(["report", str(run), str(plain)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert " ".join(lines[0].split()) == "run arch shortcuts epochs params train loss train err % test loss test err %"
    assert lines[1].split() == ["run", "mlp", "yes", "2", "27", "0.25", "12.5", "0.5", "20"]
    assert lines[2].split()[:3] == ["plain", "mlp", "no"]
    assert lines[4:6] == [f"pictures in {run}:", str(run / "line.png")]
    assert lines[-2:] == ["none", "report.html"]
    assert "<title>Loss landscapes: run, plain</title>" in Path("report.html").read_text()


def test_the_page_of_one_run_is_in_its_folder_and_measures_the_gradient_if_asked(run, capsys):
    assert cli.main(["report", str(run)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(run / "report.html")
    assert f"jaxscape report {run} --gradient" in (run / "report.html").read_text()
    assert cli.main(["report", str(run), "--gradient", "--clip", "3", "--out", str(run / "sub" / "page.html")]) == 0
    text = (run / "sub" / "page.html").read_text()
    assert "lambda_max is not measured" in text
    assert f"jaxscape hessian {run}" in text


def test_report_without_plotly_says_how_to_get_the_page(run, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "plotly", None)
    assert cli.main(["report", str(run)]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("run")
    (line,) = printed.err.splitlines()
    assert line.startswith("no page: this needs plotly, which is not installed: `pip install")
    assert not (run / "report.html").exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["surface", "nowhere"], "nowhere is no run"),
        (["plot", "nowhere.zarr"], "nowhere.zarr not found"),
        (["plot", "folder"], "folder is no result"),
        (["surface", "run", "--out", "folder"], "folder exists and is no result"),
        (["surface", "run", "--points", "0"], "num a positive integer"),
        (["surface", "run", "--batch-size", "0"], "batch_size"),
        (["plot", "a.zarr", "--title", "a", "--title", "b"], "2 titles for 1 files"),
        (["plot", "a.zarr", "a.zarr"], "repeat; tell the pictures apart with --title"),
        (["plot", "a.zarr", "--metric", "lose"], "metric is 'lose', expected one of"),
        (["plot", "a.zarr", "--kind", "line"], "expected one; draw it with js.plot.contour"),
    ],
)
def test_mistakes_are_one_line_and_status_2(run, monkeypatch, capsys, argv, message):
    monkeypatch.chdir(run.parent)
    Path("folder").mkdir()
    result = js.surface(PARAMS, loss_fn, split(2, 21), grid=js.Grid.plane((-1, 1, 2), (-1, 1, 2)))
    result.to_zarr("a.zarr", consolidated=False)
    assert cli.main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("jaxscape: error: ")
    assert message in line
    assert list(Path("folder").iterdir()) == []


@pytest.mark.parametrize("points", ["", "5x", "1x2x3", "five", "-3"])
def test_points_are_one_or_two_numbers(run, capsys, points):
    assert cli.main(["surface", str(run), f"--points={points}"]) == 2
    assert "expected e.g. 51 or 51x31" in capsys.readouterr().err


# Devices are settled before JAX starts, so each case is a process (3 s). The first one tries `python -m jaxscape`.
@pytest.mark.parametrize(
    ("before", "expected"),
    [
        ("", "os.cpu_count()"),
        pytest.param("jax.config.update('jax_num_cpu_devices', 3)", "3", marks=pytest.mark.slow),
        pytest.param(
            "os.environ['XLA_FLAGS'] = '--xla_force_host_platform_device_count=5'", "5", marks=pytest.mark.slow
        ),
        pytest.param("jax.devices()", "1", marks=pytest.mark.slow),
    ],
    ids=["each core", "config", "flag", "too late"],
)
def test_cores_become_devices_unless_told_otherwise(before, expected):
    code = f"""
import os, jax
from jaxscape.objective import use_all_cores
{before}
use_all_cores()
assert jax.device_count() == {expected}, jax.devices()
import runpy, sys
sys.argv = ["jaxscape", "--help"]
runpy.run_module("jaxscape", run_name="__main__")
"""
    environment = {"JAX_PLATFORMS": "cpu", "PATH": "", "PYTHONPATH": str(Path(js.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in ("surface", "line", "plot", "report"))


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("", [f"{PATIENCE}=3600"]),
        ("--xla_cpu_enable_fast_math=false", ["--xla_cpu_enable_fast_math=false", f"{PATIENCE}=3600"]),
        (f"{PATIENCE}=7", [f"{PATIENCE}=7"]),
    ],
    ids=["no flags", "other flags", "the same flag"],
)
def test_devices_wait_an_hour_for_each_other_unless_told_otherwise(flags, expected, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", flags)
    use_all_cores()
    use_all_cores()  # once is enough
    assert os.environ["XLA_FLAGS"].split() == expected


def test_interpolate_is_that_of_the_library(run, tmp_path, capsys):
    other = tmp_path / "plain"
    other.mkdir()
    assert cli.main(["interpolate", str(run), str(other), "--points", "5", "--range", "-0.5", "1.5"]) == 0
    for name, seed, size in (("train", 2, 21), ("test", 3, 9)):
        expected = js.interpolate(PARAMS, PARAMS, loss_fn, split(seed, size), grid=js.Grid.line(-0.5, 1.5, 5))
        result = read(run / f"interpolate_plain_{name}.zarr")
        np.testing.assert_allclose(result.loss, expected.loss, rtol=1e-6)
        assert result.attrs["title"] == "mlp: run to plain"
    assert is_png(run / "interpolate_plain.png")
    assert "barrier 0 (standard error at most" in capsys.readouterr().out
    assert sorted(path.suffix for path in run.iterdir()) == [".png", ".zarr", ".zarr"]


def test_interpolate_refuses_runs_that_do_not_go_together(run, tmp_path, capsys):
    for folder in ("mse", "a/plain", "b/plain"):
        (tmp_path / folder).mkdir(parents=True)
    line = ["interpolate", str(run), "--points", "2", "--range", "0", "1", "--out", str(tmp_path / "out")]
    assert cli.main([*line[:2], str(tmp_path / "mse"), *line[2:]]) == 2
    assert "loss is 'crossentropy' in" in capsys.readouterr().err
    assert cli.main([*line[:2], str(tmp_path / "a" / "plain"), *line[2:]]) == 0
    assert cli.main([*line[:2], str(tmp_path / "b" / "plain"), *line[2:]]) == 2
    assert "choose another --out" in capsys.readouterr().err
