"""The values of a function of the Hessian at every point of a grid, shared out, stored and resumed."""

import functools
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import xarray as xr
from jax.sharding import Mesh

from jaxscape import checks, trees
from jaxscape.curvature import Options, PlaneAxes, hessian_product, one_mesh, plane_axes, plane_columns
from jaxscape.grid import Grid
from jaxscape.linalg import Matvec
from jaxscape.normalize import described
from jaxscape.objective import POINTS_AXIS, Placement, has_stream, num_examples, refuse_stream, rows_of
from jaxscape.shards import mesh_of_shards, specs_of, within
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
from jaxscape.types import Data, Params, Vector

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

_PILOT = 0x70696C6F  # the seed's stream is its own, as that of a sample of the tolerance mode

AtPoint = Callable[["Point"], dict[str, Any]]
"""The values at a point."""


@dataclass(frozen=True)
class Point:
    """A point of the map: its number, its products, and the axes of the plane."""

    number: int
    matvec: Matvec
    pilot: Matvec | None  # of some of the examples
    axes: PlaneAxes
    subspace: Subspace


@dataclass(frozen=True)
class Plane:
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


def map_of(
    at_point: AtPoint,
    kinds: Mapping[str, Any],
    problem: tuple[Params, Any, Data],
    recipe: Mapping[str, Any],
    plane: Plane,
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
    groups = _groups(params, data, plane.mesh)
    together = Placement(groups[0], specs_of(params)) if mesh_of_shards(params) else None
    params, product = hessian_product(loss_fn, params, data, plane.products, groups[0])
    pilot = None
    if plane.pilot is not None:
        part = _subset(data, plane.pilot, [plane.seed, _PILOT], "pilot", several=several)
        pilot = hessian_product(loss_fn, params, part, plane.products._replace(check=False), groups[0])[1]
    coords = grid.points()
    hashes = inputs(product.objective.only(["loss"]), params, directions.operand)
    ignore = described(plane.products.ignore)
    kinds = {**kinds, **plane_columns(len(directions))}
    columns: dict[str, np.ndarray] = {name: np.zeros(len(coords), kind) for name, kind in kinds.items()}

    def begin_group(group: Mesh, stop: threading.Event) -> Callable[[int], dict[str, Any]]:
        local, local_pilot = product.on(group), pilot.on(group) if pilot else None
        if together is None:
            origin, basis = jax.device_put((params, directions.operand), group.local_devices[0])
        else:
            here = together._replace(mesh=group)
            origin, basis = here.params(params), here.basis(directions.operand)
        own = directions.with_operand(basis, together and group)
        with within(together and group):
            axes = plane_axes(local.subspace, own)

        def visit(i: int) -> dict[str, Any]:
            with within(together and group):
                point = _displace(origin, basis, coords[i], local.subspace)
                of_pilot = stoppable(local_pilot.at(point)) if local_pilot else None
                return at_point(Point(i, stoppable(local.at(point)), of_pilot, axes, local.subspace))

        def stoppable(product: Matvec) -> Matvec:
            def matvec(vector: Vector) -> Vector:
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
            "num_devices": sum(group.size for group in groups) * (1 if together else jax.process_count()),
            "seconds": round(time.perf_counter() - begin, 3),
            **provenance(hashes, params),
            **(_counts(result) if "converged" in result else {}),
        }
        return result

    if plane.store is None:
        return result_of(in_shares(begin_group, columns, groups, None, plane.progress, together=bool(together)))
    identity = {**recipe, **hashes, "free_leaves": product.subspace.free_names}
    attrs = {**dict(directions.recipe), **provenance(hashes, params)}
    with Store(plane.store, identity, Layout.of(grid, columns, SHARE), _LONG_NAMES, attrs) as store:
        result = result_of(in_shares(begin_group, columns, groups, store, plane.progress, together=bool(together)))
        return result.assign_attrs(store.finish(result.attrs))


def _groups(params: Params, data: Data, mesh: Mesh | None) -> list[Mesh]:
    """The devices of this process, in groups that share the examples of a point.

    A stream is read by one pass at a time: there all devices are one group. So are those that params are cut over, of
    all processes; of one process those at each place along the axis ``"points"`` are a group.

    Returns:
        A mesh for each group.

    Raises:
        TypeError: The data are a stream, and there are several processes.
    """
    if has_stream(data) and jax.process_count() > 1:
        raise TypeError(
            "data is a js.Stream, but several processes would share the points of a map; expected arrays, or one "
            "process."
        )
    if mesh_of_shards(params) is not None:
        whole = Placement.of(params, mesh)
        if has_stream(data) or jax.process_count() > 1 or not whole.points_axes:
            return [whole.mesh]
        axis = whole.mesh.axis_names.index(POINTS_AXIS)
        names = [name for name in whole.mesh.axis_names if name != POINTS_AXIS]
        return [Mesh(devices, names) for devices in np.moveaxis(whole.mesh.devices, axis, 0)]
    return [one_mesh(mesh)] if has_stream(data) else device_groups(mesh)


def _counts(result: xr.Dataset) -> dict[str, int]:
    """How many points are not finite, and how many of the others not converged."""
    finite = np.isfinite(result.min_eigenvalue.values) & np.isfinite(result.max_eigenvalue.values)
    unconverged = int((finite & ~result.converged.values).sum())
    return {"nonfinite_points": int((~finite).sum()), "unconverged_points": unconverged}


@functools.partial(jax.jit, static_argnames="subspace")
def _displace(origin: Params, basis: Params, coords: Any, subspace: Subspace) -> Params:
    point = trees.displace(origin, basis, coords)
    return point if subspace.mesh is None else Placement(subspace.mesh, subspace.specs).constrained(point)


def _subset(data: Data, subset: int | None, seed: int | list[int], name: str, *, several: bool) -> Data:
    """Some examples of the data; of several terms, of each, and all of a term that has no more."""
    if subset is None:
        return data
    refuse_stream(data, name)
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
