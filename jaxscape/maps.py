"""Curvature at every point of a grid: the ends of the spectrum (paper figure 7), and what the plane shows of it."""

import functools
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax.sharding import Mesh
from jaxtyping import Array, PRNGKeyArray

from jaxscape import checks, trees
from jaxscape.arguments import checked
from jaxscape.curvature import Options, PlaneAxes, hessian_product, plane_axes, plane_columns, plane_curvatures
from jaxscape.directions import Directions
from jaxscape.grid import Grid
from jaxscape.linalg import Goal, Matvec, check_options, krylov
from jaxscape.normalize import described
from jaxscape.objective import num_examples, refuse_inside_transform, rows_of
from jaxscape.subspace import Subspace
from jaxscape.sweep import (
    SHARE,
    Layout,
    StoppedError,
    Store,
    device_groups,
    in_shares,
    inputs,
    on_grid,
    provenance,
    to_dataset,
)
from jaxscape.types import Data, Ignore, LossFn, Params

_ENDS: dict[str, Any] = dict.fromkeys(("min_eigenvalue", "max_eigenvalue", "ratio"), float)
_ENDS |= {"min_residual": float, "max_residual": float, "converged": bool, "num_matvecs": int}
_OF_PILOT: dict[str, Any] = {"min_error": float, "max_error": float, "pilot_matvecs": int}
_LONG_NAMES = {
    "min_eigenvalue": "smallest eigenvalue of the Hessian",
    "max_eigenvalue": "largest eigenvalue of the Hessian",
    "ratio": "abs(min / max) eigenvalue",
    "min_residual": "norm(H v - lambda v) of the smallest",
    "max_residual": "norm(H v - lambda v) of the largest",
    "min_error": "estimated error of the smallest eigenvalue",
    "max_error": "estimated error of the largest eigenvalue",
    "plane_min_eigenvalue": "smallest curvature within the plane",
    "plane_max_eigenvalue": "largest curvature within the plane",
    "plane_hessian": "second derivatives of the loss in the coordinates",
}

AtPoint = Callable[["_Point"], dict[str, Any]]
"""The values at a point."""


_HEDGE = 0.1  # the norm of the noise beside the pilot's eigenvectors, of norm 1
_PILOT = 0x70696C6F  # the seed's stream is its own, as that of a sample of the tolerance mode


@dataclass(frozen=True)
class _Point:
    """A point of the map: its number, its products, and the axes of the plane."""

    number: int
    matvec: Matvec
    pilot: Matvec | None  # of some of the examples
    axes: PlaneAxes
    subspace: Subspace


@dataclass(frozen=True)
class _Plane:
    """Where a map is, and how it is computed: the options that `eigenvalue_map` and `plane_hessian` share."""

    directions: Any
    grid: Grid | None
    subset: int | None
    products: Options
    mesh: Mesh | None
    store: str | Path | None
    seed: int
    progress: bool | None
    pilot: int | None = None


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
        data: Arrays with a common leading example axis; None for a loss without data.
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

    def at_point(point: _Point) -> dict[str, Any]:
        search = functools.partial(krylov, max_matvecs=max_matvecs, max_basis=max_basis)
        noise, later = _noise(key, point.number, point.subspace.size, point.subspace.dtype)
        found, of_pilot = True, dict[str, Any]()
        if point.pilot is None:
            pairs = search(point.matvec, noise, later, Goal(2, "BE", tol))
        else:
            goal = Goal(2, "BE", tol, by="error")
            first = search(point.pilot, noise, later, goal)
            start = _start(first.vectors, later)
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
    plane = _Plane(directions, grid, subset, products, mesh, store, seed, progress, pilot)
    recipe = {"method": "lanczos", **options, "key": np.asarray(jax.random.key_data(key)).tolist()}
    kinds = _ENDS if pilot is None else {**_ENDS, **_OF_PILOT}
    recipe |= {} if pilot is None else {"pilot": f"{pilot} examples drawn with seed {seed}"}
    return _map(at_point, kinds, (params, loss_fn, data), recipe, plane)


