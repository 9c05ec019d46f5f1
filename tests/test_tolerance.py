"""The tolerance mode: the regression estimator against its textbook form, calibration over seeds, its limits."""

import functools
import tracemalloc
import warnings
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
from scipy.spatial import cKDTree

import jaxscape as js
from jaxscape import engine
from jaxscape.engine import _levels, _regression, _source
from jaxscape.engine._draw import draw, importance
from jaxscape.engine._estimates import Estimates
from jaxscape.engine._sampling import Sampling, examples_for
from jaxscape.sweep import _blocks
from tests.damage import KINDS, damages
from tests.problems import classification_data, mlp_loss, mlp_params, slow_but, slow_unless

PARAMS, DATA = mlp_params(), classification_data(examples=4000)
DIRECTIONS = js.random_directions(0, PARAMS)
GRID = js.Grid.plane((-1, 1, 9), (-1, 1, 9))


def surface(loss=mlp_loss, **options):
    options = {"directions": DIRECTIONS, "grid": GRID, "batch_size": 64, "progress": False} | options
    return js.surface(PARAMS, loss, DATA, **options)


@pytest.fixture(scope="module")
def exact():
    return surface()


# ---- stored values in the place of a loss


class Stored:
    """Values of single examples at points, as a `Source` gives them."""

    def __init__(self, metrics, coords, batch=32):
        self.metrics, self.coords = metrics, coords
        examples = metrics["loss"].shape[1]
        self.counts = np.append(np.arange(0, examples, batch), examples)
        self.order = np.arange(examples)

    def rearrange(self, draw):
        self.order = draw.order

    def values(self, rows, first, last):
        chosen = self.order[self.counts[first] : self.counts[last]]
        yield rows, {name: values[rows][:, chosen] for name, values in self.metrics.items()}


def sampled(metrics, coords, shape, rtol, seed, atol=0.0):
    """Estimates, and how many examples each point took."""
    levels = engine.levels(shape).ravel()
    levels[(coords == 0).all(1)] = 0
    sampling = Sampling(Stored(metrics, coords), levels, {"loss": rtol}, {"loss": atol})
    finished = np.concatenate(list(sampling.run(seed)))
    np.testing.assert_array_equal(np.sort(finished), np.arange(len(coords)))
    return sampling.estimates, sampling.counts


def plane(points=7):
    axis = np.linspace(-1, 1, points)
    return np.stack([x.ravel() for x in np.meshgrid(axis, axis, indexing="ij")], 1), (points, points)


COORDS, SHAPE = plane()
W, V = COORDS[:, :1], COORDS[:, 1:]
NORMAL = np.random.default_rng(0).normal(size=(4, 10_000))
TAIL = 1 + np.random.default_rng(1).pareto(1.2, 10_000)
ONE = np.arange(10_000) == 1234
KINDS_OF_LOSS = {
    "error rate": {
        "loss": np.exp(0.2 * NORMAL[0] + 0.1 * W) + 0 * V,
        "error": (NORMAL[0] + 0.5 * W + 0.1 * V > 2.6).astype(float),
    },
    "one in 1,000 examples carries the loss": {
        "loss": np.where(NORMAL[0] > 3, 100 * (1 + W**2 + V**2 * NORMAL[0]), 0.0)
    },
    "one in 10,000": {"loss": np.where(ONE, 1e4 * (1 + W**2 + 2 * V**2), 1 + 0.1 * NORMAL[0] * W)},
    "Pareto tail": {
        "loss": TAIL * (1 + (W - 0.3 * NORMAL[1]) ** 2 + (V - 0.5 * NORMAL[2]) ** 2 * np.cos(NORMAL[1] + W))
    },
    "0/1 loss": {"loss": (NORMAL[1] * (0.3 + W) + NORMAL[2] * V + NORMAL[3] > 1.5).astype(float)},
    "rare 0/1 loss": {"loss": (NORMAL[1] * W + NORMAL[2] * V + 2 * NORMAL[3] > 6).astype(float)},
    "hardly any error": {
        "loss": np.exp(0.2 * NORMAL[0] + 0.1 * W) + 0 * V,
        "error": (NORMAL[1] * np.sin(5 * W) + NORMAL[2] * np.sin(4 * V) > 4.5).astype(float),
    },
    "kink": {"loss": np.maximum(NORMAL[1] * W + NORMAL[2] * V + NORMAL[3], 0) ** 2},
}


