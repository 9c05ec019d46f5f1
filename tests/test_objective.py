"""What a loss over data is: read anew at each call, hoisted, identified, weighted, in terms, checked."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.flatten_util import ravel_pytree

import jaxscape as js
from jaxscape.objective import Objective, _check, trace
from tests.problems import classification_data, compilations, mlp_loss, mlp_params, slow_but

GRID = js.Grid.line(-1, 1, 3)
PARAMS = {"w": jnp.ones((2, 2))}
X = jnp.arange(8.0).reshape(4, 2)
MAP = {"directions": [PARAMS], "grid": GRID, "progress": False}


def losses(loss_fn, params=PARAMS, data=X, **options):
    return js.surface(params, loss_fn, data, directions=[params], grid=GRID, progress=False, **options)


# ---- a closure is read anew at each call, and nothing compiles again for it


def scaled_by(scale):
    """A loss that reads a global, as notebooks write it."""
    namespace = {"scale": scale}
    exec("def loss(p, x): return ((x @ p['w']) ** 2).sum(-1) * scale", namespace)  # noqa: S102
    return namespace["loss"], namespace


NUMBERS = {  # one of each call that takes a loss
    "surface": lambda loss: losses(loss).loss.values[1],
    "tolerance": lambda loss: losses(loss, rtol=0.1).loss.values[1],
    "interpolate": lambda loss: js.interpolate(PARAMS, PARAMS, loss, X, grid=GRID, progress=False).loss.values[0],
    "hvp": lambda loss: js.hvp(loss, PARAMS, X)(PARAMS)["w"].sum(),
    "ends": lambda loss: js.extreme_eigenvalues(PARAMS, loss, X, progress=False).max_eigenvalue,
    "pairs": lambda loss: js.top_eigenpairs(PARAMS, loss, X, 1, progress=False).eigenvalues[0],
    "trace": lambda loss: js.hessian_trace(PARAMS, loss, X, progress=False).trace,
    "density": lambda loss: js.spectral_density(PARAMS, loss, X, progress=False).attrs["mean_eigenvalue"],
    "map": lambda loss: js.eigenvalue_map(PARAMS, loss, X, **MAP).max_eigenvalue.values[0],
    "plane": lambda loss: js.plane_hessian(PARAMS, loss, X, **MAP).plane_max_eigenvalue.values[0],
    "path": lambda loss: js.trajectory(
        [{"w": k * jnp.eye(2)} for k in range(3)], loss, X, directions=[PARAMS], grid=GRID, progress=False
    ).true_loss.values[-1],
}


@pytest.mark.parametrize("name", slow_but(["surface", "hvp"], NUMBERS))
def test_what_a_loss_reads_from_outside_is_read_anew(name):
    loss_fn, namespace = scaled_by(jnp.float64(1.0))
    before = NUMBERS[name](loss_fn)
    namespace["scale"] = jnp.float64(0.25)
    with compilations() as compiled:
        after = NUMBERS[name](loss_fn)
    assert compiled == []  # the array is an operand
    np.testing.assert_allclose(after, 0.25 * before, rtol=1e-5)


def test_a_python_number_read_from_outside_is_read_anew():
    loss_fn, namespace = scaled_by(1.0)
    before = losses(loss_fn).loss.values
    namespace["scale"] = 0.25
    np.testing.assert_allclose(losses(loss_fn).loss.values, 0.25 * before)


def test_a_batch_dependent_constant_is_an_operand_too():
    """NumPy arrays whose shape depends on the batch, and arrays inside nested jit calls and loops."""
    inner = {"scale": jnp.float64(2.0)}

    def loss(p, x):
        @jax.jit
        def nested(y):
            return jax.lax.scan(lambda c, z: (c + z * inner["scale"], None), jnp.zeros(()), y)[0]

        return jax.vmap(nested)(x @ p["w"]) + 0 * np.arange(len(x))

    for scale in (2.0, 3.0):
        inner["scale"] = jnp.float64(scale)
        expected = scale * np.asarray(X).sum() * 2 / 4
        np.testing.assert_allclose(losses(loss, batch_size=3).loss.sel(alpha=0), expected)
        np.testing.assert_allclose(js.hvp(loss, PARAMS, X)(PARAMS)["w"], 0, atol=1e-12)


def test_a_users_own_derivative_rule_is_read_anew():
    """Two losses of equal values whose custom rules differ have different gradients, so different products."""

    def loss_of(factor, captured):
        @jax.custom_jvp
        def square(x):
            return x**2

        @square.defjvp
        def rule(primals, tangents):
            (x,), (t,) = primals, tangents
            return x**2, factor * captured["c"] * x * t

        return lambda p, x: square(x @ p["w"]).sum(-1)

    captured = {"c": jnp.float64(1.0)}
    hessians = {factor: js.hvp(loss_of(factor, captured), PARAMS, X)(PARAMS)["w"] for factor in (2.0, 6.0)}
    np.testing.assert_allclose(hessians[6.0], 3 * hessians[2.0])
    loss_fn = loss_of(2.0, captured)
    before = js.hvp(loss_fn, PARAMS, X)(PARAMS)["w"]
    captured["c"] = jnp.float64(5.0)
    np.testing.assert_allclose(js.hvp(loss_fn, PARAMS, X)(PARAMS)["w"], 5 * before)


def test_losses_that_compute_the_same_share_a_program():
    js.surface(PARAMS, lambda p, x: ((x @ p["w"]) ** 2).sum(-1) + 7.25, X, **MAP)
    with compilations() as compiled:
        js.surface(PARAMS, lambda q, y: ((y @ q["w"]) ** 2).sum(-1) + 7.25, X, **MAP)
        assert compiled == []
        js.surface(PARAMS, lambda p, x: ((x @ p["w"]) ** 2).sum(-1) + 7.5, X, **MAP)
    assert compiled


def test_a_large_closed_over_array_is_no_constant_of_the_program():
    base = jnp.asarray(np.random.default_rng(0).normal(size=(2, 500)))
    objective = Objective.of(lambda p, x: ((x @ p["w"]) @ base).sum(-1) + (x @ base).sum(-1), PARAMS, X)
    computation, constants = objective.terms[0].traced(4)
    assert len(constants) == 1
    assert constants[0] is base  # held once
    assert "500]" not in str([eqn.params for eqn in computation.jaxpr.eqns])
    assert len(jax.jit(lambda *a: computation(*a)).lower(constants, PARAMS, X).as_text()) < 5000


# ---- identity


def identity(loss_fn, **options):
    return trace(loss_fn, PARAMS, X, **options).fingerprint()


def test_a_fingerprint_tells_losses_apart():
    table = jnp.arange(2.0)

    def of(function):
        return identity(lambda p, x: function((x @ p["w"]).sum(-1)))

    different = [
        of(jnp.tanh),
        of(jnp.sin),
        of(lambda y: y * 2.0),
        of(lambda y: y * 3.0),
        of(lambda y: y * table.sum()),
        of(lambda y: y * (table + 1).sum()),
        of(lambda y: y * np.arange(2.0)[1]),
        of(lambda y: jax.lax.cond(y[0] > 0, jnp.sin, jnp.cos, y)),
        of(lambda y: jax.lax.cond(y[0] > 0, jnp.cos, jnp.sin, y)),
        of(lambda y: jax.lax.fori_loop(0, 3, lambda _, z: z + 1, y)),
        of(lambda y: jax.lax.fori_loop(0, 4, lambda _, z: z + 1, y)),
        of(lambda y: y * np.float64(1e-300)),
        of(lambda y: y * np.float64(1e-301)),
        identity(lambda p, x: (x @ p["w"]).sum(-1), compute_dtype="float32"),
        identity(lambda p, x: (x @ p["w"]).sum(-1)),
        identity(lambda p, x: (x @ p["w"]).sum(-1), compute_dtype="bfloat16"),
    ]
    assert len(set(different)) == len(different)
    assert of(jnp.tanh) == of(lambda z: jnp.tanh(z))


def test_a_callback_is_compared_as_an_object():
    def of(function):
        return trace(lambda x: jax.pure_callback(function, jax.ShapeDtypeStruct((4, 2), x.dtype), x), X).computation

    assert of(np.sin) == of(np.sin)
    assert of(np.sin) != of(np.cos)


ELSEWHERE = """
import jax, sys, tests.conftest
import numpy as np
import jaxscape as js
from jaxscape.objective import Objective
from tests.problems import classification_data, mlp_loss, mlp_params
table = np.arange(3.0)
loss = lambda p, b: mlp_loss(p, b)["loss"] * table.sum() + jax.nn.relu(b[0]).sum(-1)
params, data = mlp_params(), classification_data()
recipe = Objective.of(loss, params, data).recipe
ds = js.surface(params, loss, data, directions=[params], grid=js.Grid.line(-1, 1, 11), progress=False)
values, devices = ds.loss.values, ds.attrs["num_devices"]
"""


@pytest.mark.slow  # 7 seconds: a process of its own
def test_another_process_with_eight_devices_finds_the_same(tmp_path):  # it imports and compiles: 6 s
    here = {}
    exec(ELSEWHERE, here)  # noqa: S102
    code = f"{ELSEWHERE}np.savez(sys.argv[1], values=values, devices=devices, recipe=str(recipe))"
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "8", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-W", "ignore", "-c", code, tmp_path / "there.npz"]
    subprocess.run(command, env=environment, check=True)
    there = np.load(tmp_path / "there.npz")
    assert there["devices"] == 8
    assert there["recipe"] == str(here["recipe"])
    np.testing.assert_array_equal(there["values"], here["values"])


# ---- weights


def weighted_problem(examples=37):
    rng = np.random.default_rng(0)
    x, y, w = rng.normal(size=(examples, 3)), rng.normal(size=examples), rng.integers(0, 4, examples).astype(float)
    w[0] = 0.0
    return {"a": jnp.asarray(rng.normal(size=(3, 1)))}, (x, y, w)


def weighted(params, batch):
    x, y, w = batch
    error = (x @ params["a"])[:, 0] - y
    with_hole = jnp.where(w > 0, error**2, jnp.nan)  # an example of weight 0 has no say, whatever its loss
    return {"loss": with_hole, "large": jnp.abs(error) > 1, "weight": w}


def ratio_and_stderr(values, weights):
    """The weighted mean, and its standard error to first order, by a Python loop."""
    total = sum(weights)
    mean = sum(w * v for w, v in zip(weights, values, strict=True) if w) / total
    squares = sum((w * (v - mean)) ** 2 for w, v in zip(weights, values, strict=True) if w)
    n = len(values)
    return mean, (n / (n - 1) * squares) ** 0.5 / total


@pytest.mark.parametrize("options", [{"batch_size": 5}, {"batch_size": 37, "points_per_step": 4}, {"store": True}])
def test_weighted_means_equal_a_loop(tmp_path, options):
    params, data = weighted_problem()
    if "store" in options:
        options = {"store": tmp_path / "s.zarr"}
    direction = {"a": jnp.ones((3, 1))}
    ds = js.surface(params, weighted, data, directions=[direction], grid=GRID, progress=False, **options)
    assert set(ds) == {"loss", "loss_stderr", "large", "large_stderr", "num_examples"}
    for i, alpha in enumerate(GRID.axes[0]):
        values = weighted({"a": params["a"] + alpha}, data)
        for name in ("loss", "large"):
            mean, stderr = ratio_and_stderr(np.asarray(values[name], float), data[2])
            np.testing.assert_allclose(ds[name][i], mean, rtol=1e-6)  # float32 accuracies
            np.testing.assert_allclose(ds[f"{name}_stderr"][i], stderr, rtol=1e-5)


def test_equal_weights_change_nothing():
    params, data = mlp_params(), classification_data(examples=37)

    def loss(p, b):
        return mlp_loss(p, b) | {"weight": jnp.full(len(b[1]), 2.5)}

    plain = js.surface(params, mlp_loss, data, grid=GRID, directions=[params], batch_size=8, progress=False)
    equal = js.surface(params, loss, data, grid=GRID, directions=[params], batch_size=8, progress=False)
    for name in plain:
        np.testing.assert_allclose(equal[name], plain[name], rtol=1e-6, atol=1e-15)


V = {"a": jnp.ones((3, 1))}
LINE = {"directions": [V], "grid": GRID, "progress": False}
WEIGHTED = {
    "surface": lambda params, d: js.surface(params, weighted, d, **LINE, batch_size=6).loss.values,
    "hvp": lambda params, d: js.hvp(weighted, params, d, batch_size=6)(V)["a"],
    "map": lambda params, d: js.eigenvalue_map(params, weighted, d, **LINE, tol=1e-8).max_eigenvalue.values,
    "path": lambda params, d: js.trajectory([params, V], weighted, d, **LINE, origin=V).true_loss.values,
    "ggn": lambda params, d: js.ggn_product(
        lambda p, b: b[0] @ p["a"],
        lambda out, b: {"loss": (out[:, 0] - b[1]) ** 2, "weight": b[2]},
        params,
        d,
        batch_size=6,
    )(V)["a"],
}


@pytest.mark.parametrize("name", slow_but(["surface", "hvp", "ggn"], WEIGHTED))
def test_a_weight_counts_as_so_many_examples(name):
    """The mean with weights w is that of data in which each example stands w times."""
    params, (x, y, w) = weighted_problem()
    repeated = tuple(np.repeat(column, w.astype(int), axis=0) for column in (x, y, np.ones_like(w)))
    call = WEIGHTED[name]
    np.testing.assert_allclose(call(params, (x, y, w)), call(params, repeated), rtol=1e-8)


def test_the_hessian_of_a_weighted_mean_equals_the_dense_one():
    params, data = weighted_problem()

    def mean(a):
        x, y, w = data
        return jnp.sum(w * ((x @ a)[:, 0] - y) ** 2) / jnp.sum(w)

    expected = jax.jit(jax.hessian(mean))(params["a"]).reshape(3, 3)
    hessian = js.hvp(weighted, params, data, batch_size=8)
    result = np.stack([hessian({"a": jnp.eye(3)[:, i : i + 1]})["a"][:, 0] for i in range(3)])
    np.testing.assert_allclose(result, expected, rtol=1e-12)


@pytest.mark.slow
def test_tokens_of_a_sequence(tmp_path):
    """The usual loss of a language model, as a per-sequence mean with the number of tokens as its weight."""
    rng = np.random.default_rng(0)
    lengths = np.sort(rng.integers(1, 17, 256))
    mask = (np.arange(16) < lengths[:, None]).astype(float)
    x = rng.normal(size=(256, 16)) * np.linspace(0.2, 2, 16)
    params = {"w": jnp.ones((1, 1))}

    def tokens(p, batch):
        return (p["w"] * batch[0] - 1) ** 2 * batch[1]

    def loss(p, batch):
        return {"loss": tokens(p, batch).sum(-1) / batch[1].sum(-1), "weight": batch[1].sum(-1)}

    true = np.sum(tokens(params, (x, mask))) / mask.sum()
    for batch_size in (256, 60, 16, "auto"):
        ds = js.surface(params, loss, (x, mask), grid=GRID, directions=[params], batch_size=batch_size, progress=False)
        np.testing.assert_allclose(ds.attrs["center_loss"], true, rtol=1e-12)
        product = js.hvp(loss, params, (x, mask), batch_size=batch_size)(params)["w"]
        np.testing.assert_allclose(product, 2 * np.sum(mask * x**2) / mask.sum(), rtol=1e-12)

    def batch_mean(p, batch):  # the mean of the batch, with the weight of the batch: as good, without error bars
        return {"loss": tokens(p, batch).sum() / batch[1].sum(), "weight": batch[1].sum(-1)}

    ds = js.surface(params, batch_mean, (x, mask), grid=GRID, directions=[params], batch_size=60, progress=False)
    np.testing.assert_allclose(ds.attrs["center_loss"], true, rtol=1e-12)
    assert "loss_stderr" not in ds
    product = js.hvp(batch_mean, params, (x, mask), batch_size=60)(params)["w"]
    np.testing.assert_allclose(product, 2 * np.sum(mask * x**2) / mask.sum(), rtol=1e-12)


def test_a_weighted_tolerance_keeps_its_word():
    rng = np.random.default_rng(1)
    examples = 4000
    data = rng.normal(size=examples), rng.gamma(2.0, size=examples)
    params = {"a": jnp.zeros(()), "b": jnp.zeros(())}

    def loss(p, batch):
        z, w = batch
        return {"loss": jnp.exp(0.3 * z * (1 + p["a"]) + 0.1 * p["b"] * w), "weight": w}

    directions = [{"a": jnp.ones(()), "b": jnp.zeros(())}, {"a": jnp.zeros(()), "b": jnp.ones(())}]
    options = {"directions": directions, "grid": js.Grid.plane((-1, 1, 9), (-1, 1, 9)), "progress": False}
    exact = js.surface(params, loss, data, **options).loss.values
    rough = js.surface(params, loss, data, rtol=0.003, seed=3, batch_size=256, points_per_step=1, **options)
    sampled = rough.num_examples.values < examples
    assert sampled.mean() > 0.5
    error, stderr = np.abs(rough.loss.values - exact)[sampled], rough.loss_stderr.values[sampled]
    assert (stderr <= 0.003 * exact[sampled] * 1.01).all()
    assert np.mean(error <= 2 * stderr) > 0.85


def test_weights_that_depend_on_params():
    params, data = weighted_problem()

    def loss(p, batch):
        x, y, w = batch
        return {"loss": ((x @ p["a"])[:, 0] - y) ** 2, "weight": w * jnp.exp(p["a"][0, 0])}

    ds = js.surface(params, loss, data, directions=[params], grid=GRID, progress=False)  # the factor cancels
    plain = js.surface(
        params, lambda p, b: loss(p, b) | {"weight": b[2]}, data, directions=[params], grid=GRID, progress=False
    )
    np.testing.assert_allclose(ds.loss, plain.loss, rtol=1e-12)
    with pytest.raises(ValueError, match="loss_fn returned weights that depend on params"):
        js.hvp(loss, params, data)
    with pytest.raises(ValueError, match="loss_fn returned weights that depend on params"):
        js.surface(params, loss, data, directions=[params], grid=GRID, rtol=0.1)


def test_weights_that_sum_to_nothing():
    def loss(p, x):
        return {"loss": (x @ p["w"]).sum(-1) ** 2, "weight": jnp.zeros(len(x))}

    with pytest.raises(ValueError, match="loss_fn returned weights whose sum is 0.0; expected a positive number"):
        js.hvp(loss, PARAMS, X)
    assert losses(loss).attrs["nonfinite_points"] == 3  # a mean over nothing


def test_a_weight_that_is_no_vector():
    with pytest.raises(ValueError, match=r"returned \(\) for 'weight' on a batch of 4 .* the value of each example\.$"):
        losses(lambda p, x: {"loss": x.sum(-1), "weight": jnp.ones(())})


# ---- terms, and no data


def physics(by_hand=True):
    """A small physics-informed network: an equation inside, with derivatives by hand, and a boundary condition."""
    rng = np.random.default_rng(0)
    params = {"w1": jnp.asarray(rng.normal(size=(2, 5))), "w2": jnp.asarray(rng.normal(size=(5, 1)))}
    data = {"interior": rng.uniform(size=(50, 2)), "boundary": rng.uniform(size=(11, 2))}

    def u(p, x):
        return (jnp.tanh(x @ p["w1"]) @ p["w2"])[..., 0]

    def interior(p, x):
        return jax.vmap(lambda x: jnp.trace(jax.hessian(lambda z: u(p, z))(x)))(x) ** 2

    def interior_by_hand(p, x):  # compiles in a fifth of the time
        t = jnp.tanh(x @ p["w1"])
        return ((-2 * t * (1 - t**2) * (p["w1"] ** 2).sum(0)) @ p["w2"])[:, 0] ** 2

    inside = interior_by_hand if by_hand else interior
    return params, {"interior": inside, "boundary": lambda p, x: u(p, x) ** 2}, data


def total(loss, data):
    return lambda p: sum(loss[name](p, data[name]).mean() for name in loss)


def test_terms_are_summed_and_each_is_a_variable(tmp_path):
    params, by_hand, data = physics()
    _, by_transforms, _ = physics(by_hand=False)
    reference = {name: jax.jit(term) for name, term in by_hand.items()}
    direction = jax.tree.map(jnp.ones_like, params)
    options = {"directions": [direction], "grid": GRID, "progress": False}
    for loss, more in (
        (by_transforms, {"batch_size": 7}),
        (by_hand, {"store": tmp_path / "s.zarr"}),
        (by_hand, {"compute_dtype": "float32"}),
    ):
        ds = js.surface(params, loss, data, **options, **more)
        for i, alpha in enumerate(GRID.axes[0]):
            point = jax.tree.map(lambda p, d, a=alpha: p + a * d, params, direction)
            losses = {name: np.asarray(f(point, data[name])) for name, f in reference.items()}
            np.testing.assert_allclose(ds.loss[i], sum(x.mean() for x in losses.values()), rtol=1e-10)
            variance = 0
            for name, x in losses.items():
                np.testing.assert_allclose(ds[f"loss_{name}"][i], x.mean(), rtol=1e-10)
                np.testing.assert_allclose(ds[f"loss_{name}_stderr"][i], x.std(ddof=1) / len(x) ** 0.5, rtol=1e-8)
                variance += x.var(ddof=1) / len(x)
            np.testing.assert_allclose(ds.loss_stderr[i], variance**0.5, rtol=1e-8)
        assert (ds.num_examples == 61).all()
    assert {"batch_size_interior", "batch_size_boundary"} < set(ds.attrs)


@pytest.mark.slow
def test_the_curvature_of_terms_equals_the_dense_one():
    params, loss, data = physics()
    flat, unravel = ravel_pytree(params)
    expected = jax.jit(jax.hessian(lambda f: total(loss, data)(unravel(f))))(flat)
    values = np.linalg.eigvalsh(expected)
    v = jax.random.normal(jax.random.key(0), flat.shape)
    product = ravel_pytree(js.hvp(loss, params, data, batch_size=7)(unravel(v)))[0]
    np.testing.assert_allclose(product, expected @ v, rtol=1e-9, atol=1e-10)
    ends = js.extreme_eigenvalues(params, loss, data, tol=1e-9, progress=False)
    np.testing.assert_allclose([ends.min_eigenvalue, ends.max_eigenvalue], values[[0, -1]], rtol=1e-7)
    direction = jax.tree.map(jnp.ones_like, params)
    ds = js.eigenvalue_map(
        params, loss, data, directions=[direction], grid=js.Grid.line(0, 1, 2), tol=1e-8, progress=False
    )
    np.testing.assert_allclose(ds.max_eigenvalue.sel(alpha=0), values[-1], rtol=1e-7)
    assert ds.attrs["num_examples"] == 61
    part = js.eigenvalue_map(params, loss, data, directions=[direction], grid=GRID, subset=20, progress=False)
    assert part.attrs["num_examples"] == 20 + 11


@pytest.mark.slow
def test_the_gauss_newton_matrix_of_terms_equals_the_dense_one():
    params, _, data = physics()

    def model(p, x):
        return jnp.tanh(x @ p["w1"]) @ p["w2"]

    loss = {"interior": lambda y, x: (y[:, 0] - x[:, 0]) ** 2, "boundary": lambda y, x: y[:, 0] ** 2}
    flat, unravel = ravel_pytree(params)
    expected = 0
    for x in data.values():
        jacobian = jax.jit(jax.jacobian(lambda f, x=x: model(unravel(f), x)[:, 0]))(flat)
        expected = expected + 2 * jacobian.T @ jacobian / len(x)
    v = jax.random.normal(jax.random.key(0), flat.shape)
    for models in (model, {"interior": model, "boundary": model}):
        ggn = js.ggn_product(models, loss, params, data, batch_size=7)
        np.testing.assert_allclose(ravel_pytree(ggn @ unravel(v))[0], expected @ v, rtol=1e-9)
    pairs = ggn.top_eigenpairs(2, tol=1e-9, max_matvecs=200, progress=False)
    np.testing.assert_allclose(pairs.eigenvalues, np.linalg.eigvalsh(expected)[[-1, -2]], rtol=1e-7)
    with pytest.raises(ValueError, match=r"model_fn has the terms \['interior'\] and loss_fn has"):
        js.ggn_product({"interior": model}, loss, params, data)


def test_terms_under_a_tolerance():
    rng = np.random.default_rng(0)
    data = {"a": rng.normal(size=3000), "b": rng.normal(size=2000)}
    params = {"s": jnp.zeros(())}
    loss = {
        "a": lambda p, z: jnp.exp(0.2 * z * (1 + p["s"])),
        "b": lambda p, z: 1 + 0.1 * jnp.sin(z + p["s"]),
    }
    options = {"directions": [{"s": jnp.ones(())}], "grid": js.Grid.line(-1, 1, 21), "progress": False}
    exact = js.surface(params, loss, data, **options).loss.values
    rough = js.surface(params, loss, data, rtol=0.005, **options)
    np.testing.assert_allclose(rough.loss, exact, rtol=0.02)
    assert (rough.loss_stderr.values <= 0.005 * exact).all()
    assert int(rough.num_examples.sum()) < 21 * 5000
    for name in loss:
        assert np.isfinite(rough[f"loss_{name}_stderr"]).all()


def test_a_loss_without_data():
    params = {"a": jnp.asarray([1.0, 2.0])}

    def loss(p, batch):
        assert batch is None
        return (p["a"] ** 4).sum()

    ds = js.surface(params, loss, None, directions=[{"a": jnp.ones(2)}], grid=GRID, progress=False)
    np.testing.assert_allclose(ds.loss, [((np.array([1, 2]) + a) ** 4).sum() for a in (-1, 0, 1)], rtol=1e-12)
    assert "loss_stderr" not in ds
    np.testing.assert_allclose(js.hvp(loss, params, None)(params)["a"], 12 * np.array([1.0, 8.0]))
    ggn = js.ggn_product(lambda p, _: p["a"] ** 2, lambda y, _: (y**2).sum(), params, None)
    np.testing.assert_allclose(ggn(params)["a"], 8 * np.array([1.0, 8.0]))
    ends = js.extreme_eigenvalues(params, loss, None, tol=1e-8, progress=False)
    np.testing.assert_allclose([ends.min_eigenvalue, ends.max_eigenvalue], [12, 48], rtol=1e-8)


def test_keys_in_data():
    """One PRNG key for each example makes a noisy loss a mean over examples."""
    keys = jax.random.split(jax.random.key(0), 12)

    def loss(p, batch):
        return jax.vmap(lambda x, k: (p["w"] * x - jax.random.normal(k)) ** 2)(*batch)

    data, params = (np.arange(12.0), keys), {"w": jnp.ones(())}
    expected = np.mean([float(loss(params, (jnp.array([x]), keys[i : i + 1]))[0]) for i, x in enumerate(data[0])])
    for options in ({"batch_size": 5}, {"rtol": 0.5}):
        ds = js.surface(params, loss, data, directions=[params], grid=GRID, progress=False, **options)
        np.testing.assert_allclose(ds.attrs["center_loss"], expected, rtol=1e-12)
    ds = js.eigenvalue_map(params, loss, data, directions=[params], grid=GRID, subset=5, progress=False)
    assert np.isfinite(ds.max_eigenvalue).all()


def test_a_metric_that_is_a_python_number():
    ds = losses(lambda p, x: {"loss": x.sum(-1) * p["w"][0, 0], "temperature": 0.5})
    np.testing.assert_allclose(ds.temperature, 0.5)
    np.testing.assert_allclose(losses(lambda p, x: 2.5).loss, 2.5)


@pytest.mark.parametrize(
    ("loss_fn", "data", "error", "match"),
    [
        ("loss", X, TypeError, r"loss_fn is str, expected a function of \(params, batch\)"),
        ({}, {}, ValueError, "loss_fn is an empty dict"),
        ({"a": lambda p, x: x[:, 0]}, X, TypeError, "data is ArrayImpl, but loss_fn has the terms 'a'"),
        ({"a": lambda p, x: x[:, 0]}, {"b": X}, ValueError, r"loss_fn has the terms \['a'\], data has \['b'\]"),
        ({3: lambda p, x: x[:, 0]}, {3: X}, TypeError, "loss_fn has a term named 3, expected a string"),
        ({"a": 1.0}, {"a": X}, TypeError, r"loss_fn\['a'\] is float, expected a function"),
        ({"a": lambda p, x: x[:, 0]}, {"a": X[:0]}, ValueError, r"data\['a'\] has no examples"),
        (lambda p, x: {"loss": x[:, 0], 3: x[:, 0]}, X, TypeError, "a dict with the key 3; expected names"),
        (lambda p, x: {"loss": None}, X, TypeError, "loss_fn returned NoneType for 'loss'"),
        (lambda p, x: jnp.ones(3) * p["w"][0, 0], None, ValueError, r"returned \(3,\) for 'loss' without data"),
        (lambda p, x: x, np.array(["a", "b"]), TypeError, "data is an array of <U1, expected numbers"),
        (lambda p, x: x, np.array([1.0, None], object), TypeError, "data is an array of object, expected numbers"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_mistakes_are_named_before_any_compute(loss_fn, data, error, match):
    for call in (lambda: losses(loss_fn, data=data), lambda: js.hvp(loss_fn, PARAMS, data)):
        with pytest.raises(error, match=match):
            call()


# ---- a loss that is no mean over examples is found out


class Noisy(nn.Module):
    train: bool
    rate: float

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(8)(x)
        if self.rate:
            return nn.Dropout(self.rate, deterministic=not self.train)(x)
        return nn.BatchNorm(use_running_average=not self.train)(x)


def network(train, rate):
    model, x = Noisy(train, rate), np.random.default_rng(0).normal(size=(48, 6)) * np.linspace(0.1, 3, 48)[:, None]
    variables = model.init({"params": jax.random.key(0), "dropout": jax.random.key(1)}, x)

    def loss(p, batch):
        out = model.apply(
            {**variables, "params": p}, batch, mutable=["batch_stats"], rngs={"dropout": jax.random.key(2)}
        )[0]
        return (out**2).sum(-1)

    return variables["params"], loss, x


def counter():
    calls = iter(range(10**6))
    return lambda p, x: (
        x[:, 0] + jax.pure_callback(lambda: np.float64(next(calls)), jax.ShapeDtypeStruct((), jnp.float64))
    )


WRONG = {
    "batch norm": lambda: network(True, 0.0),
    "dropout": lambda: network(True, 0.5),
    "random": lambda: (PARAMS, counter(), X),
    "tokens, sorted": lambda: (
        PARAMS,
        lambda p, x: (x[:, 0] * x[:, 1]).sum() / x[:, 1].sum(),
        np.arange(1, 601.0).reshape(-1, 2),
    ),
    "tokens of each": lambda: (
        PARAMS,
        lambda p, x: x[:, 0] * len(x) / x[:, 1].sum(),
        np.arange(1, 601.0).reshape(-1, 2),
    ),
    "sum of a batch": lambda: (PARAMS, lambda p, x: (x @ p["w"]).sum(), X),
    "divided by the batch": lambda: (PARAMS, lambda p, x: (x @ p["w"]).sum(-1) / len(x), X),
    "centred": lambda: (PARAMS, lambda p, x: ((x - x.mean(0)) ** 2).sum(-1), X),
    "large examples": lambda: (  # of which a batch has 8
        PARAMS,
        lambda p, x: (x[:, :2] @ p["w"]).sum(-1) / len(x),
        np.ones((40, 32 * 32 * 3)),
    ),
}


QUICK = ("dropout", "large examples")


@pytest.mark.check
@pytest.mark.parametrize("name", slow_but(QUICK, WRONG))
def test_a_loss_that_is_no_mean_over_examples_is_refused(name):
    params, loss, data = WRONG[name]()
    message = (
        r"loss_fn is no mean over examples: .* in batches of \d+ and .* \(1\) batch norm .* \(2\) .* \(3\) .*check=F"
    )
    options = {"directions": [params], "grid": GRID, "progress": False}
    with pytest.raises(ValueError, match=message):
        js.surface(params, loss, data, **options)
    with pytest.raises(ValueError, match=message):
        js.hvp(loss, params, data)
    js.surface(params, loss, data, **options, check=False)


@pytest.mark.check
def test_a_loss_that_is_proven_is_not_evaluated(monkeypatch):
    monkeypatch.setattr(_check, "_losses", None)
    monkeypatch.setattr(_check, "_passed", {})
    for _ in range(2):
        js.hvp(lambda p, x: ((x @ p["w"]) ** 2).mean(), PARAMS, X)
    with pytest.raises(TypeError, match="NoneType"):
        js.hvp(lambda p, x: ((x @ p["w"]) ** 2).mean() * jax.random.uniform(jax.random.key(0), len(x))[0], PARAMS, X)


@pytest.mark.check
def test_check_false_takes_a_product_as_it_is():
    params, loss, data = WRONG["sum of a batch"]()
    js.hvp(loss, params, data, check=False)


@pytest.mark.check
@pytest.mark.parametrize("shape", slow_but([(200, 9, 9, 5)], [(40, 24, 24, 5), (200, 9, 9, 5)]))
def test_a_call_traces_a_loss_once(shape, monkeypatch):
    """The batch that identifies a loss is that with which its first trial begins."""
    monkeypatch.setattr("jaxscape.engine._strategy.WORTH", np.inf)  # no other load is tried
    batches = []

    def loss(p, x):
        batches.append(len(x))
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, p, (1, 1), "SAME", dimension_numbers=numbers).mean((1, 2, 3))

    params, images = jnp.ones((3, 3, shape[-1], 2)), np.ones(shape)
    for _ in range(2):
        batches.clear()
        js.surface(params, loss, images, directions=[params], grid=GRID, progress=False)
    assert batches == [8 if shape[1] == 24 else 50]


@pytest.mark.check
def test_the_term_that_is_no_mean_is_named():
    loss = {"good": lambda p, x: x.sum(-1) * p["w"][0, 0], "bad": lambda p, x: x.sum() * p["w"][0, 0]}
    with pytest.raises(ValueError, match=r"loss_fn\['bad'\] is no mean over examples"):
        losses(loss, data={"good": X, "bad": X})


RIGHT = {
    "batch norm in evaluation": lambda: network(False, 0.0),
    "batch mean": lambda: (PARAMS, lambda p, x: ((x @ p["w"]) ** 2).mean(), X),
    "one example": lambda: (PARAMS, lambda p, x: (x @ p["w"]).sum(-1), X[:1]),
    "two examples": lambda: (PARAMS, lambda p, x: (x @ p["w"]).sum(-1), X[:2]),
    "not a number": lambda: (PARAMS, lambda p, x: jnp.where(x[:, 0] > 3, jnp.nan, x[:, 0]), X),
    "infinite": lambda: (PARAMS, lambda p, x: jnp.where(x[:, 0] > 3, jnp.inf, x[:, 0]), X),
    "zero": lambda: (PARAMS, lambda p, x: 0 * x[:, 0], X),
    "huge": lambda: (
        PARAMS,
        lambda p, x: jnp.float32(1e30) * (x.astype(jnp.float32) @ p["w"].astype(jnp.float32)).sum(-1),
        X,
    ),
    "half precision": lambda: (
        PARAMS,
        lambda p, x: jnp.tanh(x.astype(jnp.bfloat16) @ p["w"].astype(jnp.bfloat16)).astype(jnp.float32).sum(-1),
        np.random.default_rng(0).normal(size=(300, 2)),
    ),
    "prime number": lambda: (PARAMS, lambda p, x: (x @ p["w"]).sum(-1), np.ones((131, 2))),
}
QUICK_RIGHT = ("batch norm in evaluation", "batch mean", "one example", "half precision")


@pytest.mark.check
@pytest.mark.parametrize("batch_size", slow_but(["auto"], ["auto", 1]))
@pytest.mark.parametrize("name", slow_but(QUICK_RIGHT, RIGHT))
@pytest.mark.parametrize("proof", [True, False])
def test_a_mean_over_examples_passes(name, batch_size, proof, monkeypatch):
    if not proof:
        monkeypatch.setattr(_check, "is_mean", lambda *_: False)
    params, loss, data = RIGHT[name]()
    js.surface(params, loss, data, directions=[params], grid=GRID, progress=False, batch_size=batch_size)


NO_MEAN = {
    "surface": lambda loss: losses(loss),
    "tolerance": lambda loss: losses(loss, rtol=0.1),
    "interpolate": lambda loss: js.interpolate(PARAMS, PARAMS, loss, X, grid=GRID, progress=False),
    "hvp": lambda loss: js.hvp(loss, PARAMS, X),
    "hvp inside a transform": lambda loss: jax.jit(lambda v: js.hvp(loss, PARAMS, X)(v))(PARAMS),
    "ggn": lambda loss: js.ggn_product(lambda p, x: x @ p["w"], lambda y, x: loss({"w": 1.0}, y), PARAMS, X),
    "pairs": lambda loss: js.top_eigenpairs(PARAMS, loss, X, 1, progress=False),
    "map": lambda loss: js.eigenvalue_map(PARAMS, loss, X, **MAP),
    "plane": lambda loss: js.plane_hessian(PARAMS, loss, X, **MAP),
    "path": lambda loss: js.trajectory(
        [PARAMS, {"w": jnp.eye(2)}], loss, X, directions=[PARAMS], grid=GRID, progress=False
    ),
}


@pytest.mark.check
@pytest.mark.parametrize("name", slow_but(["surface", "tolerance", "hvp", "ggn", "map"], NO_MEAN))
def test_every_call_waits_for_the_verdict(name):
    """The check runs in a thread; no result is given before it has ended."""
    with pytest.raises(ValueError, match="is no mean over examples"):
        NO_MEAN[name](lambda p, x: ((x @ p["w"] if jnp.ndim(p["w"]) else x) ** 2).sum(-1) / len(x))


@pytest.mark.check
def test_the_check_runs_within_a_context_of_the_caller(monkeypatch):
    """The thread does not inherit the context: it passes what is right there, and refuses what is wrong."""
    monkeypatch.setattr(_check, "is_mean", lambda *_: False)
    with jax.enable_x64(False):
        data, params = np.ones((40, 2), np.float32), {"w": jnp.eye(2)}
        result = js.surface(params, lambda p, x: (x @ p["w"]).sum(-1), data, directions=[params], grid=GRID)
    assert result.attrs["center_loss"] == 2
    with jax.enable_x64(False), pytest.raises(ValueError, match="is no mean over examples"):
        js.surface(params, lambda p, x: (x @ p["w"]).sum(-1) / len(x), data, directions=[params], grid=GRID)


@pytest.mark.check
def test_memory_that_runs_out_in_the_check_halves_the_batch(monkeypatch):
    monkeypatch.setattr(_check, "is_mean", lambda *_: False)
    sizes, run = [], _check._losses

    def small_memory(term, params, rows, size):
        sizes.append(size)
        return run(term, params, rows, size) if size <= 4 else full

    def full():
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    monkeypatch.setattr(_check, "_losses", small_memory)
    js.surface(PARAMS, lambda p, x: (x @ p["w"]).sum(-1), np.ones((64, 2)), directions=[PARAMS], grid=GRID)
    assert sizes[::2] == [64, 32, 16, 8, 4]

    def broken():
        raise jax.errors.JaxRuntimeError("INTERNAL: broken")

    monkeypatch.setattr(_check, "_losses", lambda *_: broken)
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        losses(lambda p, x: (x @ p["w"]).sum(-1))


# ---- meshes of the user


@pytest.mark.parametrize("kind", slow_but(["Explicit"], ["Explicit", "Auto"]))
def test_everything_runs_inside_a_users_mesh(kind):
    devices = np.array(jax.devices()[:4])
    axis_types = (getattr(jax.sharding.AxisType, kind),)
    mesh = jax.sharding.Mesh(devices, ("model",), axis_types=axis_types)
    spec = jax.sharding.PartitionSpec
    params = {"w": jnp.asarray(np.random.default_rng(0).normal(size=(6, 8)))}
    data = np.random.default_rng(1).normal(size=(12, 6))

    def loss(p, x):
        return (jnp.tanh(x @ p["w"]) ** 2).sum(-1)

    def constrained(p, x):
        hidden = jax.lax.with_sharding_constraint(jnp.tanh(x @ p["w"]), spec(None, "model"))
        return (hidden**2).sum(-1)

    def numbers(params, loss):
        path = [jax.tree.map(lambda a, s=s: a * s, params) for s in (1.0, 2.0, 4.0)]
        return {
            "surface": js.surface(params, loss, data, directions=[params], grid=GRID, progress=False).loss.values,
            "hvp": np.asarray(js.hvp(loss, params, data)(params)["w"]),
            "norm": np.asarray(js.random_directions(0, params)[0]["w"]),
            "project": js.project(path, params, [params], progress=False).coordinates.values,
        }

    expected = numbers(params, loss)
    sharded = jax.device_put(params, jax.sharding.NamedSharding(mesh, spec(None, "model")))
    results = {"outside": numbers(sharded, loss)}
    with jax.set_mesh(mesh):
        results["inside"] = numbers(sharded, loss)
        surface = js.surface(sharded, constrained, data, directions=[sharded], grid=GRID, progress=False).loss.values
    np.testing.assert_allclose(surface, expected["surface"], rtol=1e-12)
    for result in results.values():
        for name, value in expected.items():
            np.testing.assert_allclose(result[name], value, rtol=1e-10, atol=1e-13, err_msg=name)


def test_a_loss_that_updates_state_runs_as_under_jit():
    import equinox as eqx

    norm, state = eqx.nn.make_with_state(eqx.nn.BatchNorm)(3, "batch", mode="batch")
    params, static = eqx.partition(norm, eqx.is_inexact_array)

    def loss(p, x):
        out, _ = jax.vmap(eqx.combine(p, static), axis_name="batch", in_axes=(0, None), out_axes=(0, None))(x, state)
        return (out**3).sum(-1)

    x = jax.random.normal(jax.random.key(0), (8, 3))
    ds = js.surface(params, loss, x, directions=[params], grid=GRID, batch_size=8, check=False, progress=False)
    np.testing.assert_allclose(ds.loss.sel(alpha=0), jax.jit(loss)(params, x).mean(), rtol=1e-12)
    js.hvp(loss, params, x, check=False)(params)


# ---- arrays that are tied to devices


@pytest.mark.check
def test_params_data_and_closed_over_arrays_on_different_devices():
    devices = jax.devices()
    params, data = jax.device_put(PARAMS, devices[1]), jax.device_put(X, devices[2])
    scale = jax.device_put(jnp.float64(2.0), devices[3])

    def loss(p, x):
        return {"loss": ((x @ p["w"]) ** 2).sum(-1) * scale, "weight": x[:, 0] * scale}

    expected = losses(lambda p, x: {"loss": 2 * ((x @ p["w"]) ** 2).sum(-1), "weight": x[:, 0]}).loss
    for options in ({}, {"rtol": 0.1}):
        result = js.surface(params, loss, data, directions=[PARAMS], grid=GRID, progress=False, **options)
        np.testing.assert_allclose(result.loss, expected, rtol=1e-12)
    js.hvp(loss, params, data)(PARAMS)


# ---- a store knows the loss


def plus(constant):
    return lambda p, x: ((x @ p["w"]) ** 2).sum(-1) + constant * jnp.sin(p["w"]).sum()


@pytest.mark.parametrize("call", [js.surface, js.eigenvalue_map, js.plane_hessian], ids=lambda f: f.__name__)
@pytest.mark.parametrize(
    "other", [plus(2.0), plus(jnp.float64(3.0))], ids=["another loss", "another closed-over array"]
)
def test_a_store_of_another_loss_is_refused(tmp_path, call, other):
    options = {"directions": [PARAMS], "grid": GRID, "store": tmp_path / "s.zarr", "progress": False}
    first = call(PARAMS, plus(jnp.float64(1.0)), X, **options)
    again = call(PARAMS, plus(jnp.float64(1.0)), X, **options)  # another function that computes the same
    for name in first:
        np.testing.assert_array_equal(again[name], first[name])
    with pytest.raises(ValueError, match=r"s.zarr holds another result: loss_fn is .* there and .* here"):
        call(PARAMS, other, X, **options)
