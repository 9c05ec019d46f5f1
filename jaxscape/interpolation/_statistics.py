"""What becomes of the running statistics of batch norm along a line or a curve."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from tqdm.auto import tqdm

from jaxscape import trees
from jaxscape.arguments import blamed
from jaxscape.normalize import running_statistics
from jaxscape.objective import num_examples, refuse_stream, rows_of
from jaxscape.sweep import Chart
from jaxscape.types import Data, LossFn, Params

SMALL = 1e-5
"""The least variance beyond the ends of a line: the usual epsilon of batch norm."""
_ROUNDING = 1e-9  # relative to a variance
_POLICIES = ("interpolate", "frozen", "reestimate")
_BATCH = 128  # examples of a batch whose statistics are taken


def policy_of(statistics: Any, loss_fn: Any, params: Params, compute_dtype: str | None) -> str:
    """The name of a policy; it is refused where its numbers would not be what they are taken for.

    Args:
        statistics: What the caller passed, the name or a function.
        loss_fn: The loss, or several terms.
        params: One end of the line.
        compute_dtype: As in `jaxscape.surface`.

    Returns:
        The name.

    Raises:
        ValueError: The policy is unknown, or does not fit the loss, the params or the precision.
    """
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


def each_term(loss_fn: Any, change: Callable[[LossFn], LossFn]) -> Any:
    """A loss, or each of several terms, changed."""
    return {name: change(f) for name, f in loss_fn.items()} if isinstance(loss_fn, Mapping) else change(loss_fn)


def statistics_function(statistics: Any, loss_fn: Any) -> Callable[[Params, Data], Params]:
    """The function that computes the statistics of a batch: the caller's, or that of the loss of a run."""
    return statistics if callable(statistics) else _attribute(loss_fn, "batch_statistics")[0]


def _attribute(loss_fn: Any, name: str) -> list[Any]:
    """An attribute of a loss, or of each of several terms that has it."""
    functions = loss_fn.values() if isinstance(loss_fn, Mapping) else [loss_fn]
    return [getattr(function, name) for function in functions if hasattr(function, name)]


def with_statistics_of(a: Params, b: Params) -> Params:
    """The params b with the running statistics of a."""
    kinds = running_statistics(a)
    leaves, treedef = jax.tree.flatten(b)
    old = jax.tree.leaves(a)
    return jax.tree.unflatten(treedef, [x if kind else y for kind, x, y in zip(kinds, old, leaves, strict=True)])


def clipped(chart: Chart, loss_fn: Any) -> tuple[Any, dict[str, int]]:
    """The loss with variances that do not fall below a floor, and how many points and variances that concerns.

    Args:
        chart: The points.
        loss_fn: The loss, or several terms.

    Returns:
        The loss, and attributes of the result; both as they were where nothing can fall below.
    """
    weights = chart.coords(chart.grid.points())
    if (weights >= 0).all() or "variance" not in running_statistics(chart.origin):
        return loss_fn, {}
    floors = _floors(chart.basis)
    counts = np.zeros(len(weights), int)
    for floor, corners in zip(floors, jax.tree.leaves(chart.basis), strict=True):
        if floor is not None:
            values = np.asarray(corners, np.float64)
            least = np.asarray(floor, np.float64) - _ROUNDING * values.max(0)
            counts += [int((np.tensordot(row, values, 1) < least).sum()) for row in weights]
    attrs = {"clipped_points": int((counts > 0).sum()), "clipped_variances": int(counts.max())}
    return each_term(loss_fn, lambda f: lambda params, batch: f(_at_least(params, floors), batch)), attrs


def _floors(basis: Params) -> list[Array | None]:
    """For each leaf that is a variance its least values. All corners have at least these, and do not change."""
    origin = jax.tree.map(lambda x: x[0], basis)
    lowest = [x.min(0) for x in jax.tree.leaves(basis)]
    return [  # what is negative at a corner is a weight that has the name of a variance
        jnp.minimum(low, SMALL) if kind == "variance" and not (low < 0).any() else None
        for kind, low in zip(running_statistics(origin), lowest, strict=True)
    ]


def _at_least(params: Params, floors: list[Array | None]) -> Params:
    leaves, treedef = jax.tree.flatten(params)
    raised = [x if f is None else jnp.maximum(x, f.astype(x.dtype)) for x, f in zip(leaves, floors, strict=True)]
    return jax.tree.unflatten(treedef, raised)


def reestimated(
    statistics: Callable[[Params, Data], Params], chart: Chart, data: Data, progress: bool | None
) -> tuple[np.ndarray, Params]:
    """The statistics at each point of a chart: means over the batches of data, weighted by their examples.

    Args:
        statistics: Those of a batch.
        chart: The points; the first corner is added to them, since it is evaluated, too.
        data: Examples.
        progress: Whether to show a bar; None: where there is a terminal.

    Returns:
        Coordinates, and the statistics along a leading axis.

    Raises:
        ValueError: ``statistics`` gives something else than leaves of params.
    """
    refuse_stream(data, "statistics_data")
    examples = num_examples(data, "statistics_data")
    starts = range(0, examples, _BATCH)
    with blamed("statistics", "with params and a batch of data"):
        result = jax.eval_shape(statistics, chart.origin, rows_of(data, slice(0, _BATCH)))
    shapes = trees.named_shapes(chart.origin)
    whole = trees.overlay(chart.origin, result)
    structures: list[Any] = [jax.tree.structure(tree) for tree in (whole, chart.origin)]
    same = structures[0] == structures[1] and trees.named_shapes(whole) == shapes
    if not same or not result:
        raise ValueError(
            "statistics returned something else than nested dicts with some of the leaves of params, in their shapes: "
            f"{trees.named_shapes(result)}; params have {shapes}."
        )

    @jax.jit
    def of_batch(origin: Params, basis: Params, weights: Array, batch: Data) -> Params:
        return statistics(trees.displace(origin, basis, weights), batch)

    shares = np.diff([*starts, examples]) / examples

    def mean(*parts: Array) -> Array:
        return jnp.asarray(sum(w * x for w, x in zip(shares, parts, strict=True)), parts[0].dtype)

    alphas = chart.grid.axes[0]
    alphas = alphas if 0 in alphas else np.append(alphas, 0.0)
    rows = []
    shown = None if progress is None else not progress
    for weights in tqdm(chart.coords(alphas[:, None]), desc="statistics", unit="point", disable=shown):
        at = (chart.origin, chart.basis, jnp.asarray(weights))
        rows.append(jax.tree.map(mean, *(of_batch(*at, rows_of(data, slice(i, i + _BATCH))) for i in starts)))
    return alphas, jax.tree.map(lambda *xs: jnp.stack(xs), *rows)


def looked_up(whole: Params, alphas: np.ndarray, table: Params) -> Params:
    """Params at a point with the statistics of this point: the leaf ``alpha`` says which it is."""
    point = jnp.argmin(jnp.abs(whole["alpha"] - jnp.asarray(alphas, whole["alpha"].dtype)))
    return trees.overlay(whole["params"], jax.tree.map(lambda x: x[point], table))
