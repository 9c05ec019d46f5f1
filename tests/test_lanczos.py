"""Both ends of given spectra from one Krylov space, against the spectra themselves and scipy; and what must hold."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse.linalg
from jax.flatten_util import ravel_pytree

from jaxscape import krylov
from jaxscape.lanczos import lanczos

NEAR = np.linspace(0, 1e-3, 10)
SPECTRA = {
    "positive definite": np.linspace(1, 10, 50),
    "negative definite": np.linspace(-10, -1, 50),
    "clustered ends": np.concatenate([NEAR, np.linspace(2, 3, 20), 9 - NEAR]),
    "multiple": np.repeat([-2.0, 1.0, 3.0], [5, 20, 5]),
    "rank 1": np.concatenate([[5.0], np.zeros(40)]),
    "rank 1, negative": np.concatenate([[-5.0], np.zeros(40)]),
    "zero": np.zeros(20),
    "identity": np.ones(20),
    "tiny negative end": np.concatenate([[-1e-3], np.linspace(0, 100, 60)]),
    "spread": np.geomspace(1e-8, 1, 60),
    "one": np.array([2.0]),
    "two": np.array([-1.0, 3.0]),
    "three": np.array([-1.0, 0.0, 3.0]),
}


def matrix(spectrum, seed=0):
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(spectrum),) * 2))
    return jnp.asarray((q * spectrum) @ q.T)


def both_ends(spectrum, tol=1e-6, max_matvecs=400, **options):
    a = matrix(spectrum)
    options = {"key": jax.random.key(1), "tol": tol, "max_matvecs": max_matvecs} | options
    return a, lanczos(lambda v: a @ v, jnp.zeros(len(spectrum)), **options)


@pytest.mark.parametrize("max_basis", [8, 40])
@pytest.mark.parametrize("name", SPECTRA)
def test_both_ends_of_given_spectra(name, max_basis):
    spectrum, tol = SPECTRA[name], 1e-6
    a, found = both_ends(spectrum, tol, max_basis=max_basis)
    norm = np.abs(spectrum).max()
    assert found.num_matvecs <= 400
    for value, residual, vector, true in (
        (found.min_eigenvalue, found.min_residual, found.min_eigenvector, spectrum.min()),
        (found.max_eigenvalue, found.max_residual, found.max_eigenvector, spectrum.max()),
    ):
        np.testing.assert_allclose(jnp.linalg.norm(vector), 1, rtol=1e-12)
        np.testing.assert_allclose(jnp.linalg.norm(a @ vector - value * vector), residual, atol=1e-14 * norm + 1e-300)
        assert np.abs(spectrum - value).min() <= residual + 1e-13 * norm  # an eigenvalue is that near
        if found.converged:
            assert abs(value - true) <= tol * abs(true) + 1e-14 * norm
    if name not in ("spread", "clustered ends"):
        assert found.converged


def test_what_is_not_converged_says_so():
    spectrum = SPECTRA["spread"]
    _, found = both_ends(spectrum, max_matvecs=12)
    assert not found.converged
    assert found.num_matvecs == 12
    assert found.min_residual > 1e-6 * abs(found.min_eigenvalue)
    assert found.min_eigenvalue >= spectrum.min()  # Ritz values lie inside


def test_few_vectors_find_what_many_find():
    spectrum = np.concatenate([[-5, -4.9], np.random.default_rng(0).normal(size=300), [20, 30]])
    (_, few), (_, many) = (both_ends(spectrum, max_basis=m) for m in (8, 60))
    assert few.converged
    assert many.converged
    assert few.num_matvecs >= many.num_matvecs
    np.testing.assert_allclose(few.min_eigenvalue, -5, rtol=1e-10)
    np.testing.assert_allclose(few.max_eigenvalue, many.max_eigenvalue, rtol=1e-10)


def test_a_basis_larger_than_a_block_is_combined_block_by_block(monkeypatch):
    monkeypatch.setattr(krylov, "_COLUMNS", 7)
    jax.clear_caches()
    _, found = both_ends(SPECTRA["positive definite"], max_basis=8)
    jax.clear_caches()
    assert found.converged
    np.testing.assert_allclose([found.min_eigenvalue, found.max_eigenvalue], [1, 10], rtol=1e-10)


def test_under_jit_it_is_the_same():
    a = matrix(SPECTRA["tiny negative end"])

    def run(key):
        return lanczos(lambda v: a @ v, jnp.zeros(len(a)), key=key, tol=1e-6, max_matvecs=200)

    compiled, plain = jax.jit(run)(jax.random.key(0)), run(jax.random.key(0))
    assert compiled.converged
    assert compiled.num_matvecs == plain.num_matvecs
    np.testing.assert_allclose(compiled.min_eigenvalue, plain.min_eigenvalue, rtol=1e-8)
    aligned = jnp.vdot(compiled.max_eigenvector, plain.max_eigenvector)  # its sign is free
    np.testing.assert_allclose(abs(aligned), 1, atol=1e-12)


def test_pytrees_of_several_dtypes():
    spectrum = np.concatenate([[-3.0], np.linspace(0, 1, 20), [7.0]])
    a = matrix(spectrum)
    like = {"a": jnp.zeros((3, 4), jnp.float32), "b": [jnp.zeros(10)]}

    def matvec(v):
        return ravel_pytree(like)[1](a @ ravel_pytree(v)[0])

    found = lanczos(matvec, like, key=jax.random.key(0), tol=1e-4)
    np.testing.assert_allclose([found.min_eigenvalue, found.max_eigenvalue], [-3, 7], rtol=1e-5)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), found.min_eigenvector) == jax.tree.map(
        lambda x: (x.shape, x.dtype), like
    )


@pytest.mark.parametrize("which", ["BE", "LA", "SA", "LM"])
def test_several_pairs_against_scipy(which):
    rng = np.random.default_rng(3)
    spectrum = np.concatenate([rng.normal(size=200), [9, 8, 7, -6, -8.5]])
    a, num = matrix(spectrum), 4
    first = jnp.asarray(rng.normal(size=len(a)))
    found = krylov.krylov(
        lambda v: a @ v, first, jax.random.key(0), num=num, which=which, max_matvecs=300, tol=1e-9, max_basis=20
    )
    expected, vectors = scipy.sparse.linalg.eigsh(np.asarray(a), num, which=which)
    order, theirs = np.argsort(found.values), np.argsort(expected)
    assert found.converged.all()
    np.testing.assert_allclose(found.values[order], expected[theirs], rtol=1e-10)
    overlap = np.abs(np.sum(np.asarray(found.vectors[order]) * vectors[:, theirs].T, axis=1))
    np.testing.assert_allclose(overlap, 1, rtol=1e-10)


def test_the_basis_is_orthonormal_and_the_recurrence_holds():
    a = matrix(np.geomspace(1e-3, 1e3, 80)).astype(jnp.float32)
    m, num = 30, 2
    space = krylov._empty(jnp.zeros(len(a), a.dtype).at[0].set(1), jax.random.key(0), m, m + 12)
    for steps in range(1, m + 12):  # it restarts after 30
        space = krylov._extend(space, a @ space.vector)
        space = krylov._restart(space, num=num, which="BE") if space.size == m else space
        size = int(space.size)
        basis = np.vstack([np.asarray(space.basis)[:size], space.vector])  # no program for each size
        np.testing.assert_allclose(basis @ basis.T, np.eye(size + 1), atol=5e-6)
        if steps < m:
            projected = np.asarray(space.projected)[:size, :size]
            np.testing.assert_allclose(projected, np.triu(np.tril(projected, 1), -1), atol=1e-3)  # three terms
            rest = np.asarray(a) @ basis[:-1].T - basis[:-1].T @ projected
            np.testing.assert_allclose(rest[:, :-1], 0, atol=2e-3)
            np.testing.assert_allclose(rest[:, -1], space.left * basis[-1], atol=2e-3)
    assert size < m


def test_a_start_near_an_end_saves_products_and_misses_nothing():
    spectrum = SPECTRA["positive definite"]
    a, cold = both_ends(spectrum, tol=1e-4)
    _, warm = both_ends(spectrum, tol=1e-4, start=cold.min_eigenvector + cold.max_eigenvector)
    assert warm.num_matvecs < cold.num_matvecs
    deficient = jnp.linalg.eigh(a)[1][:, 25]  # an eigenvector from the middle: the others are not in its space
    _, found = both_ends(spectrum, start=deficient)
    assert found.converged
    np.testing.assert_allclose([found.min_eigenvalue, found.max_eigenvalue], [1, 10], rtol=1e-8)


def test_the_key_decides():
    runs = [both_ends(SPECTRA["spread"], max_matvecs=9, key=jax.random.key(seed))[1] for seed in (0, 0, 1)]
    np.testing.assert_array_equal(runs[0].min_eigenvector, runs[1].min_eigenvector)
    assert not np.array_equal(runs[0].min_eigenvector, runs[2].min_eigenvector)


def test_not_a_number_is_never_converged():
    found = lanczos(lambda v: v * jnp.nan, jnp.zeros(5), key=jax.random.key(0))
    assert not found.converged
    assert np.isnan(found.max_eigenvalue)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_matvecs": 2}, "max_matvecs is 2, expected at least 3 for 2 eigenpairs"),
        ({"max_basis": 5}, "max_basis is 5, expected at least 6"),
        ({"tol": 0.0}, "tol is 0.0, expected a positive number"),
        ({"start": jnp.zeros(3)}, r"start has shape \(3,\), expected \(4,\)"),
    ],
)
def test_mistakes_are_told(options, message):
    with pytest.raises(ValueError, match=message):
        lanczos(lambda v: v, jnp.zeros(4), key=jax.random.key(0), **options)
    with pytest.raises(TypeError, match="like is int"):
        lanczos(lambda v: v, jnp.zeros(4, int), key=jax.random.key(0))


def test_quadrature_is_exact_for_polynomials():
    a = matrix(np.linspace(-1, 2, 30))
    first = jax.random.normal(jax.random.key(3), (30,))
    nodes, weights = krylov.quadrature(lambda v: a @ v, jnp.array(first), jax.random.key(0), 6)
    unit, power = first / jnp.linalg.norm(first), jnp.eye(30)
    for degree in range(12):
        np.testing.assert_allclose(weights @ nodes**degree, unit @ power @ unit, rtol=1e-10)
        power = power @ a


def test_quadrature_of_all_vectors_has_the_whole_spectrum():
    spectrum = SPECTRA["multiple"]
    a = matrix(spectrum)
    nodes, weights = krylov.quadrature(lambda v: a @ v, jnp.ones(30), jax.random.key(0), 100)
    np.testing.assert_allclose(nodes, spectrum, atol=1e-10)
    np.testing.assert_allclose(weights.sum(), 1, rtol=1e-12)


def test_nan_is_told_at_once():
    found = lanczos(lambda v: v * jnp.nan, jnp.zeros(50), key=jax.random.key(0))
    assert np.isnan(found.max_eigenvalue)
    assert np.isnan(found.min_residual)
    assert not found.converged
    assert found.num_matvecs <= 4
