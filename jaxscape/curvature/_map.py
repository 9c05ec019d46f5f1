"""The ends of the Hessian's spectrum, and what a plane shows of them, at every point of a grid (paper figure 7)."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxtyping import Array, PRNGKeyArray

from jaxscape import engine, trees
from jaxscape.curvature._hvp import operator
from jaxscape.curvature._layout import Layout
from jaxscape.curvature._product import Matvec, Product
from jaxscape.data import num_examples
from jaxscape.directions import Directions, as_key, on_grid
from jaxscape.grid import Grid
from jaxscape.krylov import check_options, krylov
from jaxscape.provenance import provenance
from jaxscape.store import Store
from jaxscape.types import Data, Ignore, LossFn, Params

CHAIN = 8  # neighbouring points, one after the other on one device: each but the first starts from the one before
_TOLD = {
    "min_eigenvalue": "smallest eigenvalue of the Hessian",
    "max_eigenvalue": "largest eigenvalue of the Hessian",
    "ratio": "abs(min / max) eigenvalue",
    "min_residual": "norm(H v - lambda v) of the smallest",
    "max_residual": "norm(H v - lambda v) of the largest",
    "plane_min_eigenvalue": "smallest curvature within the plane",
    "plane_max_eigenvalue": "largest curvature within the plane",
    "plane_hessian": "second derivatives of the loss in the coordinates",
}


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
    curvatures are small beside the positive. Both ends come from one Krylov space at each point, which starts from the
    eigenvectors of a neighbour. Beside them stands what the plane shows: the curvatures within it.

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
        tol: As in `lanczos`: an end is converged when its residual is at most ``tol`` times its magnitude.
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

    def at_point(layout: Layout, matvec: Matvec, keys: PRNGKeyArray, start: list[Array]) -> dict[str, Any]:
        pairs = krylov(matvec, _first(layout, keys[0], start), keys[1], num=2, which="BE", **options)
        (low, high), (low_residual, high_residual) = np.asarray(pairs.values), np.asarray(pairs.residuals)
        with np.errstate(all="ignore"):
            ratio = np.abs(np.float64(low) / np.float64(high))
        if np.isfinite([low, high]).all():
            start.append(_sum(pairs.vectors))
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
    result = _over_grid(
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
    return _over_grid(
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


def _first(layout: Layout, key: PRNGKeyArray, start: list[Array]) -> Array:
    """The first vector of a point, from its neighbour's if there is one, which is taken out: a basis needs the room."""
    noise = jax.random.normal(key, (layout.size,), layout.dtype)
    return _warm(start.pop(), noise) if start else noise


@jax.jit
def _warm(start: Array, noise: Array) -> Array:
    """A neighbour's eigenvectors, and a tenth of noise so that no eigenvector can be missing."""
    return start + 0.1 * jnp.linalg.norm(start) / jnp.linalg.norm(noise) * noise


@jax.jit
def _sum(vectors: Array) -> Array:
    return vectors.sum(0)


