"""The loss on the line or a curve through two minimizers."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from jaxscape import checks
from jaxscape.arguments import checked
from jaxscape.directions import direction_between
from jaxscape.grid import Grid
from jaxscape.interpolation._curve import Curve, chart_of, check_kind
from jaxscape.interpolation._statistics import (
    clipped,
    each_term,
    looked_up,
    policy_of,
    reestimated,
    statistics_function,
    with_statistics_of,
)
from jaxscape.objective import refuse_inside_transform
from jaxscape.sweep import Options, losses_on_grid, unresolved_share
from jaxscape.types import Data, LossFn, Params


@checked
def interpolate(
    params_a: Params,
    params_b: Params,
    loss_fn: LossFn | Mapping[str, LossFn],
    data: Data,
    *,
    grid: Grid | None = None,
    curve: Curve | None = None,
    statistics: Literal["interpolate", "frozen", "reestimate"] | Callable[[Params, Data], Params] = "interpolate",
    statistics_data: Data = None,
    rtol: float | Mapping[str, float] | None = None,
    atol: float | Mapping[str, float] = 0.0,
    batch_size: int | Literal["auto"] = "auto",
    points_per_step: int | Literal["auto"] = "auto",
    mesh: Any = None,
    compute_dtype: str | None = None,
    check: bool = True,
    store: Any = None,
    seed: int = 0,
    progress: bool | None = None,
) -> xr.Dataset:
    """The loss on the line through two minimizers, or on a curve (paper sections 3 and 5; Goodfellow et al. 2015).

    ``L((1 - alpha) * params_a + alpha * params_b)``, over ALL leaves: at alpha = 0 and 1 it is the loss of params_a and
    of params_b, to the bit; where their dtypes differ both are in the wider one. Batch norm's running statistics take
    part if they are in the pytrees, as they must when two independently trained networks are joined: with the
    statistics of another network the loss is another function.

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
        data: Arrays with a common leading example axis, or a `jaxscape.Stream` of batches; None for a loss without
            data.
        grid: Coordinates along the line; by default 401 points over [-0.5, 1.5].
        curve: Another way from params_a to params_b than the straight line: one that `connect` trained, or a
            `Curve(control)` of your own. Both ends are exact as on the line.
        statistics: What becomes of running statistics: means and variances that stand beside each other in a module,
            under the names that Flax, Haiku, Keras and PyTorch give them.

            ``"interpolate"``: they are interpolated like weights. Beyond the ends a variance can become negative: there
            it is 1e-5, or what it is at an end if that is less. ``attrs["clipped_points"]`` counts the points where
            this happens, ``attrs["clipped_variances"]`` the variances at the worst of them.

            ``"frozen"``: those of params_a everywhere; or those that loss_fn holds, where the pytrees have none. That a
            loss_fn of your own holds statistics which params lack is not noticed under any policy.

            ``"reestimate"``: at each point the mean over batches of ``statistics_data`` of what batch norm computes in
            training mode. It needs the loss_fn of `load_run`; for other models pass a function
            ``statistics(params, batch)`` -> the statistics of a batch, nested dicts that replace those leaves of
            params.
        statistics_data: Examples for ``"reestimate"``, in batches of 128: the training data. None: ``data``.
        rtol: As in `surface`.
        atol: As in `surface`.
        batch_size: As in `surface`.
        points_per_step: As in `surface`.
        mesh: As in `surface`.
        compute_dtype: As in `surface`.
        check: As in `surface`.
        store: As in `surface`.
        seed: Of the order of the examples under ``rtol``.
        progress: As in `surface`.

    Returns:
        A Dataset over ``alpha``, as `surface` gives it.

    Raises:
        ValueError: The leaves of params_a and params_b differ; a function ``statistics`` gives something else than
            leaves of params; the loss_fn of a run is given params without the running
            statistics that the run has, and ``statistics`` is not ``"frozen"``; ``"reestimate"`` is asked for with a
            loss_fn that cannot do it, or with bfloat16; or as in `surface`.
        TypeError: As in `surface`.
    """
    refuse_inside_transform("js.interpolate")
    params_a = checks.as_params(params_a, "params_a")
    params_b = checks.like(params_a, params_b, "params_b")
    corners = [params_a, params_b]
    if curve is not None:
        corners.insert(1, _control(curve, params_a))
    corners = _of_common_dtypes(corners)
    kind = None if curve is None else curve.kind
    options = Options.of(
        rtol=rtol,
        atol=atol,
        batch_size=batch_size,
        points_per_step=points_per_step,
        mesh=mesh,
        compute_dtype=compute_dtype,
        check=check,
        store=store,
        seed=seed,
        progress=progress,
    )
    grid = _as_line(grid)
    policy = policy_of(statistics, loss_fn, params_a, compute_dtype)
    if policy == "frozen":
        corners = [with_statistics_of(params_a, corner) for corner in corners]
    attrs: dict[str, Any] = {"statistics": policy} | ({} if rtol is None else {"seed": seed})
    direction = jax.tree.map(lambda x: x[None], direction_between(corners[0], corners[-1]))
    share = unresolved_share(corners[0], direction, grid, compute_dtype)
    attrs |= {} if share is None else {"unresolved_share": round(share, 3)}
    chart = chart_of(corners, kind, grid)
    if policy == "interpolate":
        loss_fn, counts = clipped(chart, loss_fn)
        attrs |= counts
    if policy == "reestimate":
        examples = data if statistics_data is None else statistics_data
        points, table = reestimated(statistics_function(statistics, loss_fn), chart, examples, progress)
        places = np.linspace(0, 1, len(corners))
        corners = [{"params": p, "alpha": jnp.asarray(t)} for p, t in zip(corners, places, strict=True)]
        chart = chart_of(corners, kind, grid)
        loss_fn = each_term(loss_fn, lambda f: lambda whole, batch: f(looked_up(whole, points, table), batch))
    return losses_on_grid(chart, corners[0], loss_fn, data, options, attrs)


def _as_line(grid: Any) -> Grid:
    if grid is None:
        return Grid.line(-0.5, 1.5, 401)
    if not isinstance(grid, Grid):
        raise TypeError(f"grid is {type(grid).__name__}, expected a js.Grid, e.g. js.Grid.line(0, 1, 51).")
    if len(grid.axes) != 1:
        raise ValueError(f"grid has {len(grid.axes)} axes, expected one, e.g. js.Grid.line(0, 1, 51).")
    return grid


def _control(curve: Any, params: Params) -> Params:
    """The control point of a curve, checked."""
    if not isinstance(curve, Curve):
        raise TypeError(f"curve is {type(curve).__name__}, expected a js.Curve, as js.connect returns it.")
    check_kind(curve.kind)
    return checks.like(params, curve.control, "curve.control")


def _of_common_dtypes(corners: list[Params]) -> list[Params]:
    """All corners with leaves that hold the values of each."""
    dtypes = jax.tree.map(lambda *leaves: functools.reduce(jnp.promote_types, (x.dtype for x in leaves)), *corners)
    return [jax.tree.map(lambda x, dtype: x.astype(dtype), corner, dtypes) for corner in corners]
