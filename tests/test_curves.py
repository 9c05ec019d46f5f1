"""Curves between two minimizers: exact ends, a trained one against `scipy.optimize`, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize

import jaxscape as js
from tests.problems import slow_but

A, B = jnp.array([-1.0, 0.0]), jnp.array([0.8, 0.6])
ONES, GRID = np.ones(4), js.Grid.line(0, 1, 5)
KINDS = {
    "bezier": lambda t, a, c, b: (1 - t) ** 2 * a + 2 * t * (1 - t) * c + t**2 * b,
    "polygon": lambda t, a, c, b: a + 2 * t * (c - a) if t <= 0.5 else c + (2 * t - 1) * (b - c),
}


def ring(p, x):
    return ((p**2).sum() - 1) ** 2 + 0 * x


def between(curve, a=A, b=B, loss=ring, data=ONES, grid=GRID, **options):
    return js.interpolate(a, b, loss, data, grid=grid, curve=curve, progress=False, **options)


def connect(a=A, b=B, loss=ring, data=ONES, optimizer=None, **options):
    optimizer = optimizer or optax.adam(0.05)
    return js.connect(a, b, loss, data, optimizer, **{"num_steps": 3, "progress": False} | options)


@pytest.mark.parametrize("kind", KINDS)
def test_points_are_those_of_the_formula_and_the_ends_exact(kind):
    control = jnp.array([0.3, 0.9])
    ds = between(js.Curve(control, kind), grid=js.Grid((np.array([-0.5, 0.0, 0.2, 0.5, 0.7, 1.0, 1.5]),)))
    expected = [ring(KINDS[kind](t, A, control, B), 0.0) for t in ds.alpha.values]
    np.testing.assert_allclose(ds.loss, expected, rtol=1e-12)
    assert (ds.loss[1], ds.loss[5]) == (ring(A, 0.0), ring(B, 0.0))
    assert ds.attrs["center_loss"] == ds.loss[1]
    assert ds.attrs["directions"] == f"{kind} curve"


@pytest.mark.parametrize("kind", KINDS)
def test_the_middle_as_control_point_gives_the_line(kind):
    line = between(None)
    np.testing.assert_allclose(between(js.Curve((A + B) / 2, kind)).loss, line.loss, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("kind", slow_but(["bezier"], KINDS))
def test_the_trained_curve_has_the_least_mean_loss(kind):
    """Against scipy, on the mean over 101 points; a step sees one random point, so that its noise remains."""
    points = (np.arange(100) + 0.5) / 100

    def mean(control):
        on_curve = [KINDS[kind](t, np.asarray(A), control, np.asarray(B)) for t in points]
        return np.mean([((p**2).sum() - 1) ** 2 for p in on_curve])

    best = scipy.optimize.minimize(mean, [0.0, 1.0]).fun
    rate = optax.cosine_decay_schedule(0.05, 1000)
    curve = connect(optimizer=optax.adam(rate), kind=kind, num_steps=1000)
    assert mean((A + B) / 2) > 20 * best
    assert mean(np.asarray(curve.control)) < 1.1 * best
    assert curve.losses.shape == (1000,)
    assert curve.losses[:100].mean() > curve.losses[-100:].mean()
    barriers = [js.loss_barrier(between(c, grid=js.Grid.line(0, 1, 51))).value for c in (None, curve)]
    assert barriers[1] < barriers[0] / 4


def test_the_same_seed_gives_the_same_curve_and_batches_are_drawn():
    data = np.linspace(0, 1, 50)
    seen = lambda p, x: x + 0 * p.sum()  # noqa: E731
    runs = [connect(loss=seen, data=data, batch_size=5, seed=seed).losses for seed in (0, 0, 1)]
    np.testing.assert_array_equal(runs[0], runs[1])
    assert (runs[0] != runs[2]).all()
    whole = connect(loss=seen, data=data, batch_size=1000).losses
    np.testing.assert_allclose(whole, data.mean(), rtol=1e-12)


def test_small_steps_in_bfloat16_add_up():
    loss = lambda p, x: x * (p["w"].astype(jnp.float32) ** 2).sum()  # noqa: E731
    low, single = (
        js.connect(
            *({"w": jnp.array(w, dtype)} for w in ([3.0, 1.0], [1.0, 3.0])),
            loss,
            jnp.ones(4),
            optax.adam(1e-3),
            num_steps=100,
            progress=False,
        ).control["w"]
        for dtype in (jnp.bfloat16, jnp.float32)
    )
    assert low.dtype == jnp.bfloat16
    np.testing.assert_array_equal(low, single.astype(jnp.bfloat16))
    assert (low < 1.95).all()


@pytest.mark.check
def test_a_sum_over_examples_is_refused():
    with pytest.raises(ValueError, match="no mean over examples"):
        connect(loss=lambda p, x: (x * (p**2).sum()).sum(), data=jnp.ones(40))


def test_weights_and_terms_count():
    weighted = lambda p, x: {"loss": x + 0 * p.sum(), "weight": x}  # noqa: E731
    data = np.array([1.0, 2.0, 3.0])
    expected = (data**2).sum() / data.sum()
    terms = {"first": weighted, "second": lambda p, x: (x + 0 * p.sum()).mean()}
    losses = connect(loss=terms, data={"first": data, "second": data}).losses
    np.testing.assert_allclose(losses, expected + 2, rtol=1e-12)
    np.testing.assert_allclose(connect(loss=lambda p, _: (p**2).sum(), data=None).losses > 0, True)


def test_a_batch_without_weight_says_nothing():
    weights = np.zeros(20)
    weights[0] = 1
    curve = connect(loss=lambda p, w: {"loss": ring(p, w), "weight": w}, data=weights, batch_size=4, num_steps=30)
    assert (curve.losses == 0).any()
    assert np.isfinite(np.asarray(curve.control)).all()


def test_an_error_of_the_optimizer_names_it():
    with pytest.raises(TypeError) as error:
        connect(optimizer=optax.polyak_sgd())
    assert "optimizer.update raised this" in error.value.__notes__[0]


def test_a_loss_that_is_not_finite_is_kept():
    assert np.isnan(connect(loss=lambda p, x: x * jnp.nan * p.sum()).losses).all()


def normalized(params, x):
    norm = params["norm"]
    return ((x - norm["mean"]) / jnp.sqrt(norm["var"] + 1e-3) * norm["scale"]).sum(-1) ** 2


def of_batch(params, x):
    return {"norm": {"mean": x.mean(0), "var": x.var(0)}}


def network(mean, var, scale):
    values = {"mean": mean, "var": var, "scale": scale}
    return {"norm": {name: jnp.full(3, value) for name, value in values.items()}}


@pytest.mark.parametrize("statistics", ["interpolate", of_batch], ids=["interpolate", "reestimate"])
def test_running_statistics_are_not_trained(statistics):
    x = np.random.default_rng(0).normal(1, 2, (60, 3))
    a, b = network(0.5, 2.0, 1.0), network(1.0, 4.0, -1.0)
    options = {"statistics": statistics, "num_steps": 20, "optimizer": optax.adamw(0.1, weight_decay=0.1)}
    curve = connect(a, b, normalized, x, batch_size=60, **options)
    norm = curve.control["norm"]
    np.testing.assert_allclose(norm["mean"], 0.75)
    np.testing.assert_allclose(norm["var"], 3.0)
    assert (norm["scale"] != 0).all()
    if statistics is of_batch:  # in training, the statistics of the batch
        t = np.random.default_rng(0).uniform()
        scale = float(KINDS["bezier"](t, 1.0, 0.0, -1.0))
        point = {"norm": of_batch(None, x)["norm"] | {"scale": scale}}
        np.testing.assert_allclose(curve.losses[0], normalized(point, x).mean(), rtol=1e-10)
    ds = between(curve, a, b, normalized, x, statistics=statistics)
    ends = [normalized(p if statistics != of_batch else jax.tree.map(lambda x: x, p) | {}, x) for p in (a, b)]
    if statistics == "interpolate":
        np.testing.assert_allclose(ds.loss[[0, -1]], [end.mean() for end in ends], rtol=1e-12)


def stopped(x):
    return jax.lax.stop_gradient(x)


def stopped_in_a_loop(x):
    return jax.lax.scan(lambda _, row: (None, jax.lax.stop_gradient(row)), None, x[None])[1][0]


@pytest.mark.parametrize("stop", [stopped, stopped_in_a_loop])
def test_the_gradient_goes_through_the_statistics_of_a_batch(stop):
    """flax.nnx stops it. The scale of w has no effect after batch norm, so that the penalty alone moves it."""
    x = np.random.default_rng(0).normal(1, 2, (60, 3))

    def of_batch(p, x):
        y = x * p["weight"]
        return {"norm": {"mean": stop(y.mean(0)), "var": stop(y.var(0))}}

    def penalized(p, x):
        y = (x * p["weight"] - p["norm"]["mean"]) / jnp.sqrt(p["norm"]["var"])
        return (y**4).sum(-1) + (p["weight"] ** 2).sum()

    a = {"weight": jnp.array([1.0, 2.0, 3.0]), "norm": {"mean": jnp.zeros(3), "var": jnp.ones(3)}}
    options = {"statistics": of_batch, "num_steps": 1, "optimizer": optax.sgd(1.0), "batch_size": 60}
    moved = connect(a, a, penalized, x, **options).control["weight"] - a["weight"]
    t = np.random.default_rng(0).uniform()
    np.testing.assert_allclose(moved, -2 * a["weight"] * 2 * t * (1 - t), rtol=1e-10)


def test_variances_beyond_the_ends_of_a_curve_are_clipped_and_counted():
    x = np.ones((4, 3))
    curve = js.Curve(network(0.0, 0.5, 1.0))
    ds = between(curve, network(0.0, 2.0, 1.0), network(0.0, 0.1, 1.0), normalized, x, grid=js.Grid.line(0, 3, 4))
    assert (ds.attrs["clipped_points"], ds.attrs["clipped_variances"]) == (0, 0)
    # 2 (1 - t)^2 + 2 t (1 - t) 3 + 0.1 t^2: negative at t = 2 and t = 3
    ds = between(
        js.Curve(network(0.0, 3.0, 1.0)),
        network(0.0, 2.0, 1.0),
        network(0.0, 0.1, 1.0),
        normalized,
        x,
        grid=js.Grid.line(0, 3, 4),
    )
    assert (ds.attrs["clipped_points"], ds.attrs["clipped_variances"]) == (2, 3)


def test_a_store_of_another_kind_of_curve_is_refused(tmp_path):
    between(js.Curve(A, "bezier"), store=tmp_path / "s.zarr")
    with pytest.raises(ValueError, match="method"):
        between(js.Curve(A, "polygon"), store=tmp_path / "s.zarr")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"kind": "circle"}, ValueError, "kind of a curve is 'circle', expected one of bezier, polygon"),
        ({"num_steps": 0}, ValueError, "num_steps is 0"),
        ({"batch_size": 0}, ValueError, "batch_size is 0"),
        ({"seed": -1}, ValueError, "seed is -1"),
        ({"optimizer": 0.1}, TypeError, "optimizer is float, expected one of optax"),
        ({"statistics": "frozen"}, ValueError, "statistics is 'frozen', expected one of interpolate, reestimate"),
        ({"statistics": "reestimate"}, ValueError, "loss_fn does not say how"),
        ({"b": jnp.ones(3)}, ValueError, "params_b"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_mistakes_are_named(change, error, message):
    with pytest.raises(error, match=message):
        connect(**change)


def test_what_is_no_curve_is_refused():
    with pytest.raises(TypeError, match=r"curve is dict, expected a js.Curve, as js.connect returns it"):
        between({"control": A})
    with pytest.raises(ValueError, match="kind of a curve is 'circle'"):
        between(js.Curve(A, "circle"))
    with pytest.raises(ValueError, match=r"curve\.control has .*"):
        between(js.Curve(jnp.ones(3)))
