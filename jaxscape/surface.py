"""The loss on a line, in a plane, or in a volume through params: the figure, as numbers."""

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax.sharding import Mesh

from jaxscape import engine, trees
from jaxscape.data import as_batch_size, num_examples
from jaxscape.directions import Directions, as_directions, direction_between, random_directions
from jaxscape.grid import Grid
from jaxscape.types import Data, LossFn, Params


def surface(
    params: Params,
    loss_fn: LossFn,
    data: Data,
    *,
    directions: Directions | Any = None,
    grid: Grid | None = None,
    batch_size: int = 128,
    mesh: Mesh | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> xr.Dataset:
    """Evaluate ``L(params + alpha * delta + beta * eta)`` over a grid, exactly over all of the data.

    Paper sections 3 and 4. Each value is the mean over all examples of ``data``, whatever the batch size; the points
    are shared by all local devices.

    >>> import jax.numpy as jnp
    >>> loss = lambda params, x: (x @ params["w"]) ** 2
    >>> ds = surface({"w": jnp.ones((3, 2))}, lambda p, x: loss(p, x).sum(-1), jnp.eye(3),
    ...              grid=Grid.plane((-1, 1, 5), (0, 1, 3)))
    >>> dict(ds.sizes), round(float(ds.loss.sel(alpha=0, beta=0)), 6)
    ({'alpha': 5, 'beta': 3}, 2.0)

    Args:
        params: Any pytree of floating arrays.
        loss_fn: ``loss_fn(params, batch)`` -> the loss of each example, shape ``(batch,)``; or a dict of such vectors
            with the key ``"loss"``, each a variable of the result. A scalar is taken as the batch mean; then there
            are no error bars.
        data: Arrays with a common leading example axis, e.g. ``(images, labels)``.
        directions: `Directions`, one pytree like params, or a sequence of these; by default random
            filter-normalized ones, as many as the grid has axes (two without a grid).
        grid: Coordinates in units of the directions; by default 51x51 over [-1, 1] for two directions and 401 points
            for one.
        batch_size: Examples in one call of loss_fn.
        mesh: The devices that share the points; by default all local ones.
        seed: Of the random directions, if none are given.
        progress: True or False for a progress bar; None for one on terminals and in notebooks.

    Returns:
        A Dataset with dimensions ``alpha``, ``beta``, ``axis2``...: ``loss``, each other key of loss_fn, their
        standard errors ``loss_stderr``... (of the mean over the examples, taken as a sample: ``s / sqrt(N)``), and
        ``num_examples``. ``ds.loss[i, j]`` is at ``params + alpha[i] * directions[0] + beta[j] * directions[1]``.
        NaN and infinite losses are stored as they are and counted in ``attrs["nonfinite_points"]``. The attrs say how
        the result was made; ``center_loss`` is the loss at params.

    Raises:
        ValueError: params or data is empty, leaves of data differ in length, a direction is not like params, the
            grid has another number of axes than there are directions, or loss_fn gives a wrong shape.
        TypeError: A leaf of params is not floating.
    """
    params = trees.as_params(params)
    batch_size = as_batch_size(batch_size, num_examples(data))
    seeded = {"seed": seed} if directions is None else {}
    if directions is None:
        directions = random_directions(seed, params, num=len(grid.axes) if grid else 2)
    directions = as_directions(directions, params)
    grid = grid or _default_grid(len(directions))
    if len(grid.axes) != len(directions):
        raise ValueError(
            f"grid has {len(grid.axes)} axes for {len(directions)} directions; expected one axis for each direction."
        )
    start = time.perf_counter()
    coords = np.concatenate([np.zeros((1, len(grid.axes))), grid.points()])  # the first point is params itself
    options: dict[str, Any] = {"batch_size": batch_size, "mesh": mesh, "progress": progress}
    metrics = engine.evaluate(loss_fn, params, directions.basis, coords, data, **options)
    result = _dataset(metrics, grid, num_examples(data))
    result.attrs |= {
        **dict(directions.recipe),
        **seeded,
        "seconds": round(time.perf_counter() - start, 3),
        "batch_size": batch_size,
        "num_devices": mesh.size if mesh else jax.local_device_count(),
        **_provenance(params, directions, data),
    }
    return result


def interpolate(
    params_a: Params, params_b: Params, loss_fn: LossFn, data: Data, *, grid: Grid | None = None, **options: Any
) -> xr.Dataset:
    """The loss on the straight line through two minimizers (paper sections 3 and 5; Goodfellow et al. 2015).

    ``L((1 - alpha) * params_a + alpha * params_b)``, over ALL leaves: batch-norm running statistics take part if they
    are in the pytrees, as they must when two independently trained networks are joined.

    >>> import jax.numpy as jnp
    >>> def loss(p, x):
    ...     return (p - x) ** 2
    >>> ds = interpolate(jnp.float32(0), jnp.float32(2), loss, jnp.ones(4), grid=Grid.line(0, 1, 3))
    >>> ds.loss.values
    array([1., 0., 1.])

    Args:
        params_a: Params at alpha = 0.
        params_b: Params at alpha = 1.
        loss_fn: As in `surface`.
        data: As in `surface`.
        grid: Coordinates along the line; by default 401 points over [-0.5, 1.5].
        **options: Further options of `surface`.

    Returns:
        A Dataset over ``alpha``, as `surface` gives it.
    """
    direction = Directions.stack([direction_between(params_a, params_b)])
    direction = Directions(direction.basis, recipe=(("directions", "params_b - params_a"),))
    return surface(params_a, loss_fn, data, directions=direction, grid=grid or Grid.line(-0.5, 1.5, 401), **options)


def _default_grid(num: int) -> Grid:
    if num > 2:
        raise ValueError(f"grid is missing: {num} directions have no default grid; pass e.g. js.Grid(axes).")
    return Grid.line() if num == 1 else Grid.plane()


def _dataset(metrics: Mapping[str, engine.Estimate], grid: Grid, examples: int) -> xr.Dataset:
    """Lay the points out on the grid; the first of them is params itself."""
    shape, names = grid.shape, grid.names
    variables: dict[str, Any] = {}
    for name, estimate in metrics.items():
        variables[name] = (names, estimate.mean[1:].reshape(shape), {"long_name": f"mean {name} over the examples"})
        if estimate.stderr is not None:
            told = {"long_name": f"standard error of the mean {name}"}
            variables[f"{name}_stderr"] = (names, estimate.stderr[1:].reshape(shape), told)
    variables["num_examples"] = (names, np.full(shape, examples))
    result = xr.Dataset(variables, dict(zip(names, grid.axes, strict=True)))
    result.attrs["center_loss"] = float(metrics["loss"].mean[0])
    result.attrs["nonfinite_points"] = int((~np.isfinite(metrics["loss"].mean[1:])).sum())
    return result


def _provenance(params: Params, directions: Directions, data: Data) -> dict[str, Any]:
    """What it takes to make the same numbers again."""
    return {
        "fingerprint": trees.fingerprint(params, directions.basis, data),
        "num_params": trees.size(params),
        "dtype": str(jnp.result_type(*jax.tree.leaves(params))),
        "platform": jax.local_devices()[0].device_kind,
        "jax_version": jax.__version__,
        "jaxscape_version": _version(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _version() -> str:
    try:
        return version("jax-losscape")
    except PackageNotFoundError:  # used from a folder, not installed
        return "unknown"
