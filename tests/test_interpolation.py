"""The line through two minimizers: exact at its ends, with each policy for running statistics; the barrier."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

import jaxscape as js
from jaxscape.interpolation import SMALL
from jaxscape.normalize import running_statistics
from tests.problems import classification_data, mlp_loss, mlp_params, slow_but

DATA = classification_data()
X = np.random.default_rng(0).normal(1, 2, (300, 3))
LINE = js.Grid.line(-1, 2, 7)


def network(mean=0.0, var=1.0, scale=1.0):
    return {"norm": {"mean": jnp.full(3, mean), "var": jnp.asarray(var) * jnp.ones(3), "scale": jnp.full(3, scale)}}


def loss(params, x):
    """Batch norm with its running statistics, and a square."""
    norm = params["norm"]
    return (norm["scale"] * (x - norm["mean"]) / jnp.sqrt(norm["var"] + 1e-3)).sum(-1) ** 2


def mean_loss(params, x=X):
    return float(np.mean(loss(jax.tree.map(np.asarray, params), x)))


def line(a, b, grid=LINE, loss_fn=loss, data=X, **options):
    return js.interpolate(a, b, loss_fn, data, grid=grid, progress=False, **options)


A, B = network(0.5, 2.0), network(2.0, [1.0, 0.5, 3.0], 0.3)


@pytest.mark.parametrize("dtype", slow_but([jnp.float32], [jnp.float32, jnp.bfloat16, jnp.float16, jnp.float64]))
def test_the_ends_are_those_of_the_minimizers_to_the_bit(dtype):
    a = mlp_params(dtype=dtype)
    b = jax.tree.map(
        lambda x: (-1e-3 * x + 1e-5).astype(dtype), mlp_params(seed=1, dtype=dtype)
    )  # a + (b - a) is not b
    ds = js.interpolate(a, b, mlp_loss, DATA, grid=js.Grid.line(0, 1, 2), batch_size=23, progress=False)
    for end, params in enumerate((a, b)):
        alone = js.surface(
            params, mlp_loss, DATA, directions=[a], grid=js.Grid.line(0, 0, 1), batch_size=23, progress=False
        )
        assert ds.loss[end] == alone.loss[0]
        assert ds.accuracy[end] == alone.accuracy[0]
    assert ds.attrs["center_loss"] == ds.loss[0]


def test_points_of_the_line_are_those_of_a_loop():
    ds = line(A, B, js.Grid.line(0, 1, 4))
    for alpha, value in zip(ds.alpha.values, ds.loss.values, strict=True):
        point = jax.tree.map(lambda x, y, t=alpha: (1 - t) * x + t * y, A, B)
        np.testing.assert_allclose(value, mean_loss(point), rtol=1e-12)
    assert ds.attrs["statistics"] == "interpolate"
    assert ds.attrs["directions"] == "params_b - params_a"


def test_running_statistics_are_known_by_their_names():
    pair = {"running_mean": jnp.zeros(2), "running_var": jnp.ones(2), "weight": jnp.ones(2)}
    tree = {
        "bn": pair,
        "haiku/mean_ema": {"average": jnp.zeros(2), "hidden": jnp.zeros(2)},
        "haiku/var_ema": {"average": jnp.zeros(2), "hidden": jnp.zeros(2)},
        "keras": {"moving_mean": jnp.zeros(2), "moving_variance": jnp.ones(2)},
        "vae": {"mean": jnp.zeros(2), "log_var": jnp.zeros(2)},  # weights
    }
    kinds = ["mean", "variance", None, "mean", "mean", "variance", "variance", "mean", "variance", None, None]
    assert running_statistics(tree) == kinds


# ---- policies


def test_variances_beyond_the_ends_are_clipped_and_counted():
    ds = line(A, B)
    counts = []
    for alpha, value in zip(ds.alpha.values, ds.loss.values, strict=True):
        point = jax.tree.map(lambda x, y, t=alpha: (1 - t) * np.asarray(x) + t * np.asarray(y), A, B)
        counts.append((point["norm"]["var"] < SMALL).sum())
        point["norm"]["var"] = np.maximum(point["norm"]["var"], SMALL)
        np.testing.assert_allclose(value, mean_loss(point), rtol=1e-12)
    assert ds.attrs["clipped_points"] == np.count_nonzero(counts) > 0
    assert ds.attrs["clipped_variances"] == max(counts)
    assert np.isfinite(ds.loss).all()


def test_a_variance_that_is_0_at_an_end_stays_0():
    dead = network(0.5, [2.0, 0.0, 1e-7])
    assert line(dead, B).loss.sel(alpha=0) == line(dead, dead, js.Grid.line(0, 0, 1)).loss[0]
    assert line(B, dead).loss.sel(alpha=1) == line(dead, dead, js.Grid.line(0, 0, 1)).loss[0]


def test_frozen_statistics_are_those_of_a():
    ds = line(A, B, statistics="frozen")
    mixed = {"norm": {**A["norm"], "scale": B["norm"]["scale"]}}
    np.testing.assert_allclose(ds.loss.sel(alpha=1), mean_loss(mixed), rtol=1e-12)
    assert ds.loss.sel(alpha=0) == line(A, B).loss.sel(alpha=0)
    assert abs(ds.loss.sel(alpha=1) - line(A, B).loss.sel(alpha=1)) > 0.1  # the error that the paper warns of (A.5)


def statistics_of(params, x):
    """In training mode; they depend on params, as those of deeper layers do."""
    scale = params["norm"]["scale"]
    return {"norm": {"mean": x.mean(0) * scale, "var": x.var(0) * scale**2}}


@pytest.mark.parametrize("grid", [LINE, js.Grid.line(0.5, 2, 3)], ids=["with params_a", "without"])
def test_reestimated_statistics_are_means_over_batches(grid):
    ds = line(A, B, grid, statistics=statistics_of, statistics_data=X[:200])
    for alpha, value in zip(ds.alpha.values, ds.loss.values, strict=True):
        point = jax.tree.map(lambda x, y, t=alpha: (1 - t) * x + t * y, A, B)
        parts = [statistics_of(point, x)["norm"] for x in (X[:128], X[128:200])]
        mean = {name: (128 * parts[0][name] + 72 * parts[1][name]) / 200 for name in ("mean", "var")}
        np.testing.assert_allclose(value, mean_loss({"norm": {**point["norm"], **mean}}), rtol=1e-10)
    assert ds.attrs["statistics"] == "reestimate"


def test_reestimation_of_terms_in_a_store(tmp_path):
    terms, data = {"a": loss, "b": lambda p, x: 2 * loss(p, x)}, {"a": X, "b": X[:50]}
    options = {"loss_fn": terms, "data": data, "statistics": statistics_of, "statistics_data": X}
    ds = line(A, B, js.Grid.line(0, 1, 3), store=tmp_path / "s.zarr", **options)
    again = line(A, B, js.Grid.line(0, 1, 3), store=tmp_path / "s.zarr", **options)
    xr.testing.assert_identical(ds, again)
    single = line(A, B, js.Grid.line(0, 1, 3), statistics=statistics_of)
    np.testing.assert_allclose(ds.loss_a, single.loss, rtol=1e-12)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"statistics": "none"}, ValueError, "statistics is 'none', expected one of interpolate, frozen, reestimate"),
        ({"statistics": "reestimate"}, ValueError, "loss_fn does not say how: only that of js.load_run does"),
        (
            {"statistics": statistics_of, "compute_dtype": "bfloat16"},
            ValueError,
            "statistics is 'reestimate' with compute_dtype='bfloat16'; expected another precision",
        ),
        ({"grid": js.Grid.plane()}, ValueError, "grid has 2 axes, expected one"),
        ({"grid": 3}, TypeError, "grid is int, expected a js.Grid"),
    ],
)
def test_mistakes(options, error, match):
    with pytest.raises(error, match=match):
        line(A, B, **options)


def test_forgotten_statistics_are_noticed(run):
    terms = {"ce": run.loss_fn}, {"ce": run.test_data}
    for loss_fn, data in ((run.loss_fn, run.test_data), terms):
        with pytest.raises(ValueError, match=r"lack the \d+ running statistics that loss_fn takes from its checkpoint"):
            js.interpolate(run.params, run.params, loss_fn, data, progress=False)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda p, x: {},
        lambda p, x: {"mean": x.mean(0)},
        lambda p, x: {"norm": {"mean": x.mean(0)[:1]}},
        lambda p, x: {"norm": {"mean": x.mean(0), "average": x.mean(0)}},
        lambda p, x: [x.mean(0)],
    ],
)
def test_statistics_that_are_no_leaves_of_params_are_refused(wrong):
    with pytest.raises(
        ValueError, match="statistics returned something else than nested dicts with some of the leaves"
    ):
        line(A, B, statistics=wrong)


def test_what_a_statistics_function_raises_names_it():
    with pytest.raises(TypeError) as caught:
        line(A, B, statistics=lambda p, x: p["norm"] + 1)
    assert "statistics raised this, called with params and a batch of data." in caught.value.__notes__


def test_ends_of_different_dtypes_are_in_the_wider_one():
    a, b = (mlp_params(seed=i, dtype=dtype) for i, dtype in enumerate((jnp.float16, jnp.float32)))
    ds = js.interpolate(a, b, mlp_loss, DATA, grid=js.Grid.line(0, 1, 2), batch_size=23, progress=False)
    alone = js.surface(b, mlp_loss, DATA, directions=[b], grid=js.Grid.line(0, 0, 1), batch_size=23, progress=False)
    assert ds.loss[1] == alone.loss[0]


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_a_broken_end_leaves_the_other_end_as_it_is(broken):
    ds = line(A, network(scale=broken), js.Grid.line(0, 1, 3))
    np.testing.assert_allclose(ds.loss[0], mean_loss(A), rtol=1e-12)
    assert not np.isfinite(ds.loss[1:]).any()


def test_weights_with_the_names_of_statistics_are_not_clipped():
    a, b = ({"vae": {"mean": jnp.ones(2), "var": jnp.array(v)}} for v in ([-1.0, 2.0], [6.0, -3.0]))
    ds = line(a, b, loss_fn=lambda p, x: jnp.sum(p["vae"]["var"] * jnp.array([1.0, 2.0])) + 0 * x[:, 0])
    np.testing.assert_allclose(ds.loss, 3 * (1 - ds.alpha), atol=1e-12)


def test_rounding_is_not_counted_as_clipping():
    dead = network(var=np.random.default_rng(0).uniform(1e-7, 9e-6, 3).astype(np.float32))
    assert line(dead, dead, js.Grid.line(-0.5, 1.5, 11)).attrs["clipped_points"] == 0


@pytest.mark.slow
def test_the_statistics_of_a_run_are_reestimated(run):
    """On the data of one batch the re-estimated network is that in training mode."""
    from flax import nnx

    batch = tuple(x[:64] for x in run.data)
    grid = js.Grid.line(0, 1, 2)
    other = run.checkpoints.variables(1)
    ends = run.variables, js.trees.overlay(other["params"], other["batch_stats"])
    options = {"grid": grid, "statistics": "reestimate", "statistics_data": batch, "progress": False}
    ds = js.interpolate(*ends, run.loss_fn, batch, **options)
    for end, params in enumerate(ends):
        model = nnx.merge(nnx.split(js.runs.build_model(run.config, run.data))[0], params)
        logits = model(js.datasets.normalize(batch[0], "digits", jnp.float32), train=True)
        reference = -jax.nn.log_softmax(logits.astype(jnp.float64))[np.arange(64), batch[1]].mean()
        # The running variance has n - 1 in its denominator, the batch's own n: 1 part in 64 of less than 64 examples.
        np.testing.assert_allclose(ds.loss[end], reference, rtol=5e-3)


# ---- the barrier


def barrier_line(losses, alphas, **variables):
    variables = {name: ("alpha", np.asarray(values, float)) for name, values in variables.items()}
    return xr.Dataset({"loss": ("alpha", np.asarray(losses, float)), **variables}, {"alpha": alphas})


def test_the_barrier_is_the_height_above_the_mean_of_the_ends():
    ds = barrier_line([50, 1, 4, 3, 2, 9], [-0.5, 0, 0.25, 0.5, 1, 1.5], loss_stderr=[9, 0.2, 0.5, 9, 0.1, 9])
    barrier = js.loss_barrier(ds)
    assert barrier.value == 2.5
    assert barrier.alpha == 0.25
    np.testing.assert_allclose(barrier.stderr, 0.5 + (0.2 + 0.1) / 2)


def test_without_a_barrier_it_is_0_and_of_the_accuracy_that_of_the_error():
    ds = barrier_line([2, 1, 1], [0, 0.5, 1], accuracy=[0.9, 0.5, 0.8])
    assert js.loss_barrier(ds).value == 0.5  # the end itself is above the mean of both
    assert js.loss_barrier(barrier_line([1, 0, 1], [0, 0.5, 1])).value == 0
    barrier = js.loss_barrier(ds, metric="accuracy")
    np.testing.assert_allclose(barrier.value, 0.35)
    assert np.isnan(barrier.stderr)


def test_a_line_that_is_not_finite_has_no_barrier():
    assert all(map(np.isnan, js.loss_barrier(barrier_line([1, np.nan, 1], [0, 0.5, 1]))))


@pytest.mark.parametrize(
    ("result", "options", "error", "match"),
    [
        (3, {}, TypeError, "line is int, expected the Dataset of js.interpolate"),
        (barrier_line([1, 2], [0, 0.9]), {}, ValueError, "line has no points at alpha = 0 and 1, expected both ends"),
        (
            barrier_line([1, 2], [0, 1]).expand_dims(b=2),
            {},
            ValueError,
            "line has the dimensions .*, expected one, alpha",
        ),
        (barrier_line([1, 2], [0, 1]), {"metric": "x"}, ValueError, r"metric is 'x', expected one of .* \['loss'\]"),
    ],
)
def test_mistakes_of_a_barrier(result, options, error, match):
    with pytest.raises(error, match=match):
        js.loss_barrier(result, **options)