@pytest.mark.parametrize("kind", KINDS_OF_LOSS)
@pytest.mark.parametrize("seeds", slow_but([8], [100]))
def test_error_bars_hold(kind, seeds):
    """Within 2 standard errors in 93 % of the points at least, and never wrong with an error bar of 0."""
    metrics = KINDS_OF_LOSS[kind]
    inside = {name: [] for name in metrics}
    for seed in range(seeds):
        estimates, counts = sampled(metrics, COORDS, SHAPE, 0.02, seed)
        open_ = counts < 10_000
        assert open_.any()
        for name, values in metrics.items():
            exact = values.mean(1)
            error = np.abs(estimates[name].mean - exact)[open_]
            stderr = estimates[name].stderr[open_]
            assert (stderr > 0).all()
            inside[name].append((error <= 2 * stderr).mean())
    for name, shares in inside.items():
        assert np.mean(shares) >= 0.93, (name, np.mean(shares))


def test_the_important_examples_are_in_every_sample():
    """The examples that carry the loss at the roots are drawn with certainty."""
    values = KINDS_OF_LOSS["one in 1,000 examples carries the loss"]["loss"]
    for seed in range(20):
        order = draw([values[:9]], 10_000, seed)
        rare = np.isin(order.order[:128], np.flatnonzero(NORMAL[0] > 3))
        assert rare.sum() == (NORMAL[0] > 3).sum()
        np.testing.assert_array_equal(order.inclusion(128, 128)[rare], 1.0)


# ---- the order of the examples


def test_priority_samples_are_unbiased_at_every_size():
    rng = np.random.default_rng(0)
    root = rng.pareto(1.5, (1, 200)) + 0.1
    y = root[0] * (1 + 0.3 * rng.normal(size=200))
    for n in (10, 50, 150):
        totals = []
        for seed in range(2000):
            order = draw([root], 200, seed)
            totals.append((y[order.order[:n]] / order.inclusion(n, n)).sum())
        error = np.std(totals) / np.sqrt(len(totals))
        assert np.abs(np.mean(totals) - y.sum()) < 4 * error
    assert (order.inclusion(200, 200) == 1).all()


def test_the_order_is_not_that_of_the_data():
    """A sample drawn with the seed of the data's noise was correlated with it."""
    order = draw([np.ones((1, 1000))], 1000, 0).order
    for other in (np.random.default_rng(0).permutation(1000), np.argsort(np.random.default_rng(0).random(1000))):
        assert abs(np.corrcoef(order, other)[0, 1]) < 0.1
        assert (order[:100] == other[:100]).mean() < 0.05


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_roots_that_are_not_finite_do_not_order_the_examples(bad):
    values = np.random.default_rng(0).lognormal(size=(2, 300))
    spoiled = np.concatenate([values, np.full((1, 300), bad)])
    np.testing.assert_array_equal(draw([spoiled], 300, 0).order, draw([values], 300, 0).order)
    assert np.isfinite(draw([np.full((1, 300), bad)], 300, 0).sizes).all()


def test_examples_that_are_infinite_at_a_root_are_in_every_sample():
    values = np.random.default_rng(0).lognormal(size=(3, 1000))
    values[1, [7, 70]] = np.inf
    values[2, 700] = np.nan
    for seed in range(20):
        order = draw([values], 1000, seed)
        assert set(order.order[:3]) == {7, 70, 700}
        np.testing.assert_array_equal(order.inclusion(64, 3), 1.0)


