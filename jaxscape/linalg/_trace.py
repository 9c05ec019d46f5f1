"""The trace of a symmetric operator from random probes."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy
from jaxtyping import Array, Float, PRNGKeyArray

from jaxscape.checks import as_key
from jaxscape.linalg._progress import counted, product_bar

if TYPE_CHECKING:
    from jaxscape.linalg._operator import Operator

Method = Literal["hutch++", "hutchinson"]

PROBES = 6  # random vectors, at least, that the standard error of Hutch++ rests on


class Trace(NamedTuple):
    """An estimate of a trace.

    Attributes:
        trace: The sum of all eigenvalues.
        stderr: Its standard error, as `standard_error` gives it; 0 where nothing was left to chance.
        num_matvecs: Products with the operator.
    """

    trace: float
    stderr: float
    num_matvecs: int


def trace(
    operator: "Operator", *, num_matvecs: int, method: Method, key: PRNGKeyArray | int, progress: bool | None
) -> Trace:
    """The trace and its standard error; see `Operator.trace`."""
    check_trace_options(num_matvecs, method)
    size, dtype = operator.subspace.size, operator.dtype
    sketched = 0 if method == "hutchinson" else min(num_matvecs // 3, (num_matvecs - PROBES) // 2, size)
    signs = _random_signs(as_key(key), num_matvecs, size, dtype)
    with product_bar(num_matvecs, progress) as bar:
        matvec = counted(operator.matvec, bar)
        basis = _range([matvec(next(signs)) for _ in range(sketched)], size, dtype)
        inside = sum(float(_inner(q, matvec(q))) for q in basis)
        used = 2 * sketched
        values = []
        if sketched < size:
            for _ in range(num_matvecs - used):
                z = _outside(next(signs), basis)
                values.append(float(_inner(z, matvec(z))))
    outside = np.mean(values) if values else 0.0
    stderr = standard_error(np.array(values)) if values else 0.0
    return Trace(inside + float(outside), float(stderr), used + len(values))


def standard_error(values: np.ndarray) -> np.ndarray:
    """The standard error of the mean of a few random values, widened so that twice of it holds 95 % of the time.

    The spread of a few values is uncertain itself: of two, the mean lies within 2 ordinary standard errors in 70 % of
    the cases only. So ``s / sqrt(n)`` is multiplied by ``t / 2``, where t is the quantile of Student's distribution
    that belongs to 2 of the normal one: 1.3 times for 6 values, 1.1 times for 20.

    Args:
        values: Shape ``(n, ...)``, n at least 2.

    Returns:
        Shape ``(...)``.
    """
    n = len(values)
    widening = scipy.special.stdtrit(n - 1, 0.5 + 0.9545 / 2) / 2
    return widening * np.std(values, axis=0, ddof=1) / np.sqrt(n)


def check_trace_options(num_matvecs: int, method: str) -> None:
    """Refuse what `trace` cannot do.

    Args:
        num_matvecs: Products.
        method: ``"hutch++"`` or ``"hutchinson"``.

    Raises:
        ValueError: ``method`` is unknown, or ``num_matvecs`` is too small for it.
    """
    least = {"hutchinson": 2, "hutch++": 6}
    if method not in least:
        raise ValueError(f"method is {method!r}, expected 'hutch++' or 'hutchinson'.")
    if num_matvecs < least[method]:
        raise ValueError(f"num_matvecs is {num_matvecs}, expected at least {least[method]} for {method}.")


def _random_signs(key: PRNGKeyArray, num: int, size: int, dtype: jnp.dtype) -> Iterator[Float[Array, " n"]]:
    return (jax.random.rademacher(k, (size,), dtype) for k in jax.random.split(key, num))


def _range(images: list[Array], size: int, dtype: jnp.dtype) -> Float[Array, "k n"]:
    """An orthonormal basis of vectors, as rows."""
    return jnp.linalg.qr(jnp.stack(images).T)[0].T if images else jnp.zeros((0, size), dtype)


def _outside(vector: Array, basis: Array) -> Array:
    """The part of a vector that is orthogonal to the basis."""
    for _ in range(2 if len(basis) else 0):  # twice is enough against rounding
        inside = jnp.matmul(basis, vector, precision="highest")
        vector = vector - jnp.matmul(inside, basis, precision="highest")
    return vector


@jax.jit
def _inner(a: Array, b: Array) -> Array:
    return jnp.vdot(a, b, precision="highest")
