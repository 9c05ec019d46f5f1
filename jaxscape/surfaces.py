"""The loss on a line, in a plane, or in a volume through params: the figure, as numbers."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import xarray as xr
from jax.sharding import Mesh
from numpy.typing import ArrayLike

from jaxscape import checks
from jaxscape.arguments import checked
from jaxscape.directions import Directions
from jaxscape.grid import Grid
from jaxscape.objective import Objective, refuse_inside_transform
from jaxscape.sweep import Chart, Options, check_names, losses_on_grid, on_grid, repeats, unresolved_share
from jaxscape.types import Data, LossFn, Params


@checked
def surface(
    params: Params,
    loss_fn: LossFn | Mapping[str, LossFn],
    data: Data,
    *,
    directions: Directions | Any = None,
    grid: Grid | None = None,
    rtol: float | Mapping[str, float] | None = None,
    atol: float | Mapping[str, float] = 0.0,
    batch_size: int | Literal["auto"] = "auto",
    points_per_step: int | Literal["auto"] = "auto",
    mesh: Mesh | None = None,
    compute_dtype: str | None = None,
    check: bool = True,
    store: str | Path | None = None,
    seed: int = 0,
    num_seeds: int | None = None,
    refine: str | float | ArrayLike | None = None,
    preview: Callable[[xr.Dataset], Any] | None = None,
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
        data: Arrays with a common leading example axis, e.g. ``(images, labels)``; PRNG keys count as arrays. A
            `jaxscape.Stream` of batches, for data that do not fit in memory. None for a loss without data: then
            ``loss_fn(params, None)`` gives a scalar.
        directions: `Directions`, one pytree like params, or a sequence of these; by default random
            filter-normalized ones, as many as the grid has axes (two without a grid).
        grid: Coordinates in units of the directions; by default 51x51 over [-1, 1] for two directions and 401 points
            for one.
        rtol: None: exact. A number: the standard error of each loss is at most ``max(rtol * abs(loss), atol)``. A
            mapping: the same for each metric by its name, e.g. ``{"loss": 0.01, "accuracy": 0.02}``; metrics that it
            does not name have error bars, but are not waited for.
            A few points, the roots, are exact; at the others, from coarse to fine, the losses of a sample are
            regressed on those of the points around. 0.01 is a picture that no eye tells from the exact one. Of a stream
            a sample has whole batches, the same ones for all points.
        atol: Absolute tolerance, with ``rtol``: spares the work on losses so small that their digits do not matter (a
            mean of exactly 0 takes all examples without it). A number for the loss, or a mapping like ``rtol``.
        batch_size: Examples in one call of loss_fn, at most; ``"auto"``: what is fastest in a short trial.
        points_per_step: Points that a device evaluates side by side (`jax.vmap`), a power of two up to 64;
            ``"auto"``: what is fastest in a short trial.
        mesh: The devices that share the points; by default all of all processes. An axis named ``"data"`` shares the
            examples instead, for data too large for one device.
        compute_dtype: ``"bfloat16"`` casts params and data before loss_fn; ``"float32"`` and ``"tensorfloat32"`` set
            how products are rounded on devices that have the choice; None: as JAX is configured. Arrays that loss_fn
            closes over keep their dtype: where float32 meets bfloat16 JAX computes in float32. Directions are added and
            losses averaged in float32 or better.
        check: Whether to find out if the loss is a mean over examples: batch norm in training mode, dropout, or a
            division by what is in the batch make the result depend on ``batch_size``. Most losses are proven to be
            means from their jaxprs for two batch sizes; else at most 128 examples are evaluated twice, at params, in
            batches of other sizes. False takes the loss as it is.
        store: A folder where every finished block of about 5 seconds is kept; the same call goes on from there, and
            `jaxscape.load` reads it at any time. A call with a grid that has all points of the store, or with further
            metrics, computes only what the store lacks. With ``rtol`` it keeps the values of single examples, too, and
            a call with a smaller tolerance goes on from them.
        seed: Of the random directions, if none are given, and of the order of the examples under ``rtol``.
        num_seeds: Repeat it with so many seeds, ``seed``, ``seed + 1``...: other random directions each time (paper
            figures 16 and 17). Each repeat is what a call with that seed gives; with ``store`` it has the folder
            ``STORE/seed0.zarr``... of its own. `plot.band` and `plot.compare` draw the result.
        refine: None: the loss is evaluated at every point. Otherwise at some points, from coarse to fine, and
            interpolated at the others, until by the estimated error of the interpolation

            - ``"contours"``: no contour line that `plot.contour` draws is displaced by more than half a cell;
            - levels, e.g. ``[0.1, 1.0, 10.0]``: none of these lines is;
            - a number, e.g. ``0.01``: no value is off by more than ``refine * abs(loss)``.

            The first points are 9x9 of a plane, and 24 at random check the result; a feature that falls between all of
            them is missed. Not with ``rtol``.
        preview: With ``refine``: a function that takes the result as it is after each round, for example
            `plot.live`; the first one comes after 9 points of a plane.
        progress: True or False for a progress bar; None for one on terminals and in notebooks.

    Returns:
        A Dataset with dimensions ``alpha``, ``beta``, ``axis2``...: ``loss``, each other key of loss_fn, their
        standard errors ``loss_stderr``..., and ``num_examples``, how many were evaluated at each point. The standard
        error is that of the mean over the examples, taken as a sample: ``s / sqrt(N)``; with ``rtol`` it is that
        against the mean over all examples: 0 where all were evaluated.

        ``ds.loss[i, j]`` is at ``params + alpha[i] * directions[0] + beta[j] * directions[1]``.

        With ``num_seeds`` all variables have the dimension ``seed`` before the others. ``spread``, over the grid, is
        the standard deviation of the loss over the seeds; ``attrs["mean_spread"]`` is its mean over the grid, relative
        to the mean loss.

        With ``refine`` ``evaluated`` says where the loss was evaluated; ``interpolation_error`` is the estimated error
        elsewhere. Interpolated values have no standard error, and 0 ``num_examples``.

        NaN and infinite losses are stored as they are and counted in ``attrs["nonfinite_points"]``. The attrs say how
        the result was made; ``center_loss`` is the loss at params. Where params have 16 bits, ``unresolved_share`` is
        the share of the weights that rounding holds where they are from one point to the next.

    Warns:
        UserWarning: 16 bits hold more than half of the weights where they are from one point to the next.

    Raises:
        ValueError: A tolerance is negative or not finite, params or data is empty, leaves of data differ in length, a
            direction is not like params, the grid has another number of axes than there are directions, loss_fn gives
            a wrong shape, is no mean over examples, or names a metric as the result names something else, or ``store``
            holds another result; ``num_seeds`` is not positive, or comes with directions; ``refine`` comes with
            ``rtol``, or says nothing that a grid can be refined for; ``preview`` comes without ``refine``.
        TypeError: A leaf of params is not floating, loss_fn is no function, or grid, mesh, seed or a tolerance is of
            another type.
    """
    refuse_inside_transform("js.surface")
    params = checks.as_params(params)
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
        refine=refine,
        preview=preview,
    )
    if num_seeds is None:
        return _one(params, loss_fn, data, directions, grid, options)
    checks.check_count(num_seeds, "num_seeds")
    if directions is not None:
        raise ValueError(
            f"num_seeds is {num_seeds}, which draws new directions for each seed; expected directions=None with it."
        )
    check_names(Objective.of(loss_fn, params, data, check=False).metrics, ("seed", "spread"))
    seeds = range(seed, seed + num_seeds)
    stores = [None if store is None else Path(store) / f"seed{number}.zarr" for number in seeds]
    results = [
        _one(params, loss_fn, data, None, grid, options._replace(seed=number, store=folder))
        for number, folder in zip(seeds, stores, strict=True)
    ]
    return repeats(results, seeds)


def _one(params: Params, loss_fn: Any, data: Data, directions: Any, grid: Grid | None, options: Options) -> xr.Dataset:
    """The surface for one seed."""
    seed, rtol, compute_dtype = options.seed, options.rtol, options.compute_dtype
    attrs: dict[str, Any] = {"seed": seed} if directions is None or rtol is not None else {}
    directions, grid = on_grid(directions, grid, params, seed)
    chart = Chart(grid, params, directions.operand, attrs=dict(directions.recipe))
    share = unresolved_share(params, directions.operand, grid, compute_dtype)
    attrs |= {} if share is None else {"unresolved_share": round(share, 3)}
    return losses_on_grid(chart, params, loss_fn, data, options, attrs)