def _over_grid(
    at_point: Callable[..., dict[str, Any]],
    columns: Mapping[str, type],
    params: Params,
    loss_fn: LossFn,
    data: Data,
    told: Mapping[str, Any],
    *,
    directions: Any,
    grid: Grid | None,
    key: PRNGKeyArray | int,
    subset: int | None,
    batch_size: Any,
    mesh: Mesh | None,
    ignore: Ignore,
    store: str | Path | None,
    seed: int,
    progress: bool | None,
) -> xr.Dataset:
    """Every point of the grid, in chains of neighbours; each device takes the next chain when it is free."""
    begin = time.perf_counter()
    params = trees.as_params(params)
    directions, grid = on_grid(directions, grid, params, seed)
    data = _subset(data, subset, seed)
    path = _snake(grid.shape)
    coords = grid.points()[path]
    made = provenance(params, directions.basis, data)
    recipe = {**told, "fingerprint": made["fingerprint"], "ignore": str(ignore), "axes": [list(a) for a in grid.axes]}
    kept = None if store is None else _open(store, recipe, len(path))
    chains = [slice(i, min(i + CHAIN, len(path))) for i in range(0, len(path), CHAIN)]
    waiting = [chain for chain in chains if kept is None or not kept.done[chain].all()]
    mine = iter(waiting[jax.process_index() :: jax.process_count()])
    keys = jax.random.split(as_key(key), (len(path), 2))
    kinds = {**columns, "plane_min_eigenvalue": float, "plane_max_eigenvalue": float}
    found: dict[str, np.ndarray] = {name: np.zeros(len(path), kind) for name, kind in kinds.items()}
    found["plane_hessian"] = np.zeros((len(path), len(directions), len(directions)))
    lock, stop = threading.Lock(), threading.Event()

    def work(group: Mesh, bar: Any) -> None:
        device = group.local_devices[0]
        with jax.default_device(device):
            origin, basis = jax.device_put((params, directions.basis), device)
            product = operator(params, loss_fn, data, batch_size=batch_size, mesh=group, ignore=ignore)[1]
            for chain in _taken(mine, lock):
                start: list[Array] = []
                for i in range(chain.start, chain.stop):
                    if stop.is_set():
                        return
                    point = _displace(origin, basis, coords[i])
                    for name, value in _visit(at_point, product, point, Directions(basis), keys[i], start).items():
                        found[name][i] = value
                    bar.update()
                if kept is not None:
                    kept.write(chain, {name: column[chain] for name, column in found.items()})

    groups = _groups(mesh)
    with engine.progress_bar(len(path), progress) as bar, ThreadPoolExecutor(len(groups)) as pool:
        bar.update(len(path) - sum(chain.stop - chain.start for chain in waiting))
        try:
            for done in as_completed([pool.submit(work, group, bar) for group in groups]):
                done.result()
        finally:
            stop.set()  # a failed or interrupted thread ends the others
    names = grid.names
    variables: dict[str, Any] = {}
    for name, column in _joined(found, kept).items():
        laid = np.empty_like(column)
        laid[path] = column
        dims = (*names, "row", "column")[: len(names) + column.ndim - 1]
        about = {"long_name": _TOLD[name]} if name in _TOLD else {}
        variables[name] = (dims, laid.reshape(*grid.shape, *column.shape[1:]), about)
    attrs = {
        **dict(directions.recipe),
        **{name: value for name, value in told.items() if name != "key"},
        "num_examples": num_examples(data),
        "subset": "all" if subset is None else f"{subset} examples drawn with seed {seed}",
        "curvature_ignore": str(ignore),
        "num_devices": sum(group.size for group in groups) * jax.process_count(),
        "seconds": round(time.perf_counter() - begin, 3),
        **made,
    }
    return xr.Dataset(variables, dict(zip(names, grid.axes, strict=True)), attrs)


def _open(store: str | Path, recipe: Mapping[str, Any], rows: int) -> Store:
    """The store, made by process 0; no process writes before all have seen what is done."""
    opened = None if jax.process_index() else Store(store, recipe, rows, CHAIN)
    for step in ("made", "seen"):
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"store {step}")
        opened = opened or Store(store, recipe, rows, CHAIN)
    return opened  # type: ignore[return-value]


def _subset(data: Data, subset: int | None, seed: int) -> Data:
    examples = num_examples(data)
    if subset is None:
        return data
    if not 1 <= subset <= examples:
        raise ValueError(f"subset is {subset}, expected between 1 and the {examples} examples of data.")
    rows = np.sort(np.random.default_rng(seed).choice(examples, subset, replace=False))
    return jax.tree.map(lambda x: np.asarray(x)[rows], data)


