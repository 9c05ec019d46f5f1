"""The ends of the Hessian's spectrum, and what a plane shows of them, at every point of a grid (paper figure 7)."""

from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import xarray as xr
from jax.sharding import Mesh
from jaxtyping import Array, PRNGKeyArray

from jaxscape.curvature._over_grid import over_grid
from jaxscape.curvature._product import Matvec
from jaxscape.directions import Directions, as_key
from jaxscape.grid import Grid
from jaxscape.krylov import check_options, krylov
from jaxscape.layout import Layout
from jaxscape.types import Data, Ignore, LossFn, Params

_COLUMNS: dict[str, type] = dict.fromkeys(("min_eigenvalue", "max_eigenvalue", "ratio"), float)
_COLUMNS |= {"min_residual": float, "max_residual": float, "converged": bool, "num_matvecs": int}


def eigenvalue_map(
    params: Params,
    loss_fn: LossFn,
    data: Data,
    *,
    directions: Directions | Any = None,
    grid: Grid | None = None,
    key: PRNGKeyArray | int = 0,
    tol: float = 1e-2,
    max_matvecs: int = 100,
    max_basis: int = 40,
    subset: int | None = None,
    batch_size: int | Literal["auto"] = "auto",
    mesh: Mesh | None = None,
    ignore: Ignore = None,
    store: str | Path | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> xr.Dataset:
    """The smallest and the largest eigenvalue of the full Hessian at every point of a grid (paper section 6, figure 7).

    A picture may look convex where the Hessian is not: ``ratio``, ``abs(min / max)``, near 0 says that the negative
    curvatures are small beside the positive. Both ends come from one Krylov space at each point, which starts from
    noise: neighbours' eigenvectors would make it no faster, since they do not tell that no end is missing. Beside them
    stands what the plane shows: the curvatures within it.

    >>> import jax.numpy as jnp
    >>> def loss(p, x):
    ...     return x * (2 * p["a"] ** 2 - p["b"] ** 2)
    >>> grid = Grid.plane((-1, 1, 2), (-1, 1, 3))
    >>> params = {"a": jnp.ones((2, 2)), "b": jnp.ones((2, 2))}
    >>> ds = eigenvalue_map(params, lambda p, x: loss(p, x[:, None, None]).sum((1, 2)), jnp.ones(3), grid=grid)
    >>> ds.max_eigenvalue.shape, round(float(ds.max_eigenvalue[0, 0]), 3), round(float(ds.ratio[1, 2]), 3)
    ((2, 3), 4.0, 0.5)

    Args:
        params: Any pytree of floating arrays.
        loss_fn: As in `hvp`.
        data: As in `hvp`.
        directions: As in `surface`: by default two random filter-normalized ones.
        grid: As in `surface`.
        key: A JAX random key, or an integer seed, of the first vectors.
        tol: An end is converged when its residual is at most ``tol`` times its magnitude and, with a probability of at
            least 99 % whatever the spectrum, no eigenvalue lies beyond it by more than that, as in `lanczos`.
        max_matvecs: Products at each point, at most, as in `lanczos`.
        max_basis: Vectors in memory at most, as in `lanczos`.
        subset: So many examples of the data, drawn with ``seed``, stand for all of them; None: all.
        batch_size: As in `hvp`.
        mesh: The devices, which share the points; by default all of all processes. Along an axis named ``"data"``
            devices of one process share the examples of a point instead.
        ignore: As in `hvp`: the leaves in which no curvature is taken.
        store: A folder where every finished block of 8 points is kept; the same call goes on from there.
        seed: Of random directions and of the subset.
        progress: True or False for a progress bar; None for one on terminals and in notebooks.

    Returns:
        A Dataset over ``alpha``, ``beta``...: ``min_eigenvalue``, ``max_eigenvalue``, ``ratio``, ``min_residual``,
        ``max_residual``, ``converged``, ``num_matvecs``; ``plane_hessian`` (over ``row``, ``column`` too), the second
        derivatives of the loss in the coordinates, ``plane_min_eigenvalue`` and ``plane_max_eigenvalue``, the extreme
        curvatures among all directions of length 1 in the plane, which lie between those of the full space. NaN where
        the Hessian is not finite, counted in ``attrs["nonfinite_points"]``; ``attrs["unconverged_points"]`` counts the
        others whose residuals exceed the tolerance.

    Raises:
        ValueError: As in `surface` and `hvp`; ``subset`` is not within 1 and the number of examples, an option of
            `lanczos` is out of its range, or the store holds another result.
        TypeError: A leaf of params is not floating.
    """
    check_options(2, max_matvecs, tol, max_basis)
    options: dict[str, Any] = {"tol": tol, "max_matvecs": max_matvecs, "max_basis": max_basis}

    def at_point(layout: Layout, matvec: Matvec, keys: PRNGKeyArray, _: list[Array]) -> dict[str, Any]:
        noise = jax.random.normal(keys[0], (layout.size,), layout.dtype)
        pairs = krylov(matvec, noise, keys[1], num=2, which="BE", **options)
        (low, high), (low_residual, high_residual) = np.asarray(pairs.values), np.asarray(pairs.residuals)
        with np.errstate(all="ignore"):
            ratio = np.abs(np.float64(low) / np.float64(high))
        return {
            "min_eigenvalue": low,
            "max_eigenvalue": high,
            "ratio": ratio,
            "min_residual": low_residual,
            "max_residual": high_residual,
            "converged": bool(pairs.converged.all()),
            "num_matvecs": int(pairs.num_matvecs),
        }

    told = {"method": "lanczos", **options, "key": np.asarray(jax.random.key_data(as_key(key))).tolist()}
    result = over_grid(
        at_point,
        _COLUMNS,
        params,
        loss_fn,
        data,
        told,
        directions=directions,
        grid=grid,
        key=key,
        subset=subset,
        batch_size=batch_size,
        mesh=mesh,
        ignore=ignore,
        store=store,
        seed=seed,
        progress=progress,
    )
    finite = np.isfinite(result.min_eigenvalue.values) & np.isfinite(result.max_eigenvalue.values)
    result.attrs["nonfinite_points"] = int((~finite).sum())
    result.attrs["unconverged_points"] = int((finite & ~result.converged.values).sum())
    return result


def plane_hessian(
    params: Params,
    loss_fn: LossFn,
    data: Data,
    *,
    directions: Directions | Any = None,
    grid: Grid | None = None,
    subset: int | None = None,
    batch_size: int | Literal["auto"] = "auto",
    mesh: Mesh | None = None,
    store: str | Path | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> xr.Dataset:
    """The Hessian of the surface in its own coordinates at every point: what a picture shows of the curvature.

    ``D^T H D`` with D the directions as columns, by one product for each direction. The extreme curvatures along
    directions of length 1 in the plane are averages of the eigenvalues of the full Hessian, weighted by the squared
    components of the direction (paper section 6): a plane can hide the extremes, never exceed them. For a random
    direction of length 1 the expected curvature is ``tr(H) / n``.

    >>> import jax.numpy as jnp
    >>> grid = Grid.plane((-1, 1, 2), (-1, 1, 2))
    >>> params = jnp.zeros((2, 2))
    >>> ds = plane_hessian(params, lambda p, x: x * (p[0, 0] ** 2 - 3 * p[1, 1] ** 2), jnp.ones(3),
    ...                    directions=[jnp.array([[2.0, 0], [0, 0]]), jnp.array([[0.0, 0], [0, 1]])], grid=grid)
    >>> ds.plane_hessian[0, 0].values.tolist(), ds.plane_max_eigenvalue[0, 0].item()
    ([[8.0, 0.0], [0.0, -6.0]], 2.0)

    Args:
        params: As in `eigenvalue_map`.
        loss_fn: As in `hvp`.
        data: As in `hvp`.
        directions: As in `surface`.
        grid: As in `surface`.
        subset: As in `eigenvalue_map`.
        batch_size: As in `hvp`.
        mesh: As in `eigenvalue_map`.
        store: As in `eigenvalue_map`.
        seed: As in `eigenvalue_map`.
        progress: As in `eigenvalue_map`.

    Returns:
        A Dataset with ``plane_hessian``, ``plane_min_eigenvalue`` and ``plane_max_eigenvalue`` of `eigenvalue_map`.

    Raises:
        ValueError: As in `eigenvalue_map`.
        TypeError: As in `eigenvalue_map`.
    """
    return over_grid(
        lambda *_: {},
        {},
        params,
        loss_fn,
        data,
        {"method": "plane"},
        directions=directions,
        grid=grid,
        key=0,
        subset=subset,
        batch_size=batch_size,
        mesh=mesh,
        ignore=None,
        store=store,
        seed=seed,
        progress=progress,
    )
