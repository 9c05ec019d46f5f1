"""Histograms and norms of weights, and their pictures."""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest

import jaxscape as js

RNG = np.random.default_rng(0)
PARAMS = {"b": jnp.ones(3), "v": jnp.asarray(RNG.normal(size=(4, 5))), "w": jnp.asarray(RNG.normal(size=(2, 3)))}
BOTH = np.concatenate([np.ravel(PARAMS[name]) for name in "vw"])


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def test_counts_equal_numpy():
    result = js.weight_histogram(PARAMS, bins=11)
    assert result.leaf.values.tolist() == ["all", "['v']", "['w']"]  # without the bias
    edges = np.append(result.left, result.right[-1])
    np.testing.assert_allclose(edges, np.linspace(-np.abs(BOTH).max(), np.abs(BOTH).max(), 12))
    np.testing.assert_array_equal(result["count"].sel(leaf="all"), np.histogram(BOTH, edges)[0])
    np.testing.assert_array_equal(result["count"].sel(leaf="['w']"), np.histogram(PARAMS["w"], edges)[0])
    assert result["size"].values.tolist() == [26, 20, 6]
    np.testing.assert_allclose(result.norm.sel(leaf="all"), np.linalg.norm(BOTH))
    assert (result["count"].sum("weight") == result["size"]).all()
    assert js.weight_histogram(PARAMS, ignore=None)["size"].values.tolist() == [29, 3, 20, 6]


def test_weights_that_are_not_shown_are_counted():
    params = {"w": jnp.array([[0.0, 5.0], [jnp.nan, jnp.inf]])}
    result = js.weight_histogram(params, bins=[-1, 0.5, 1])
    assert result["count"].sel(leaf="all").values.tolist() == [1, 0]
    assert (int(result.outside[0]), int(result.nonfinite[0])) == (1, 2)
    ax = js.plot.weight_histogram({"small": result})
    notes = " ".join(text.get_text() for text in ax.texts)
    assert "small: 1 of 4 weights outside of the bins" in notes
    assert "small: 2 of 4 weights not finite" in notes


def test_norms_of_checkpoints_and_of_a_run(run):
    checkpoints = [PARAMS, jax.tree.map(lambda x: 2 * x, PARAMS)]
    result = js.weight_norms(checkpoints)
    assert result.norm.dims == ("epoch", "leaf")
    np.testing.assert_allclose(result.norm[1], 2 * result.norm[0])
    np.testing.assert_allclose(result.norm.sel(leaf="all")[0], np.sqrt((BOTH**2).sum() + 3))
    of_run = js.weight_norms(run)
    of_checkpoints = js.weight_norms(list(run.checkpoints))
    np.testing.assert_allclose(of_run.norm.sel(leaf="all"), of_checkpoints.norm.sel(leaf="all"), rtol=1e-5)
    steps = -(-len(run.data.labels) // run.config["batch_size"])
    assert of_run.iteration.values.tolist() == [steps * epoch for epoch in of_run.epoch.values]


def test_histograms_are_densities():
    result = js.weight_histogram(PARAMS, bins=20)
    ax = js.plot.weight_histogram({"SGD": result, "Adam": js.weight_histogram(PARAMS, bins=10)})
    values, edges, _ = ax.patches[0].get_data()
    np.testing.assert_allclose((values * np.diff(edges)).sum(), 1)
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert [label.split(":")[0] for label in labels] == ["SGD", "Adam"]
    assert ax.get_ylabel() == "density"
    assert js.plot.weight_histogram(result, leaf="['w']", log=True).get_yscale() == "log"


def test_a_few_large_weights_leave_no_empty_axis():
    weights = np.append(np.random.default_rng(0).normal(size=10_000), 100)
    ax = js.plot.weight_histogram(js.weight_histogram({"w": jnp.asarray(weights).reshape(1, -1)}, bins=2001))
    low, high = ax.get_xlim()
    assert -5 < low < -3
    assert 3 < high < 5
    assert f"{(np.abs(weights) > high).sum()} of 10001 weights beyond" in "".join(text.get_text() for text in ax.texts)


def test_bins_that_hold_no_weight():
    ax = js.plot.weight_histogram(js.weight_histogram({"w": jnp.ones((2, 3))}, bins=[5, 6, 8]))
    assert ax.get_xlim() == (5, 8)
    assert "6 of 6 weights outside of the bins" in "".join(text.get_text() for text in ax.texts)


def test_norms_are_drawn_against_epochs_and_iterations(run):
    result = js.weight_norms(run)
    for against in ("epoch", "iteration"):
        ax = js.plot.weight_norms({"a": result, "b": result}, against=against)
        assert ax.get_xlabel() == against
        np.testing.assert_array_equal(ax.lines[0].get_xdata(), result[against])
        np.testing.assert_array_equal(ax.lines[0].get_ydata(), result.norm.sel(leaf="all"))
    ax = js.plot.weight_norms(result, layers=True)
    assert len(ax.lines) == result.sizes["leaf"]
    assert ax.get_yscale() == "log"


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: js.weight_histogram(PARAMS, bins=0), ValueError, "bins is 0"),
        (lambda: js.weight_histogram(PARAMS, bins=[1, 1]), ValueError, r"bins is \[1, 1\], expected a number of bins"),
        (lambda: js.weight_histogram({"b": jnp.ones(3)}), ValueError, "leaves no leaf of params"),
        (lambda: js.weight_norms(3), TypeError, "source is int, expected a run of js.load_run"),
        (lambda: js.weight_norms([]), ValueError, "source is empty"),
        (lambda: js.weight_norms([PARAMS, {"b": jnp.ones(3)}]), ValueError, r"source\[1\] has no leaf"),
        (lambda: js.plot.weight_histogram(js.weight_norms([PARAMS])), ValueError, "has no count over leaf"),
        (lambda: js.plot.weight_histogram(js.weight_histogram(PARAMS), leaf="x"), ValueError, "leaf is 'x', expected"),
        (lambda: js.plot.weight_norms(js.weight_histogram(PARAMS)), ValueError, "has no norm over epoch and leaf"),
        (lambda: js.plot.weight_norms(js.weight_norms([PARAMS]), against="time"), ValueError, "against is 'time'"),
        (lambda: js.plot.weight_norms(js.weight_norms([PARAMS]), against="iteration"), ValueError, "no iterations"),
        (lambda: js.plot.weight_norms([js.weight_norms([PARAMS])] * 2, layers=True), ValueError, "with 2 results"),
    ],
    ids=range(12),
)
def test_mistakes_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_run_without_norms(run, tmp_path):
    with pytest.raises(ValueError, match=r"has no weight_norms.csv"):
        js.weight_norms(type(run)(**{**run.__dict__, "path": tmp_path}))
