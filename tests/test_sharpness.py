"""Measures of flatness: closed forms on quadratics, dense derivatives on a network, and what a rescaling changes."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from flax.core import FrozenDict
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh

import jaxscape as js
from jaxscape.flatness._measures import MEASURES
from tests.problems import slow_but

RNG = np.random.default_rng(0)
MINIMUM = {"b": jnp.asarray(RNG.normal(size=2)), "w": jnp.asarray(RNG.normal(size=(3, 2)))}
FLAT, UNFLATTEN = ravel_pytree(MINIMUM)
FACTOR = RNG.normal(size=(8, 8))
MATRIX = jnp.asarray(FACTOR @ FACTOR.T / 8)
OFFSET = 0.3
DATA = np.linspace(0.5, 1.5, 12)


def quadratic(p, x):
    d = ravel_pytree(p)[0] - FLAT
    return x * (d @ MATRIX @ d) / 2 + OFFSET


def diagonal(p, x):
    return x * (jnp.diag(MATRIX) * ravel_pytree(p)[0] ** 2).sum() / 2 + OFFSET


def measured(params, loss_fn, data, name, **options):
    table = js.sharpness(params, loss_fn, data, measures=[name], progress=False, **options)
    assert table.index.tolist() == [name]
    return table.loc[name]


def test_the_largest_loss_in_a_box():
    w = np.asarray(FLAT)
    epsilon, center = 1e-2, (np.diag(MATRIX) * w**2).sum() / 2 + OFFSET
    corner = np.abs(w) + epsilon * (np.abs(w) + 1)
    largest = (np.diag(MATRIX) * corner**2).sum() / 2 + OFFSET
    row = measured(MINIMUM, diagonal, DATA, "keskar", epsilon=epsilon)
    np.testing.assert_allclose(row.value, 100 * (largest - center) / (1 + center), rtol=1e-9)
    assert np.isnan(row.stderr)


def test_the_largest_loss_in_a_box_from_a_minimum():
    """There the gradient is 0; against all corners."""
    corners = 0.1 * np.array(list(itertools.product([-1, 1], repeat=8))) * (np.abs(FLAT) + 1)
    largest = np.einsum("ci,ij,cj->c", corners, MATRIX, corners).max() / 2
    best = max(measured(MINIMUM, quadratic, DATA, "keskar", epsilon=0.1, key=key).value for key in range(8))
    np.testing.assert_allclose(best, 100 * largest / (1 + OFFSET), rtol=1e-9)


def test_the_largest_loss_in_an_adaptive_ball():
    scaled = np.abs(FLAT)[:, None] * MATRIX * np.abs(FLAT)
    row = measured(MINIMUM, quadratic, DATA, "worst_case_adaptive", rho=0.5, num_steps=100)
    np.testing.assert_allclose(row.value, 0.125 * np.linalg.eigvalsh(scaled)[-1], rtol=1e-6)


def test_the_ascent_finds_a_maximum_inside_of_the_ball():
    def hill(p, x):
        return x * 0 - ((p - 0.1) ** 2).sum()

    row = measured(jnp.full(3, 1.0), lambda p, x: hill(p - 1, x), DATA, "worst_case_adaptive", rho=1.0, num_steps=60)
    np.testing.assert_allclose(row.value, 0.03, atol=1e-6)


def test_m_sharpness_is_the_mean_over_batches():
    row = measured(MINIMUM, quadratic, DATA, "m_sharpness", rho=0.5, m=3, num_steps=100)
    largest = np.linalg.eigvalsh(MATRIX)[-1]
    np.testing.assert_allclose(row.value, 0.125 * largest * DATA.mean(), rtol=1e-6)
    assert 0 < row.stderr < row.value
    alone = measured(MINIMUM, quadratic, DATA, "m_sharpness", rho=0.5, m=12, num_steps=100)
    np.testing.assert_allclose(alone.value, 0.125 * largest, rtol=1e-6)
    assert np.isnan(alone.stderr)


@pytest.mark.parametrize(
    ("name", "truth"),
    [
        ("average_case_adaptive", 0.005 * np.diag(MATRIX) @ np.asarray(FLAT) ** 2),
        pytest.param("low_pass", OFFSET + 0.5e-2 * np.trace(MATRIX), marks=pytest.mark.slow),
    ],
    ids=["average case", "low pass"],
)
def test_the_mean_over_random_displacements(name, truth):
    row = measured(MINIMUM, quadratic, DATA, name, rho=0.1, sigma=0.1, num_samples=120)
    assert abs(row.value - truth) < 4 * row.stderr < 0.5 * truth
    few = measured(MINIMUM, quadratic, DATA, name, rho=0.1, sigma=0.1, num_samples=30)
    assert 1.3 < few.stderr / row.stderr < 3


@pytest.mark.slow
def test_a_mean_below_zero_is_not_clipped():
    assert measured(MINIMUM, lambda p, x: -quadratic(p, x), DATA, "average_case_adaptive").value < 0


def test_eigenvalues_and_trace():
    np.testing.assert_allclose(
        measured(MINIMUM, quadratic, DATA, "lambda_max").value, np.linalg.eigvalsh(MATRIX)[-1], rtol=1e-3
    )
    row = measured(MINIMUM, quadratic, DATA, "trace")
    np.testing.assert_allclose(row.value, np.trace(MATRIX), rtol=1e-6)
    diagonal = RNG.uniform(0.1, 2, 8)
    row = measured(
        MINIMUM, quadratic, DATA, "preconditioned_lambda_max", preconditioner=UNFLATTEN(jnp.asarray(diagonal))
    )
    truth = scipy.linalg.eigh(MATRIX, np.diag(diagonal), eigvals_only=True)[-1]
    np.testing.assert_allclose(row.value, truth, rtol=1e-3)


def test_an_eigenvalue_that_did_not_converge_says_so():
    """Near zero, beside eigenvalues of size 1: a relative residual of 1e-3 is out of reach."""
    spectrum = jnp.linspace(-1, 1e-7, 500)
    row = measured(jnp.ones(500), lambda p, x: x * (spectrum * p**2).sum() / 2, np.ones(2), "lambda_max")
    assert "not converged, the residual is" in row.note


def test_the_critical_step():
    point = UNFLATTEN(FLAT + jnp.asarray(RNG.normal(size=8)))
    d = np.asarray(ravel_pytree(point)[0] - FLAT)
    g = MATRIX @ d
    row = measured(point, quadratic, DATA, "critical")
    np.testing.assert_allclose(row.value, (g @ MATRIX @ g) / (g @ g), rtol=2e-4)
    u = -jnp.asarray(g * RNG.uniform(0.5, 2, 8))
    row = measured(point, quadratic, DATA, "critical", update=UNFLATTEN(u))
    np.testing.assert_allclose(row.value, -(u @ MATRIX @ u) / (g @ u), rtol=2e-4)


def test_no_critical_step():
    row = measured(MINIMUM, lambda p, x: x * p["w"].sum(), DATA, "critical")
    assert (row.value, row.note) == (0, "the loss rises at no step")
    row = measured(MINIMUM, quadratic, DATA, "critical", update=MINIMUM)
    assert np.isnan(row.value)
    assert row.note == "the loss does not fall along the update"


# ---- a network


def mlp(p, x):
    return jax.nn.relu(x @ p["w1"] + p["b1"]) @ p["w2"]


def cross_entropy(p, batch):
    x, y = batch
    logits = mlp(p, x)
    return jax.nn.logsumexp(logits, axis=-1) - jnp.take_along_axis(logits, y[:, None], axis=-1)[:, 0]


SHAPES = {"b1": (5,), "w1": (3, 5), "w2": (5, 4)}
PARAMS = {name: jnp.asarray(RNG.normal(size=shape)) for name, shape in SHAPES.items()}
BATCH = (RNG.normal(size=(24, 3)), RNG.integers(0, 4, 24))


def mean_loss(p):
    return cross_entropy(p, BATCH).mean()


@pytest.mark.parametrize("layer", slow_but([None], [None, "['w1']", "['w2']"]))
def test_relative_flatness_equals_the_dense_one(layer):
    truth = 0.0
    for name in ("w1", "w2"):
        if layer in (None, f"['{name}']"):
            blocks = jax.hessian(mean_loss)(PARAMS)[name][name]  # (in, out, in, out)
            w = PARAMS[name]
            truth += jnp.einsum("is,it,dsdt->", w, w, blocks)
    row = measured(PARAMS, cross_entropy, BATCH, "relative_flatness", layer=layer, num_samples=80)
    assert abs(row.value - truth) < 4 * row.stderr < 1.2 * abs(truth)


def test_fisher_rao_equals_a_loop():
    w = ravel_pytree(PARAMS)[0]
    squares = []
    for x, y in zip(*BATCH, strict=True):
        gradient = jax.grad(lambda p, x=x, y=y: cross_entropy(p, (x[None], y[None]))[0])(PARAMS)
        squares.append(float(w @ ravel_pytree(gradient)[0]) ** 2)
    row = measured(PARAMS, cross_entropy, BATCH, "fisher_rao")
    np.testing.assert_allclose(row.value, np.mean(squares), rtol=1e-9)
    np.testing.assert_allclose(row.stderr, np.std(squares, ddof=1) / np.sqrt(24), rtol=1e-9)


def test_fisher_rao_of_a_network_without_biases():
    """Liang et al. 2019, theorem 3.1: with l + 1 layers, ``(l + 1)^2 mean_i <softmax(f_i) - y_i, f_i>^2``."""
    params = PARAMS | {"b1": jnp.zeros(5)}
    logits = np.asarray(mlp(params, BATCH[0]))
    residuals = np.asarray(jax.nn.softmax(logits)) - np.eye(4)[BATCH[1]]
    row = measured(params, cross_entropy, BATCH, "fisher_rao")
    np.testing.assert_allclose(row.value, 2**2 * np.mean((residuals * logits).sum(-1) ** 2), rtol=1e-9)


@pytest.mark.slow
def test_weights_of_examples():
    """As many copies of an example as it has weight."""
    weights = np.arange(24) % 3
    copies = np.repeat(np.arange(24), weights)

    def weighted(p, batch):
        return {"loss": cross_entropy(p, batch[:2]), "weight": batch[2]}

    options = {
        "measures": [name for name in MEASURES if name not in ("m_sharpness", "preconditioned_lambda_max")],
        "num_samples": 8,
        "num_steps": 3,
        "progress": False,
    }
    one = js.sharpness(PARAMS, weighted, (*BATCH, weights.astype(float)), **options)
    other = js.sharpness(PARAMS, cross_entropy, tuple(x[copies] for x in BATCH), **options)
    np.testing.assert_allclose(one.value, other.value, rtol=1e-3)


def rescaled(p, factor):
    return {"b1": factor * p["b1"], "w1": factor * p["w1"], "w2": p["w2"] / factor}


INVARIANT = {"worst_case_adaptive", "average_case_adaptive", "relative_flatness", "fisher_rao"}


@pytest.mark.slow  # 13 seconds: all measures twice
def test_which_measures_change_under_a_rescaling_of_the_weights():
    """Dinh et al. 2017: one ReLU layer up, the next one down."""
    few = {"num_samples": 10, "num_steps": 5, "m": 6, "progress": False}
    other = rescaled(PARAMS, 8.0)
    np.testing.assert_allclose(mlp(other, BATCH[0]), mlp(PARAMS, BATCH[0]), rtol=1e-12)
    tables = [js.sharpness(p, cross_entropy, BATCH, **few) for p in (PARAMS, other)]
    change = (tables[1].value / tables[0].value - 1).abs()
    assert set(change.index) == set(MEASURES) - {"preconditioned_lambda_max"}
    assert set(change.index[change < 1e-6]) == INVARIANT
    assert (change.drop(list(INVARIANT)) > 1e-3).all()


@pytest.mark.slow
def test_which_measures_change_when_a_layer_before_batch_norm_is_rescaled():
    def loss(p, batch):
        h = batch[0] @ p["w1"]
        h = (h - p["mean"]) / jnp.sqrt(p["var"]) * p["scale"]
        return cross_entropy({"w1": jnp.eye(5), "b1": p["b1"], "w2": p["w2"]}, (h, batch[1]))

    h = BATCH[0] @ PARAMS["w1"]
    params = PARAMS | {"scale": jnp.ones(5), "mean": h.mean(0), "var": h.var(0)}
    other = params | {"w1": 8 * params["w1"], "mean": 8 * params["mean"], "var": 64 * params["var"]}
    few = {"num_samples": 10, "num_steps": 5, "m": 6, "progress": False}
    tables = [js.sharpness(p, loss, BATCH, **few) for p in (params, other)]
    change = (tables[1].value / tables[0].value - 1).abs()
    assert (change[list(INVARIANT)] < 1e-6).all()
    assert (change.drop(list(INVARIANT)) > 1e-4).all()


def test_the_curve_along_filter_normalized_directions_stays_as_it_is():
    grid, other = js.Grid.line(-1, 1, 11), rescaled(PARAMS, 8.0)

    def curve(params, norm):
        directions = js.random_directions(0, params, num=1, norm=norm)
        return js.surface(params, cross_entropy, BATCH, directions=directions, grid=grid, progress=False).loss

    np.testing.assert_allclose(curve(PARAMS, "filter"), curve(other, "filter"), rtol=1e-6)
    assert abs(curve(PARAMS, None) / curve(other, None) - 1).max() > 0.1


@pytest.mark.slow
def test_devices_do_not_matter():
    few = {"num_samples": 6, "num_steps": 4, "m": 5, "progress": False}
    one = Mesh(np.array(jax.devices()[:1]), ("points",))
    tables = [js.sharpness(PARAMS, cross_entropy, BATCH, mesh=mesh, **few) for mesh in (None, one)]
    np.testing.assert_allclose(tables[0].value, tables[1].value, rtol=1e-6)


def test_a_measure_does_not_depend_on_the_others():
    few = {"num_samples": 4, "num_steps": 3, "m": 5}
    table = js.sharpness(PARAMS, cross_entropy, BATCH, **few, progress=False)
    for name in ("keskar", "low_pass"):
        assert measured(PARAMS, cross_entropy, BATCH, name, **few).value == table.value[name]


# ---- what could be wrong without a word


@pytest.mark.check
@pytest.mark.parametrize("name", slow_but(["lambda_max"], set(MEASURES) - {"fisher_rao"}))
def test_a_sum_over_examples_is_refused_by_every_measure(name):
    with pytest.raises(ValueError, match="no mean over examples"):
        measured(
            {"w": jnp.ones((3, 1))},
            lambda p, x: (x * (p["w"] ** 2).sum()).sum(),
            jnp.ones(40),
            name,
            preconditioner={"w": jnp.ones((3, 1))},
        )


def test_an_update_displaces_no_leaf_that_is_ignored():
    def loss(p, x):
        return x * ((p["kernel"][0, 0] - 1) ** 2 + 10 * (p["bias"][0] - 0.2) ** 2)

    params, ones = ({"kernel": f((1, 1)), "bias": f(1)} for f in (jnp.zeros, jnp.ones))
    row = measured(params, loss, jnp.ones(8), "critical", ignore="bias_norm", update=ones)
    np.testing.assert_allclose(row.value, 1.0, rtol=1e-3)  # (s - 1)^2 is above 1 from s = 2 on


@pytest.mark.parametrize("name", slow_but(["keskar"], ["keskar", "low_pass", "m_sharpness", "worst_case_adaptive"]))
def test_bfloat16_rounds_no_displacement_away(name):
    def loss(p, x):
        return x * (p["w"].astype(jnp.float32) ** 2).sum()

    low, single = (
        measured({"w": jnp.array([100.0, -100.0], dtype)}, loss, jnp.ones(8), name)
        for dtype in (jnp.bfloat16, jnp.float32)
    )
    assert low.value == single.value > 0


@pytest.mark.parametrize("scale", slow_but([1e20], [1e20, 1e-20, 1e30, 1e-30]))
def test_losses_whose_squares_float32_does_not_hold(scale):
    def loss(p, x):
        return scale * x * (p["w"] ** 2).sum()

    def value(name, factor):
        params = {"w": jnp.array([1.0, -2.0], jnp.float32)}
        row = measured(params, lambda p, x: loss(p, x) * factor, jnp.ones(8, jnp.float32), name, m=4)
        assert row.note == ""
        return row.value

    for name in ("worst_case_adaptive", "m_sharpness"):
        np.testing.assert_allclose(value(name, 1) / scale, value(name, 1 / scale), rtol=1e-4)
    np.testing.assert_allclose(value("critical", 1), 2 * scale, rtol=1e-3)


@pytest.mark.parametrize("key", range(3))
def test_the_ascent_leaves_a_saddle(key):
    """``x^2 - 10 |y|^2`` at 0: most points are below it."""
    curvature = np.array([2.0] + 9 * [-20.0])
    row = measured({"w": jnp.zeros(10)}, lambda p, x: x * (p["w"] ** 2 @ curvature) / 2, jnp.ones(4), "keskar", key=key)
    np.testing.assert_allclose(row.value, 100 * 1e-6, rtol=1e-2)


def test_rounding_of_the_loss_is_told():
    params, data = {"w": jnp.array([0.1, -0.2], jnp.float32)}, jnp.ones(8, jnp.float32)
    for name in ("keskar", "worst_case_adaptive", "average_case_adaptive", "m_sharpness", "critical"):
        row, plain = (
            measured(params, lambda p, x, c=c: x * ((p["w"] ** 2).sum() + c), data, name, m=4) for c in (1e5, 0)
        )
        assert row.note.startswith("the loss is 1e+05, rounded to about 1e-02")
        assert plain.note == ""


def test_a_gradient_that_is_not_that_of_the_loss():
    """The value is w, the derivative -1; at 0 no rounding hides it."""
    row = measured(
        {"w": jnp.zeros(())}, lambda p, x: x * (2 * jax.lax.stop_gradient(p["w"]) - p["w"]), DATA, "critical"
    )
    assert np.isnan(row.value)
    assert row.note == "the loss falls at no step"


def test_no_kernel_is_displaced():
    row = measured(MINIMUM, quadratic, DATA, "relative_flatness", ignore=lambda path, leaf: leaf.ndim > 1)
    assert np.isnan(row.value)
    assert row.note == "no leaf is a kernel that is displaced"


def test_a_negative_loss_of_keskar():
    def shifted(c):
        return measured({"w": jnp.zeros(4)}, lambda p, x: x * (p["w"] ** 2).sum() - c, jnp.ones(8), "keskar")

    assert np.isnan(shifted(1).value)
    assert shifted(1).note == "1 + L(w) is 0, not positive"
    assert shifted(3).value < 0
    assert shifted(3).note == "1 + L(w) is -2, not positive"


def test_fisher_rao_of_a_mapping_and_of_float16():
    mapped = measured(PARAMS, lambda p, b: FrozenDict({"loss": cross_entropy(p, b)}), BATCH, "fisher_rao")
    assert mapped.value == measured(PARAMS, cross_entropy, BATCH, "fisher_rao").value
    row = measured(
        {"w": jnp.float32(20)}, lambda p, x: (x * p["w"] ** 2).astype(jnp.float16), jnp.ones(4), "fisher_rao"
    )
    np.testing.assert_allclose(row.value, 800.0**2, rtol=1e-3)


def test_kernels_in_another_layout_are_doubted():
    params = {"l1.weight": jnp.ones((5, 3)), "l2.weight": jnp.ones((2, 5))}
    with pytest.warns(UserWarning, match="2 of 2 kernels look like"):
        measured(
            params,
            lambda p, x: x * (p["l2.weight"] @ p["l1.weight"]).sum(),
            jnp.ones(4),
            "relative_flatness",
            num_samples=2,
        )


def test_running_statistics_are_not_displaced():
    params = {"w": jnp.ones(3), "norm": {"mean": jnp.zeros(3), "var": jnp.full(3, 1e-4)}}

    def loss(p, x):
        return x * ((p["w"] - p["norm"]["mean"]) ** 2 / jnp.sqrt(p["norm"]["var"])).sum()

    assert np.isfinite(measured(params, loss, DATA, "low_pass", sigma=1.0, num_samples=8).value)


def test_ignored_leaves_are_not_displaced():
    def loss(p, x):
        return cross_entropy(
            {**PARAMS, "b1": PARAMS["b1"] + jnp.sign(p["b1"] - PARAMS["b1"]) ** 2 * 1e3, "w1": p["w1"]}, x
        )

    row = measured(PARAMS, loss, BATCH, "low_pass", ignore="bias_norm", num_samples=8)
    truth = measured({"w1": PARAMS["w1"]}, lambda p, x: cross_entropy(PARAMS | p, x), BATCH, "low_pass", num_samples=8)
    assert abs(row.value - truth.value) < 5 * (row.stderr + truth.stderr) < 0.1


def test_losses_that_are_not_finite_are_counted():
    def wall(p, x):
        return jnp.where(p["w"].max() > 3, jnp.nan, x * (p["w"] ** 2).sum())

    params = {"w": jnp.ones(4)}
    row = measured(params, wall, DATA, "low_pass", sigma=2.0, num_samples=20)
    assert np.isnan(row.value)
    assert "of 20 losses are not finite" in row.note
    row = measured(params, wall, DATA, "worst_case_adaptive", rho=5.0)
    assert np.isfinite(row.value)
    assert "of 20 points of the ascent are not finite" in row.note


def test_the_table_says_how_it_was_made():
    table = js.sharpness(MINIMUM, quadratic, DATA, measures=["low_pass", "trace"], num_samples=7, progress=False)
    assert table.index.name == "measure"
    assert table.columns.tolist() == ["value", "stderr", "note"]
    assert table.attrs["measures"]["low_pass"] == {
        "definition": MEASURES["low_pass"].definition,
        "source": MEASURES["low_pass"].source,
        "sigma": 0.01,
        "num_samples": 7,
    }
    assert table.attrs["num_params"] == 8
    assert len(table.attrs["fingerprint"]) == 32


@pytest.mark.slow
def test_several_terms():
    terms = {"a": quadratic, "b": diagonal}
    table = js.sharpness(MINIMUM, terms, {"a": DATA, "b": DATA[:5]}, num_samples=40, num_steps=3, progress=False)
    assert set(table.index) == set(MEASURES) - {"preconditioned_lambda_max", "m_sharpness", "fisher_rao"}
    trace = np.trace(MATRIX) * (1 + DATA[:5].mean())
    np.testing.assert_allclose(table.value["trace"], trace, rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"measures": ["flatness"]}, ValueError, "measures has 'flatness', expected names of keskar"),
        ({"measures": "trace"}, TypeError, "measures is 'trace', expected a list of names"),
        ({"measures": ["preconditioned_lambda_max"]}, ValueError, "needs preconditioner="),
        ({"loss_fn": lambda p, x: quadratic(p, x).mean(), "measures": ["fisher_rao"]}, ValueError, "of each example"),
        ({"rho": 0}, ValueError, "rho is 0, expected a positive number"),
        ({"epsilon": "1"}, TypeError, "epsilon is '1', expected a positive number"),
        ({"sigma": float("inf")}, ValueError, "sigma is inf, expected a positive number"),
        ({"num_samples": 1}, ValueError, "num_samples is 1"),
        ({"num_steps": 0}, ValueError, "num_steps is 0"),
        ({"m": 0}, ValueError, "m is 0"),
        ({"layer": "['b']"}, ValueError, r"layer is \"\['b'\]\", expected the path of a kernel: \['w'\]"),
        (
            {"preconditioner": {"b": jnp.zeros(2), "w": jnp.ones((3, 2))}},
            ValueError,
            r"preconditioner\['b'\] has entries",
        ),
        ({"update": {"b": jnp.zeros(2)}}, ValueError, r"update has no leaf \['w'\]"),
    ],
    ids=range(13),
)
def test_mistakes_are_named(change, error, message):
    arguments = {"params": MINIMUM, "loss_fn": quadratic, "data": DATA, "progress": False} | change
    with pytest.raises(error, match=message):
        js.sharpness(arguments.pop("params"), arguments.pop("loss_fn"), arguments.pop("data"), **arguments)
