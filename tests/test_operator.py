"""Operators: symmetric maps on pytrees, of a loss or of anything, with eigenpairs, trace and density."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse.linalg
from jax.flatten_util import ravel_pytree

import jaxscape as js
from tests.problems import classification_data, cross_entropy, mlp_apply, mlp_params

PARAMS, DATA = mlp_params(), classification_data()
SIZE = 74  # entries of PARAMS


@pytest.fixture(scope="module")
def gauss_newton():
    """The Gauss-Newton matrix of a network, as an operator and in full, by `jax.jacobian` and `jax.hessian`."""
    flat, unravel = ravel_pytree(PARAMS)
    jacobian = jax.jit(jax.jacobian(lambda f: mlp_apply(unravel(f), DATA[0])))(flat)
    inner = jax.vmap(jax.hessian(lambda y, t: cross_entropy(y[None], t[None])[0]))
    inner = jax.jit(inner)(mlp_apply(PARAMS, DATA[0]), DATA[1])
    dense = np.einsum("eci,ecd,edj->ij", jacobian, inner, jacobian) / len(DATA[1])
    operator = js.ggn_product(lambda p, b: mlp_apply(p, b[0]), lambda y, b: cross_entropy(y, b[1]), PARAMS, DATA)
    return operator, dense


def test_an_operator_is_a_function_and_a_matrix(gauss_newton):
    operator, dense = gauss_newton
    v = jax.tree.map(jnp.ones_like, PARAMS)
    np.testing.assert_allclose(ravel_pytree(operator(v))[0], dense.sum(1), rtol=1e-10, atol=1e-14)
    np.testing.assert_array_equal(ravel_pytree(operator @ v)[0], ravel_pytree(operator(v))[0])
    assert operator.shape == (SIZE, SIZE)
    assert operator.dtype == np.float64
    assert repr(operator) == "Operator(74 x 74, float64)"


def test_scipy_takes_an_operator(gauss_newton):
    operator, dense = gauss_newton
    linear = operator.to_scipy()
    assert linear.shape == operator.shape
    values, vectors = scipy.sparse.linalg.eigsh(linear, 3, which="LA", tol=1e-10)
    np.testing.assert_allclose(np.sort(values), np.linalg.eigvalsh(dense)[-3:], rtol=1e-8)
    tree = operator.subspace.embed(jnp.asarray(vectors[:, -1]))
    assert jax.tree.structure(tree) == jax.tree.structure(PARAMS)


@pytest.mark.slow
def test_the_spectrum_of_a_gauss_newton_matrix(gauss_newton):
    operator, dense = gauss_newton
    values = np.linalg.eigvalsh(dense)
    pairs = operator.top_eigenpairs(3, tol=1e-9, max_matvecs=200, progress=False)
    np.testing.assert_allclose(pairs.eigenvalues, values[::-1][:3], rtol=1e-8)
    ends = operator.extreme_eigenvalues(tol=1e-3, progress=False)
    np.testing.assert_allclose(ends.max_eigenvalue, values[-1], rtol=1e-3)
    trace = operator.trace(num_matvecs=90, progress=False)
    assert abs(trace.trace - values.sum()) <= 4 * trace.stderr + 1e-6 * values.sum()
    density = operator.spectral_density(num_probes=4, num_steps=20, progress=False)
    mean, stderr = density.attrs["mean_eigenvalue"], density.attrs["mean_eigenvalue_stderr"]
    assert abs(mean - values.mean()) < 5 * stderr


def test_an_operator_that_anybody_gives():
    diagonal = {"a": jnp.arange(1.0, 4.0, dtype=jnp.float32), "b": jnp.array([[-2.0]])}
    operator = js.Operator.of(lambda v: jax.tree.map(jnp.multiply, diagonal, v), diagonal)
    ends = operator.extreme_eigenvalues(progress=False)
    np.testing.assert_allclose([ends.min_eigenvalue, ends.max_eigenvalue], [-2, 3], rtol=1e-6)
    assert operator.trace(progress=False).trace == pytest.approx(4)
    with pytest.raises(ValueError, match="like has no leaves"):
        js.Operator.of(lambda v: v, {})
    with pytest.raises(TypeError, match=r"like\['n'\] is int"):
        js.Operator.of(lambda v: v, {"n": jnp.arange(3)})
    with pytest.raises(ValueError, match=r"v has no leaf \['b'\]"):
        operator({"a": diagonal["a"]})


def test_a_product_that_gives_its_argument_back():
    """The space that is used up holds that very array."""
    ends = js.lanczos(lambda v: v, jnp.zeros(5), key=0)
    np.testing.assert_allclose([ends.min_eigenvalue, ends.max_eigenvalue], 1, rtol=1e-6)
    density = js.Operator.of(lambda v: v, jnp.zeros(5)).spectral_density(num_probes=2, progress=False)
    np.testing.assert_allclose(density.attrs["mean_eigenvalue"], 1, rtol=1e-6)


@pytest.mark.parametrize("linearize", [True, False])
def test_a_linear_loss_has_the_hessian_zero(linearize):
    params, data = {"w": jnp.ones((2, 3))}, np.arange(1.0, 9.0)
    hessian = js.hvp(lambda p, x: x * p["w"].sum(), params, data, linearize=linearize, batch_size=3)
    assert not hessian(params)["w"].any()


def cubes(p, x):
    return x * (p["w"] ** 3).sum()


def test_an_operator_that_is_made_inside_a_transform():
    params, data = {"w": jnp.arange(1.0, 4.0)}, np.ones(5)
    inside = jax.jit(lambda v: js.hvp(cubes, params, data)(v))(params)["w"]
    np.testing.assert_allclose(inside, 6 * params["w"] ** 2)


@pytest.mark.slow
def test_a_gradient_through_an_operator_that_is_made_inside():
    params, data = {"w": jnp.arange(1.0, 4.0)}, np.ones(5)
    gradient = jax.grad(lambda v: (js.hvp(cubes, params, data)(v)["w"] ** 2).sum() / 2)(params)["w"]
    np.testing.assert_allclose(gradient, (6 * params["w"]) ** 2 * params["w"])


CALLS = {
    "js.surface": lambda p: js.surface(p, cubes, np.ones(5)).loss,
    "js.eigenvalue_map": lambda p: js.eigenvalue_map(p, cubes, np.ones(5)).ratio,
    "js.plane_hessian": lambda p: js.plane_hessian(p, cubes, np.ones(5)).plane_hessian,
    "js.pca_directions": lambda p: js.pca_directions([p, p])[1],
    "js.project": lambda p: js.project([p], p, [p]).distance,
    "top_eigenpairs": lambda p: js.hvp(cubes, p, np.ones(5)).top_eigenpairs(1).eigenvalues,
    "trace": lambda p: js.hvp(cubes, p, np.ones(5)).trace().trace,
    "spectral_density": lambda p: js.hvp(cubes, p, np.ones(5)).spectral_density().density,
}


@pytest.mark.parametrize("name", CALLS)
def test_calls_with_results_on_the_host_are_refused_inside_a_transform(name):
    with pytest.raises(TypeError, match=f"{name} is called inside a JAX transform, such as jax.jit, but its result"):
        jax.jit(CALLS[name])({"w": jnp.arange(1.0, 4.0)})


def test_a_result_is_shown_as_a_summary():
    operator = js.Operator.of(lambda v: jnp.arange(1.0, 41.0) * v, jnp.zeros(40))
    ends = operator.extreme_eigenvalues(progress=False)
    assert "max_eigenvalue=" in repr(ends)
    assert "converged=True" in repr(ends)
    pairs = operator.top_eigenpairs(2, tol=0.1, progress=False)
    assert "2 of 2 converged" in repr(pairs)
    for result in (ends, pairs):
        assert len(repr(result)) < 250
        assert "Array" not in repr(result)
    assert "Traced" in repr(jax.eval_shape(lambda: ends)) or "ShapeDtypeStruct" in str(jax.eval_shape(lambda: ends)[0])