def test_infinity_between_the_roots_is_found():
    """One example of 20,000 is infinite in a half plane."""

    def loss(params, batch):
        return jnp.where((batch > 3.9) & (params["w"] > 0.3), jnp.inf, 1 + 0.1 * batch * params["w"])

    data = np.append(np.random.default_rng(0).uniform(-1, 1, 19_999), 4).astype(np.float32)
    directions = [{"w": jnp.float32(1), "v": jnp.float32(0)}, {"w": jnp.float32(0), "v": jnp.float32(1)}]
    params = {"w": jnp.float32(0), "v": jnp.float32(0)}
    ds = js.surface(params, loss, data, directions=directions, grid=GRID, rtol=0.05, batch_size=64, progress=False)
    np.testing.assert_array_equal(np.isinf(ds.loss), np.broadcast_to((ds.alpha > 0.3).values[:, None], (9, 9)))


def test_importance_has_a_floor_and_does_not_depend_on_units():
    values = np.random.default_rng(0).pareto(1.0, (3, 500)) + 1
    sizes = importance([values], 500)
    assert sizes.min() >= 0.5
    np.testing.assert_allclose(sizes.mean(), 1)
    np.testing.assert_allclose(importance([values * np.array([[1e-20], [1.0], [1e30]])], 500), sizes, rtol=1e-6)


# ---- the estimator


def in_loops(y, x, means, pi, total):
    """The regression estimator with exact means, by its definition in loops, without the pull to a start."""
    columns = np.vstack([np.ones_like(y), x])
    k = len(columns)
    spreads, right = np.zeros((k, k)), np.zeros(k)
    for i in range(len(y)):
        noise = (1 - pi[i]) / (pi[i] * total) ** 2
        for a in range(k):
            right[a] += noise * columns[a, i] * y[i]
            for b in range(k):
                spreads[a, b] += noise * columns[a, i] * columns[b, i]
    slopes = np.linalg.solve(spreads, right)
    mean = sum(y[i] / (pi[i] * total) for i in range(len(y)))
    for a in range(k):
        mean -= slopes[a] * (sum(columns[a, i] / (pi[i] * total) for i in range(len(y))) - [1, *means][a])
    residuals = y - slopes @ columns
    return mean, sum((1 - pi[i]) / (pi[i] * total) ** 2 * residuals[i] ** 2 for i in range(len(y)))


def roots_and_a_point(n, noise=0.1, total=500):
    """Two roots and a point that nearly is a combination of them, of which n examples are seen."""
    rng = np.random.default_rng(n)
    roots = rng.gamma(2, 2, (2, total))
    y = 0.5 * roots[0] - 2 * roots[1] + 7 + noise * rng.normal(size=total)
    order = draw([roots], total, 0)
    roots, y = roots[:, order.order], y[order.order]
    estimates = Estimates(order, 3, np.array([0, 1]), roots)
    estimates.solve(np.array([2]), y[None, :n], np.array([[0, 1]]), np.array([[0.5, 0.5]]))
    return roots, y, order, estimates


@pytest.mark.parametrize("n", [60, 200, 400])
def test_regression_on_exact_neighbours_by_definition(monkeypatch, n):
    monkeypatch.setattr(_regression, "PULL", 1e-9)
    roots, y, order, estimates = roots_and_a_point(n)
    mean, variance = in_loops(y[:n], roots[:, :n], roots.mean(1), order.inclusion(n, n), 500)
    np.testing.assert_allclose(estimates.mean[2], mean, rtol=1e-8)
    # Further: degrees of freedom, unknown slopes, the residuals not seen.
    assert variance < estimates.stderr[2] ** 2 < (2.0 if n == 60 else 1.6) * variance
    assert abs(mean - y.mean()) < 4 * estimates.stderr[2]


def test_all_examples_are_exact_whatever_the_regression_says():
    _, y, _, estimates = roots_and_a_point(500)
    np.testing.assert_allclose(estimates.mean[2], y.mean(), rtol=1e-12)
    assert estimates.stderr[2] == 0


