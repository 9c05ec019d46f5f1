"""Both ends of a symmetric operator's spectrum, from one Krylov space of pytrees."""

from collections.abc import Callable

from jaxtyping import PRNGKeyArray

from jaxscape import checks
from jaxscape.arguments import checked
from jaxscape.checks import as_key
from jaxscape.linalg._bases import Storage
from jaxscape.linalg._eigen import Extremes, as_extremes
from jaxscape.linalg._krylov import krylov
from jaxscape.linalg._operator import Operator
from jaxscape.linalg._ritz import Goal
from jaxscape.shards import within
from jaxscape.types import Params

Matvec = Callable[[Params], Params]


@checked
def lanczos(
    matvec: Matvec,
    like: Params,
    *,
    key: PRNGKeyArray | int,
    max_matvecs: int = 100,
    tol: float = 1e-3,
    max_basis: int = 40,
    start: Params | None = None,
    basis: Storage = "device",
) -> Extremes:
    """The smallest and the largest eigenvalue of a symmetric operator, from one Krylov space.

    Under `jax.jit` it is one loop on the device; called as it is, each product is a call from the host, which is
    faster on a CPU, where convolutions inside loops are slow.

    >>> import jax.numpy as jnp
    >>> def matvec(v):
    ...     return {"x": jnp.array([3.0, -1.0, 0.5]) * v["x"]}
    >>> ends = lanczos(matvec, {"x": jnp.zeros(3)}, key=0)
    >>> round(float(ends.min_eigenvalue), 4), round(float(ends.max_eigenvalue), 4), bool(ends.converged)
    (-1.0, 3.0, True)

    Args:
        matvec: ``v -> H v``, symmetric, of pytrees like ``like``.
        like: A pytree of arrays, or of their shapes and dtypes: those of the vectors.
        key: A JAX random key, or an integer seed, of the random first vector.
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
        basis: Where the Krylov vectors are: ``"device"``, with the digits of vectors; ``"bfloat16"``, on the device
            with 8 binary digits, in half the memory of float32: eigenvalues are wrong by up to 1e-4 of the largest
            one, and residuals are 0.3 to 1 % of it; or ``"host"``, in the host's memory, at the price of four passes
            over the basis for each product.

    Returns:
        The ends, with their residuals.

    Raises:
        ValueError: An option is out of its range, ``start`` is not like ``like``, or ``basis`` is unknown, or is
            ``"host"`` inside a transform.
        TypeError: A leaf of ``like`` is no floating array.
    """
    operator = Operator.of(matvec, like)
    subspace = operator.subspace
    given = None if start is None else subspace.extract(checks.like(subspace.params_like, start, "start"))
    with within(subspace.mesh):
        pairs = krylov(
            operator.matvec,
            subspace.normal(as_key(key)),
            as_key(key),
            Goal(2, "BE", tol),
            max_matvecs=max_matvecs,
            max_basis=max_basis,
            start=given,
            specs=subspace.free_specs,
            storage=basis,
        )
    return as_extremes(pairs, subspace)
