"""Work at every point of a grid, in chains of neighbours that the devices of all processes share."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import jax
import numpy as np
import xarray as xr
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxtyping import Array, PRNGKeyArray

from jaxscape import engine, trees
from jaxscape.curvature._hvp import operator
from jaxscape.curvature._plane import plane_columns, plane_curvatures
from jaxscape.curvature._product import Product
from jaxscape.data import num_examples
from jaxscape.directions import Directions, as_key, on_grid
from jaxscape.grid import Grid
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


def over_grid(
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
    """Every point of the grid, in chains of neighbours; each device takes the next chain when it is free.

    Args:
        at_point: What is found at a point: of the layout, the product, two keys, and a list in which it may leave a
            vector for the next point of its chain.
        columns: The names of what it finds, and their types.
        params: As in `eigenvalue_map`, like all that follows.
        loss_fn: As there.
        data: As there.
        told: What the numbers depend on beside params, directions and data; it goes into the attrs.
        directions: As there.
        grid: As there.
        key: As there.
        subset: As there.
        batch_size: As there.
        mesh: As there.
        ignore: As there.
        store: As there.
        seed: As there.
        progress: As there.

    Returns:
        The columns over the grid, and those of the plane.
    """
    begin = time.perf_counter()
    params = trees.as_params(params)
    directions, grid = on_grid(directions, grid, params, seed)
    data = _subset(data, subset, seed)
    path = _snake(grid.shape)
    coords = grid.points()[path]
    made = provenance(params, directions.basis, data)
    recipe = {**told, "fingerprint": made["fingerprint"], "ignore": str(ignore), "axes": [list(a) for a in grid.axes]}
    kinds = {**columns, **plane_columns(len(directions))}
    found: dict[str, np.ndarray] = {name: np.zeros(len(path), kind) for name, kind in kinds.items()}
    kept = None if store is None else Store(store, recipe, len(path), CHAIN, found)
    chains = [slice(i, min(i + CHAIN, len(path))) for i in range(0, len(path), CHAIN)]
    waiting = [chain for chain in chains if kept is None or not kept.done[chain].all()]
    mine = iter(waiting[jax.process_index() :: jax.process_count()])
    keys = jax.random.split(as_key(key), (len(path), 2))
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
    return {**at_point(product.layout, matvec, keys, start), **plane_curvatures(product.layout, matvec, directions)}


def _joined(found: dict[str, np.ndarray], kept: Store | None) -> dict[str, np.ndarray]:
    """All points: of the store, or of all processes, each of which has zeros where others were at work."""
    if kept is not None:
        return kept.read()
    if jax.process_count() == 1:
        return found
    return {name: np.asarray(_gathered(column)) for name, column in found.items()}


def _gathered(column: np.ndarray) -> np.ndarray:
    """What the one process that has a row has; as bytes, since JAX would round float64."""
    parts = multihost_utils.process_allgather(column.view(np.uint8).reshape(len(column), -1))
    return parts.max(0).reshape(-1).view(column.dtype).reshape(column.shape)
