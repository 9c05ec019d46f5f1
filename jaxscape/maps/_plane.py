"""The Hessian of the surface in its own coordinates at every point of a grid."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import xarray as xr
from jax.sharding import Mesh

from jaxscape.arguments import checked
from jaxscape.curvature import Options, plane_curvatures
from jaxscape.directions import Directions
from jaxscape.grid import Grid
from jaxscape.maps._map import Plane, Point, map_of
from jaxscape.objective import refuse_inside_transform
from jaxscape.types import Data, LossFn, Params


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
        data: Arrays with a common leading example axis, or a `jaxscape.Stream` of batches; None for a loss without
            data.
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

    def at_point(point: Point) -> dict[str, Any]:
        return plane_curvatures(point.matvec, point.axes)

    refuse_inside_transform("js.plane_hessian")
    plane = Plane(directions, grid, subset, Options(batch_size, None, check), mesh, store, seed, progress)
    return map_of(at_point, {}, (params, loss_fn, data), {"method": "plane"}, plane)
