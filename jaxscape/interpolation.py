"""The line through two minimizers: the loss on it, what becomes of running statistics, and the barrier between them."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array
from tqdm.auto import tqdm

from jaxscape import checks, trees
from jaxscape.arguments import blamed, checked
from jaxscape.directions import direction_between
from jaxscape.grid import Grid
from jaxscape.normalize import running_statistics
from jaxscape.objective import num_examples, refuse_inside_transform, rows_of
from jaxscape.sweep import Chart, Options, losses_on_grid, unresolved_share
from jaxscape.types import Data, LossFn, Params

SMALL = 1e-5
"""The least variance beyond the ends of a line: the usual epsilon of batch norm."""
_SAME = 1e-9  # what rounding makes of a coordinate
_POLICIES = ("interpolate", "frozen", "reestimate")
_BATCH = 128  # examples of a batch whose statistics are taken


@checked
def interpolate(
    params_a: Params,
    params_b: Params,
    loss_fn: LossFn | Mapping[str, LossFn],
    data: Data,
    *,
    grid: Grid | None = None,
    statistics: Literal["interpolate", "frozen", "reestimate"] | Callable[[Params, Data], Params] = "interpolate",
    statistics_data: Data = None,
    rtol: float | None = None,
    atol: float = 0.0,
    batch_size: int | Literal["auto"] = "auto",
    points_per_step: int | Literal["auto"] = "auto",
    mesh: Any = None,
    compute_dtype: str | None = None,
    check: bool = True,
    store: Any = None,
    seed: int = 0,
    progress: bool | None = None,
) -> xr.Dataset:
    """The loss on the straight line through two minimizers (paper sections 3 and 5; Goodfellow et al. 2015).

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
        data: Arrays with a common leading example axis; None for a loss without data.
        grid: Coordinates along the line; by default 401 points over [-0.5, 1.5].
        statistics: What becomes of running statistics: means and variances that stand beside each other in a module,
            under the names that Flax, Haiku, Keras and PyTorch give them.

            ``"interpolate"``: they are interpolated like weights. Beyond the ends a variance can become negative: there
            it is `SMALL`, or what it is at an end if that is less. ``attrs["clipped_points"]`` counts the points where
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
    params_a, params_b = _of_common_dtypes(params_a, params_b)
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
    policy = _policy(statistics, loss_fn, params_a, compute_dtype)
    if policy == "frozen":
        params_b = _with_statistics_of(params_a, params_b)
    alphas = grid.axes[0]
    ends: tuple[Params, Params] = (params_a, params_b)
    attrs: dict[str, Any] = {"statistics": policy} | ({} if rtol is None else {"seed": seed})
    share = unresolved_share(params_a, jax.tree.map(lambda x: x[None], direction_between(*ends)), grid, compute_dtype)
    attrs |= {} if share is None else {"unresolved_share": round(share, 3)}
    if (
        policy == "interpolate"
        and (alphas.min() < 0 or alphas.max() > 1)
        and "variance" in running_statistics(params_a)
    ):
        floor, clipped = _floors(*ends), _count_clipped(*ends, alphas)
        attrs |= {"clipped_points": int((clipped > 0).sum()), "clipped_variances": int(clipped.max())}
        loss_fn = _each(loss_fn, lambda f: lambda params, batch: f(_at_least(params, floor), batch))
    if policy == "reestimate":
        function: Any = statistics if callable(statistics) else _attribute(loss_fn, "batch_statistics")[0]
        points = alphas if 0 in alphas else np.append(alphas, 0.0)  # params_a is evaluated, too
        examples = data if statistics_data is None else statistics_data
        table = _reestimated(function, *ends, points, examples, progress)
        ends = ({"params": params_a, "alpha": jnp.zeros(())}, {"params": params_b, "alpha": jnp.ones(())})
        loss_fn = _each(loss_fn, lambda f: lambda whole, batch: f(_looked_up(whole, points, table), batch))
    return losses_on_grid(_line(*ends, grid), ends[0], loss_fn, data, options, attrs)


class Barrier(NamedTuple):
    """The barrier between the ends of a line.

    Attributes:
        value: Its height.
        stderr: Its standard error, at most.
        alpha: Where the line is highest.
    """

    value: float
    stderr: float
    alpha: float


