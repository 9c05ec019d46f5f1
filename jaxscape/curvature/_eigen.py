"""Eigenvalues and eigenvectors of the Hessian at one point."""

from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PRNGKeyArray
from tqdm.auto import tqdm

from jaxscape.curvature._hvp import operator
from jaxscape.curvature._product import Matvec
from jaxscape.directions import Directions, as_key
from jaxscape.krylov import Pairs, check_options, krylov
from jaxscape.lanczos import Extremes
from jaxscape.layout import Layout
from jaxscape.ritz import Which
from jaxscape.types import Data, Ignore, LossFn, Params


class Eigenpairs(NamedTuple):
    """Some eigenpairs of a Hessian.

    Attributes:
        eigenvalues: Shape ``(k,)``, in the order that was asked for.
        eigenvectors: Directions of norm 1 in parameter space, one for each eigenvalue.
        residuals: ``norm(H v - lambda v)``, measured, shape ``(k,)``; an eigenvalue is no farther away than this.
        converged: Whether each residual is within the tolerance and, with a probability of at least 99 % for each
            eigenvalue that should come before it, whatever the spectrum, none of them is missing but copies, within the
            tolerance, of those reported. Shape ``(k,)``.
        num_matvecs: Products with the Hessian.
    """

    eigenvalues: np.ndarray
    eigenvectors: Directions
    residuals: np.ndarray
    converged: np.ndarray
    num_matvecs: int


def extreme_eigenvalues(
    params: Params,
    loss_fn: LossFn,
    data: Data,
    *,
    key: PRNGKeyArray | int = 0,
    tol: float = 1e-3,
    max_matvecs: int = 100,
    max_basis: int = 40,
    batch_size: int | Literal["auto"] = "auto",
    mesh: Mesh | None = None,
    ignore: Ignore = None,
    progress: bool | None = None,
) -> Extremes:
    """The smallest and the largest eigenvalue of the Hessian at params, from one Krylov space (paper section 6).

    >>> import jax.numpy as jnp
    >>> def loss(p, x):
    ...     return x * (2 * p["a"] ** 2 - p["b"] ** 2)
    >>> ends = extreme_eigenvalues({"a": jnp.float32(1), "b": jnp.float32(1)}, loss, jnp.ones(3))
    >>> round(float(ends.min_eigenvalue), 4), round(float(ends.max_eigenvalue), 4)
    (-2.0, 4.0)

    Args:
        params: Any pytree of floating arrays.
        loss_fn: As in `hvp`.
        data: As in `hvp`.
        key: A JAX random key, or an integer seed, of the first vector.
        tol: As in `lanczos`.
        max_matvecs: As in `lanczos`.
        max_basis: As in `lanczos`.
        batch_size: As in `hvp`.
        mesh: As in `hvp`.
        ignore: As in `hvp`: with ``"bias_norm"``, the Hessian in the weights alone, as in the paper.
        progress: True or False for a progress bar; None for one on terminals and in notebooks.

    Returns:
        Eigenvalues, residuals and eigenvectors of both ends, as `lanczos` gives them; eigenvectors are zero in ignored
        leaves.

    Raises:
        ValueError: As in `hvp`, or an option is out of its range.
        TypeError: As in `hvp`.
    """
    found, layout = _pairs(
        params, loss_fn, data, 2, "BE", key, tol, max_matvecs, max_basis, batch_size, mesh, ignore, progress
    )
    return as_extremes(found, layout)