def test_a_neighbour_whose_loss_is_not_in_the_sample_is_not_used():
    """Its values in the sample are tiny: slopes on them gave estimates of 1e31 for losses of 0.1."""
    rng = np.random.default_rng(0)
    root, y = 1e-20 * rng.random(2000), 1e-3 * rng.random(2000)
    root[[3, 5]] = 50.0  # among 2,000, but not among those that are seen
    flat = draw([np.ones((1, 2000))], 2000, 0)
    order = flat.order[~np.isin(flat.order, [3, 5])]
    order = np.append(order, [3, 5])
    estimates = Estimates(flat, 2, np.array([0]), root[None, order])
    estimates.solve(np.array([1]), y[None, order[:100]], np.array([[0]]), np.array([[1.0]]))
    assert abs(estimates.mean[1] - y.mean()) < 2 * estimates.stderr[1] < 1.0
    # Also where another neighbour has no more examples than the point itself: it gave 5e-4 for a loss of 1e-21.
    more, faint = Estimates(flat, 3, np.array([0]), root[None, order]), 1e-21 * rng.random(2000)
    for row, near in ((1, [0]), (2, [0, 1])):
        weights = np.full((1, len(near)), 1 / len(near))
        more.solve(np.array([row]), faint[None, order[:100]], np.array([near]), weights)
        more.keep(np.array([row]), [faint[order[:100]]])
    assert abs(more.mean[2]) < 1e-10


@pytest.mark.parametrize("unit", [1.0, 0.1, "weights"])
def test_no_error_in_a_sample_is_not_no_error(unit):
    """Of 0/1 metrics in any unit, weighted or not, one change more is taken to be there."""
    rng = np.random.default_rng(0)
    scale = rng.choice([1.0, 2.0], 5000) if unit == "weights" else unit
    wrong = scale * (rng.normal(size=5000) + np.array([[0.0], [0.1], [0.2], [0.3]]) > 3)
    order = draw([wrong], 5000, 1)
    estimates = Estimates(order, 5, np.arange(4), wrong[:, order.order])
    estimates.solve(np.array([4]), np.zeros((1, 64)), np.array([[0, 1, 2, 3]]), np.full((1, 4), 0.25))
    assert estimates.stderr[4] > np.mean(scale) * 0.5 / 5000


def test_neighbours_that_say_nothing_leave_the_plain_mean():
    rng = np.random.default_rng(0)
    roots, y = np.ones((1, 300)), rng.normal(5, 2, 300)
    order = draw([roots], 300, 0)
    estimates = Estimates(order, 2, np.array([0]), roots)
    estimates.solve(np.array([1]), y[None, :100], np.array([[0]]), np.array([[1.0]]))
    np.testing.assert_allclose(estimates.mean[1], y[:100].mean(), rtol=1e-3)
    plain = y[:100].std(ddof=1) * np.sqrt(1 / 100 - 1 / 300)
    assert 0.95 * plain < estimates.stderr[1] < 1.3 * plain  # the largest residual counts three times


def chain(order, values, counts):
    """Root, point 1 on it, point 2 on both, point 3 on points 1 and 2: errors and covariances of all."""
    estimates = Estimates(order, 4, np.array([0]), values[:1])
    for row, near in ((1, [0]), (2, [0, 1]), (3, [1, 2])):
        n = counts[row]
        weights = np.full((1, len(near)), 1 / len(near))
        estimates.solve(np.array([row]), values[row : row + 1, :n], np.array([near]), weights)
        estimates.keep(np.array([row]), [values[row, :n]])
    return estimates.mean - values.mean(1), estimates._errors.matrix


@pytest.mark.slow  # 12 seconds: many draws
def test_covariances_of_errors_are_those_over_many_draws():
    """Also of points with samples of different sizes, whose neighbours have errors themselves."""
    rng = np.random.default_rng(0)
    base = rng.normal(size=(4, 600))
    values = 3 + np.cumsum(base * np.array([[1.0], [0.5], [0.3], [0.2]]), axis=0)
    counts = [600, 300, 200, 100]
    errors, predicted = [], []
    for seed in range(1500):
        order = draw([values[:1]], 600, seed)
        error, covariances = chain(order, values[:, order.order], counts)
        errors.append(error[1:])
        predicted.append(covariances[1:, 1:])
    real, said = np.cov(np.array(errors).T), np.mean(predicted, axis=0)
    deviations = np.sqrt(np.diag(real))
    np.testing.assert_allclose(np.sqrt(np.diag(said)), deviations, rtol=0.12)
    assert (np.sqrt(np.diag(said)) > 0.97 * deviations).all()
    correlations = real / np.outer(deviations, deviations)
    np.testing.assert_allclose(said / np.sqrt(np.outer(np.diag(said), np.diag(said))), correlations, atol=0.12)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite_values_are_a_result(bad):
    roots = np.random.default_rng(0).normal(size=(2, 50))
    spoiled = roots.copy()
    spoiled[1, 3] = bad
    order = draw([spoiled], 50, 0)
    estimates = Estimates(order, 4, np.array([0, 1]), spoiled)
    np.testing.assert_equal(estimates.mean[1], bad)
    values = np.stack([roots[0], roots[0]])
    values[1, 7] = bad
    estimates.solve(np.array([2, 3]), values[:, :40], np.array([[0, 1]] * 2), np.full((2, 2), 0.5))
    np.testing.assert_allclose(estimates.mean[2], roots[0].mean(), rtol=1e-2)  # by the finite root
    np.testing.assert_equal(estimates.mean[3], bad)
    assert np.isnan(estimates.stderr[3])


