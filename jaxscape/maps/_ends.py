"""Both ends of the Hessian's spectrum at every point of a grid (paper section 6, figure 7)."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax.sharding import Mesh
from jaxtyping import PRNGKeyArray

from jaxscape import checks, trees
from jaxscape.arguments import checked
from jaxscape.curvature import Options, plane_curvatures
from jaxscape.directions import Directions
from jaxscape.grid import Grid
from jaxscape.linalg import Goal, check_options, krylov
from jaxscape.maps._map import Plane, Point, map_of
from jaxscape.objective import refuse_inside_transform
from jaxscape.types import Data, Ignore, LossFn, Params, Vector

_ENDS: dict[str, Any] = dict.fromkeys(("min_eigenvalue", "max_eigenvalue", "ratio"), float)
_ENDS |= {"min_residual": float, "max_residual": float, "converged": bool, "num_matvecs": int}
_OF_PILOT: dict[str, Any] = {"min_error": float, "max_error": float, "pilot_matvecs": int}

_HEDGE = 0.1  # the norm of the noise beside the pilot's eigenvectors, of norm 1


@checked
def eigenvalue_map(
    params: Params,
    loss_fn: LossFn | Mapping[str, LossFn],
    data: Data,
    *,
    directions: Directions | Any = None,
    grid: Grid | None = None,
    key: PRNGKeyArray | int = 0,
    tol: float = 1e-2,
    max_matvecs: int = 100,
    max_basis: int = 40,
    subset: int | None = None,
    pilot: int | None = None,
    batch_size: int | Literal["auto"] = "auto",
    mesh: Mesh | None = None,
    ignore: Ignore = None,
    check: bool = True,
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
        loss_fn: ``loss_fn(params, batch)`` -> the loss of each example, a dict with the key ``"loss"``, or the mean of
            the batch, or a dict of such functions, as in `hvp`.
        data: Arrays with a common leading example axis, or a `jaxscape.Stream` of batches; None for a loss without
            data.
        directions: `Directions`, one pytree like params, or a sequence of these; None: random filter-normalized ones,
            as many as the grid has axes (two without a grid).
        grid: Coordinates in units of the directions; None: 51x51 points over [-1, 1] for two directions, 401 for one.
        key: A JAX random key, or an integer seed, of the first vectors.
        tol: An end is converged when its residual ``norm(H v - lambda v)`` is at most ``tol * abs(lambda)`` and, with a
            probability of at least 99 % whatever the spectrum, no eigenvalue lies beyond it by more than that. With a
            pilot the estimated error takes the place of the residual.
        max_matvecs: Products at each point, at most; at least 3.
        max_basis: Vectors in memory at most, at least 6.
        subset: So many examples of the data (of each term), drawn with ``seed``, stand for all of them; None: all.
        pilot: Look for the ends on so many of the examples first (of each term), drawn with ``seed``: with an eighth of
            them a map for little more than half of the work. The eigenvectors that are found there begin a short search
            on all examples, of which the eigenvalues and residuals are. That no end is missing, with 99 %, is then a
            statement about the Hessian of the pilot: a curvature that none of its examples has can be missed. The
            errors of the eigenvalues are estimated as ``min(r, r^2 / gap)``, r the residual, gap the distance to the
            next eigenvalue (Kato and Temple; Parlett 1998, theorem 11.7.1), as far as the pilot shows it. None: no
            pilot.
        batch_size: Examples of each device at a time, at most; ``"auto"``: as many as a CPU's cache holds the linear
            function of, or 8 GB on other devices.
        mesh: The devices, which share the points; by default all of all processes. Along an axis named ``"data"``
            devices of one process share the examples of a point instead.
        ignore: The leaves in which no curvature is taken: None, none of them; ``"bias_norm"``, biases and normalization
            parameters, as in the paper; or a predicate on (path, leaf).
        check: Whether to find out if the loss is a mean over examples: by its jaxpr, or by at most 128 examples, twice.
        store: A folder where every finished point is kept; the same call goes on from there, and `jaxscape.load` reads
            it at any time.
        seed: Of random directions and of the subset.
        progress: True or False for a progress bar; None for one on terminals and in notebooks.

    Returns:
        A Dataset over ``alpha``, ``beta``...: ``min_eigenvalue``, ``max_eigenvalue``, ``ratio``, ``min_residual``,
        ``max_residual``, ``converged``, ``num_matvecs``, with a pilot ``min_error``,
        ``max_error`` and ``pilot_matvecs``, too; ``plane_hessian`` (over ``row``, ``column`` too), the second
        derivatives of the loss in the coordinates, ``plane_min_eigenvalue`` and ``plane_max_eigenvalue``, the extreme
        curvatures among all directions of length 1 in the plane, which lie between those of the full space. NaN where
        the Hessian is not finite, counted in ``attrs["nonfinite_points"]``; ``attrs["unconverged_points"]`` counts the
        others whose residuals exceed the tolerance.

    Raises:
        ValueError: ``subset`` or ``pilot`` is not within 1 and the number of examples, an option is out of its range, a
            direction is not finite or not like params, the grid has another number of axes than there are directions,
            the store holds another result; or params, data or loss_fn are wrong, as `hvp` says.
        TypeError: A leaf of params is not floating.
    """
    refuse_inside_transform("js.eigenvalue_map")
    check_options(2, max_matvecs, tol, max_basis)
    key = checks.as_key(key)
    options: dict[str, Any] = {"tol": tol, "max_matvecs": max_matvecs, "max_basis": max_basis}

    def at_point(point: Point) -> dict[str, Any]:
        subspace = point.subspace
        search = functools.partial(krylov, max_matvecs=max_matvecs, max_basis=max_basis, specs=subspace.free_specs)
        first_key, later = jax.random.split(jax.random.fold_in(key, point.number))
        noise = subspace.normal(first_key)
        found, of_pilot = True, dict[str, Any]()
        if point.pilot is None:
            pairs = search(point.matvec, noise, later, Goal(2, "BE", tol))
        else:
            goal = Goal(2, "BE", tol, by="error")
            first = search(point.pilot, noise, later, goal)
            start = _start(first.vectors, subspace.normal(jax.random.fold_in(later, 1)))
            pairs = search(point.matvec, start, later, goal._replace(risk=np.inf), similar=(first.values, first.gaps))
            found, errors = bool(first.converged.all()), np.asarray(pairs.errors)
            of_pilot = {"min_error": errors[0], "max_error": errors[1], "pilot_matvecs": int(first.num_matvecs)}
        (low, high), (low_residual, high_residual) = np.asarray(pairs.values), np.asarray(pairs.residuals)
        with np.errstate(all="ignore"):
            ratio = np.abs(np.float64(low) / np.float64(high))

        ends = {
            "min_eigenvalue": low,
            "max_eigenvalue": high,
            "ratio": ratio,
            "min_residual": low_residual,
            "max_residual": high_residual,
            "converged": bool(pairs.converged.all()) and found,
            "num_matvecs": int(pairs.num_matvecs),
        }
        return ends | of_pilot | plane_curvatures(point.matvec, point.axes)

    products = Options(batch_size, ignore, check)
    plane = Plane(directions, grid, subset, products, mesh, store, seed, progress, pilot)
    recipe = {"method": "lanczos", **options, "key": np.asarray(jax.random.key_data(key)).tolist()}
    kinds = _ENDS if pilot is None else {**_ENDS, **_OF_PILOT}
    recipe |= {} if pilot is None else {"pilot": f"{pilot} examples drawn with seed {seed}"}
    return map_of(at_point, kinds, (params, loss_fn, data), recipe, plane)


@jax.jit
def _start(eigenvectors: Vector, noise: Vector) -> Vector:
    """Where the search on all examples begins: both eigenvectors of the pilot, and some noise."""
    weight = _HEDGE / jnp.sqrt(trees.dot(noise, noise))
    return jax.tree.map(lambda pair, x: pair.sum(0) + weight.astype(x.dtype) * x, eigenvectors, noise)
