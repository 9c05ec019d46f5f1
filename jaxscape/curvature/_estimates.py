"""What random probes tell of a whole spectrum: the trace and the density of the eigenvalues."""

from collections.abc import Iterator
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax.sharding import Mesh
from jaxtyping import Array, PRNGKeyArray

from jaxscape.curvature._eigen import counted, matvec_bar
from jaxscape.curvature._hvp import operator
from jaxscape.curvature._product import Matvec
from jaxscape.directions import as_key
from jaxscape.krylov import quadrature
from jaxscape.types import Data, Ignore, LossFn, Params


class Trace(NamedTuple):
    """An estimate of a trace.

    Attributes:
        trace: The sum of all eigenvalues.
        stderr: Its standard error, 0 where nothing was left to chance.
        num_matvecs: Products with the Hessian.
    """

    trace: float
    stderr: float
    num_matvecs: int


def hessian_trace(
    params: Params,
    loss_fn: LossFn,
    data: Data,
    *,
    num_matvecs: int = 60,
    method: Literal["hutch++", "hutchinson"] = "hutch++",
    key: PRNGKeyArray | int = 0,
    batch_size: int | Literal["auto"] = "auto",
    mesh: Mesh | None = None,
    ignore: Ignore = None,
    progress: bool | None = None,
) -> Trace:
    """The trace of the Hessian at params, with its standard error.

    Hutchinson (1990): the mean of ``z^T H z`` over vectors z of random signs. Hutch++ (Meyer, Musco, Musco and Woodruff
    2021): a third of the products find a subspace Q of the large eigenvalues, a third take the trace within it exactly,
    and the last third estimate what is left outside of it, as Hutchinson does.

    >>> found = hessian_trace(jnp.ones(5), lambda p, x: x * (p**2).sum(), jnp.ones(3))
    >>> round(found.trace, 3), round(found.stderr, 3)
    (10.0, 0.0)

    Args:
        params: Any pytree of floating arrays.
        loss_fn: As in `hvp`.
        data: As in `hvp`.
        num_matvecs: Products, at least 2 for Hutchinson and 6 for Hutch++.
        method: Which of the two.
        key: A JAX random key, or an integer seed, of the vectors.
        batch_size: As in `hvp`.
        mesh: As in `hvp`.
        ignore: As in `hvp`.
        progress: As in `extreme_eigenvalues`.

    Returns:
        The estimate. The standard error is that of the random vectors, in Hutch++ given Q.

    Raises:
        ValueError: As in `hvp`; ``method`` is unknown, or ``num_matvecs`` is too small for it.
        TypeError: As in `hvp`.
    """
    least = {"hutchinson": 2, "hutch++": 6}
    if method not in least:
        raise ValueError(f"method is {method!r}, expected 'hutch++' or 'hutchinson'.")
    if num_matvecs < least[method]:
        raise ValueError(f"num_matvecs is {num_matvecs}, expected at least {least[method]} for {method}.")
    params, product = operator(params, loss_fn, data, batch_size=batch_size, mesh=mesh, ignore=ignore)
    size, dtype = product.layout.size, product.layout.dtype
    sketched = 0 if method == "hutchinson" else min(num_matvecs // 3, size)
    signs = _probes(as_key(key), num_matvecs, size, dtype)
    with matvec_bar(num_matvecs, progress) as bar:
        matvec = counted(product.at(params), bar)
        basis = _range([matvec(next(signs)) for _ in range(sketched)], size, dtype)
        inside = sum(float(_inner(q, matvec(q))) for q in basis)
        used = 2 * sketched
        values = []
        if sketched < size:
            for _ in range(num_matvecs - used):
                z = _outside(next(signs), basis)
                values.append(float(_inner(z, matvec(z))))
    outside = np.mean(values) if values else 0.0
    stderr = np.std(values, ddof=1) / np.sqrt(len(values)) if values else 0.0
    return Trace(inside + float(outside), float(stderr), used + len(values))


def _probes(key: PRNGKeyArray, num: int, size: int, dtype: jnp.dtype) -> Iterator[Array]:
    return (jax.random.rademacher(k, (size,), dtype) for k in jax.random.split(key, num))


def _range(images: list[Array], size: int, dtype: jnp.dtype) -> Array:
    """An orthonormal basis of vectors, as rows."""
    return jnp.linalg.qr(jnp.stack(images).T)[0].T if images else jnp.zeros((0, size), dtype)


def _outside(vector: Array, basis: Array) -> Array:
    for _ in range(2 if len(basis) else 0):
        inside = jnp.matmul(basis, vector, precision="highest")
        vector = vector - jnp.matmul(inside, basis, precision="highest")
    return vector


@jax.jit
def _inner(a: Array, b: Array) -> Array:
    return jnp.vdot(a, b, precision="highest")


def spectral_density(
    params: Params,
    loss_fn: LossFn,
    data: Data,
    *,
    num_probes: int = 8,
    num_steps: int = 40,
    num_points: int = 1024,
    sigma: float | None = None,
    key: PRNGKeyArray | int = 0,
    batch_size: int | Literal["auto"] = "auto",
    mesh: Mesh | None = None,
    ignore: Ignore = None,
    progress: bool | None = None,
) -> xr.Dataset:
    """The density of the Hessian's eigenvalues at params, by stochastic Lanczos quadrature.

    For each random Gaussian probe Lanczos gives Ritz values and weights; their sum of Gaussians of width sigma,
    averaged over the probes, estimates ``mean_i N(lambda; lambda_i, sigma^2)`` (Lin, Saad and Yang 2016; Ghorbani,
    Krishnan and Xiao 2019). An eigenvalue of weight ``1/n`` far from the others shows as a peak of that weight.

    >>> ds = spectral_density(jnp.ones(5), lambda p, x: x * (p**2).sum(), jnp.ones(3), sigma=0.1)
    >>> round(float(ds.density.integrate("eigenvalue")), 3), round(float(ds.density.idxmax()), 1)
    (1.0, 2.0)

    Args:
        params: Any pytree of floating arrays.
        loss_fn: As in `hvp`.
        data: As in `hvp`.
        num_probes: Random vectors, at least 2: their spread is the uncertainty.
        num_steps: Products for each of them.
        num_points: Eigenvalues at which the density is given.
        sigma: Width of the Gaussians; None: a hundredth of the range of the Ritz values.
        key: A JAX random key, or an integer seed, of the probes.
        batch_size: As in `hvp`.
        mesh: As in `hvp`.
        ignore: As in `hvp`.
        progress: As in `extreme_eigenvalues`.

    Returns:
        A Dataset: ``density`` and ``density_stderr`` over ``eigenvalue``, the density's integral is 1; ``ritz_value``
        and ``ritz_weight`` over ``probe`` and ``ritz``. The attrs have ``sigma``, ``num_params`` and the mean
        eigenvalue.

    Raises:
        ValueError: As in `hvp`; or an option is out of its range.
        TypeError: As in `hvp`.
    """
    for name, value, low in (("num_probes", num_probes, 2), ("num_steps", num_steps, 1), ("num_points", num_points, 2)):
        if value < low:
            raise ValueError(f"{name} is {value}, expected at least {low}.")
    if sigma is not None and not sigma > 0:
        raise ValueError(f"sigma is {sigma}, expected a positive width or None.")
    params, product = operator(params, loss_fn, data, batch_size=batch_size, mesh=mesh, ignore=ignore)
    layout, keys = product.layout, jax.random.split(as_key(key), (num_probes, 2))
    with matvec_bar(num_probes * min(num_steps, layout.size), progress) as bar:
        matvec = counted(product.at(params), bar)
        nodes, weights = np.stack([_probe(matvec, own, layout.size, layout.dtype, num_steps) for own in keys], axis=1)
    low, high = nodes.min(), nodes.max()
    sigma = sigma or max((high - low) / 100, 1e-6 * max(abs(low), abs(high)), float(np.finfo(np.float32).tiny))
    at = np.linspace(low - 5 * sigma, high + 5 * sigma, num_points)
    each = (weights[..., None] * np.exp(-0.5 * ((at - nodes[..., None]) / sigma) ** 2)).sum(1)
    each /= sigma * np.sqrt(2 * np.pi)
    each /= np.trapezoid(each, at)[:, None]  # what coarse points and the cut tails take from it
    means = (weights * nodes).sum(1)
    return xr.Dataset(
        {
            "density": ("eigenvalue", each.mean(0), {"long_name": "density of the eigenvalues"}),
            "density_stderr": ("eigenvalue", each.std(0, ddof=1) / np.sqrt(num_probes)),
            "ritz_value": (("probe", "ritz"), nodes),
            "ritz_weight": (("probe", "ritz"), weights),
        },
        {"eigenvalue": at},
        {
            "sigma": float(sigma),
            "num_params": layout.size,
            "mean_eigenvalue": float(means.mean()),
            "mean_eigenvalue_stderr": float(means.std(ddof=1) / np.sqrt(num_probes)),
            "num_matvecs": nodes.size,
        },
    )


def _probe(
    matvec: Matvec, keys: PRNGKeyArray, size: int, dtype: jnp.dtype, steps: int
) -> tuple[np.ndarray, np.ndarray]:
    nodes, weights = quadrature(matvec, jax.random.normal(keys[0], (size,), dtype), keys[1], steps)
    return np.asarray(nodes, np.float64), np.asarray(weights, np.float64)