def test_huge_and_tiny_losses_side_by_side():
    rng = np.random.default_rng(0)
    base = rng.lognormal(size=400)
    roots = np.stack([base, 1e20 * base])
    y = 3e10 * base * (1 + 0.01 * rng.normal(size=400))
    estimates = Estimates(draw([roots], 400, 0), 3, np.array([0, 1]), roots)
    order = estimates._draw.order
    estimates = Estimates(estimates._draw, 3, np.array([0, 1]), roots[:, order])
    estimates.solve(np.array([2]), y[None, order[:200]], np.array([[0, 1]]), np.full((1, 2), 0.5))
    np.testing.assert_allclose(estimates.mean[2], y.mean(), rtol=5e-3)


def test_examples_for_inverts_the_standard_error():
    """The variance is proportional to ``1 / n - 1 / N``."""
    counts = np.array([100, 100, 100])
    excess = np.sqrt((1 / 100 - 1 / 500) / (1 / np.array([100, 250, 500]) - 1 / 500 + 1e-30))
    np.testing.assert_allclose(examples_for(counts, excess, 500)[:2], [105, 262.5], rtol=1e-6)
    assert examples_for(counts, excess, 500)[2] == 400  # not more than four times as many in a round
    assert examples_for(np.array([200]), np.array([np.inf]), 500)[0] == 525


# ---- levels


def test_levels_halve_the_distance_from_both_ends():
    level = engine.levels((31, 6, 1))
    assert level.shape == (31, 6, 1)
    assert level[0, 0, 0] == level[-1, -1, 0] == level[15, 0, 0] == 0
    assert (level[::2] >= 0).all()
    for n in range(level.max() + 1):
        chosen = np.flatnonzero(level[:, 0, 0] <= n)
        assert np.diff(chosen).max() <= np.ceil(15 / 2**n)


def test_a_grid_of_half_the_spacing_has_the_same_first_levels():
    coarse, fine = engine.levels((9, 9)), engine.levels((17, 17))
    np.testing.assert_array_equal(fine[::2, ::2], coarse)


def test_nearest_is_that_of_scipy(monkeypatch):
    monkeypatch.setattr(_levels, "AT_ONCE", 100)  # in parts
    rng = np.random.default_rng(0)
    points, candidates = rng.normal(size=(50, 3)), rng.normal(size=(20, 3))
    _, expected = cKDTree(candidates).query(points, 4)
    np.testing.assert_array_equal(_levels.nearest(points, candidates, 4), expected)


