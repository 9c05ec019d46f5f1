"""Commands on problems of the user's own, machine-readable output, `info` and `sharpness`."""

import json
import textwrap

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest

import jaxscape as js
from jaxscape import cli, plot

MODULE = """
import jax, jax.numpy as jnp
import jaxscape as js

x = jax.random.normal(jax.random.key(0), (20, 3))
params = {"hidden": jax.random.normal(jax.random.key(1), (3, 4)), "out": jnp.ones(4) / 2}

def loss_fn(params, batch):
    return (jnp.tanh(batch @ params["hidden"]) @ params["out"] - 1) ** 2

def problem():
    return params, loss_fn, x

def tested():
    return params, loss_fn, x, x[:7]

def walked():
    recorder = js.Recorder(jax.tree.map(lambda p: 2 * p, params))
    for t in (1.7, 1.3, 1.1, 1.0):
        recorder(jax.tree.map(lambda p: t * p + 0.1 * (t - 1) ** 2, params))
    return {"params": params, "loss_fn": loss_fn, "data": x, "checkpoints": recorder, "name": "my net"}

def other():
    return jax.tree.map(lambda p: p + 0.1, params), loss_fn, x

def short(): return params, loss_fn
def strange(): return {"params": params, "loss": loss_fn, "data": x}
def number(): return 3
def ends(): raise SystemExit(5)
def streamed():
    return params, loss_fn, js.Stream([x[:10], x[10:]])
value = 3
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("matplotlib.layout_engine.ConstrainedLayoutEngine.execute", lambda *_: None)
    save = plot.save
    monkeypatch.setattr(plot, "save", lambda picture, path, **_: save(picture, path, dpi=40))
    (tmp_path / "own_problem.py").write_text(textwrap.dedent(MODULE))
    plt.close("all")
    return tmp_path


def run(*arguments, capsys):
    assert cli.main([*arguments]) == 0
    out, err = capsys.readouterr()
    return out, err


def test_a_surface_of_ones_own(folder, capsys):
    out, _ = run("surface", "own_problem:problem", "--points", "3x4", "--json", capsys=capsys)
    numbers = json.loads(out)
    import own_problem

    expected = js.surface(*own_problem.problem(), grid=js.Grid.plane((-1, 1, 3), (-1, 1, 4)), progress=False)
    result = js.load(folder / "own_problem.problem" / "surface.zarr")
    np.testing.assert_allclose(result.loss, expected.loss, rtol=1e-6)
    assert result.attrs["title"] == "problem, train"
    assert numbers["result"] == "own_problem.problem/surface.zarr"
    assert (numbers["points"], numbers["nonfinite_points"]) == (12, 0)
    np.testing.assert_allclose(numbers["center_loss"], expected.attrs["center_loss"], rtol=1e-6)
    assert all((folder / picture).exists() for picture in numbers["pictures"])


def test_lines_of_ones_own(folder, capsys):
    out, _ = run("line", "own_problem:problem", "--points", "3", "--json", capsys=capsys)
    assert set(json.loads(out)) == {"pictures", "train"}  # there are no test data
    out, _ = run("line", "own_problem:tested", "--points", "3", "--json", capsys=capsys)
    assert set(json.loads(out)) == {"pictures", "train", "test"}
    out, _ = run("interpolate", "own_problem:problem", "own_problem:other", "--points", "5", "--json", capsys=capsys)
    numbers = json.loads(out)["train"]
    line = js.load(numbers["result"])
    np.testing.assert_allclose(numbers["barrier"], js.loss_barrier(line).value, rtol=1e-12)


def test_a_path_of_ones_own(folder, capsys):
    out, _ = run("trajectory", "own_problem:walked", "--points", "3", "--json", capsys=capsys)
    numbers = json.loads(out)["paths"]["my net"]
    assert numbers["checkpoints"] == 5
    assert 0.99 < numbers["variance_captured"] <= 1
    assert js.load(folder / "own_problem.walked" / "trajectory.zarr").attrs["title"] == "my net"


def test_curvature_of_ones_own(folder, capsys):
    plane = ["--points", "2", "--range", "0", "0.5", "--tol", "1e-3"]
    out, _ = run("hessian", "own_problem:problem", *plane, "--json", capsys=capsys)
    center = js.load(json.loads(out)["result"]).isel(alpha=0, beta=0)
    import own_problem

    ends = js.extreme_eigenvalues(*own_problem.problem(), progress=False)
    np.testing.assert_allclose(center.max_eigenvalue, ends.max_eigenvalue, rtol=2e-3)
    assert json.loads(out)["points"] == 4
    measures = ["--measure", "lambda_max", "--measure", "trace"]
    out, _ = run("sharpness", "own_problem:problem", *measures, "--json", capsys=capsys)
    table = json.loads(out)["own_problem:problem"]["measures"]
    assert list(table) == ["lambda_max", "trace"]
    np.testing.assert_allclose(table["lambda_max"]["value"], ends.max_eigenvalue, rtol=1e-3)
    rows = (folder / "own_problem.problem" / "sharpness.csv").read_text().splitlines()
    assert len(rows) == 3


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("own_problem:short", "returns tuple, expected (params, loss_fn, data)"),
        ("own_problem:strange", "lacks loss_fn; expected the keys params, loss_fn, data"),
        ("own_problem:ends", "own_problem:ends ends the process: it calls sys.exit(5)"),
        ("own_problem:number", "returns int, expected (params, loss_fn, data)"),
        ("own_problem:value", "has no function 'value'"),
        ("own_problem:missing", "has no function 'missing'"),
        ("no_such_module:problem", "No module named 'no_such_module'"),
    ],
)
def test_what_is_no_problem_is_told(folder, capsys, target, message):
    assert cli.main(["surface", target]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_what_a_problem_lacks_is_told(folder, capsys):
    assert cli.main(["surface", "own_problem:problem", "--split", "test"]) == 2
    assert "problem has no test data; return a fourth part" in capsys.readouterr().err
    assert cli.main(["trajectory", "own_problem:problem"]) == 2
    assert "has no checkpoints; return a dict with the key checkpoints" in capsys.readouterr().err


def test_a_number_that_is_not_finite_is_null_in_json(folder, capsys):
    assert cli._plain({"a": [np.float64("nan"), 1], "b": (np.int64(3), None, "x")}) == {
        "a": [None, 1],
        "b": [3, None, "x"],
    }


def test_other_dots_belong_to_the_name_of_a_result(folder, capsys):
    for name in ("y.v1", "y.v2.zarr"):
        run("surface", "own_problem:problem", "--points", "2", "--out", name, capsys=capsys)
    assert {path.name for path in folder.glob("*.png")} == {
        f"y.v{i}_{kind}.png" for i in (1, 2) for kind in ("contour", "3d")
    }


def test_a_dry_run_of_a_stream(folder, capsys):
    out, _ = run("hessian", "own_problem:streamed", "--subset", "8", "--dry-run", "--points", "2", capsys=capsys)
    assert "FLOP" in out


def test_info_of_a_folder_of_results(folder, capsys):
    run("surface", "own_problem:problem", "--points", "2", capsys=capsys)
    out, _ = run("info", "own_problem.problem", "--json", capsys=capsys)
    assert json.loads(out)["own_problem.problem"]["results"] == "surface.zarr, surface_3d.png, surface_contour.png"


def test_info_of_a_result(folder, capsys):
    run("surface", "own_problem:problem", "--points", "3", capsys=capsys)
    out, _ = run("info", "own_problem.problem/surface.zarr", "--json", capsys=capsys)
    (facts,) = json.loads(out).values()
    assert facts["kind"] == "surface"
    assert facts["size"] == "alpha 3 x beta 3"
    assert facts["missing points"] == 0
    out, _ = run("info", "own_problem.problem/surface.zarr", capsys=capsys)
    assert ["alpha", "-1", "to", "1"] in [line.split() for line in out.splitlines()]


@pytest.mark.filterwarnings("default")
def test_info_of_a_store_that_is_not_complete(folder, capsys):
    grid, directions = js.Grid.line(-1, 1, 3), [jnp.ones(3)]
    js.surface(jnp.ones(3), lambda p, x: x * p.sum(), jnp.ones(3), grid=grid, directions=directions,
               store="half.zarr")  # fmt: skip
    for file in (folder / "half.zarr" / "loss").glob("c/*"):
        file.write_bytes(b"")
    out, err = run("info", "half.zarr", "--json", capsys=capsys)
    assert json.loads(out)["half.zarr"]["missing points"] == 3
    assert "warning" in err


def test_info_of_checkpoints(folder, capsys):
    ocp = pytest.importorskip("orbax.checkpoint")
    with ocp.CheckpointManager(folder / "steps") as manager:
        for step in (3, 5):
            manager.save(step, args=ocp.args.StandardSave({"w": jnp.ones((2, 3), jnp.float32), "b": jnp.zeros(3)}))
        manager.wait_until_finished()
    out, _ = run("info", "steps", "--json", capsys=capsys)
    facts = json.loads(out)["steps"]
    assert facts["steps"] == "3 to 5"
    assert (facts["checkpoints"], facts["parameters"], facts["leaves"]) == (2, 9, 2)


def test_info_of_something_else(folder, capsys):
    assert cli.main(["info", "nowhere"]) == 2
    assert "nowhere not found; expected a run, a result" in capsys.readouterr().err
    (folder / "empty").mkdir()
    assert cli.main(["info", "empty"]) == 2
    assert "empty is no run (it has no config.json), no result, and no checkpoints" in capsys.readouterr().err


def test_export_goes_by_the_suffix(folder, capsys):
    pytest.importorskip("h5py")
    pytest.importorskip("plotly")
    run("surface", "own_problem:problem", "--points", "3", capsys=capsys)
    result = "own_problem.problem/surface.zarr"
    starts = {
        "vtp": b"<?xml", "obj": b"#", "stl": b"", "html": b"<!", "h5": b"\x89HDF", "png": b"\x89PNG", "pdf": b"%PDF"
    }  # fmt: skip
    for suffix, start in starts.items():
        out, _ = run("export", result, f"out.{suffix}", "--clip", "5", "--json", capsys=capsys)
        assert json.loads(out) == {"file": f"out.{suffix}"}
        assert (folder / f"out.{suffix}").read_bytes().startswith(start)
    again = js.export.read_h5("out.h5")
    np.testing.assert_allclose(again.loss, js.load(result).loss, rtol=1e-12)
    run("plot", "out.h5", "--out", "old.png", capsys=capsys)
    out, _ = run("info", "out.h5", "--json", capsys=capsys)
    assert json.loads(out)["out.h5"]["kind"] == "surface"
    assert cli.main(["export", result, "out.doc"]) == 2
    assert "OUT is out.doc, expected a name that ends with one of .vtp" in capsys.readouterr().err


def test_help_has_an_example_of_each_command(capsys):
    for command in (
        "surface",
        "line",
        "interpolate",
        "hessian",
        "trajectory",
        "sharpness",
        "plot",
        "report",
        "info",
        "export",
    ):
        assert cli.main([command, "--help"]) == 0
        assert f"Example: jaxscape {command} " in capsys.readouterr().out
    assert cli.main([]) == 2
    assert "Commands:" in capsys.readouterr().err
