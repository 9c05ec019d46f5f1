"""Where a Krylov basis is kept: what the host finds is what the device finds, and what 16 bits cost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from jax.sharding import PartitionSpec

import jaxscape as js
from jaxscape.linalg import _bases
from tests.sharding import cut, mesh

RNG = np.random.default_rng(0)
LIKE = {"a": jnp.zeros((8, 12)), "b": jnp.zeros((8, 13))}
SIZE, UNRAVEL = 200, ravel_pytree(LIKE)[1]
SPECTRUM = np.concatenate([RNG.normal(size=SIZE - 5), [9.0, 8.0, 7.0, -6.0, -8.5]])
Q = np.linalg.qr(RNG.normal(size=(SIZE, SIZE)))[0]
MATRIX = jnp.asarray((Q * SPECTRUM) @ Q.T)


def operator(like=LIKE, matrix=MATRIX):
    return js.Operator.of(lambda v: UNRAVEL(matrix @ ravel_pytree(v)[0]), like)


def flat(directions):
    return np.stack([ravel_pytree(directions[i])[0] for i in range(len(directions))])


@pytest.mark.parametrize("max_basis", [12, 60])
def test_the_host_finds_what_the_device_finds(max_basis):
    """12 vectors restart, 60 do not."""
    options = {"max_basis": max_basis, "max_matvecs": 200, "tol": 1e-9, "progress": False}
    ours, theirs = (operator().top_eigenpairs(4, "BE", basis=basis, **options) for basis in ("host", "device"))
    assert ours.converged.all()
    assert ours.num_matvecs == theirs.num_matvecs
    np.testing.assert_allclose(ours.eigenvalues, [-8.5, 9, -6, 8], rtol=1e-12)
    np.testing.assert_allclose(np.abs(np.sum(flat(ours.eigenvectors) * flat(theirs.eigenvectors), 1)), 1, rtol=1e-12)
    np.testing.assert_allclose(ours.residuals, theirs.residuals, atol=1e-11)


def test_the_host_goes_on_from_an_invariant_subspace():
    ends = js.lanczos(lambda v: jnp.where(jnp.arange(50) == 7, -2.0, 1.0) * v, jnp.zeros(50), key=0, basis="host")
    assert ends.converged
    np.testing.assert_allclose([ends.min_eigenvalue, ends.max_eigenvalue], [-2, 1], rtol=1e-12)


@pytest.mark.parametrize(("basis", "tolerance"), [("host", 1e-12), ("bfloat16", 2e-3)])
def test_density(basis, tolerance):
    options = {"num_probes": 2, "num_steps": 20, "progress": False}
    ours, theirs = (operator().spectral_density(basis=b, **options) for b in (basis, "device"))
    np.testing.assert_allclose(ours.ritz_value, theirs.ritz_value, atol=9 * tolerance)
    np.testing.assert_allclose(ours.ritz_weight.sum("ritz"), 1, rtol=max(tolerance, 1e-12))


@pytest.mark.parametrize("max_basis", [12, 60])
def test_what_16_bits_cost(max_basis):
    options = {"max_basis": max_basis, "max_matvecs": 200, "tol": 1e-2, "progress": False}
    matrix = MATRIX.astype(jnp.float32)
    like = jax.tree.map(lambda x: x.astype(jnp.float32), LIKE)
    found = operator(like, matrix).top_eigenpairs(4, "BE", basis="bfloat16", **options)
    vectors = flat(found.eigenvectors).astype(float)
    np.testing.assert_allclose(found.eigenvalues, [-8.5, 9, -6, 8], atol=9e-4)  # 1e-4 of the largest
    measured = np.linalg.norm(vectors @ np.asarray(matrix) - found.eigenvalues[:, None] * vectors, axis=1)
    np.testing.assert_allclose(found.residuals, measured, rtol=1e-3)
    assert measured.max() < 9e-2
    assert measured.max() > 9e-4  # it is not float32 after all
    off = np.abs(vectors @ vectors.T - np.eye(4)).max()
    assert off < 3e-3
    exact = operator(like, matrix).top_eigenpairs(4, "BE", **options)
    exact_vectors = flat(exact.eigenvectors).astype(float)
    assert np.abs(exact_vectors @ exact_vectors.T - np.eye(4)).max() < 3e-6


def test_a_basis_in_16_bits_takes_half():
    first = jnp.ones(100, jnp.float32)
    space = _bases.basis_in("bfloat16", first, None).begin(first, 8, jax.random.key(0), 20)
    assert space.basis.dtype == jnp.bfloat16
    assert _bases.basis_in("host", first, None).begin(jnp.ones(100), 8, jax.random.key(0), 20).basis is None


def test_a_device_holds_few_vectors_of_a_basis_on_the_host():
    n, most = 5003, []

    def matvec(v):
        most.append(sum(x.nbytes for x in jax.live_arrays() if x.size % n == 0) / v.nbytes)
        return jnp.linspace(0, 1, n) * v

    for basis in ("host", "device"):
        most.clear()
        js.lanczos(matvec, jnp.zeros(n), key=0, max_matvecs=40, max_basis=30, basis=basis)
        assert max(most) <= 8 if basis == "host" else max(most) >= 28


@pytest.mark.parametrize("name", ["fsdp", "tensor"])
@pytest.mark.parametrize("basis", ["host", "bfloat16"])
def test_params_that_are_cut(name, basis):
    options = {"max_basis": 12, "max_matvecs": 60, "tol": 1e-9, "basis": basis, "progress": False}
    like = cut(LIKE, mesh(name))
    whole, sharded = operator(), operator(like)
    ours, theirs = (each.top_eigenpairs(2, "BE", **options) for each in (sharded, whole))
    np.testing.assert_allclose(ours.eigenvalues, theirs.eigenvalues, rtol=1e-12 if basis == "host" else 1e-4)
    leaf = ours.eigenvectors[0]["a"]
    assert leaf.sharding.spec == like["a"].sharding.spec != PartitionSpec()


@pytest.mark.parametrize("spectrum", [np.ones(20), np.repeat([5.0, 1.0], [3, 17])])
def test_16_bits_invent_no_eigenvalue(spectrum):
    """What rounding makes of a product within the space is no new direction."""
    q = np.linalg.qr(RNG.normal(size=(20, 20)))[0]
    a = jnp.asarray((q * spectrum) @ q.T, jnp.float32)
    product = js.Operator.of(lambda v: a @ v, jnp.zeros(20, jnp.float32))
    ds = product.spectral_density(num_probes=2, num_steps=12, basis="bfloat16", progress=False)
    assert ds.ritz_value.values.min() > 0.9
    assert ds.ritz_value.values.max() < 1.01 * spectrum.max()


@pytest.mark.filterwarnings("ignore:Some donated buffers")  # inside vmap
def test_under_vmap():
    def largest(scale, basis="device"):
        return js.lanczos(lambda v: jnp.arange(10.0) * v * scale, jnp.zeros(10), key=0, basis=basis).max_eigenvalue

    np.testing.assert_allclose(jax.vmap(largest)(jnp.array([1.0, 2.0])), [9, 18], rtol=1e-6)
    with pytest.raises(ValueError, match="basis is 'host', which works between the products"):
        jax.vmap(lambda s: largest(s, "host"))(jnp.ones(2))


def test_mistakes_are_told():
    with pytest.raises(ValueError, match="basis is 'disk', expected 'device', 'bfloat16' or 'host'"):
        operator().extreme_eigenvalues(basis="disk")
    with pytest.raises(ValueError, match="basis is 'host', which works between the products"):
        jax.jit(lambda x: js.lanczos(lambda v: x * v, jnp.zeros(50), key=0, basis="host").max_eigenvalue)(2.0)