@checked
def loss_barrier(line: xr.Dataset, *, metric: str = "loss") -> Barrier:
    """The height of the loss between two minimizers above the mean of both (Frankle et al. 2020, section 2).

    ``max over 0 <= alpha <= 1 of L(alpha) - (L(0) + L(1)) / 2``, over the points of the line: a barrier between two
    points is not seen. With the metric ``accuracy`` it is that of the error, ``1 - accuracy``.

    >>> import jax.numpy as jnp
    >>> double_well = lambda p, x: (p**2 - 1) ** 2 + 0 * x
    >>> line = interpolate(jnp.float32(-1), jnp.float32(1), double_well, jnp.ones(4), grid=Grid.line(0, 1, 5))
    >>> loss_barrier(line)
    Barrier(value=1.0, stderr=0.0, alpha=0.5)

    Args:
        line: A result of `interpolate` with points at alpha = 0 and 1.
        metric: One of its variables.

    Returns:
        The height and where it is; 0 where the line is nowhere above both ends' mean. The standard error is a bound,
        ``s(alpha) + (s(0) + s(1)) / 2``, which holds however the three losses, of the same examples, are correlated.
        That the highest of several uncertain points is taken adds a bias upwards, which it does not have in it. NaN
        where the line is not finite, or has no standard errors.

    Raises:
        ValueError: The line lacks the metric or an end, or has another dimension than ``alpha``.
        TypeError: It is no Dataset.
    """
    if not isinstance(line, xr.Dataset):
        raise TypeError(f"line is {type(line).__name__}, expected the Dataset of js.interpolate.")
    if metric not in line:
        raise ValueError(f"metric is {metric!r}, expected one of the variables of line {sorted(map(str, line))}.")
    if line[metric].ndim != 1:
        raise ValueError(
            f"line has the dimensions {line[metric].dims}, expected one, alpha, as js.interpolate gives it."
        )
    ends = [place for end in (0.0, 1.0) if (place := place_of(line, end)) is not None]
    if len(ends) < 2:
        raise ValueError(
            "line has no points at alpha = 0 and 1, expected both ends: js.Grid.line(0, 1, 51), for example."
        )
    alphas = line.alpha.values
    height = line[metric].values if metric != "accuracy" else 1 - line[metric].values
    error = line[f"{metric}_stderr"].values if f"{metric}_stderr" in line else np.full(len(alphas), np.nan)
    between = np.flatnonzero((alphas >= -_SAME) & (alphas <= 1 + _SAME))
    if not np.isfinite(height[between]).all():
        return Barrier(float("nan"), float("nan"), float("nan"))
    top = between[np.argmax(height[between])]
    value, stderr = height[top] - height[ends].mean(), error[top] + error[ends].mean()
    return Barrier(max(float(value), 0.0), float(stderr), float(alphas[top]))


def place_of(line: xr.Dataset, alpha: float) -> int | None:
    """Which point of a line has this coordinate, up to rounding.

    Args:
        line: A result over ``alpha``.
        alpha: The coordinate.

    Returns:
        Its number; None where there is none.
    """
    if not line.sizes.get("alpha"):
        return None
    nearest = int(np.abs(line.alpha.values - alpha).argmin())
    return nearest if abs(line.alpha.values[nearest] - alpha) <= _SAME else None


def _as_line(grid: Any) -> Grid:
    if grid is None:
        return Grid.line(-0.5, 1.5, 401)
    if not isinstance(grid, Grid):
        raise TypeError(f"grid is {type(grid).__name__}, expected a js.Grid, e.g. js.Grid.line(0, 1, 51).")
    if len(grid.axes) != 1:
        raise ValueError(f"grid has {len(grid.axes)} axes, expected one, e.g. js.Grid.line(0, 1, 51).")
    return grid


def _policy(statistics: Any, loss_fn: Any, params: Params, compute_dtype: str | None) -> str:
    """The policy's name; it is refused where its numbers would not be what they are taken for."""
    if not callable(statistics) and not (isinstance(statistics, str) and statistics in _POLICIES):
        raise ValueError(f"statistics is {statistics!r}, expected one of {', '.join(_POLICIES)}, or a function.")
    policy = "reestimate" if callable(statistics) else statistics
    known = {name for names in _attribute(loss_fn, "running_statistics") for name in names}
    missing = sorted(known - set(trees.leaf_names(params)))
    if policy == "interpolate" and missing:
        raise ValueError(
            f"params_a and params_b lack the {len(missing)} running statistics that loss_fn takes from its checkpoint "
            f"({missing[0]}, ...): at alpha = 1 the loss would not be that of params_b. Pass run.variables of both "
            "runs, or statistics='frozen' if you mean it."
        )
    if policy == "reestimate" and not callable(statistics) and not _attribute(loss_fn, "batch_statistics"):
        raise ValueError(
            "statistics is 'reestimate', but loss_fn does not say how: only that of js.load_run does. Pass a function "
            "statistics(params, batch) that gives the statistics of a batch."
        )
    if policy == "reestimate" and compute_dtype == "bfloat16":
        raise ValueError("statistics is 'reestimate' with compute_dtype='bfloat16'; expected another precision.")
    return policy


def _line(a: Params, b: Params, grid: Grid) -> Chart:
    """``(1 - alpha) * a + alpha * b``: unlike ``a + alpha * (b - a)`` it is b at alpha = 1 to the bit."""
    basis = jax.tree.map(lambda x, y: jnp.stack([x, y]), a, b)
    origin = jax.tree.map(jnp.zeros_like, a)
    attrs = {"directions": "params_b - params_a"}
    return Chart(grid, origin, basis, lambda points: np.concatenate([1 - points, points], axis=1), attrs)


