"""Both ends of a symmetric operator's spectrum, from one Krylov space of pytrees."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jaxscape import trees
from jaxscape.krylov import krylov
from jaxscape.types import Params

Matvec = Callable[[Params], Params]


class Extremes(NamedTuple):
    """The two ends of a spectrum.

    Attributes:
        min_eigenvalue: The smallest Ritz value.
        max_eigenvalue: The largest Ritz value.
        min_residual: ``norm(H v - lambda v)`` of the smallest, measured; an eigenvalue is no farther away than this.
        max_residual: The same of the largest.
        min_eigenvector: Of norm 1, a pytree like ``like``.
        max_eigenvector: Of norm 1.
        converged: Whether both residuals are within the tolerance and, for each end with a probability of at least 99 %
            whatever the spectrum, no eigenvalue lies beyond it by more than the tolerance.
        num_matvecs: Products with the operator, those of the residuals included.
    """

    min_eigenvalue: Float[Array, ""]
    max_eigenvalue: Float[Array, ""]
    min_residual: Float[Array, ""]
    max_residual: Float[Array, ""]
    min_eigenvector: Params
    max_eigenvector: Params
    converged: Bool[Array, ""]
    num_matvecs: Int[Array, ""]


def lanczos(
    matvec: Matvec,
    like: Params,
    *,
    key: PRNGKeyArray,
    max_matvecs: int = 100,
    tol: float = 1e-3,
    max_basis: int = 40,
    start: Params | None = None,
) -> Extremes:
    """The smallest and the largest eigenvalue of a symmetric operator, from one Krylov space.

    Under `jax.jit` it is one loop on the device; called as it is, each product is a call from the host, which is
    faster on a CPU, where convolutions inside loops are slow.

    >>> def matvec(v):
    ...     return {"x": jnp.array([3.0, -1.0, 0.5]) * v["x"]}
    >>> ends = lanczos(matvec, {"x": jnp.zeros(3)}, key=jax.random.key(0))
    >>> round(float(ends.min_eigenvalue), 4), round(float(ends.max_eigenvalue), 4), bool(ends.converged)
    (-1.0, 3.0, True)

    Args:
        matvec: ``v -> H v``, symmetric, of pytrees like ``like``.
        like: A pytree of arrays, or of their shapes and dtypes: those of the vectors.
        key: Of the random first vector.
        max_matvecs: Products at most, two of them for the residuals; at least 3.
        tol: An end is converged when its residual is at most ``tol`` times its magnitude, which says that an eigenvalue
            is near, and the growth of the space says that none is missing beyond it: one that lies farther out by
            more than ``tol`` times the magnitude would have shown with a probability of at least 99 %, whatever the
            spectrum (van Dorsselaer, Hochstenbach and van der Vorst 2000). For an end that rounding cannot tell from 0,
            what rounding makes of 0 takes the place of ``tol`` times its magnitude.
        max_basis: Vectors in memory at most, at least 6: the space, which restarts from its best half, the next vector
            and its product.
        start: Where to look first, say the sum of a neighbour's eigenvectors, beside noise of three times its norm. It
            makes residuals small sooner. It does not make ``converged`` true sooner: that no eigenvalue is missing
            rests on the noise alone.

    Returns:
        The ends, with their residuals.

    Raises:
        ValueError: An option is out of its range, or ``start`` is not like ``like``.
        TypeError: A leaf of ``like`` is no floating array.
    """
    flat, unravel, noise, given = _vectors(matvec, like, key, start)
    options: dict[str, Any] = {"max_matvecs": max_matvecs, "tol": tol, "max_basis": max_basis}
    pairs = krylov(flat, noise, key, num=2, which="BE", start=given, **options)
    return Extremes(
        min_eigenvalue=pairs.values[0],
        max_eigenvalue=pairs.values[1],
        min_residual=pairs.residuals[0],
        max_residual=pairs.residuals[1],
        min_eigenvector=unravel(pairs.vectors[0]),
        max_eigenvector=unravel(pairs.vectors[1]),
        converged=pairs.converged.all(),
        num_matvecs=pairs.num_matvecs,
    )


def _vectors(
    matvec: Matvec, like: Params, key: PRNGKeyArray, start: Params | None
) -> tuple[Callable[[Array], Array], Callable[[Array], Params], Array, Array | None]:
    """The operator on flat vectors, what makes a pytree of one, noise, and where to look first."""
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), trees.as_params(like, "like"))
    vector, unravel = ravel_pytree(zeros)
    dtype = trees.working_dtype(vector)
    noise = jax.random.normal(key, vector.shape, dtype)
    given = None if start is None else ravel_pytree(trees.like(zeros, start, "start"))[0].astype(dtype)

    def back(v: Array) -> Params:
        return unravel(v.astype(vector.dtype))

    return lambda v: ravel_pytree(matvec(back(v)))[0].astype(dtype), back, noise, given
