"""Minimizers under several normalizations: separate calls give the same, and a rescaling shows what each is for."""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest

import jaxscape as js
from jaxscape import trees

RNG = np.random.default_rng(0)
A = {"w1": jnp.asarray(RNG.normal(size=(3, 5))), "w2": jnp.asarray(RNG.normal(size=(5, 2)))}
B = {"w1": A["w1"] / 4, "w2": 4 * A["w2"]}  # the same function
DATA = RNG.normal(size=(6, 3))
GRID = js.Grid.line(-1, 1, 5)


def loss(p, x):
    return (jax.nn.relu(x @ p["w1"]) @ p["w2"]).sum(-1) ** 2


@pytest.fixture(scope="module")
def result():
    return js.normalizations({"a": A, "b": B}, loss, DATA, grid=GRID, seed=3, progress=False)


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def test_it_is_what_separate_calls_give(result):
    assert result.loss.dims == ("norm", "minimizer", "alpha")
    assert result.norm.values.tolist() == ["none", "layer", "filter"]
    for norm in ("layer", "filter"):
        for name, params in (("a", A), ("b", B)):
            directions = js.random_directions(3, params, num=1, norm=norm)
            one = js.surface(params, loss, DATA, directions=directions, grid=GRID, progress=False)
            np.testing.assert_array_equal(result.loss.sel(norm=norm, minimizer=name), one.loss)
    np.testing.assert_allclose(result.center_loss, float(loss(A, DATA).mean()))
    assert (result.nonfinite_points == 0).all()


def test_without_normalization_all_displacements_are_equal(result):
    filtered = [js.random_directions(3, params, num=1)[0] for params in (A, B)]
    length = np.mean([float(trees.norm(direction)) for direction in filtered])
    np.testing.assert_allclose(result.attrs["unnormalized_length"], length)
    raw = js.random_directions(3, A, num=1, norm=None)[0]
    factor = length / float(trees.norm(raw))
    for name, params in (("a", A), ("b", B)):
        moved = jax.tree.map(lambda w, d: w + 0.5 * factor * d, params, raw)
        value = result.loss.sel(norm="none", minimizer=name, alpha=0.5)
        np.testing.assert_allclose(value, float(loss(moved, DATA).mean()))


def test_filter_normalization_alone_sees_that_the_function_is_the_same(result):
    differences = abs(result.loss.sel(minimizer="a") / result.loss.sel(minimizer="b") - 1).max("alpha")
    assert differences.sel(norm="filter") < 1e-6
    assert differences.sel(norm="layer") < 1e-6
    assert differences.sel(norm="none") > 0.1


def test_a_store_goes_on(tmp_path, result):
    options = {"grid": GRID, "seed": 3, "progress": False, "store": tmp_path / "s"}
    first = js.normalizations({"a": A}, loss, DATA, norms=["filter"], **options)
    both = js.normalizations({"a": A, "b": B}, loss, DATA, **options)
    assert len(list((tmp_path / "s").glob("*.zarr"))) == 6
    np.testing.assert_array_equal(both.loss, result.loss)
    np.testing.assert_array_equal(first.loss[0, 0], result.loss.sel(norm="filter", minimizer="a"))


def test_lines_share_one_scale(result):
    figure = js.plot.normalizations(result)
    assert [ax.get_title() for ax in figure.axes[:3]] == [
        "no normalization", "layer normalization", "filter normalization"
    ]  # fmt: skip
    assert len({ax.get_ylim() for ax in figure.axes[:3]}) == 1
    assert [[text.get_text() for text in legend.get_texts()] for legend in figure.legends] == [["a", "b"]]
    assert not any(ax.get_legend() for ax in figure.axes)
    for ax, norm in zip(figure.axes, result.norm.values, strict=False):
        for drawn, name in zip(ax.lines, "ab", strict=True):
            np.testing.assert_array_equal(drawn.get_ydata(), result.loss.sel(norm=norm, minimizer=name))


def test_planes_are_in_rows():
    plane = js.Grid.plane((-1, 1, 3), (-1, 1, 3))
    result = js.normalizations({"a": A, "b": B}, loss, DATA, norms=["layer", "filter"], grid=plane, progress=False)
    figure = js.plot.normalizations(result, "heatmap")
    titles = [ax.get_title() for ax in figure.axes[:4]]
    assert titles == [f"{name}, {norm} normalization" for norm in ("layer", "filter") for name in "ab"]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"minimizers": [A]}, TypeError, "minimizers is list, expected a mapping"),
        ({"minimizers": {}}, ValueError, "minimizers is empty"),
        ({"norms": ()}, ValueError, "norms is empty"),
        ({"norms": ("filter", "filter")}, ValueError, "expected each norm once"),
        ({"norms": ("max",)}, ValueError, "an entry of norms is 'max'"),
        ({"minimizers": {"a": A, "b": {"w1": A["w1"]}}}, ValueError, r"minimizers\['b'\] has no leaf"),
        ({"minimizers": {1: A, "1": A}}, ValueError, r"the names \[1, '1'\], which are not all different as text"),
        ({"directions": None}, TypeError, "directions is no option of js.normalizations, expected random ones of seed"),
        ({"norm": "filter"}, TypeError, "norm is no option of js.normalizations, expected norms"),
    ],
    ids=range(9),
)
def test_mistakes_are_named(change, error, message):
    arguments = {"minimizers": {"a": A}, "norms": ("filter",), "grid": GRID, "progress": False} | change
    with pytest.raises(error, match=message):
        js.normalizations(arguments.pop("minimizers"), loss, DATA, **arguments)


def test_other_results_are_refused_by_the_plot(result):
    with pytest.raises(ValueError, match="result has no dimension minimizer"):
        js.plot.normalizations(result.isel(minimizer=0))
    with pytest.raises(TypeError, match="result is int"):
        js.plot.normalizations(3)
