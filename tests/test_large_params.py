"""Large params: vectors are lists of leaves, without a flat copy, and give what flat vectors give."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import jaxscape as js
from tests.sharding import tiny, tiny_logits

PARAMS, LOSS, DATA = tiny()


@pytest.fixture
def large(monkeypatch):
    """A function that gives the result with vectors of leaves, and that with flat vectors."""

    def both(call):
        flat = call()
        with monkeypatch.context() as patch:
            patch.setattr("jaxscape.objective._cores.LARGE", 0)
            return call(), flat

    return both


def flat(tree):
    return np.asarray(ravel_pytree(tree)[0])


def operator(**options):
    return js.hvp(LOSS, PARAMS, DATA, **options)


def test_vectors_are_lists_of_leaves(large):
    ours, theirs = large(lambda: operator().subspace)
    assert isinstance(ours.normal(jax.random.key(0)), list)
    np.testing.assert_array_equal(flat(ours.normal(jax.random.key(0))), theirs.normal(jax.random.key(0)))
    np.testing.assert_array_equal(flat(ours.signs(jax.random.key(0))), theirs.signs(jax.random.key(0)))
    other = jax.random.key(0, impl="rbg")
    np.testing.assert_array_equal(flat(ours.normal(other)), theirs.normal(other))
    np.testing.assert_array_equal(flat(ours.signs(other)), theirs.signs(other))


@pytest.mark.parametrize("method", ["forward_over_reverse", "reverse_over_reverse", "finite_difference"])
@pytest.mark.parametrize("linearize", [None, True])
def test_products(large, method, linearize):
    if method == "finite_difference" and linearize:
        pytest.skip("it has nothing linear")
    vector = jax.tree.map(lambda x: jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape), PARAMS)
    ours, theirs = large(lambda: operator(method=method, linearize=linearize) @ vector)
    np.testing.assert_allclose(flat(ours), flat(theirs), rtol=1e-12, atol=1e-13)


def test_gauss_newton(large):
    def call():
        ggn = js.ggn_product(tiny_logits, lambda y, batch: (y**2).sum(-1), PARAMS, DATA, ignore="bias_norm")
        return ggn @ PARAMS

    ours, theirs = large(call)
    np.testing.assert_allclose(flat(ours), flat(theirs), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("basis", ["device", "host"])
def test_eigenvalues(large, basis):
    options = {"tol": 1e-9, "max_matvecs": 300, "max_basis": 20, "basis": basis, "progress": False}
    ours, theirs = large(lambda: operator().top_eigenpairs(2, "BE", **options))
    np.testing.assert_allclose(ours.eigenvalues, theirs.eigenvalues, rtol=1e-11)
    overlap = [abs(flat(a) @ flat(b)) for a, b in zip(ours.eigenvectors, theirs.eigenvectors, strict=True)]
    np.testing.assert_allclose(overlap, 1, rtol=1e-8)


@pytest.mark.parametrize("method", ["hutch++", "hutchinson"])
def test_trace(large, method):
    ours, theirs = large(lambda: operator().trace(num_matvecs=9, method=method, progress=False))
    np.testing.assert_allclose(ours[:2], theirs[:2], rtol=1e-9)


def test_density(large):
    ours, theirs = large(lambda: operator().spectral_density(num_probes=2, num_steps=8, progress=False))
    np.testing.assert_allclose(ours.ritz_value, theirs.ritz_value, rtol=1e-9, atol=1e-9)


@pytest.mark.slow  # 7 seconds
def test_any_operator_and_scipy(large):
    def call():
        product = js.Operator.of(lambda v: jax.tree.map(lambda x: 2 * x, v), PARAMS)
        vector = np.arange(product.shape[0], dtype=float)
        return product.to_scipy() @ vector, product.extreme_eigenvalues(progress=False).max_eigenvalue

    (ours, one), (theirs, other) = large(call)
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)
    np.testing.assert_allclose([one, other], 2, rtol=1e-12)


def test_a_stream(large):
    batches = [jax.tree.map(lambda x, i=i: x[i : i + 4], DATA) for i in range(0, len(jax.tree.leaves(DATA)[0]), 4)]
    ours, theirs = large(lambda: js.hvp(LOSS, PARAMS, js.Stream(batches)) @ PARAMS)
    np.testing.assert_allclose(flat(ours), flat(theirs), rtol=1e-12, atol=1e-13)


@pytest.mark.slow  # 19 seconds: a map, a table and a product, twice
def test_a_map_inside_jit_and_flatness(large):
    grid = js.Grid.line(-0.5, 0.5, 2)
    directions = js.random_directions(0, PARAMS, num=1)

    def call():
        options = {"directions": directions, "grid": grid, "tol": 1e-6, "max_matvecs": 200, "progress": False}
        curvature = js.eigenvalue_map(PARAMS, LOSS, DATA, **options)
        table = js.sharpness(PARAMS, LOSS, DATA, measures=["lambda_max"], progress=False)
        inside = jax.jit(lambda v: operator() @ v)(PARAMS)
        return curvature.max_eigenvalue.values, curvature.plane_hessian.values, table.value.values, flat(inside)

    for ours, theirs in zip(*large(call), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-12)
