"""The verdict of a page against numbers of closed forms, and the page's own numbers read back."""

import base64
import html
import json
import re
import sys

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import xarray as xr

import jaxscape as js
from jaxscape.sweep import save

AXIS = np.linspace(-2, 2, 41)


def bowl(a=0.0, b=0.0, base=0.5, axis=AXIS, **attrs):
    """``base + (alpha - a)^2 + 2 (beta - b)^2``."""
    alpha, beta = np.meshgrid(axis, axis, indexing="ij")
    loss = base + (alpha - a) ** 2 + 2 * (beta - b) ** 2
    attrs = {"center_loss": base + a**2 + 2 * b**2, "directions": "random", "direction_key": "0,0"} | attrs
    return xr.Dataset({"loss": (("alpha", "beta"), loss)}, {"alpha": axis, "beta": axis}, attrs)


def eigenvalues(**changes):
    """A map of 3 x 3 points; at the center the eigenvalues are -0.5 and 4, and the plane shows 1."""
    axis = np.array([-1.0, 0.0, 1.0])
    center = {"min_eigenvalue": -0.5, "max_eigenvalue": 4.0, "plane_max_eigenvalue": 1.0} | changes
    grids = {name: np.full((3, 3), 9.0) for name in center}
    for name, value in center.items():
        grids[name][1, 1] = value
    grids["ratio"] = np.abs(grids["min_eigenvalue"] / grids["max_eigenvalue"])
    grids["converged"] = np.ones((3, 3), bool)
    grids["converged"][0, 2] = False
    return xr.Dataset({n: (("alpha", "beta"), v) for n, v in grids.items()}, {"alpha": axis, "beta": axis})


def path_of_training():
    steps = np.array([[1.5, 1.0], [1.0, 0.2], [0.0, 0.0]])
    losses = 0.5 + steps[:, 0] ** 2 + 2 * steps[:, 1] ** 2
    return bowl().assign(coordinates=(("step", "axis"), steps), in_plane_loss=("step", losses))


def everything():
    epochs = [{"epoch": e, "train_loss": 2 / (e + 1), "test_loss": 2.5 / (e + 1)} for e in (0, 1)]
    line = xr.Dataset({"loss": ("alpha", 0.5 + AXIS**2)}, {"alpha": AXIS})
    spectrum = xr.Dataset({"density": ("eigenvalue", np.exp(-(AXIS**2)))}, {"eigenvalue": AXIS})
    table = pd.DataFrame(
        {"value": [4.0, 7.5], "stderr": [np.nan, 0.25], "note": ["", "a bound"]},
        pd.Index(["lambda_max", "trace"], name="measure"),
    )
    table.attrs["num_samples"] = 77
    return {
        "surface": bowl(fingerprint="1a2b", seconds=3.5, norm="filter"),
        "line_train": line,
        "line_test": line + 1,
        "trajectory": path_of_training(),
        "hessian": eigenvalues(),
        "spectrum": spectrum,
        "sharpness": table,
        "metrics": epochs,
    }


@pytest.fixture
def page(tmp_path):
    """A function that writes a page and gives its text."""
    return lambda runs, **options: js.report(runs, tmp_path / "page.html", **options).read_text()


def lines(text, run=0):
    """The lines of the verdict on a run by their names: judgement, number, and the text that a reader sees."""
    card = re.findall(r"<article>.*?</article>", text, re.DOTALL)[run]
    found = {}
    pattern = r'<li data-line="(\w+)" data-judgement="(\w+)"(?: data-value="(\S+)")?>(.*?)</li>'
    for name, judgement, value, content in re.findall(pattern, card, re.DOTALL):
        words = html.unescape(re.sub(r"<[^>]+>", " ", content))
        found[name] = judgement, float(value) if value else None, " ".join(words.split())
    return found


def figures(text):
    """The figures of the page by their captions."""
    found = {}
    for figure in re.findall(r"<figure>(.*?)</figure>", text, re.DOTALL):
        caption = re.search(r"<figcaption>(.*?)</figcaption>", figure).group(1)
        for data in re.findall(r'<script type="application/json" id="[^"]+">(.*?)</script>', figure, re.DOTALL):
            found[html.unescape(caption)] = json.loads(data)
    return found


def numbers(value):
    """plotly writes large arrays in base64."""
    if isinstance(value, dict):
        flat = np.frombuffer(base64.b64decode(value["bdata"]), np.dtype(value["dtype"]))
        return flat.reshape([int(n) for n in value["shape"].split(",")]) if "shape" in value else flat
    return np.array(value, float)