def _each(loss_fn: Any, change: Callable[[LossFn], LossFn]) -> Any:
    """A loss, or each of several terms, changed."""
    return {name: change(f) for name, f in loss_fn.items()} if isinstance(loss_fn, Mapping) else change(loss_fn)


def _attribute(loss_fn: Any, name: str) -> list[Any]:
    """An attribute of a loss, or of each of several terms that has it."""
    functions = loss_fn.values() if isinstance(loss_fn, Mapping) else [loss_fn]
    return [getattr(function, name) for function in functions if hasattr(function, name)]


def _of_common_dtypes(a: Params, b: Params) -> tuple[Params, Params]:
    """Both ends with leaves that hold the values of both."""
    dtypes = jax.tree.map(lambda x, y: jnp.promote_types(x.dtype, y.dtype), a, b)
    return tuple(jax.tree.map(lambda x, dtype: jnp.asarray(x, dtype), tree, dtypes) for tree in (a, b))


def _with_statistics_of(a: Params, b: Params) -> Params:
    kinds = running_statistics(a)
    leaves, treedef = jax.tree.flatten(b)
    old = jax.tree.leaves(a)
    return jax.tree.unflatten(treedef, [x if kind else y for kind, x, y in zip(kinds, old, leaves, strict=True)])


def _floors(a: Params, b: Params) -> list[Array | None]:
    """For each leaf that is a variance its least values. Both ends have at least these, and do not change."""
    lowest = [jnp.minimum(x, y) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True)]
    return [  # what is negative at an end is a weight that has the name of a variance
        jnp.minimum(low, SMALL) if kind == "variance" and not (low < 0).any() else None
        for kind, low in zip(running_statistics(a), lowest, strict=True)
    ]


def _at_least(params: Params, floors: list[Array | None]) -> Params:
    leaves, treedef = jax.tree.flatten(params)
    raised = [x if f is None else jnp.maximum(x, f.astype(x.dtype)) for x, f in zip(leaves, floors, strict=True)]
    return jax.tree.unflatten(treedef, raised)


def _count_clipped(a: Params, b: Params, alphas: np.ndarray) -> np.ndarray:
    """How many variances are below their floors, at each point."""
    counts = np.zeros(len(alphas), int)
    for floor, x, y in zip(_floors(a, b), *map(jax.tree.leaves, (a, b)), strict=True):
        if floor is not None:
            x, y, floor = (np.asarray(value, np.float64).ravel() for value in (x, y, floor))
            least = floor - _SAME * np.maximum(x, y)
            counts += [int(((1 - alpha) * x + alpha * y < least).sum()) for alpha in alphas]
    return counts


def _reestimated(
    statistics: Callable[[Params, Data], Params],
    a: Params,
    b: Params,
    alphas: np.ndarray,
    data: Data,
    progress: bool | None,
) -> Params:
    """The statistics at each point, along a leading axis: means over the batches, weighted by their examples."""
    examples = num_examples(data, "statistics_data")
    starts = range(0, examples, _BATCH)
    with blamed("statistics", "with params and a batch of data"):
        result = jax.eval_shape(statistics, a, rows_of(data, slice(0, _BATCH)))
    shapes = trees.named_shapes(a)
    whole = trees.overlay(a, result)
    structures: list[Any] = [jax.tree.structure(tree) for tree in (whole, a)]
    same = structures[0] == structures[1] and trees.named_shapes(whole) == shapes
    if not same or not result:
        raise ValueError(
            "statistics returned something else than nested dicts with some of the leaves of params, in their shapes: "
            f"{trees.named_shapes(result)}; params have {shapes}."
        )

    @jax.jit
    def of_batch(alpha: Array, batch: Data) -> Params:
        return statistics(trees.displace(*_line_at(a, b), jnp.stack([1 - alpha, alpha])), batch)

    weights = np.diff([*starts, examples]) / examples

    def mean(*parts: Array) -> Array:
        return jnp.asarray(sum(w * x for w, x in zip(weights, parts, strict=True)), parts[0].dtype)

    rows = []
    shown = None if progress is None else not progress
    for alpha in tqdm(alphas, desc="statistics", unit="point", disable=shown):
        parts = [of_batch(jnp.asarray(float(alpha)), rows_of(data, slice(i, i + _BATCH))) for i in starts]
        rows.append(jax.tree.map(mean, *parts))
    return jax.tree.map(lambda *xs: jnp.stack(xs), *rows)


def _line_at(a: Params, b: Params) -> tuple[Params, Params]:
    chart = _line(a, b, Grid.line(0, 1, 2))
    return chart.origin, chart.basis


def _looked_up(whole: Params, alphas: np.ndarray, table: Params) -> Params:
    """Params at a point with the statistics of this point: the leaf ``alpha`` says which it is."""
    point = jnp.argmin(jnp.abs(whole["alpha"] - jnp.asarray(alphas, whole["alpha"].dtype)))
    return trees.overlay(whole["params"], jax.tree.map(lambda x: x[point], table))