def top_eigenpairs(
    params: Params,
    loss_fn: LossFn,
    data: Data,
    k: int = 2,
    which: Which = "LA",
    *,
    key: PRNGKeyArray | int = 0,
    tol: float = 1e-3,
    max_matvecs: int | None = None,
    max_basis: int | None = None,
    batch_size: int | Literal["auto"] = "auto",
    mesh: Mesh | None = None,
    ignore: Ignore = None,
    progress: bool | None = None,
) -> Eigenpairs:
    """Some eigenpairs of the Hessian at params.

    Their eigenvectors are axes of a plane: ``surface(params, loss_fn, data, directions=pairs.eigenvectors, ...)`` shows
    the sharpest one, with ``which="BE"`` that of the largest and the most negative curvature.

    >>> import jax.numpy as jnp
    >>> pairs = top_eigenpairs(jnp.ones(3), lambda p, x: x * (p**2).sum() + x * p[0] ** 2, jnp.ones(4), k=1)
    >>> round(float(pairs.eigenvalues[0]), 4), [abs(round(float(v), 3)) for v in pairs.eigenvectors[0]]
    (4.0, [1.0, 0.0, 0.0])

    Args:
        params: As in `extreme_eigenvalues`.
        loss_fn: As in `hvp`.
        data: As in `hvp`.
        k: How many.
        which: The largest (``"LA"``), the smallest (``"SA"``), the largest in magnitude (``"LM"``), or in turn
            from both ends, beginning with the smallest (``"BE"``).
        key: As in `extreme_eigenvalues`.
        tol: As in `lanczos`.
        max_matvecs: As in `lanczos`; by default 100, or 20 for each pair if that is more.
        max_basis: As in `lanczos`; by default 40, or 4 for each pair if that is more.
        batch_size: As in `hvp`.
        mesh: As in `hvp`.
        ignore: As in `hvp`.
        progress: As in `extreme_eigenvalues`.

    Returns:
        The pairs. An exactly multiple eigenvalue shows once for each time that rounding brings it up, as in any Krylov
        method that starts from one vector.

    Raises:
        ValueError: As in `hvp`; k is not within 1 and the number of entries, ``which`` is unknown, or another option is
            out of its range.
        TypeError: As in `hvp`.
    """
    if which not in ("LA", "SA", "LM", "BE"):
        raise ValueError(f"which is {which!r}, expected 'LA', 'SA', 'LM' or 'BE'.")
    matvecs = max_matvecs or max(100, 20 * k)
    basis = max_basis or max(40, 4 * k)
    found, layout = _pairs(
        params, loss_fn, data, k, which, key, tol, matvecs, basis, batch_size, mesh, ignore, progress
    )
    directions = Directions(jax.vmap(layout.embed)(found.vectors), recipe=(("directions", f"eigenvectors {which}"),))
    values, residuals, converged = (np.asarray(x) for x in (found.values, found.residuals, found.converged))
    return Eigenpairs(values, directions, residuals, converged, int(found.num_matvecs))


def as_extremes(found: Pairs, layout: Layout) -> Extremes:
    """Both ends as pytrees."""
    return Extremes(
        min_eigenvalue=found.values[0],
        max_eigenvalue=found.values[1],
        min_residual=found.residuals[0],
        max_residual=found.residuals[1],
        min_eigenvector=layout.embed(found.vectors[0]),
        max_eigenvector=layout.embed(found.vectors[1]),
        converged=found.converged.all(),
        num_matvecs=found.num_matvecs,
    )


def _pairs(
    params: Params,
    loss_fn: LossFn,
    data: Data,
    k: int,
    which: Which,
    key: PRNGKeyArray | int,
    tol: float,
    max_matvecs: int,
    max_basis: int,
    batch_size: Any,
    mesh: Mesh | None,
    ignore: Ignore,
    progress: bool | None,
) -> tuple[Pairs, Layout]:
    check_options(max(k, 1), max_matvecs, tol, max_basis)
    params, product = operator(params, loss_fn, data, batch_size=batch_size, mesh=mesh, ignore=ignore)
    layout = product.layout
    if not (k == 2 and which == "BE") and not 1 <= k <= layout.size:
        raise ValueError(f"k is {k}, expected between 1 and the {layout.size} entries of params.")
    first, own = jax.random.split(as_key(key))
    with matvec_bar(max_matvecs, progress) as bar:
        found = krylov(
            counted(product.at(params), bar),
            jax.random.normal(first, (layout.size,), layout.dtype),
            own,
            num=k,
            which=which,
            max_matvecs=max_matvecs,
            tol=tol,
            max_basis=max_basis,
        )
    return found, layout


def matvec_bar(total: int, progress: bool | None) -> tqdm:
    """Products made, of those made at most; on one process only."""
    shown = progress if jax.process_index() == 0 else False
    return tqdm(total=total, unit="product", desc="products", disable=None if shown is None else not shown)


def counted(matvec: Matvec, bar: tqdm) -> Matvec:
    """The product; each one moves the bar."""

    def product(vector: Any) -> Any:
        image = matvec(vector)
        bar.update()
        return image

    return product
