"""500 random losses: every public way to a number gives what eager JAX gives, NaN in the same places."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxscape as js
from jaxscape.convolution import compiler_options, fast_convolutions
from tests.programs import program

MESH = jax.sharding.Mesh(jax.devices()[:1], ("points",))
POINTS = (0.0, 0.3)
PART = 20  # programs of one test


def near(value, truth, dtype, what):
    """Equal up to rounding, relative to the largest entry, and NaN in the same places."""
    value, truth = (np.concatenate([np.ravel(x) for x in jax.tree.leaves(t)]).astype(float) for t in (value, truth))
    finite = np.isfinite(truth)
    np.testing.assert_array_equal(np.isfinite(value), finite, err_msg=f"{what}: NaN elsewhere")
    scale = np.abs(truth[finite]).max(initial=1e-3)
    tolerance = {"float32": 2e-3, "float64": 1e-8}[jnp.dtype(dtype).name]
    np.testing.assert_allclose(value[finite], truth[finite], rtol=0, atol=tolerance * scale, err_msg=what)


def near_derivative(value, truth, nan, dtype, what):
    """The same where no loss is NaN; else NaN somewhere.

    Where in a derivative NaN shows depends on the form of an operation: 0, as in padding, times NaN may not be taken.
    """
    if nan.any():
        assert not all(np.isfinite(x).all() for x in jax.tree.leaves(value)), f"{what}: NaN is lost"
    else:
        near(value, truth, dtype, what)


def check(seed):
    """One program against eager JAX in float64, and with the precision of the program."""
    dtype = jnp.float64 if seed % 2 else jnp.float32
    params, loss, data, names, nan = program(seed, dtype)
    exact = program(seed, jnp.float64)
    what = f"program {seed}, {jnp.dtype(dtype).name}: {', '.join(names)}"
    direction = jax.tree.map(lambda x: 0.1 * jnp.ones_like(x), params)

    def mean(p):
        return exact.loss(p, exact.data).mean()

    def derivatives(mean, p):
        return jax.jvp(jax.grad(mean), (p,), (jax.tree.map(jnp.ones_like, p),))

    values = jnp.where(nan, jnp.nan, exact.loss(exact.params, exact.data))  # operation by operation
    gradient, product = jax.jit(functools.partial(derivatives, mean))(exact.params)

    @functools.partial(jax.jit, compiler_options=compiler_options())
    def fast(p):
        return fast_convolutions(loss)(p, data), derivatives(lambda p: fast_convolutions(loss)(p, data).mean(), p)

    fast_values, (fast_gradient, fast_product) = fast(params)
    near(fast_values, values, dtype, f"values, {what}")
    near_derivative(fast_gradient, gradient, nan, dtype, f"gradient, {what}")
    near_derivative(fast_product, product, nan, dtype, f"product, {what}")
    if not seed % 3:  # compiling this takes longest
        hessian = js.hvp(loss, params, data, mesh=MESH, check=False, linearize=bool(seed % 2))
        near_derivative(hessian(jax.tree.map(jnp.ones_like, params)), product, nan, dtype, f"hvp, {what}")

    grid = js.Grid((np.array(POINTS),))
    options = {
        "batch_size": [64, 10, 5][seed % 3],
        "points_per_step": [1, 2][seed % 2],
        "mesh": MESH,
        "progress": False,
    }
    result = js.surface(params, loss, data, directions=direction, grid=grid, check=not seed % 4, **options)
    moved = [jax.tree.map(lambda p, c=c: p + c * 0.1, exact.params) for c in POINTS]
    near(result.loss.values, [np.nan if nan.any() else mean(p) for p in moved], dtype, f"surface, {what}")
    assert result.nonfinite_points == np.sum(~np.isfinite(result.loss.values))


@pytest.mark.slow  # a program takes 3 s: it compiles five times, and runs every operation once by itself
@pytest.mark.parametrize("first", range(0, 500, PART))
def test_random_losses_equal_eager_jax(first):
    for seed in range(first, first + PART):
        check(seed)
