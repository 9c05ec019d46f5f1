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


def near(value, truth, dtype, what, *, derivative=False):
    """Equal up to rounding, relative to the largest entry; NaN and infinity in the same places.

    In a derivative other places may be NaN too: the product of 0, as in padding, and NaN depends on the form of the
    operation. There must be NaN in both, or in none.
    """
    value, truth = (
        np.concatenate([np.ravel(x).astype(np.float64) for x in jax.tree.leaves(t)]) for t in (value, truth)
    )
    finite = np.isfinite(value), np.isfinite(truth)
    if derivative:
        assert finite[0].all() == finite[1].all(), f"{what}: NaN lost or made"
    else:
        np.testing.assert_array_equal(*finite, err_msg=f"{what}: NaN elsewhere")
    value, truth = value[finite[0] & finite[1]], truth[finite[0] & finite[1]]
    scale = np.abs(truth).max(initial=1e-3)
    tolerance = {"float32": 2e-3, "float64": 1e-8}[jnp.dtype(dtype).name]
    np.testing.assert_allclose(value, truth, rtol=0, atol=tolerance * scale, err_msg=what)


def check(seed):
    """One program against eager JAX in float64, and with the precision of the program."""
    dtype = jnp.float64 if seed % 2 else jnp.float32
    params, loss, data, names = program(seed, dtype)
    exact = program(seed, jnp.float64)
    what = f"program {seed}, {jnp.dtype(dtype).name}: {', '.join(names)}"
    direction = jax.tree.map(lambda x: 0.1 * jnp.ones_like(x), params)

    def mean(p):
        return exact.loss(p, exact.data).mean()

    def derivatives(mean, p):
        return jax.jvp(jax.grad(mean), (p,), (jax.tree.map(jnp.ones_like, p),))

    values = exact.loss(exact.params, exact.data)  # operation by operation
    finite = bool(jnp.isfinite(values).all())  # compiled, the reference itself may lose a NaN
    of_mean = functools.partial(derivatives, mean)
    gradient, product = (jax.jit(of_mean) if finite else of_mean)(exact.params)

    @functools.partial(jax.jit, compiler_options=compiler_options())
    def fast(p):
        return fast_convolutions(loss)(p, data), derivatives(lambda p: fast_convolutions(loss)(p, data).mean(), p)

    fast_values, (fast_gradient, fast_product) = fast(params)
    near(fast_values, values, dtype, f"values, {what}")
    near(fast_gradient, gradient, dtype, f"gradient, {what}", derivative=True)
    near(fast_product, product, dtype, f"product, {what}", derivative=True)
    if not seed % 3:  # compiling this takes longest
        hessian = js.hvp(loss, params, data, mesh=MESH, check=False, linearize=bool(seed % 2))
        near(hessian(jax.tree.map(jnp.ones_like, params)), product, dtype, f"hvp, {what}", derivative=True)

    grid = js.Grid((np.array(POINTS),))
    options = {
        "batch_size": [64, 10, 5][seed % 3],
        "points_per_step": [1, 2][seed % 2],
        "mesh": MESH,
        "progress": False,
    }
    result = js.surface(params, loss, data, directions=direction, grid=grid, check=not seed % 4, **options)
    moved = [jax.tree.map(lambda p, c=c: p + c * 0.1, exact.params) for c in POINTS]
    near(result.loss.values, [mean(p) for p in moved], dtype, f"surface, {what}")
    assert result.nonfinite_points == np.sum(~np.isfinite(result.loss.values))


@pytest.mark.slow  # a program takes 3 s: it compiles five times, and runs every operation once by itself
@pytest.mark.parametrize("first", range(0, 500, PART))
def test_random_losses_equal_eager_jax(first):
    for seed in range(first, first + PART):
        check(seed)
