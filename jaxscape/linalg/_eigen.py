"""Eigenvalues and eigenvectors of a symmetric operator."""

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jaxscape.checks import as_key
from jaxscape.directions import Directions
from jaxscape.linalg._bases import Storage
from jaxscape.linalg._krylov import Pairs, check_options, krylov
from jaxscape.linalg._progress import counted, product_bar
from jaxscape.linalg._ritz import Goal, Which
from jaxscape.linalg._vectors import rows_of
from jaxscape.objective import fetch, is_traced
from jaxscape.shards import within
from jaxscape.subspace import Subspace
from jaxscape.types import Params

if TYPE_CHECKING:
    from jaxscape.linalg._operator import Operator


class Extremes(NamedTuple):
    """The two ends of a spectrum.

    Attributes:
        min_eigenvalue: The smallest Ritz value.
        max_eigenvalue: The largest Ritz value.
        min_residual: ``norm(H v - lambda v)`` of the smallest, measured; an eigenvalue is no farther away than this.
        max_residual: The same of the largest.
        min_eigenvector: Of norm 1, a pytree like params.
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

    def __repr__(self) -> str:
        if not isinstance(self.min_eigenvalue, jax.Array) or isinstance(self.min_eigenvalue, jax.core.Tracer):
            return tuple.__repr__(self)  # inside a transform there are no numbers to show
        ends = (
            f"{name}={float(value):.6g} (residual {float(residual):.1e})"
            for name, value, residual in (
                ("min_eigenvalue", self.min_eigenvalue, self.min_residual),
                ("max_eigenvalue", self.max_eigenvalue, self.max_residual),
            )
        )
        return f"Extremes({', '.join(ends)}, converged={bool(self.converged)}, num_matvecs={int(self.num_matvecs)})"


class Eigenpairs(NamedTuple):
    """Some eigenpairs of a symmetric operator.

    Attributes:
        eigenvalues: Shape ``(k,)``, in the order that was asked for.
        eigenvectors: Directions of norm 1 in parameter space, one for each eigenvalue.
        residuals: ``norm(H v - lambda v)``, measured, shape ``(k,)``; an eigenvalue is no farther away than this.
        converged: Whether each residual is within the tolerance and, with a probability of at least 99 % for each
            eigenvalue that should come before it, whatever the spectrum, none of them is missing but copies, within the
            tolerance, of those reported. Shape ``(k,)``.
        num_matvecs: Products with the operator.
    """

    eigenvalues: np.ndarray
    eigenvectors: Directions
    residuals: np.ndarray
    converged: np.ndarray
    num_matvecs: int

    def __repr__(self) -> str:
        values = np.array2string(self.eigenvalues, precision=6, threshold=8)
        return (
            f"Eigenpairs(eigenvalues={values}, largest residual {np.max(self.residuals):.1e}, "
            f"{int(np.sum(self.converged))} of {len(self.eigenvalues)} converged, num_matvecs={self.num_matvecs})"
        )


def extreme_eigenvalues(
    operator: "Operator",
    *,
    key: PRNGKeyArray | int,
    tol: float,
    max_matvecs: int,
    max_basis: int,
    basis: Storage,
    progress: bool | None,
) -> Extremes:
    """Both ends of the spectrum; see `Operator.extreme_eigenvalues`."""
    first, later = jax.random.split(as_key(key))
    check_options(2, max_matvecs, tol, max_basis)
    pairs = _found(operator, first, later, Goal(2, "BE", tol), max_matvecs, max_basis, basis, progress)
    return as_extremes(pairs, operator.subspace)


def _found(
    operator: "Operator",
    first: PRNGKeyArray,
    later: PRNGKeyArray,
    goal: Goal,
    max_matvecs: int,
    max_basis: int,
    storage: Storage,
    progress: bool | None,
) -> Pairs:
    """The pairs of an operator, with a progress bar."""
    subspace = operator.subspace
    with product_bar(max_matvecs, progress) as bar, within(subspace.mesh):
        matvec = counted(operator.matvec, bar)
        budget: dict[str, Any] = {"max_matvecs": max_matvecs, "max_basis": max_basis, "storage": storage}
        return krylov(matvec, subspace.normal(first), later, goal, specs=subspace.free_specs, **budget)


def as_extremes(pairs: Pairs, subspace: Subspace) -> Extremes:
    """Both ends, their vectors as pytrees."""
    low, high = rows_of(pairs.vectors)
    if subspace.mesh is not None:  # numbers on one device, which go with those of other operators
        numbers = pairs._replace(vectors=None)
        pairs = numbers if is_traced(numbers) else jax.tree.map(jnp.asarray, fetch(numbers))
    return Extremes(
        min_eigenvalue=pairs.values[0],
        max_eigenvalue=pairs.values[1],
        min_residual=pairs.residuals[0],
        max_residual=pairs.residuals[1],
        min_eigenvector=subspace.embed(low),
        max_eigenvector=subspace.embed(high),
        converged=pairs.converged.all(),
        num_matvecs=pairs.num_matvecs,
    )


def top_eigenpairs(
    operator: "Operator",
    k: int,
    which: Which,
    *,
    key: PRNGKeyArray | int,
    tol: float,
    max_matvecs: int | None,
    max_basis: int | None,
    basis: Storage,
    progress: bool | None,
) -> Eigenpairs:
    """Some eigenpairs; see `Operator.top_eigenpairs`."""
    check_eigenpairs_options(k, which, tol, max_matvecs, max_basis)
    size = operator.subspace.size
    if k > size:
        raise ValueError(f"k is {k}, expected between 1 and the {size} entries of params.")
    matvecs, rows = _matvecs_and_basis(k, max_matvecs, max_basis)
    first, later = jax.random.split(as_key(key))
    pairs = _found(operator, first, later, Goal(int(k), which, tol), matvecs, rows, basis, progress)
    vectors = operator.subspace.embed_rows(pairs.vectors)
    directions = Directions(vectors, recipe=(("directions", f"eigenvectors {which}"),))
    values, residuals, converged = fetch((pairs.values, pairs.residuals, pairs.converged))
    return Eigenpairs(values, directions, residuals, converged, int(pairs.num_matvecs))


def check_eigenpairs_options(k: int, which: str, tol: float, max_matvecs: int | None, max_basis: int | None) -> None:
    """Refuse what `top_eigenpairs` cannot do with any operator.

    Args:
        k: How many pairs.
        which: Which of them.
        tol: Relative residual.
        max_matvecs: Products at most; None: chosen.
        max_basis: Vectors in memory at most; None: chosen.

    Raises:
        ValueError: An option is out of its range, or ``which`` is unknown.
        TypeError: k is no integer.
    """
    if which not in ("LA", "SA", "LM", "BE"):
        raise ValueError(f"which is {which!r}, expected 'LA', 'SA', 'LM' or 'BE'.")
    if not isinstance(k, int | np.integer) or isinstance(k, bool):
        raise TypeError(f"k is {k!r}, expected an integer.")
    if k < 1:
        raise ValueError(f"k is {k}, expected at least 1.")
    matvecs, basis = _matvecs_and_basis(k, max_matvecs, max_basis)
    check_options(int(k), matvecs, tol, basis)


def _matvecs_and_basis(k: int, max_matvecs: int | None, max_basis: int | None) -> tuple[int, int]:
    """The budgets for k pairs."""
    return max_matvecs or max(100, 20 * int(k)), max_basis or max(40, 4 * int(k))
