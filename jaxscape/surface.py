"""The loss on a line, in a plane, or in a volume through params: the figure, as numbers."""

import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import xarray as xr
from jax.sharding import Mesh

from jaxscape import checks, engine
from jaxscape.arguments import checked
from jaxscape.directions import Directions, direction_between
from jaxscape.engine import Evaluation
from jaxscape.grid import Grid
from jaxscape.objective import Objective, as_batch_size, refuse_inside_transform
from jaxscape.sweep import (
    Layout,
    Store,
    check_names,
    columns_of,
    in_blocks,
    inputs,
    on_grid,
    provenance,
    to_dataset,
    to_tolerance,
    unresolved_share,
)
from jaxscape.types import Data, LossFn, Params

CHUNK = 128  # points that share a file of a store, at most


@checked
def surface(
    params: Params,
    loss_fn: LossFn | Mapping[str, LossFn],
    data: Data,
    *,
    directions: Directions | Any = None,
    grid: Grid | None = None,
    rtol: float | None = None,
    atol: float = 0.0,
    batch_size: int | Literal["auto"] = "auto",
    points_per_step: int | Literal["auto"] = "auto",
    mesh: Mesh | None = None,
    compute_dtype: str | None = None,
    check: bool = True,
    store: str | Path | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> xr.Dataset:
    """Evaluate ``L(params + alpha * delta + beta * eta)`` over a grid, on all devices of all processes.

    Paper sections 3 and 4. By default each value is the mean over all examples of ``data``, whatever the batch size;
    with ``rtol`` it takes as few of them as the tolerance allows (see `jaxscape.engine.estimate`).

    >>> import jax.numpy as jnp
    >>> loss = lambda params, x: (x @ params["w"]) ** 2
    >>> ds = surface({"w": jnp.ones((3, 2))}, lambda p, x: loss(p, x).sum(-1), jnp.eye(3),
    ...              grid=Grid.plane((-1, 1, 5), (0, 1, 3)))
    >>> dict(ds.sizes), round(float(ds.loss.sel(alpha=0, beta=0)), 6)
    ({'alpha': 5, 'beta': 3}, 2.0)

    Args:
        params: Any pytree of floating arrays. A displaced point is computed in float32 or better and rounded to the
            dtype of each leaf: 16-bit leaves move in steps.
        loss_fn: ``loss_fn(params, batch)`` -> the loss of each example, shape ``(batch,)``; or a dict of such vectors
            with the key ``"loss"``, each a variable of the result. The key ``"weight"`` weighs the examples: every mean
            is ``sum(w * x) / sum(w)`` over all data, whatever the batches. A scalar is taken as the batch mean; then
            there are no error bars. A dict of such functions, with a dict of data: ``loss`` is the sum of their means,
            and ``loss_NAME`` that of the term NAME. Arrays that it reads from outside are read anew at each call.
        data: Arrays with a common leading example axis, e.g. ``(images, labels)``; PRNG keys count as arrays. None for
            a loss without data: then ``loss_fn(params, None)`` gives a scalar.
        directions: `Directions`, one pytree like params, or a sequence of these; by default random
            filter-normalized ones, as many as the grid has axes (two without a grid).
        grid: Coordinates in units of the directions; by default 51x51 over [-1, 1] for two directions and 401 points
            for one.
        rtol: None: exact. A number: the standard error of each loss is at most ``max(rtol * abs(loss), atol)``.
            Anchors, a coarse sub-grid, are exact; at the points between them the losses of a random subset are
            regressed on those of the anchors. 0.01 is a picture that no eye tells from the exact one.
        atol: Absolute tolerance, with ``rtol``: spares the work on losses so small that their digits do not matter.
        batch_size: Examples in one call of loss_fn, at most; ``"auto"``: what is fastest in a short trial.
        points_per_step: Points that a device evaluates side by side (`jax.vmap`), a power of two up to 64;
            ``"auto"``: what is fastest in a short trial.
        mesh: The devices that share the points; by default all of all processes. An axis named ``"data"`` shares the
            examples instead, for data too large for one device.
        compute_dtype: ``"bfloat16"`` casts params and data before loss_fn; ``"float32"`` and ``"tensorfloat32"`` set
            how products are rounded on devices that have the choice; None: as JAX is configured. Arrays that loss_fn
            closes over keep their dtype: where float32 meets bfloat16 JAX computes in float32. Directions are added and
            losses averaged in float32 or better.
        check: Whether to find out, by two evaluations of at most 128 examples at params, if the loss is a mean over
            examples: batch norm in training mode, dropout, or a division by what is in the batch make the result depend
            on ``batch_size``. False takes the loss as it is.
        store: A folder where every finished block of about 5 seconds is kept; the same call goes on from there, and
            `jaxscape.load` reads it at any time. A call with a grid that has all points of the store, or with further
            metrics, computes only what the store lacks. With ``rtol`` it keeps the values of single examples, too, and
            a call with a smaller tolerance goes on from them.
        seed: Of the random directions, if none are given, and of the order of the examples under ``rtol``.
        progress: True or False for a progress bar; None for one on terminals and in notebooks.

    Returns:
        A Dataset with dimensions ``alpha``, ``beta``, ``axis2``...: ``loss``, each other key of loss_fn, their
        standard errors ``loss_stderr``..., and ``num_examples``, how many were evaluated at each point. The standard
        error is that of the mean over the examples, taken as a sample: ``s / sqrt(N)``; with ``rtol`` it is that
        against the mean over all examples: 0 where all were evaluated.

        ``ds.loss[i, j]`` is at ``params + alpha[i] * directions[0] + beta[j] * directions[1]``.

        NaN and infinite losses are stored as they are and counted in ``attrs["nonfinite_points"]``. The attrs say how
        the result was made; ``center_loss`` is the loss at params. Where params have 16 bits, ``unresolved_share`` is
        the share of the weights that rounding holds where they are from one point to the next.

    Warns:
        UserWarning: 16 bits hold more than half of the weights where they are from one point to the next.

    Raises:
        ValueError: A tolerance is negative or not finite, params or data is empty, leaves of data differ in length, a
            direction is not like params, the grid has another number of axes than there are directions, loss_fn gives
            a wrong shape, is no mean over examples, or names a metric as the result names something else, or ``store``
            holds another result.
        TypeError: A leaf of params is not floating, loss_fn is no function, or grid, mesh, seed or a tolerance is of
            another type.
    """
    refuse_inside_transform("js.surface")
    params = checks.as_params(params)
    _check_tolerance(rtol, atol)
    checks.check_mesh(mesh)
    load = (as_batch_size(batch_size), _as_points_per_step(points_per_step))
    seeded = {"seed": seed} if directions is None or rtol is not None else {}
    directions, grid = on_grid(directions, grid, params, seed)
    start = time.perf_counter()
    objective = Objective.of(loss_fn, params, data, compute_dtype=compute_dtype, check=check, batch_size=load[0])
    check_names(objective.metrics, grid.names)
    hashes = inputs(objective, params, directions.basis)
    attrs = provenance(hashes, params)
    share = unresolved_share(params, directions.basis, grid, compute_dtype)
    attrs |= {} if share is None else {"unresolved_share": round(share, 3)}
    coords, center = _with_center(grid)
    where = (objective, params, directions.basis, coords)
    options: dict[str, Any] = {"load": load, "mesh": mesh, "progress": progress}

    def result_of(evaluation: Evaluation) -> xr.Dataset:
        result = _dataset(evaluation, grid, center)
        result.attrs |= {
            **dict(directions.recipe),
            **seeded,
            "seconds": round(time.perf_counter() - start, 3),
            **{name: value for name, value in (("rtol", rtol), ("atol", atol)) if rtol is not None},
            **_load_attrs(evaluation),
            "compute_dtype": str(compute_dtype),
            "num_devices": mesh.size if mesh else jax.device_count(),
            **attrs,
        }
        return result

    tolerance = None if rtol is None else engine.Tolerance(rtol, atol, seed, _anchors(grid, center, rtol))
    if store is None:
        evaluate = (
            engine.evaluate(*where, **options) if tolerance is None else engine.estimate(*where, tolerance, **options)
        )
        return result_of(evaluate)
    layout = Layout.of(grid, columns_of(objective, len(coords)), CHUNK)
    recipe = {"method": "surface", **hashes} | ({} if rtol is None else {"rtol": rtol, "atol": atol, "seed": seed})
    known = {**dict(directions.recipe), **seeded, **attrs}
    with Store(store, recipe, layout, _long_names(objective.metrics), known) as kept:
        sweep = (
            in_blocks(*where, kept, **options)
            if tolerance is None
            else to_tolerance(*where, tolerance, kept, **options)
        )
        result = result_of(sweep)
        kept.finish(result.attrs)
    return result


@checked
def interpolate(
    params_a: Params,
    params_b: Params,
    loss_fn: LossFn | Mapping[str, LossFn],
    data: Data,
    *,
    grid: Grid | None = None,
    **options: Any,
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
        loss_fn: ``loss_fn(params, batch)`` -> the loss of each example, a dict with the key ``"loss"``, or the mean of
            the batch, or a dict of such functions, as in `surface`.
        data: Arrays with a common leading example axis; None for a loss without data.
        grid: Coordinates along the line; by default 401 points over [-0.5, 1.5].
        **options: Further options of `surface`.

    Returns:
        A Dataset over ``alpha``, as `surface` gives it.
    """
    params_a = checks.as_params(params_a, "params_a")
    params_b = checks.like(params_a, params_b, "params_b")
    direction = Directions.stack([direction_between(params_a, params_b)])
    direction = Directions(direction.basis, recipe=(("directions", "params_b - params_a"),))
    return surface(
        params_a,
        loss_fn,
        data,
        directions=direction,
        grid=Grid.line(-0.5, 1.5, 401) if grid is None else grid,
        **options,
    )


def _check_tolerance(rtol: float | None, atol: float) -> None:
    for name, value in (("rtol", 0.0 if rtol is None else rtol), ("atol", atol)):
        if isinstance(value, bool) or not isinstance(value, int | float | np.number):
            raise TypeError(f"{name} is {value!r}, expected a number, e.g. 0.01 for 1 %.")
        if not 0 <= value < 2.0**1000:
            raise ValueError(f"{name} is {value!r}, expected a number of at least 0.")
    if atol and rtol is None:
        raise ValueError(
            f"atol is {atol!r}, but rtol is None, which is exact; pass rtol=0.0 for an absolute tolerance."
        )


def _as_points_per_step(value: Any) -> int | None:
    if isinstance(value, str) and value == "auto":
        return None
    if not isinstance(value, int | np.integer) or value not in engine.WIDTHS:
        raise ValueError(f"points_per_step is {value!r}, expected 'auto' or one of {engine.WIDTHS}.")
    return int(value)


def _with_center(grid: Grid) -> tuple[np.ndarray, int]:
    """The points of a grid, params itself after them unless it is among them; and which one that is."""
    points = grid.points()
    centers = np.flatnonzero((points == 0).all(1))
    if centers.size:
        return points, int(centers[0])
    return np.concatenate([points, np.zeros((1, points.shape[1]))]), len(points)


def _anchors(grid: Grid, center: int, rtol: float) -> Callable[[int], np.ndarray]:
    """Which points are exact, for a number of examples: params itself and a coarse sub-grid."""

    def exact(examples: int) -> np.ndarray:
        mask = engine.anchors(grid.shape, engine.anchor_stride(examples, rtol, grid.shape)).ravel()
        mask = np.pad(mask, (0, int(center == len(mask))))
        mask[center] = True
        return mask

    return exact


def _dataset(evaluation: Evaluation, grid: Grid, center: int) -> xr.Dataset:
    """The metrics over the grid; the loss at params is an attribute."""
    num = int(np.prod(grid.shape))
    columns = {}
    for name, estimate in evaluation.metrics.items():
        columns[name] = estimate.mean[:num]
        if estimate.stderr is not None:
            columns[f"{name}_stderr"] = estimate.stderr[:num]
    columns["num_examples"] = evaluation.num_examples[:num]
    result = to_dataset(columns, grid, _long_names(evaluation.metrics))
    loss = evaluation.metrics["loss"].mean
    result.attrs["center_loss"] = float(loss[center])
    result.attrs["nonfinite_points"] = int((~np.isfinite(loss[:num])).sum())
    return result


def _long_names(metrics: Iterable[str]) -> dict[str, str]:
    """What each variable is, in words."""
    names = {}
    for name in metrics:
        names[name] = f"mean {name} over the examples"
        names[f"{name}_stderr"] = f"standard error of the mean {name}"
    return names


def _load_attrs(evaluation: Evaluation) -> dict[str, int]:
    """How much went side by side; of several terms, with their names."""
    return {
        f"{name}_{term}" if term else name: value
        for term, load in evaluation.loads.items()
        for name, value in load._asdict().items()
    }
