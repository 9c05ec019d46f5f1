"""Both ends of given spectra from one Krylov space, against the spectra themselves and scipy; and what must hold."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse.linalg
from jax.flatten_util import ravel_pytree

from jaxscape.linalg import _krylov as krylov
from jaxscape.linalg import _ritz as ritz
from jaxscape.linalg import _vectors, lanczos
from jaxscape.linalg._bases import Within
from tests.problems import slow_but, slow_unless

NEAR = np.linspace(0, 1e-3, 10)
# Most have 50 values, so that the programs of one serve the others.
SPECTRA = {
    "positive definite": np.linspace(1, 10, 50),
    "negative definite": np.linspace(-10, -1, 50),
    "clustered ends": np.concatenate([NEAR, np.linspace(2, 3, 30), 9 - NEAR]),
    "multiple": np.repeat([-2.0, 1.0, 3.0], [5, 40, 5]),
    "rank 1": np.concatenate([[5.0], np.zeros(49)]),
    "rank 1, negative": np.concatenate([[-5.0], np.zeros(49)]),
    "zero": np.zeros(50),
    "identity": np.ones(50),
    "tiny negative end": np.concatenate([[-1e-3], np.linspace(0, 100, 49)]),
    "spread": np.geomspace(1e-8, 1, 50),
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


@pytest.mark.parametrize(
    ("name", "max_basis"),
    [slow_unless(i % 16 == 12 * (basis == 8), name, basis) for i, name in enumerate(SPECTRA) for basis in (8, 40)],
)
def test_both_ends_of_given_spectra(name, max_basis):
    spectrum, tol = SPECTRA[name], 1e-6
    a, result = both_ends(spectrum, tol, max_basis=max_basis)
    norm = np.abs(spectrum).max()
    assert result.num_matvecs <= 400
    for value, residual, vector, true in (
        (result.min_eigenvalue, result.min_residual, result.min_eigenvector, spectrum.min()),
        (result.max_eigenvalue, result.max_residual, result.max_eigenvector, spectrum.max()),
    ):
        np.testing.assert_allclose(jnp.linalg.norm(vector), 1, rtol=1e-12)
        np.testing.assert_allclose(jnp.linalg.norm(a @ vector - value * vector), residual, atol=1e-14 * norm + 1e-300)
        assert np.abs(spectrum - value).min() <= residual + 1e-13 * norm  # an eigenvalue is that near
        if result.converged:
            assert abs(value - true) <= tol * abs(true) + 1e-14 * norm
    if name not in ("spread", "clustered ends"):
        assert result.converged


def test_what_is_not_converged_says_so():
    spectrum = SPECTRA["spread"]
    _, result = both_ends(spectrum, max_matvecs=12)
    assert not result.converged
    assert result.num_matvecs == 12
    assert result.min_residual > 1e-6 * abs(result.min_eigenvalue)
    assert result.min_eigenvalue >= spectrum.min()  # Ritz values lie inside


def test_few_vectors_find_what_many_find():
    spectrum = np.concatenate([[-5, -4.9], np.random.default_rng(0).normal(size=300), [20, 30]])
    (_, few), (_, many) = (both_ends(spectrum, max_basis=m) for m in (8, 60))
    assert few.converged
    assert many.converged
    assert few.num_matvecs >= many.num_matvecs
    np.testing.assert_allclose(few.min_eigenvalue, -5, rtol=1e-10)
    np.testing.assert_allclose(few.max_eigenvalue, many.max_eigenvalue, rtol=1e-10)


def test_a_basis_larger_than_a_block_is_combined_block_by_block(monkeypatch):
    monkeypatch.setattr(_vectors, "_COLUMNS", 7)
    _, result = both_ends(np.linspace(1, 10, 51), max_basis=8)  # no other test has compiled programs for 51 values
    assert result.converged
    np.testing.assert_allclose([result.min_eigenvalue, result.max_eigenvalue], [1, 10], rtol=1e-10)


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

    result = lanczos(matvec, like, key=jax.random.key(0), tol=1e-4)
    np.testing.assert_allclose([result.min_eigenvalue, result.max_eigenvalue], [-3, 7], rtol=1e-5)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), result.min_eigenvector) == jax.tree.map(
        lambda x: (x.shape, x.dtype), like
    )


@pytest.mark.parametrize("which", slow_but(["BE"], ["BE", "LA", "SA", "LM"]))
def test_several_pairs_against_scipy(which):
    rng = np.random.default_rng(3)
    spectrum = np.concatenate([rng.normal(size=200), [9, 8, 7, -6, -8.5]])
    a, num = matrix(spectrum), 4
    first = jnp.asarray(rng.normal(size=len(a)))
    result = krylov.krylov(
        lambda v: a @ v, first, jax.random.key(0), ritz.Goal(num, which, 1e-9), max_matvecs=300, max_basis=20
    )
    expected, vectors = scipy.sparse.linalg.eigsh(np.asarray(a), num, which=which)
    order, theirs = np.argsort(result.values), np.argsort(expected)
    assert result.converged.all()
    np.testing.assert_allclose(result.values[order], expected[theirs], rtol=1e-10)
    overlap = np.abs(np.sum(np.asarray(result.vectors[order]) * vectors[:, theirs].T, axis=1))
    np.testing.assert_allclose(overlap, 1, rtol=1e-10)


def test_the_basis_is_orthonormal_and_the_recurrence_holds():
    a = matrix(np.geomspace(1e-3, 1e3, 80)).astype(jnp.float32)
    m, num = 30, 2
    first = jnp.zeros(len(a), a.dtype).at[0].set(1)
    kept = Within(None, first.dtype)
    space = kept.begin(first, m, jax.random.key(0), m + 12)
    for steps in range(1, m + 12):  # it restarts after 30
        space = kept.extend(space, a @ space.vector)
        scale = float(space.scale)  # of what the space has of the operator
        space = kept.restart(space, num, "BE") if space.size == m else space
        size = int(space.size)
        basis = np.vstack([np.asarray(space.basis)[:size], space.vector])  # no program for each size
        np.testing.assert_allclose(basis @ basis.T, np.eye(size + 1), atol=5e-6)
        if steps < m:
            projected = scale * np.asarray(space.projected)[:size, :size]
            np.testing.assert_allclose(projected, np.triu(np.tril(projected, 1), -1), atol=1e-3)  # three terms
            rest = np.asarray(a) @ basis[:-1].T - basis[:-1].T @ projected
            np.testing.assert_allclose(rest[:, :-1], 0, atol=2e-3)
            np.testing.assert_allclose(rest[:, -1], scale * space.left * basis[-1], atol=2e-3)
    assert size < m


def crossing(seed, gap, n=1000):
    """A diagonal operator, and the eigenvectors of two eigenvalues that others have passed by shares of themselves."""
    rng = np.random.default_rng(seed)
    bulk = [rng.uniform(-0.5, 1, n), rng.normal(0, 0.3, n), rng.normal(0, 0.2, n) * rng.exponential(1, n)][seed % 3]
    low, high = np.array([bulk.min(), bulk.max()]) * rng.uniform(1, 4, 2)
    bulk[:4] = low, high, low * (1 + gap[0]), high * (1 + gap[1])
    return jnp.asarray(bulk), jnp.zeros(n).at[:2].set(1)


@jax.jit
def diagonal(spectrum, vector):
    return spectrum * vector


def ends_of(spectrum, seed, tol, start=None):
    options = {"key": jax.random.key(seed), "tol": tol, "max_matvecs": 200}
    return lanczos(lambda v: diagonal(spectrum, v), spectrum, start=start, **options)


def missed(spectrum, result, tol):
    """How many ends are called converged where an eigenvalue lies farther out than the tolerance."""
    true = np.array([spectrum.min(), spectrum.max()])
    apart = np.abs(np.array([result.min_eigenvalue, result.max_eigenvalue]) - true)
    return int(result.converged) * int((apart > tol * np.abs(true)).sum())


@pytest.mark.parametrize("seed", range(3))
def test_eigenvectors_that_are_no_longer_those_of_the_ends(seed):
    spectrum, start = crossing(seed, (0.5, 0.3))
    warm, cold = (ends_of(spectrum, seed, 1e-2, s) for s in (start, None))
    assert warm.converged
    assert missed(spectrum, warm, 1e-2) == 0
    np.testing.assert_allclose(warm.min_eigenvalue, cold.min_eigenvalue, rtol=1e-2)  # a start changes no answer
    np.testing.assert_allclose(warm.max_eigenvalue, cold.max_eigenvalue, rtol=1e-2)
    assert warm.num_matvecs < 1.25 * cold.num_matvecs


@pytest.mark.slow
def test_200_random_crossings():
    rng = np.random.default_rng(0)
    wrong = converged = 0
    for seed in range(200):
        spectrum, start = crossing(seed, np.exp(rng.uniform(np.log(0.02), 0, 2)))
        result = ends_of(spectrum.astype(jnp.float32), seed, 1e-2, start.astype(jnp.float32))
        wrong, converged = wrong + missed(spectrum, result, 1e-2), converged + int(result.converged)
    assert wrong == 0
    assert converged == 200


@pytest.mark.slow
def test_the_risk_is_as_small_as_it_is_said_to_be():
    """The hardest case: the missing eigenvalue is hardly farther out than the tolerance, and hidden from the start."""
    num, tol = 300, 1e-2
    wrong = 0
    for seed in range(num):
        spectrum, start = crossing(seed, (1.2 * tol, 1.2 * tol))
        wrong += missed(spectrum, ends_of(spectrum, seed, tol, start), tol)
    assert wrong <= 2 * num * ritz.RISK + 3 * (2 * num * ritz.RISK) ** 0.5


def test_starts_from_the_middle_miss_nothing():
    spectrum = SPECTRA["positive definite"]
    deficient = jnp.linalg.eigh(matrix(spectrum))[1][:, 25]  # of a space in which the other eigenvectors are not
    for start in (deficient, jnp.zeros(len(spectrum))):
        _, result = both_ends(spectrum, start=start)
        assert result.converged
        np.testing.assert_allclose([result.min_eigenvalue, result.max_eigenvalue], [1, 10], rtol=1e-8)


@pytest.mark.slow
def test_a_start_makes_residuals_small_sooner():
    spectrum = np.concatenate([[-3.0], np.random.default_rng(0).uniform(-2, 4, 300), [5.0]])
    _, cold = both_ends(spectrum)
    _, early = both_ends(spectrum, max_matvecs=10)
    _, warm = both_ends(spectrum, max_matvecs=10, start=cold.min_eigenvector + cold.max_eigenvector)
    assert not warm.converged
    assert warm.min_residual < early.min_residual
    assert warm.max_residual < early.max_residual
    assert warm.max_eigenvalue > 4.99 > early.max_eigenvalue


@pytest.mark.parametrize("which", slow_but(["LM"], ["BE", "LA", "SA", "LM"]))
def test_none_of_several_pairs_is_missed(which):
    spectrum = jnp.asarray(np.concatenate([np.random.default_rng(0).uniform(-1, 1, 500), [3, 4, 5, -4.5, -3.5, -2.5]]))
    best = {"BE": [-4.5, 5, -3.5, 4], "LA": [5, 4, 3], "SA": [-4.5, -3.5, -2.5], "LM": [5, -4.5, 4, -3.5]}[which]
    start = jnp.zeros(len(spectrum)).at[jnp.array([0, 1, 501, 504])].set(1)  # holds 4, -3.5 and none of the others
    noise, goal = (
        jax.random.normal(jax.random.key(1), spectrum.shape, spectrum.dtype),
        ritz.Goal(len(best), which, 1e-3),
    )
    result = krylov.krylov(
        lambda v: diagonal(spectrum, v), noise, jax.random.key(0), goal, max_matvecs=200, max_basis=20, start=start
    )
    assert result.converged.all()
    np.testing.assert_allclose(result.values, best, rtol=1e-3)


@pytest.mark.parametrize("steps", slow_but([12], [3, 12, 25]))
@pytest.mark.slow
def test_the_growth_is_that_of_every_eigenvector(steps):
    """The norm of an eigenvector's coordinates in the space and its next vector, over that in the first vector."""
    spectrum = np.concatenate([[-4.0, -3.9], np.random.default_rng(0).uniform(-1, 2, 100), [2.5, 3.0]])
    spectrum = jnp.asarray(spectrum)
    first = jax.random.normal(jax.random.key(0), spectrum.shape)
    first = first / jnp.linalg.norm(first)
    basis = Within(None, first.dtype)
    space = basis.begin(jnp.array(first), 10, jax.random.key(0), steps)
    for _ in range(steps):  # it restarts after 10
        space = basis.restart(space, 2, "BE") if space.size == 10 else space
        space = basis.extend(space, spectrum * space.vector)
    rows = np.vstack([np.asarray(space.basis)[: int(space.size)], space.vector])
    expected = np.log(np.linalg.norm(rows, axis=0) / np.abs(first))
    pairs = ritz.ritz_pairs(space, 2, "BE")
    spectrum = spectrum / space.scale
    result = ritz.log_growth(space, pairs, spectrum)
    apart = np.abs(np.asarray(spectrum)[:, None] - pairs.values[: int(space.size)]).min(1) > 1e-4
    assert apart.sum() >= 100  # a Ritz value that is an eigenvalue to rounding leaves no digit of the difference
    np.testing.assert_allclose(result[apart], expected[apart], atol=1e-7)


def test_the_key_decides():
    runs = [both_ends(SPECTRA["spread"], max_matvecs=9, key=jax.random.key(seed))[1] for seed in (0, 0, 1)]
    np.testing.assert_array_equal(runs[0].min_eigenvector, runs[1].min_eigenvector)
    assert not np.array_equal(runs[0].min_eigenvector, runs[2].min_eigenvector)


def test_not_a_number_is_never_converged():
    result = lanczos(lambda v: v * jnp.nan, jnp.zeros(50), key=jax.random.key(0))
    assert not result.converged
    assert np.isnan(result.max_eigenvalue)


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
    nodes, weights = krylov.quadrature(lambda v: a @ v, jnp.ones(50), jax.random.key(0), 100)
    np.testing.assert_allclose(nodes, spectrum, atol=1e-10)
    np.testing.assert_allclose(weights.sum(), 1, rtol=1e-12)


def test_nan_is_told_at_once():
    result = lanczos(lambda v: v * jnp.nan, jnp.zeros(50), key=jax.random.key(0))
    assert np.isnan(result.max_eigenvalue)
    assert np.isnan(result.min_residual)
    assert not result.converged
    assert result.num_matvecs <= 4
