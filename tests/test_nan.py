"""NaN in, NaN out, at every public call; XLA on a CPU drops NaN where it fuses relu and a sum over pixels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxscape as js
from jaxscape.convolution import compiler_options
from tests.problems import slow_but, slow_unless

IMAGES = np.random.default_rng(0).normal(size=(64, 4, 4, 3)).astype(np.float32)
GOOD = {"k": jnp.ones((3, 3, 3, 16), jnp.float32), "var": jnp.ones(16, jnp.float32)}
DOWN = {"k": jnp.zeros((3, 3, 3, 16), jnp.float32), "var": jnp.full(16, -1.0, jnp.float32)}
BAD = jax.tree.map(lambda p, d: p + 2 * d, GOOD, DOWN)  # a negative variance
LINE = js.Grid.line(0, 2, 3)
ONE = jax.sharding.Mesh(jax.devices()[:1], ("points",))


def loss(params, batch):
    """Convolution, batch norm, relu and the mean over pixels, as any residual network ends."""
    numbers = ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(batch, params["k"], (1, 1), "SAME", dimension_numbers=numbers)
    return jax.nn.relu(y * jax.lax.rsqrt(params["var"] + 1e-5)).mean((1, 2)).sum(-1)


def test_the_reference_is_nan():
    assert np.isnan(loss(BAD, IMAGES)).all()
    assert np.isfinite(loss(GOOD, IMAGES)).all()


@pytest.mark.parametrize("batch_size", slow_but([64, 10], [64, 10, 1]))
@pytest.mark.parametrize("points_per_step", slow_but([1], [1, 2]))
def test_surfaces(batch_size, points_per_step):
    options = {"batch_size": batch_size, "points_per_step": points_per_step, "progress": False, "mesh": ONE}
    result = js.surface(GOOD, loss, IMAGES, directions=DOWN, grid=LINE, **options)
    assert np.isnan(result.loss.values).tolist() == [False, False, True]
    assert result.nonfinite_points == 1
    assert np.isnan(result.loss_stderr.values).tolist() == [False, False, True]


OPTIONS = {"progress": False, "mesh": ONE}
CALLS = {
    "interpolate": lambda: js.interpolate(GOOD, BAD, loss, IMAGES, grid=js.Grid.line(0, 1, 2), **OPTIONS).loss[1],
    "a tolerance": lambda: js.surface(GOOD, loss, IMAGES, directions=DOWN, grid=LINE, rtol=0.1, **OPTIONS).loss[2],
    "bfloat16": lambda: js.surface(
        GOOD, loss, IMAGES, directions=DOWN, grid=LINE, compute_dtype="bfloat16", **OPTIONS
    ).loss[2],
    "hvp": lambda: js.hvp(loss, BAD, IMAGES, mesh=ONE)(GOOD)["k"][0, 0, 0, 0],
    "a vector": lambda: js.hvp(loss, GOOD, IMAGES, mesh=ONE, linearize=True)(BAD | {"k": GOOD["k"] * jnp.nan})["var"][
        0
    ],
    "extreme_eigenvalues": lambda: js.extreme_eigenvalues(BAD, loss, IMAGES, **OPTIONS).max_eigenvalue,
    "top_eigenpairs": lambda: js.top_eigenpairs(BAD, loss, IMAGES, 1, **OPTIONS).eigenvalues[0],
    "hessian_trace": lambda: js.hessian_trace(BAD, loss, IMAGES, num_matvecs=6, **OPTIONS).trace,
    "its error": lambda: js.hessian_trace(BAD, loss, IMAGES, num_matvecs=6, **OPTIONS).stderr,
    "spectral_density": lambda: js.spectral_density(BAD, loss, IMAGES, num_probes=2, num_steps=3, **OPTIONS).density[0],
    "eigenvalue_map": lambda: js.eigenvalue_map(
        GOOD, loss, IMAGES, directions=DOWN, grid=js.Grid.line(2, 3, 1), **OPTIONS
    ).max_eigenvalue[0],
    "plane_hessian": lambda: js.plane_hessian(
        GOOD, loss, IMAGES, directions=DOWN, grid=js.Grid.line(2, 3, 1), **OPTIONS
    ).plane_max_eigenvalue[0],
    "a loss on the way": lambda: js.trajectory(
        [BAD, GOOD], loss, IMAGES, directions=[DOWN, GOOD], points=3, **OPTIONS
    ).true_loss[0],
    "weights": lambda: js.surface(
        GOOD,
        lambda p, x: {"loss": loss(p, x), "weight": jnp.full(len(x), 2.0)},
        IMAGES,
        directions=DOWN,
        grid=LINE,
        **OPTIONS,
    ).loss[2],
    "a batch mean": lambda: js.surface(
        GOOD, lambda p, x: loss(p, x).mean(), IMAGES, directions=DOWN, grid=LINE, **OPTIONS
    ).loss[2],
    "directions of NaN weights": lambda: js.random_directions(0, {"w": jnp.full((2, 2), jnp.nan)}).basis["w"][0, 0, 0],
}


SLOW = (
    "extreme_eigenvalues",
    "top_eigenpairs",
    "its error",
    "spectral_density",
    "plane_hessian",
    "weights",
    "bfloat16",
    "interpolate",
    "a loss on the way",
    "hessian_trace",
)


@pytest.mark.parametrize("name", [slow_unless(name not in SLOW, name) for name in CALLS])
def test_nan_in_nan_out(name):
    assert np.isnan(np.asarray(CALLS[name]()))


def test_one_example_of_nan_is_enough():
    images = IMAGES.copy()
    images[17, 0, 0, 0] = np.nan
    result = js.surface(GOOD, loss, images, directions=DOWN, grid=js.Grid.line(0, 1, 2), **OPTIONS)
    assert result.nonfinite_points == 2


def test_a_diverged_training_step_is_seen():
    """The step of `train.py` compiles with the same options."""
    step = jax.jit(lambda p: loss(p, IMAGES).mean(), compiler_options=compiler_options())
    assert np.isnan(step(BAD))