def test_memory_does_not_grow_with_the_square_of_the_points():
    """25^3 points took 1.35 GiB for distances alone."""
    axis = np.linspace(-1, 1, 25)
    coords = np.stack([x.ravel() for x in np.meshgrid(axis, axis, axis, indexing="ij")], 1)
    values = np.random.default_rng(0).gamma(2, 1, 64)[None] + np.zeros((len(coords), 1), np.float32)
    values = values.astype(np.float32)
    tracemalloc.start()
    sampled({"loss": values}, coords, (25, 25, 25), 0.5, 0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 150 * 2**20


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


def test_samples_are_small_where_whole_batches_are_large(exact, monkeypatch):
    """On an accelerator the roots take large batches, and a sample in such batches would hold all examples."""
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    monkeypatch.setattr(_source, "SAMPLED", 100)
    ds = surface(rtol=0.01, batch_size=4000, points_per_step=1)
    error = np.abs(ds.loss / exact.loss - 1).values
    assert error.max() < 0.04
    assert ds.num_examples.min() <= 200
    assert ds.num_examples.mean() < 0.5 * 4000
    assert ds.attrs["batch_size"] == 4000


@pytest.mark.slow
def test_calibration_over_seeds(exact):
    inside, count = {"loss": 0, "accuracy": 0}, 0
    for seed in range(100):
        ds = surface(rtol=0.02, seed=seed)
        sampled = (ds.num_examples < 4000).values
        count += sampled.sum()
        for name in inside:
            error = np.abs(ds[name] - exact[name]).values[sampled]
            inside[name] += (error < 2 * ds[f"{name}_stderr"].values[sampled]).sum()
    assert count > 4000
    # 95.4 % for a normal estimate; points of one seed share their examples, so the share itself is known to 1 %.
    assert 0.925 < inside["loss"] / count < 0.985
    assert 0.925 < inside["accuracy"] / count < 0.985


def test_zero_tolerance_is_exact(exact):
    ds = surface(rtol=0.0)
    np.testing.assert_allclose(ds.loss, exact.loss, rtol=1e-10)
    np.testing.assert_allclose(ds.accuracy, exact.accuracy, rtol=1e-10)
    assert (ds.num_examples == 4000).all()


def test_absolute_tolerance_spares_work():
    assert surface(rtol=1e-9, atol=0.05).num_examples.sum() < 0.5 * surface(rtol=1e-9).num_examples.sum()


@pytest.mark.parametrize(("key", "value"), [(1, 0.1), ("loss", "1%"), ("loss", True)])
def test_tolerances_of_another_type(key, value):
    with pytest.raises(TypeError, match="rtol has the key 1|rtol\\['loss'\\] is"):
        surface(rtol={key: value})


def test_a_tolerance_for_another_metric(exact):
    """Each metric is brought to its own tolerance; one without any is not waited for."""
    both = surface(rtol={"loss": 0.05, "accuracy": 0.01})
    assert (both.accuracy_stderr <= 0.01 * both.accuracy).all()
    assert (both.loss_stderr <= 0.05 * both.loss).all()
    assert (both.attrs["rtol"], both.attrs["rtol_accuracy"]) == (0.05, 0.01)
    error = np.abs(both.accuracy - exact.accuracy).values
    assert (error <= 3 * both.accuracy_stderr.values + 1e-9).mean() > 0.97
    alone = surface(rtol={"accuracy": 0.05})
    assert (alone.accuracy_stderr <= 0.05 * alone.accuracy).all()
    assert "rtol" not in alone.attrs
    absolute = surface(rtol={"accuracy": 0.0}, atol={"accuracy": 0.02})
    assert (absolute.accuracy_stderr <= 0.02).all()
    assert alone.num_examples.sum() < both.num_examples.sum()
    xr.testing.assert_identical(surface(rtol={"loss": 0.05}).drop_attrs(), surface(rtol=0.05).drop_attrs())


def test_tolerances_of_the_metrics_of_terms():
    options = {"directions": DIRECTIONS, "grid": GRID, "batch_size": 64, "progress": False}
    terms = {"a": mlp_loss, "b": mlp_loss}
    data = {"a": DATA, "b": jax.tree.map(lambda x: x[:2000], DATA)}
    ds = js.surface(PARAMS, terms, data, rtol={"loss": 0.1, "accuracy_b": 0.02}, **options)
    assert (ds.accuracy_b_stderr <= 0.02 * ds.accuracy_b).all()
    assert (ds.accuracy_a_stderr > 0.02 * ds.accuracy_a).any()


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
        ({"rtol": {}}, "rtol is an empty mapping"),
        ({"rtol": {"accuracy": -1.0}}, "rtol\\['accuracy'\\] is -1.0, expected a number of at least 0"),
        ({"rtol": {"acc": 0.1}}, "rtol has 'acc', expected a metric of loss_fn: 'accuracy', 'loss'"),
        ({"rtol": 0.1, "atol": {"top5": 0.1}}, "atol has 'top5', expected a metric of loss_fn"),
    ],
)
def test_bad_tolerances(options, match):
    with pytest.raises(ValueError, match=match):
        surface(**options)


