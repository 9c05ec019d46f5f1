"""The trace of a symmetric operator from random probes."""

import itertools
from typing import TYPE_CHECKING, Literal, NamedTuple

import jax
import numpy as np
import scipy
from jaxtyping import PRNGKeyArray

from jaxscape.checks import as_key
from jaxscape.linalg._progress import counted, product_bar
from jaxscape.linalg._vectors import inner, orthonormal, outside, rows_of
from jaxscape.shards import within
from jaxscape.types import Vector

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
    subspace, size = operator.subspace, operator.subspace.size
    sketched = 0 if method == "hutchinson" else min(num_matvecs // 3, (num_matvecs - PROBES) // 2, size)
    signs = map(subspace.signs, jax.random.split(as_key(key), num_matvecs))
    with product_bar(num_matvecs, progress) as bar, within(subspace.mesh):
        matvec = counted(operator.matvec, bar)
        images = [matvec(next(signs)) for _ in range(sketched)]
        others = (subspace.normal(jax.random.fold_in(as_key(key), i)) for i in itertools.count())
        basis = orthonormal(images, others) if images else None
        inside = sum(float(_inner(q, matvec(q))) for q in (rows_of(basis) if images else ()))
        used = 2 * sketched
        values = []
        if sketched < size:
            for _ in range(num_matvecs - used):
                z = _rest(basis, next(signs)) if sketched else next(signs)
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


_inner = jax.jit(inner)


@jax.jit
def _rest(basis: Vector, vector: Vector) -> Vector:
    """The part of a vector that is orthogonal to the basis."""
    return outside(basis, vector, len(jax.tree.leaves(basis)[0]))[0]