def _snake(shape: tuple[int, ...]) -> np.ndarray:
    """The points of a grid in an order where each is a neighbour of the one before.

    >>> _snake((2, 3)).tolist()
    [0, 1, 2, 5, 4, 3]

    Returns:
        Indices into the flattened grid.
    """
    order = np.arange(int(np.prod(shape))).reshape(shape)
    for axis in range(len(shape) - 1, 0, -1):  # turn around every other row of what comes before
        odd = np.indices(shape[:axis]).sum(0) % 2 == 1
        order[odd] = np.flip(order[odd], axis=1)
    return order.ravel()


def _taken(chains: Iterator[slice], lock: threading.Lock) -> Iterator[slice]:
    """The chains that this thread gets to."""
    while True:
        with lock:
            chain = next(chains, None)
        if chain is None:
            return
        yield chain


def _groups(mesh: Mesh | None) -> list[Mesh]:
    """The devices of this process, in groups that share the examples of a point."""
    if mesh is None:
        return [Mesh(np.array([device]), (engine.DATA_AXIS,)) for device in jax.local_devices()]
    devices = mesh.devices.reshape(-1, 1)
    if engine.DATA_AXIS in mesh.axis_names:
        axis = mesh.axis_names.index(engine.DATA_AXIS)
        devices = np.moveaxis(mesh.devices, axis, -1).reshape(-1, mesh.devices.shape[axis])
    groups = [row for row in devices if row[0].process_index == jax.process_index()]
    if any(device.process_index != jax.process_index() for row in groups for device in row):
        raise ValueError("mesh has an axis 'data' over several processes, expected one within each; reshape it.")
    return [Mesh(row, (engine.DATA_AXIS,)) for row in groups]


_displace = jax.jit(trees.displace)


@jax.jit
def _inner(a: Array, b: Array) -> Array:
    return jnp.vdot(a, b, precision="highest")


def _visit(
    at_point: Callable[..., dict[str, Any]],
    product: Product,
    point: Params,
    directions: Directions,
    keys: PRNGKeyArray,
    start: list[Array],
) -> dict[str, Any]:
    """All there is to know of a point; what it took is gone before the next one."""
    matvec = product.at(point)
    return {**at_point(product.layout, matvec, keys, start), **_plane(product.layout, matvec, directions)}


def _plane(layout: Layout, matvec: Matvec, directions: Directions) -> dict[str, np.ndarray]:
    """Second derivatives in the coordinates, and the extreme curvatures along directions of length 1 in the plane."""
    vectors = [layout.extract(direction) for direction in directions]
    images = [matvec(vector) for vector in vectors]
    hessian, metric = (
        np.array([[float(_inner(a, b)) for b in others] for a in vectors]) for others in (images, vectors)
    )
    hessian = (hessian + hessian.T) / 2
    lengths, axes = np.linalg.eigh(metric)
    used = lengths > 1e-12 * lengths.max()  # a direction that the leaves left out hold, or a repeated one
    white = axes[:, used] / np.sqrt(lengths[used])
    finite = np.isfinite(hessian).all() and used.any()
    curvatures = np.linalg.eigvalsh(white.T @ hessian @ white) if finite else np.full(2, np.nan)
    return {
        "plane_hessian": hessian,
        "plane_min_eigenvalue": curvatures[0],
        "plane_max_eigenvalue": curvatures[-1],
    }


def _joined(found: dict[str, np.ndarray], kept: Store | None) -> dict[str, np.ndarray]:
    """All points: of the store, or of all processes, each of which has zeros where others were at work."""
    if kept is not None:
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("all is written")
        return kept.read()
    if jax.process_count() == 1:
        return found
    return {name: np.asarray(_gathered(column)) for name, column in found.items()}


def _gathered(column: np.ndarray) -> np.ndarray:
    """What the one process that has a row has; as bytes, since JAX would round float64."""
    parts = multihost_utils.process_allgather(column.view(np.uint8).reshape(len(column), -1))
    return parts.max(0).reshape(-1).view(column.dtype).reshape(column.shape)
