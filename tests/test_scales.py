"""Laws of scale: a loss, params or an operator times a power of two gives the same digits, where float32 holds them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jaxscape as js

POWERS = st.integers(-100, 100)
SPECTRUM = np.linspace(-1.0, 3.0, 40)
ONE = jax.sharding.Mesh(jax.devices()[:1], ("points",))


def operator(power):
    """A diagonal matrix times ``2**power``; float32 products."""
    spectrum = jnp.asarray(SPECTRUM * 2.0**power, jnp.float32)
    return js.Operator.of(lambda v: spectrum * v, jnp.zeros(len(SPECTRUM), jnp.float32))


@given(POWERS)
def test_extreme_eigenvalues(power):
    ends, scaled = (operator(k).extreme_eigenvalues(progress=False) for k in (0, power))
    for name in ("min_eigenvalue", "max_eigenvalue", "min_residual", "max_residual"):
        found, expected = float(getattr(scaled, name)), float(getattr(ends, name)) * 2.0**power
        # Below that the smallest entries of products underflow, as they must.
        assert found == expected if power > -60 else abs(found - expected) < 1e-5 * 2.0**power, name
    assert scaled.converged


def test_a_tiny_operator_is_not_converged_by_underflow():
    """A residual whose square underflows was 0: 30 of 30 such operators were converged, with wrong eigenvalues."""
    spectrum = np.random.default_rng(0).normal(size=300)
    tiny = jnp.asarray(1e-25 * spectrum, jnp.float32)
    ends = js.lanczos(lambda v: tiny * v, jnp.zeros(300, jnp.float32), key=0)
    np.testing.assert_allclose(ends.max_eigenvalue, 1e-25 * spectrum.max(), rtol=1e-3)
    np.testing.assert_allclose(ends.min_eigenvalue, 1e-25 * spectrum.min(), rtol=1e-3)
    assert ends.converged
    assert ends.max_residual > 0


@given(POWERS)
def test_several_eigenpairs(power):
    pairs, scaled = (operator(k).top_eigenpairs(3, "LM", progress=False) for k in (0, power))
    np.testing.assert_array_equal(scaled.eigenvalues, pairs.eigenvalues * np.float32(2.0**power))
    np.testing.assert_array_equal(scaled.eigenvectors.basis, pairs.eigenvectors.basis)


@given(POWERS, st.sampled_from(["hutch++", "hutchinson"]))
def test_trace(power, method):
    plain, scaled = (operator(k).trace(num_matvecs=24, method=method, progress=False) for k in (0, power))
    np.testing.assert_allclose(scaled.trace / 2.0**power, plain.trace, rtol=1e-5)
    np.testing.assert_allclose(scaled.stderr / 2.0**power, plain.stderr, rtol=1e-3, atol=1e-5)


@given(POWERS)
def test_density(power):
    plain, scaled = (operator(k).spectral_density(num_probes=2, num_steps=10, progress=False) for k in (0, power))
    np.testing.assert_allclose(scaled.eigenvalue.values, plain.eigenvalue.values * 2.0**power, rtol=1e-6)
    np.testing.assert_allclose(scaled.density.values * 2.0**power, plain.density.values, rtol=1e-5, atol=1e-9)


def test_a_start_of_any_scale_is_the_same_start():
    spectrum = jnp.asarray(SPECTRUM, jnp.float32)
    start = jnp.asarray(np.random.default_rng(0).normal(size=len(SPECTRUM)), jnp.float32)
    few = {"key": 0, "max_matvecs": 8}
    plain, small = (js.lanczos(lambda v: spectrum * v, start, start=s * start, **few) for s in (1.0, 2.0**-100))
    assert plain.max_eigenvalue == small.max_eigenvalue


@given(POWERS, st.sampled_from(["filter", "layer", "weight", None]))
def test_random_directions_follow_params(power, norm):
    params = {"w": jax.random.normal(jax.random.key(1), (5, 7), jnp.float32)}
    plain = js.random_directions(0, params, norm=norm)
    scaled = js.random_directions(0, jax.tree.map(lambda x: x * np.float32(2.0**power), params), norm=norm)
    factor = np.float32(2.0**power) if norm else 1
    np.testing.assert_array_equal(scaled.basis["w"], plain.basis["w"] * factor)


@given(POWERS)
def test_orthogonal_directions_and_their_table(power):
    drawn = js.random_directions(0, {"w": jnp.ones((5, 7), jnp.float32)}, norm=None)
    scaled = js.Directions(jax.tree.map(lambda x: x * np.float32(2.0**power), drawn.basis))
    np.testing.assert_allclose(scaled.orthogonalize().basis["w"] / 2.0**power, drawn.orthogonalize().basis["w"], 1e-5)
    ratio = scaled.explain({"w": jnp.full((5, 7), 2.0**power, jnp.float32)}).ratio_0
    np.testing.assert_allclose(ratio, drawn.explain({"w": jnp.ones((5, 7), jnp.float32)}).ratio_0, rtol=1e-5)


def squares(scale):
    """A loss times a number, which is an operand of the compiled program: one program for all numbers."""
    return lambda p, x: scale * ((x @ p["w"]) ** 2).sum(-1)


X = np.random.default_rng(0).normal(size=(23, 4)).astype(np.float32)
W = {"w": jax.random.normal(jax.random.key(0), (4, 3), jnp.float32)}


@given(POWERS, st.sampled_from([{}, {"rtol": 0.1}]))
def test_means_and_error_bars_of_a_surface(power, options):
    options = {"grid": js.Grid.line(-1, 1, 3), "batch_size": 8, "points_per_step": 1, "mesh": ONE, **options}
    options |= {"progress": False, "check": False}
    plain, scaled = (js.surface(W, squares(jnp.float32(2.0**k)), X, **options) for k in (0, power))
    np.testing.assert_allclose(scaled.loss.values / 2.0**power, plain.loss.values, rtol=1e-6)
    np.testing.assert_allclose(scaled.loss_stderr.values / 2.0**power, plain.loss_stderr.values, rtol=1e-5)


@pytest.mark.parametrize("weight", [1.0, 1e6, 1e-30])
@pytest.mark.parametrize("loss", [1e37, 3e38, 1e-37])
def test_the_mean_of_losses_near_the_limits_of_float32(loss, weight):
    def weighted(p, x):
        return {"loss": p * x, "weight": jnp.full(len(x), weight, jnp.float32)}

    data = np.full(1000, loss, np.float32)
    options = {"directions": np.float32(0), "grid": js.Grid.line(0, 1, 1), "mesh": ONE, "progress": False}
    result = js.surface(jnp.float32(1), weighted, data, batch_size=500, points_per_step=1, **options)
    np.testing.assert_allclose(result.loss.item(), data.astype(float).mean(), rtol=1e-6)
    assert result.nonfinite_points == 0
    assert result.loss_stderr.item() <= 1e-6 * loss


@given(POWERS)
def test_products_with_the_hessian(power):
    plain, scaled = (
        js.hvp(squares(jnp.float32(2.0**k)), W, X, mesh=ONE, check=False, batch_size=8)(W)["w"] for k in (0, power)
    )
    np.testing.assert_array_equal(scaled, plain * np.float32(2.0**power))


@given(st.integers(-30, 30), st.integers(-30, 30))
def test_curvatures_of_a_plane_do_not_depend_on_the_lengths_of_its_directions(first, second):
    directions = js.random_directions(0, W, norm=None)
    options = {"grid": js.Grid.plane((0, 1, 1), (0, 1, 1)), "mesh": ONE, "check": False, "progress": False}
    lengths = 2.0 ** np.array([first, second])
    scaled = js.Directions(jax.tree.map(lambda x: x * lengths[:, None, None].astype(np.float32), directions.basis))
    plain, result = (
        js.plane_hessian(W, squares(jnp.float32(1)), X, directions=d, **options) for d in (directions, scaled)
    )
    for name in ("plane_min_eigenvalue", "plane_max_eigenvalue"):
        np.testing.assert_allclose(result[name].item(), plain[name].item(), rtol=1e-4)
    matrix = result.plane_hessian.values[0, 0] / np.outer(lengths, lengths)
    np.testing.assert_allclose(matrix, plain.plane_hessian.values[0, 0], rtol=1e-4, atol=1e-4)


PATH = np.random.default_rng(3).normal(size=(6, 50)).astype(np.float32)


@given(POWERS, st.sampled_from(["last", "mean"]))
def test_principal_directions_of_weights_of_any_scale(power, center):
    (plain, ratio), (scaled, of_scaled) = (
        js.pca_directions([jnp.asarray(row * np.float32(2.0**k)) for row in PATH], center=center, progress=False)
        for k in (0, power)
    )
    np.testing.assert_allclose(of_scaled, ratio, rtol=1e-9)
    np.testing.assert_allclose(scaled.basis, plain.basis, atol=1e-6)


@given(POWERS)
def test_projections_of_weights_of_any_scale(power):
    plain, scaled = (
        js.project(list(PATH * np.float32(2.0**k)), PATH[0] * np.float32(2.0**k), [PATH[1], PATH[2]], progress=False)
        for k in (0, power)
    )
    for name in ("coordinates", "distance", "off_plane_distance"):
        np.testing.assert_allclose(scaled[name] / 2.0**power, plain[name], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(scaled.step_cosine, plain.step_cosine, rtol=1e-9)