def judged(text, name, judgement, value, **close):
    found = lines(text)[name]
    assert found[0] == judgement, found
    assert found[1] == pytest.approx(value, **close), found
    return found[2]


# The verdict.


def test_a_bowl_around_its_center(page):
    text = page({"bowl": {"surface": bowl()}})
    judged(text, "lowest", "good", 0)
    judged(text, "level", "good", 0, abs=1e-9)
    # alpha^2 + 2 beta^2 <= 0.5 is an ellipse with the half axes sqrt(0.5) and 0.5
    judged(text, "range", "good", np.pi * np.sqrt(0.5) * 0.5 / 16, rel=0.1)
    judged(text, "border", "good", (0.5 + 4) / 0.5)
    judged(text, "clipped", "good", 0)
    judged(text, "finite", "good", 0)
    assert lines(text)["seeds"][:2] == ("unknown", None)
    assert "jaxscape surface RUN --seed 1 --out RUN/surface_seed1.zarr" in lines(text)["seeds"][2]


def test_a_bowl_whose_lowest_point_is_elsewhere(page):
    text = page({"bowl": {"surface": bowl(a=0.3, b=0.1)}})
    told = judged(text, "lowest", "look", 0.3**2 + 2 * 0.1**2)
    assert "0.5 at (0.3, 0.1), 0.11 below the center, 0.61" in told
    assert f"slope {np.hypot(0.6, 0.4):.3g}" in judged(text, "level", "look", 3, rel=1e-6)  # steps of 0.1


def test_a_drop_within_three_standard_errors_is_noise(page):
    noisy = bowl(a=0.3).assign(loss_stderr=(("alpha", "beta"), np.full((41, 41), 0.031)))
    assert lines(page({"bowl": {"surface": noisy}}))["lowest"][0] == "look"  # exact: a drop is a drop
    assert lines(page({"bowl": {"surface": noisy.assign_attrs(rtol=0.1)}}))["lowest"][0] == "good"


def test_a_saddle_bends_down(page):
    saddle = bowl()
    saddle["loss"] = 5 + saddle.alpha**2 - saddle.beta**2
    text = page({"saddle": {"surface": saddle.assign_attrs(center_loss=5.0)}})
    assert "it bends down" in judged(text, "level", "look", np.inf)
    judged(text, "lowest", "look", 4)


@pytest.mark.parametrize(
    ("axis", "judgement", "cure"),
    [(AXIS / 4, "look", "--range -2 2"), (AXIS, "good", ""), (10 * AXIS, "look", "--range -0.25 0.25")],
)
def test_the_range_of_the_plane(page, axis, judgement, cure):
    result = bowl(axis=axis)
    text = page({"bowl": {"surface": result}})
    widths = np.full(41, axis[1] - axis[0])
    widths[[0, -1]] /= 2
    below = result.loss.values <= 1.0
    told = judged(text, "range", judgement, (np.outer(widths, widths) * below).sum() / np.ptp(axis) ** 2)
    assert cure in told
    edge = min(result.loss[0].min(), result.loss[:, 0].min()) / 0.5
    judged(text, "border", "good" if edge >= 2 else "look", float(edge))


def test_points_that_are_cut_off_or_not_finite_or_missing(page):
    values = bowl().loss.values.copy()
    values[0, :3] = np.nan, np.inf, -np.inf
    values[1, 1] = np.nan
    done = np.ones(values.shape, bool)
    done[1, 1] = False
    result = bowl().assign(loss=(("alpha", "beta"), values), done=(("alpha", "beta"), done))
    text = page({"bowl": {"surface": result}}, clip=1.0)
    told = judged(text, "clipped", "look", (values[np.isfinite(values)] > 1).mean())
    assert "are above 1" in told
    assert "3 of 1681 points are not; 1 are not computed yet" in judged(text, "finite", "look", 4)
    assert figures(text)["bowl: surface"]["data"][0]["zmax"] == 1.0


def test_seeds_are_compared_where_nothing_else_differs(page):
    other = bowl(direction_key="0,1")
    other["loss"] = other.loss + 0.4 * other.alpha**2
    stacked = np.stack([bowl().loss.values, other.loss.values])
    expected = stacked.std(0, ddof=1).mean() / stacked.mean()
    judged(page({"a": {"surface": bowl(), "surface_seed1": other}}), "seeds", "good", expected)
    for unlike in (bowl(), other.assign_attrs(norm="layer"), other.isel(alpha=slice(1, None)), bowl(base=0.7)):
        assert lines(page({"a": {"surface": bowl(), "b": unlike}}))["seeds"][:2] == ("unknown", None)