@checked
def plane_hessian(
    params: Params,
    loss_fn: LossFn | Mapping[str, LossFn],
    data: Data,
    *,
    directions: Directions | Any = None,
    grid: Grid | None = None,
    subset: int | None = None,
    batch_size: int | Literal["auto"] = "auto",
    mesh: Mesh | None = None,
    check: bool = True,
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
        params: Any pytree of floating arrays.
        loss_fn: ``loss_fn(params, batch)`` -> the loss of each example, a dict with the key ``"loss"``, or the mean of
            the batch, or a dict of such functions, as in `hvp`.
        data: Arrays with a common leading example axis; None for a loss without data.
        directions: `Directions`, one pytree like params, or a sequence of these; None: random filter-normalized ones,
            as many as the grid has axes (two without a grid).
        grid: Coordinates in units of the directions; None: 51x51 points over [-1, 1] for two directions, 401 for one.
        subset: So many examples of the data (of each term), drawn with ``seed``, stand for all of them; None: all.
        batch_size: Examples of each device at a time, at most; ``"auto"``: as many as a CPU's cache holds the linear
            function of, or 8 GB on other devices.
        mesh: The devices, which share the points; by default all of all processes. Along an axis named ``"data"``
            devices of one process share the examples of a point instead.
        check: Whether to find out if the loss is a mean over examples: by its jaxpr, or by at most 128 examples, twice.
        store: A folder where every finished point is kept; the same call goes on from there, and `jaxscape.load` reads
            it at any time.
        seed: Of random directions and of the subset.
        progress: True or False for a progress bar; None for one on terminals and in notebooks.

    Returns:
        A Dataset over ``alpha``, ``beta``... with ``plane_hessian`` (over ``row``, ``column`` too),
        ``plane_min_eigenvalue`` and ``plane_max_eigenvalue``.

    Raises:
        ValueError: ``subset`` is not within 1 and the number of examples, a direction is not finite or not like
            params, the grid has another number of axes than there are directions, the store holds another result; or
            params, data or loss_fn are wrong, as `hvp` says.
        TypeError: A leaf of params is not floating.
    """

    def at_point(point: _Point) -> dict[str, Any]:
        return plane_curvatures(point.matvec, point.axes)

    refuse_inside_transform("js.plane_hessian")
    plane = _Plane(directions, grid, subset, Options(batch_size, None, check), mesh, store, seed, progress)
    return _map(at_point, {}, (params, loss_fn, data), {"method": "plane"}, plane)


def _map(
    at_point: AtPoint,
    kinds: Mapping[str, Any],
    problem: tuple[Params, Any, Data],
    recipe: Mapping[str, Any],
    plane: _Plane,
) -> xr.Dataset:
    """The values of a function of the Hessian at every point of a grid.

    Args:
        at_point: The values at a point.
        kinds: Names and types of these values, beside those of the plane.
        problem: Params, loss_fn and data.
        recipe: What the numbers depend on beside the problem, directions and grid; it goes into the attrs.
        plane: Where, and how.

    Returns:
        The dataset.
    """
    begin = time.perf_counter()
    params, loss_fn, data = problem
    params = checks.as_params(params)
    directions, grid = on_grid(plane.directions, plane.grid, params, plane.seed)
    several = isinstance(loss_fn, Mapping)
    data = _subset(data, plane.subset, plane.seed, "subset", several=several)
    groups = device_groups(plane.mesh)
    params, product = hessian_product(loss_fn, params, data, plane.products, groups[0])
    pilot = None
    if plane.pilot is not None:
        part = _subset(data, plane.pilot, [plane.seed, _PILOT], "pilot", several=several)
        pilot = hessian_product(loss_fn, params, part, plane.products._replace(check=False), groups[0])[1]
    coords = grid.points()
    hashes = inputs(product.objective.only(["loss"]), params, directions.basis)
    ignore = described(plane.products.ignore)
    kinds = {**kinds, **plane_columns(len(directions))}
    columns: dict[str, np.ndarray] = {name: np.zeros(len(coords), kind) for name, kind in kinds.items()}

    def begin_group(group: Mesh, stop: threading.Event) -> Callable[[int], dict[str, Any]]:
        local, local_pilot = product.on(group), pilot.on(group) if pilot else None
        origin, basis = jax.device_put((params, directions.basis), group.local_devices[0])
        axes = plane_axes(local.subspace, Directions(basis))

        def visit(i: int) -> dict[str, Any]:
            here = _displace(origin, basis, coords[i])
            of_pilot = stoppable(local_pilot.at(here)) if local_pilot else None
            return at_point(_Point(i, stoppable(local.at(here)), of_pilot, axes, local.subspace))

        def stoppable(product: Matvec) -> Matvec:
            def matvec(vector: Array) -> Array:
                if stop.is_set():
                    raise StoppedError
                return product(vector)

            return matvec

        return visit

    def result_of(columns: Mapping[str, np.ndarray]) -> xr.Dataset:
        result = to_dataset(columns, grid, _LONG_NAMES)
        result.attrs |= {
            **dict(directions.recipe),
            **{name: value for name, value in recipe.items() if name != "key"},
            "num_examples": product.objective.examples,
            "subset": "all" if plane.subset is None else f"{plane.subset} examples drawn with seed {plane.seed}",
            "curvature_ignore": ignore,
            "num_devices": sum(group.size for group in groups) * jax.process_count(),
            "seconds": round(time.perf_counter() - begin, 3),
            **provenance(hashes, params),
            **(_counts(result) if "converged" in result else {}),
        }
        return result

    if plane.store is None:
        return result_of(in_shares(begin_group, columns, groups, None, plane.progress))
    identity = {**recipe, **hashes, "free_leaves": product.subspace.free_names}
    attrs = {**dict(directions.recipe), **provenance(hashes, params)}
    with Store(plane.store, identity, Layout.of(grid, columns, SHARE), _LONG_NAMES, attrs) as store:
        result = result_of(in_shares(begin_group, columns, groups, store, plane.progress))
        return result.assign_attrs(store.finish(result.attrs))


def _counts(result: xr.Dataset) -> dict[str, int]:
    """How many points are not finite, and how many of the others not converged."""
    finite = np.isfinite(result.min_eigenvalue.values) & np.isfinite(result.max_eigenvalue.values)
    unconverged = int((finite & ~result.converged.values).sum())
    return {"nonfinite_points": int((~finite).sum()), "unconverged_points": unconverged}


_displace = jax.jit(trees.displace)


def _subset(data: Data, subset: int | None, seed: int | list[int], name: str, *, several: bool) -> Data:
    """Some examples of the data; of several terms, of each, and all of a term that has no more."""
    if subset is None:
        return data
    if several and isinstance(data, Mapping):
        examples = {term: num_examples(part, f"data[{term!r}]") for term, part in data.items()}
        _check_subset(subset, max(examples.values()), name)
        return {
            term: _subset(part, min(subset, examples[term]), seed, name, several=False) for term, part in data.items()
        }
    _check_subset(subset, num_examples(data), name)
    rows = np.sort(np.random.default_rng(seed).choice(num_examples(data), subset, replace=False))
    return rows_of(data, rows)


def _check_subset(subset: int, examples: int, name: str) -> None:
    if not 1 <= subset <= examples:
        raise ValueError(f"{name} is {subset}, expected between 1 and the {examples} examples of data.")


@jax.jit
def _start(eigenvectors: Array, key: PRNGKeyArray) -> Array:
    """Where the search on all examples begins: both eigenvectors of the pilot, and some noise."""
    noise = jax.random.normal(jax.random.fold_in(key, 1), eigenvectors.shape[1:], eigenvectors.dtype)
    return eigenvectors.sum(0) + _HEDGE * noise / jnp.linalg.norm(noise)


@functools.partial(jax.jit, static_argnames=("size", "dtype"))
def _noise(key: PRNGKeyArray, point: int, size: int, dtype: Any) -> tuple[Array, PRNGKeyArray]:
    """Where Lanczos starts at a point, and a key for what it draws later; the same on any number of devices."""
    first, later = jax.random.split(jax.random.fold_in(key, point), 2)
    return jax.random.normal(first, (size,), dtype), later
