"""The tolerance mode: the regression estimator against its textbook form, calibration over seeds, its limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxscape as js
from jaxscape import engine
from jaxscape.engine._regression import Sample
from tests.problems import classification_data, mlp_loss, mlp_params

PARAMS, DATA = mlp_params(), classification_data(examples=4000)
DIRECTIONS = js.random_directions(0, PARAMS)
GRID = js.Grid.plane((-1, 1, 9), (-1, 1, 9))


def surface(loss=mlp_loss, **options):
    options = {"directions": DIRECTIONS, "grid": GRID, "batch_size": 64, "progress": False} | options
    return js.surface(PARAMS, loss, DATA, **options)


@pytest.fixture(scope="module")
def exact():
    return surface()


# ---- the estimator


def sample(rng, n, total=500, k=2, noise=0.1):
    """Two anchors and a point that nearly is a combination of them; n of the examples are seen."""
    anchors = rng.normal(3, 2, (k, total)).astype(np.float32)
    y = (0.5 * anchors[0] - 2 * anchors[-1] + 7 + noise * rng.normal(size=total)).astype(np.float32)
    exact = np.array([True] * k + [False])
    result = Sample(anchors, exact, np.array([[0, 1][:k]] * (k + 1)))
    order = rng.permutation(total)[:n]
    for rows in np.array_split(order, 3):  # in three rounds
        result.add(np.array([k]), rows, y[None, rows])
    result.solve(np.array([k]))
    return anchors, y, order, result


@pytest.mark.parametrize("n", [10, 100, 499])
def test_regression_estimator_in_textbook_form(n):
    anchors, y, order, result = sample(np.random.default_rng(n), n)
    x = anchors.astype(np.float64)
    design = np.column_stack([np.ones(n), *x[:, order]])
    slopes, *_ = np.linalg.lstsq(design, y[order].astype(np.float64), rcond=None)
    mean = slopes @ [1, *x.mean(1)]
    residuals = y[order] - design @ slopes
    missed = x.mean(1) - x[:, order].mean(1)
    scatter = np.cov(x[:, order], ddof=1) * (n - 1)
    variance = residuals @ residuals / (n - 3) * (1 / n - 1 / 500 + missed @ np.linalg.solve(scatter, missed))
    np.testing.assert_allclose(result.mean[2], mean, rtol=1e-6)
    np.testing.assert_allclose(result.stderr[2], np.sqrt(variance), rtol=1e-4)
    assert result.counts[2] == n


def test_all_examples_are_exact_whatever_the_regression_says():
    _, y, _, result = sample(np.random.default_rng(0), 500)
    np.testing.assert_allclose(result.mean[2], y.mean(dtype=np.float64), rtol=1e-7)
    assert result.stderr[2] == 0


def test_plain_mean_where_anchors_do_not_help():
    rng = np.random.default_rng(0)
    anchors = np.ones((1, 300), np.float32)  # constant: tells nothing
    result = Sample(anchors, np.array([True, False]), np.array([[0], [0]]))
    y = rng.normal(5, 2, (1, 300)).astype(np.float32)
    result.add(np.array([1]), np.arange(100), y[:, :100])
    result.solve(np.array([1]))
    np.testing.assert_allclose(result.mean[1], y[0, :100].mean(), rtol=1e-6)
    np.testing.assert_allclose(result.stderr[1], y[0, :100].std(ddof=1) * np.sqrt(1 / 100 - 1 / 300), rtol=1e-6)


def test_examples_for_inverts_the_standard_error():
    *_, result = sample(np.random.default_rng(0), 100)
    at = np.array([2])
    np.testing.assert_allclose(result.examples_for(at, 0.0, result.stderr[2]), 100, rtol=1e-10)
    np.testing.assert_allclose(result.examples_for(at, 0.0, result.stderr[2] / 2), 250, rtol=1e-10)  # not 400: N is 500
    assert result.examples_for(at, 0.0, 0.0) == 500


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite_values_are_a_result(bad):
    anchors = np.random.default_rng(0).normal(size=(2, 50)).astype(np.float32)
    anchors[1, 3] = bad
    result = Sample(anchors, np.array([True, True, False, False]), np.array([[0, 1]] * 4))
    assert np.isnan(result.mean[1]) if np.isnan(bad) else result.mean[1] == bad
    values = np.stack([anchors[0], anchors[0]])
    values[1, 7] = bad
    result.add(np.array([2, 3]), np.arange(25), values[:, :25])
    result.solve(np.array([2, 3]))
    np.testing.assert_allclose(result.mean[2], anchors[0].mean(dtype=np.float64), rtol=1e-6)  # by the finite anchor
    np.testing.assert_equal(result.mean[3], bad)
    assert np.isnan(result.stderr[3])


def test_huge_and_tiny_losses_side_by_side():
    rng = np.random.default_rng(0)
    base = rng.lognormal(size=400).astype(np.float32)
    anchors = np.stack([base, 1e20 * base])
    y = (3e10 * base * (1 + 0.01 * rng.normal(size=400))).astype(np.float32)
    result = Sample(anchors, np.array([True, True, False]), np.array([[0, 1]] * 3))
    result.add(np.array([2]), np.arange(200), y[None, :200])
    result.solve(np.array([2]))
    np.testing.assert_allclose(result.mean[2], y.mean(dtype=np.float64), rtol=5e-3)


# ---- anchors


def test_anchors_cover_the_grid_with_both_ends():
    mask = engine.anchors((31, 6, 1), 7)
    rows = [np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis))) for axis in range(3)]
    np.testing.assert_array_equal(rows[0], [0, 6, 12, 18, 24, 30])
    np.testing.assert_array_equal(rows[1], [0, 5])
    np.testing.assert_array_equal(rows[2], [0])
    assert mask.sum() == 12


def test_the_stride_grows_with_tolerance_and_data():
    assert engine.anchor_stride(20_000, 0.02, (31, 31)) > engine.anchor_stride(20_000, 0.01, (31, 31))
    assert engine.anchor_stride(50_000, 0.01, (51, 51)) > engine.anchor_stride(20_000, 0.01, (31, 31))
    assert engine.anchor_stride(10, 0.0, (5,)) == 2


# ---- surfaces


def test_the_tolerance_holds_with_few_examples(exact):
    ds = surface(rtol=0.01)
    error = np.abs(ds.loss / exact.loss - 1).values
    assert (ds.loss_stderr <= 0.01 * ds.loss).all()
    assert (error < 0.02).mean() >= 0.95
    assert error.max() < 0.04
    assert ds.num_examples.mean() < 0.5 * 4000
    assert (ds.num_examples <= 4000).all()
    anchors = ds.num_examples == 4000
    np.testing.assert_allclose(ds.loss.values[anchors], exact.loss.values[anchors], rtol=1e-10)
    assert (ds.loss_stderr.values[anchors] == 0).all()
    np.testing.assert_allclose(ds.attrs["center_loss"], exact.attrs["center_loss"], rtol=1e-10)
    assert (ds.attrs["rtol"], ds.attrs["seed"]) == (0.01, 0)


@pytest.mark.slow
def test_calibration_over_seeds(exact):
    inside, count = {"loss": 0, "accuracy": 0}, 0
    for seed in range(25):
        ds = surface(rtol=0.02, seed=seed)
        sampled = (ds.num_examples < 4000).values
        count += sampled.sum()
        for name in inside:
            error = np.abs(ds[name] - exact[name]).values[sampled]
            inside[name] += (error < 2 * ds[f"{name}_stderr"].values[sampled]).sum()
    assert count > 1000
    # 95.4 % for a normal estimate; points of one seed share their examples, so the share itself is known to 2 or 3 %.
    assert 0.92 < inside["loss"] / count < 0.99
    assert 0.92 < inside["accuracy"] / count < 0.99


def test_zero_tolerance_is_exact(exact):
    ds = surface(rtol=0.0)
    np.testing.assert_allclose(ds.loss, exact.loss, rtol=1e-10)
    np.testing.assert_allclose(ds.accuracy, exact.accuracy, rtol=1e-10)
    assert (ds.num_examples == 4000).all()


def test_absolute_tolerance_spares_work():
    assert surface(rtol=1e-9, atol=0.05).num_examples.sum() < 0.5 * surface(rtol=1e-9).num_examples.sum()


def test_a_seed_gives_the_same_surface_on_any_mesh():
    one = surface(rtol=0.05, seed=3, mesh=jax.sharding.Mesh(np.array(jax.devices()[:1]), ("points",)))
    eight = surface(rtol=0.05, seed=3)
    np.testing.assert_allclose(one.loss, eight.loss, rtol=1e-10)
    np.testing.assert_array_equal(one.num_examples, eight.num_examples)
    assert not np.array_equal(eight.loss, surface(rtol=0.05, seed=4).loss)


def test_nonfinite_points_leave_the_rest_unharmed():
    def loss(params, batch):
        return {"loss": jnp.log(params["a"]) + 0 * batch + jnp.where(params["a"] > 2, jnp.inf, 1.0)}

    grid = js.Grid.line(-2, 3, 11)
    options = {"directions": {"a": jnp.ones(())}, "grid": grid, "progress": False}
    ds = js.surface({"a": jnp.ones(())}, loss, jnp.ones(1000), rtol=0.1, **options)
    whole = js.surface({"a": jnp.ones(())}, loss, jnp.ones(1000), **options)
    np.testing.assert_allclose(ds.loss, whole.loss, rtol=1e-6)
    assert ds.attrs["nonfinite_points"] == whole.attrs["nonfinite_points"] > 3


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"rtol": -0.1}, "rtol is -0.1, expected a number of at least 0"),
        ({"rtol": np.nan}, "rtol is nan"),
        ({"rtol": 0.1, "atol": np.inf}, "atol is inf"),
        ({"rtol": 0.1, "loss": lambda p, b: mlp_loss(p, b)["loss"].mean()}, "rtol needs the loss of each example"),
        ({"atol": 0.1}, "atol is 0.1, but rtol is None"),
    ],
)
def test_bad_tolerances(options, match):
    with pytest.raises(ValueError, match=match):
        surface(**options)