def test_repeats_of_one_call_are_seeds(page):
    def loss_fn(params, x):
        return x * (1 + params[0] ** 2 + 9 * params[1] ** 2)

    grid = js.Grid.plane((-1, 1, 3), (-1, 1, 3))
    result = js.surface(jnp.array([0.1, 0.2]), loss_fn, jnp.ones(3), grid=grid, num_seeds=3, progress=False)
    text = page({"a": {"surface": result}})
    told = lines(text)["seeds"]
    assert told[1] == pytest.approx(result.attrs["mean_spread"], rel=1e-5)
    assert "3 seeds differ" in told[2]
    assert list(figures(text)) == ["a: surface, seed 0, 3-D", *(f"a: surface, seed {i}" for i in range(3))]


def test_error_bars_are_relative_to_the_range(page):
    stderr = np.full((41, 41), 0.01)
    stderr[3, 4], stderr[5, 5] = 1.0, np.nan
    result = bowl().assign(loss_stderr=(("alpha", "beta"), stderr))
    judged(page({"a": {"surface": result}}), "errors", "look", 1 / 12)  # the loss spans 4 + 8
    judged(page({"a": {"surface": result.where(stderr < 0.5, 0.5)}}), "errors", "good", 0.5 / 12)


def test_what_the_plane_hides_is_read_at_the_center_of_the_map(page):
    text = page({"a": {"hessian": eigenvalues()}})
    judged(text, "bends_down", "look", 0.125)
    assert "1 in the plane, 4 in all directions" in judged(text, "hidden", "look", 0.25)
    assert "1 of 9 points did not" in judged(text, "converged", "look", 1)
    text = page({"a": {"hessian": eigenvalues(min_eigenvalue=0.1, plane_max_eigenvalue=3.0)}})
    judged(text, "bends_down", "good", 0)
    judged(text, "hidden", "good", 0.75)


def quadratic(params, x):
    return x * (1 + (params**2).sum())


def centered(params, x):
    return (x - x.mean() + params.sum()) ** 2  # of the batch


def test_the_gradient_is_measured_where_there_are_params(page):
    problem = {"params": jnp.array([0.3, 0.0]), "loss_fn": quadratic, "data": jnp.ones(4)}
    text = page({"a": {"hessian": eigenvalues(max_eigenvalue=2.0), **problem}})
    told = judged(text, "gradient", "look", 0.6**2 / (2 * 2.0) / 1.09, rel=1e-5)
    assert "norm 0.6, at the loss 1.09" in told
    judged(text, "batch", "good", 1)
    measures = pd.DataFrame({"value": [2.0]}, pd.Index(["lambda_max"], name="measure"))
    judged(page({"a": {"sharpness": measures, **problem}}), "gradient", "look", 0.36 / 4 / 1.09, rel=1e-5)
    assert lines(page({"a": problem}))["gradient"][:2] == ("unknown", None)
    assert "lambda_max is not measured" in lines(page({"a": problem}))["gradient"][2]
    judged(page({"a": {**problem, "params": jnp.zeros(2)}}), "gradient", "good", 0)
    assert "not measured" in lines(page({"a": problem}, gradient=False))["gradient"][2]


@pytest.mark.check
def test_a_loss_that_depends_on_the_batch_is_found(page):
    problem = {"params": jnp.ones(2), "loss_fn": centered, "data": jnp.arange(40.0)}
    text = page({"a": problem})
    judged(text, "batch", "look", 0)
    assert lines(text)["gradient"][:2] == ("unknown", None)


def test_without_results_nothing_is_measured(page):
    told = lines(page({"a": {"metrics": [{"epoch": 0, "train_loss": 1.0}]}}))
    assert len(told) == 13
    for name, (judgement, value, words) in told.items():
        assert (judgement, value) == ("unknown", None), name
        assert "not measured Try: jaxscape " in words or name in ("gradient", "batch")
    assert "not measured Give params, loss_fn and data to js.report." in told["gradient"][2]


# The page.