# ---- in a store


@pytest.fixture
def evaluated(monkeypatch):
    """How many values of examples each call of the program gave; it raises an error after ``stop_at`` calls."""
    log = SimpleNamespace(sizes=[], stop_at=None)
    values = engine.Program.values

    def logged(self, coords, first, last):
        if len(log.sizes) == log.stop_at:
            raise ZeroDivisionError
        log.sizes.append(len(coords) * len(self.layout.examples(first, last)))
        return values(self, coords, first, last)

    monkeypatch.setattr(engine.Program, "values", logged)
    monkeypatch.setattr(_blocks, "SECONDS", 0.0)
    monkeypatch.setattr(_source, "IN_A_CALL", 2**12)
    return log


def one_by_one(loss=mlp_loss, **options):
    """Few points and examples in a call, so that there are many calls."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("points",))
    return surface(loss, points_per_step=1, mesh=mesh, **options)


def weighted_loss(params, batch):
    return {**mlp_loss(params, batch), "weight": 1 + jnp.abs(batch[0][:, 0])}


@pytest.mark.parametrize("loss", [mlp_loss, slow_unless(False, weighted_loss)])
@pytest.mark.parametrize("share", slow_but([0.7], [0, 0.2, 0.4, 0.7, 0.9]))
def test_a_resumed_estimate_is_the_same_to_the_bit(tmp_path, evaluated, loss, share):
    fresh = one_by_one(loss, rtol=0.02)
    assert len(evaluated.sizes) >= 10
    whole, stop_at = sum(evaluated.sizes), int(share * len(evaluated.sizes))
    evaluated.sizes, evaluated.stop_at = [], stop_at
    with pytest.raises(ZeroDivisionError):
        one_by_one(loss, rtol=0.02, store=tmp_path / "s.zarr")
    evaluated.stop_at = None
    partial = js.load(tmp_path / "s.zarr")
    result = one_by_one(loss, rtol=0.02, store=tmp_path / "s.zarr")
    xr.testing.assert_identical(result.drop_attrs(), fresh.drop_attrs())
    assert result.attrs["center_loss"] == fresh.attrs["center_loss"]
    assert sum(evaluated.sizes) <= whole + max(evaluated.sizes)  # what was under way twice
    there = partial.loss.notnull()
    xr.testing.assert_identical(partial.loss.where(there), fresh.loss.where(there))
    assert partial.attrs["missing_points"] == (~there).sum() > 0
    xr.testing.assert_identical(js.load(tmp_path / "s.zarr"), result)
    del evaluated.sizes[:]
    again = one_by_one(loss, rtol=0.02, store=tmp_path / "s.zarr")
    xr.testing.assert_identical(again.drop_attrs(), result.drop_attrs())
    assert not evaluated.sizes


FINER = js.Grid.plane((-1, 1, 17), (-1, 1, 9))


@pytest.mark.parametrize(
    "smaller",
    [
        slow_unless(False, {"rtol": 0.005}),
        slow_unless(False, {"rtol": 0.02, "grid": FINER}),
        {"rtol": 0.01, "grid": FINER},
    ],
)
def test_a_smaller_tolerance_goes_on_from_the_examples_summed(tmp_path, evaluated, smaller):
    one_by_one(rtol=0.02, store=tmp_path / "s.zarr")
    first, evaluated.sizes = sum(evaluated.sizes), []
    result = one_by_one(**smaller, store=tmp_path / "s.zarr")
    second, evaluated.sizes = sum(evaluated.sizes), []
    fresh = one_by_one(**smaller)
    xr.testing.assert_identical(result.drop_attrs(), fresh.drop_attrs())
    assert second <= sum(evaluated.sizes) - 0.5 * first, (first, second, sum(evaluated.sizes))
    assert result.attrs["rtol"] == smaller["rtol"]
    xr.testing.assert_identical(js.load(tmp_path / "s.zarr"), result)


def test_a_short_call_keeps_its_examples_too(tmp_path, evaluated, monkeypatch):
    monkeypatch.setattr(_blocks, "SECONDS", 1e9)
    one_by_one(rtol=0.02, store=tmp_path / "s.zarr")
    first, evaluated.sizes, evaluated.stop_at = sum(evaluated.sizes), [], 3
    with pytest.raises(ZeroDivisionError):
        one_by_one(rtol=0.005, store=tmp_path / "s.zarr")
    coarse = js.load(tmp_path / "s.zarr")
    assert coarse.loss.notnull().all()  # with the errors that it has so far
    assert coarse.attrs["missing_points"] > 0
    assert "rtol" not in coarse.attrs
    evaluated.stop_at = None
    one_by_one(rtol=0.005, store=tmp_path / "s.zarr")
    second, evaluated.sizes = sum(evaluated.sizes), []
    one_by_one(rtol=0.005)
    assert second < sum(evaluated.sizes) - 0.5 * first


def test_other_files_beside_the_examples_are_left_alone(tmp_path, evaluated):
    one_by_one(rtol=0.02, store=tmp_path / "s.zarr")
    mine = tmp_path / "s.zarr" / "jaxscape" / "examples" / "notes.npz"
    mine.write_text("mine")
    one_by_one(rtol=0.01, store=tmp_path / "s.zarr")
    assert mine.read_text() == "mine"


def test_a_larger_tolerance_another_seed_and_exact_points_are_refused(tmp_path):
    path = tmp_path / "s.zarr"
    surface(rtol=0.1, atol=0.1, store=path)
    for options, match in (
        ({"rtol": 0.2, "atol": 0.1}, "rtol is 0.1 there and 0.2 here"),
        ({"rtol": 0.1, "atol": 0.2}, "atol is 0.1 there and 0.2 here"),
        ({"rtol": {"accuracy": 0.01}, "atol": 0.1}, "rtol is 0.1 there and {'accuracy': 0.01} here"),
        ({"rtol": 0.1, "atol": 0.1, "seed": 1}, "seed is 0 there and 1 here"),
        ({}, "rtol is 0.1 there and None here"),
    ):
        with pytest.raises(ValueError, match=f"s.zarr holds another result: .*{match}"):
            surface(store=path, **options)


def test_terms_are_kept_each_on_its_own(tmp_path, evaluated):
    options = {"directions": DIRECTIONS, "grid": GRID, "batch_size": 64, "points_per_step": 1, "progress": False}
    call = functools.partial(js.surface, PARAMS, {"a": mlp_loss, "b": mlp_loss}, {"a": DATA, "b": DATA}, **options)
    fresh = call(rtol=0.05)
    whole, evaluated.sizes = len(evaluated.sizes), []
    evaluated.stop_at = whole * 3 // 4  # within the second term
    with pytest.raises(ZeroDivisionError):
        call(rtol=0.05, store=tmp_path / "s.zarr")
    evaluated.stop_at = None
    result = call(rtol=0.05, store=tmp_path / "s.zarr")
    xr.testing.assert_identical(result.drop_attrs(), fresh.drop_attrs())
    assert len(evaluated.sizes) <= whole + 1


@pytest.mark.parametrize("kind", slow_but(["flipped"], KINDS))
def test_damaged_values_of_examples_are_computed_anew(tmp_path, evaluated, kind):
    path = tmp_path / "s.zarr"
    fresh = one_by_one(rtol=0.02)
    evaluated.sizes, evaluated.stop_at = [], len(evaluated.sizes) - 1
    with pytest.raises(ZeroDivisionError):
        one_by_one(rtol=0.02, store=path)
    evaluated.stop_at = None
    kept = sorted((path / "jaxscape" / "examples").iterdir())
    damages(kept[1])[kind]()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = one_by_one(rtol=0.02, store=path)
    xr.testing.assert_identical(result.drop_attrs(), fresh.drop_attrs())
    assert kind == "deleted" or f"files of jaxscape/examples are damaged ({kept[1].name})" in str(caught[0].message)