def test_every_result_is_a_picture_with_its_numbers(page):
    text = page({"a": everything()})
    drawn = figures(text)
    assert list(drawn) == [
        *("a", "a: line", "a: surface, 3-D", "a: surface", "a: trajectory, 3-D", "a: trajectory", "a: hessian"),
        "a: spectrum",
    ]
    np.testing.assert_allclose(numbers(drawn["a: surface, 3-D"]["data"][0]["z"]), bowl().loss.values.T)
    np.testing.assert_allclose(numbers(drawn["a: surface"]["data"][0]["z"]), bowl().loss.values.T)
    train, test = drawn["a: line"]["data"]
    assert (train["name"], test["name"]) == ("train", "test")
    np.testing.assert_allclose(numbers(test["y"]) - numbers(train["y"]), 1)
    curve = next(trace for trace in drawn["a"]["data"] if trace["name"] == "train")
    np.testing.assert_allclose(numbers(curve["y"]), [2.0, 1.0])
    for caption in ("a: trajectory, 3-D", "a: trajectory"):
        path = drawn[caption]["data"][-1]
        assert path["meta"] == "path"
        np.testing.assert_allclose(numbers(path["x"]), [1.5, 1.0, 0.0])
    np.testing.assert_allclose(numbers(drawn["a: hessian"]["data"][0]["z"]), eigenvalues().ratio.values.T)
    np.testing.assert_allclose(numbers(drawn["a: spectrum"]["data"][0]["y"]), np.exp(-(AXIS**2)))
    assert '<th scope="row">trace</th><td>7.5 ± 0.25 (a bound)</td>' in text
    assert "<tr><td>fingerprint</td><td>1a2b</td></tr>" in text
    assert "<tr><td>num_samples</td><td>77</td></tr>" in text
    assert "points that did not converge: 1" in text


def test_runs_share_their_scales(page):
    higher = {**everything(), "surface": bowl(base=1.5), "line_train": everything()["line_train"] + 3}
    drawn = figures(page({"a": everything(), "b": higher}))
    for caption in ("surface", "surface, 3-D"):
        ends = [drawn[f"{run}: {caption}"]["data"][0] for run in "ab"]
        low, high = ("cmin", "cmax") if "3-D" in caption else ("zmin", "zmax")
        assert {(end[low], end[high]) for end in ends} == {(0.5, 1.5 + 4 + 8)}
    assert drawn["a: line"]["layout"]["yaxis"]["range"] == drawn["b: line"]["layout"]["yaxis"]["range"]
    assert drawn["a: spectrum"]["layout"]["xaxis"]["range"] == [-2, 2]


def test_curves_show_the_columns_that_are_there(page):
    errors = [{"epoch": 0, "test_error": 40.0}, {"epoch": 1, "test_error": None, "lr": "cosine"}]
    drawn = figures(page({"a": everything(), "b": {"metrics": errors}, "c": {"metrics": [{"epoch": 0}]}}))
    (trace,) = drawn["b"]["data"]
    assert trace["name"] == "test"
    np.testing.assert_array_equal(numbers(trace["y"]), [40.0, np.nan])
    assert drawn["b"]["layout"]["yaxis"]["title"]["text"] == "error (%)"
    assert "c" not in drawn


def test_a_steep_surface_has_logarithmic_heights(page):
    steep = bowl()
    steep["loss"] = np.exp(3 * steep.loss)
    text = page({"a": {"surface": steep}})
    expected = np.log(steep.loss.values.T + 0.1)
    np.testing.assert_allclose(numbers(figures(text)["a: surface"]["data"][0]["z"]), expected)
    assert "heights are ln(z + 0.1)" in text


def test_what_cannot_be_drawn_is_said(page):
    nothing = bowl().where(False)
    text = page({"a": {"surface": nothing, "trajectory": path_of_training().isel(alpha=[20])}})
    assert '<figcaption>a: surface</figcaption><p class="note">no point is finite</p>' in text
    assert "expected at least 2 x 2 to draw a surface" in text
    assert lines(text)["lowest"][:2] == ("unknown", None)
    thin = lines(page({"a": {"surface": bowl().isel(beta=[20])}}))["range"]
    assert thin[:2] == ("unknown", None)
    assert "fewer than 2 x 2 points" in thin[2]


def test_the_page_is_plain_html_without_a_network(page):
    title = "</script><script>alert(1)</script> & <b>"
    results = {**everything(), "surface": bowl(norm="<i>", title=title)}
    text = page({title: results})
    assert text.startswith('<!DOCTYPE html>\n<html lang="en">')
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in text
    assert "<noscript>" in text
    assert "default-src 'none'" in text
    assert not re.findall(r"<(?:script|link|img|iframe)[^>]*\b(?:src|href)\s*=", text)
    assert "alert(1)</script>" not in text
    assert f"<title>Loss landscapes: {html.escape(title)}</title>" in text
    assert text.count("<script") == text.count("</script>")
    assert "<title>Mine</title>" in page({"a": everything()}, title="Mine")


# Where results come from.


def test_a_folder_gives_what_it_holds(page, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    results = everything()
    results.pop("sharpness").to_csv(folder / "sharpness.csv")
    (folder / "metrics.csv").write_text("epoch,train_loss,test_loss\n0,2,2.5\n1,1,1.25\n")
    del results["metrics"]
    for name, result in results.items():
        save(result, folder / f"{name}.zarr")
    save(xr.Dataset({"other": ("x", [1.0])}), folder / "other.zarr")
    (folder / "broken.zarr").mkdir()
    text = page(folder)
    expected = figures(page({"mine": everything()}))
    for caption, figure in figures(text).items():
        for trace, other in zip(figure["data"], expected[caption]["data"], strict=True):
            np.testing.assert_allclose(numbers(trace["y"]), numbers(other["y"]))
    assert len(expected) == len(figures(text))
    assert "other.zarr is not shown: it is not a surface" in text
    assert "broken.zarr cannot be read: " in text
    assert f"jaxscape report {folder} --gradient" in text
    other = tmp_path / "sub" / "mine"
    other.mkdir(parents=True)
    save(bowl(), other / "surface.zarr")
    (other / "sharpness.csv").write_text("measure\nx\n")
    both = page([folder, str(other)])
    assert f"<h3>{folder}</h3>" in both  # two folders of one name
    assert f"<h3>{other}</h3>" in both
    assert "sharpness.csv is not shown: it is no table of measures" in both


@pytest.mark.parametrize(
    ("runs", "error", "message"),
    [
        ({}, ValueError, "runs is empty, expected at least one run"),
        ("nowhere", ValueError, r"runs\['nowhere'\] is nowhere, which is no folder"),
        ("empty", ValueError, r"runs\['empty'\] is empty, which has neither results \(\*\.zarr\) nor metrics\.csv"),
        (["mine", "mine"], ValueError, r"runs has \['mine', 'mine'\], expected each run once"),
        ([3], TypeError, r"runs\[0\] is int, expected the folder of a run, a run of js\.load_run"),
        (3, TypeError, "runs is int, expected the folder of a run"),
        ({"a": None}, TypeError, r"runs\['a'\] is NoneType, expected the folder of a run"),
        (bowl(), TypeError, "runs is Dataset, which has no title; expected {title: {name: result}}"),
        ([{"surface": bowl()}], TypeError, r"runs\[0\] is dict, which has no title"),
        ({"surface": bowl()}, TypeError, r"runs\['surface'\] is Dataset, expected a mapping"),
        ({"a": {"b": 3}}, TypeError, r"runs\['a'\]\['b'\] is int, expected a Dataset; other keys are 'metrics'"),
        ({"a": {"b": bowl().rename(loss="x")}}, ValueError, r"\['b'\] has the variables \['x'\], expected a surface"),
        ({"a": {"sharpness": 3}}, TypeError, r"\['sharpness'\] is int, expected the table of js\.sharpness"),
        (
            {"a": {"sharpness": pd.DataFrame({"x": [1]})}},
            ValueError,
            r"\['sharpness'\] has the columns \['x'\], expected 'value'",
        ),
        ({"a": {"metrics": [3]}}, TypeError, r"\['metrics'\] is no list of records with the key 'epoch'"),
        ({"a": {"params": 3}}, ValueError, r"has params alone, expected 'params', 'loss_fn' and 'data' together"),
    ],
)
def test_mistakes_are_named_before_a_file_is_written(tmp_path, monkeypatch, runs, error, message):
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "mine"):
        (tmp_path / name).mkdir()
    with pytest.raises(error, match=message):
        js.report(runs, "out/page.html")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"path": "page.pdf"}, ValueError, r"path is 'page\.pdf', expected a name that ends with \.html or \.htm"),
        ({"path": 3}, TypeError, "path is int, expected the path of a file"),
        ({"title": 3}, TypeError, "title is int, expected a text"),
        ({"clip": "x"}, TypeError, "clip is 'x', expected a finite number"),
        ({"gradient": "x"}, TypeError, "gradient is 'x', expected True or False"),
    ],
)
def test_options_are_checked(options, error, message):
    with pytest.raises(error, match=message):
        js.report({"a": {"surface": bowl()}}, **options)


def test_plotly_that_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly", None)
    with pytest.raises(ImportError, match="needs plotly, which is not installed"):
        js.report({"a": {"surface": bowl()}}, tmp_path / "page.html")
