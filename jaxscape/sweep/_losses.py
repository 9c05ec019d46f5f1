"""The losses of an objective over a grid, however a point of the grid becomes params."""

import functools
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from jax.sharding import Mesh

from jaxscape import checks, engine, trees
from jaxscape.engine import Evaluation
from jaxscape.grid import Grid
from jaxscape.objective import Objective, Placement, as_batch_size
from jaxscape.sweep._adaptive import Goal
from jaxscape.sweep._blocks import columns_of, evaluation_of, in_blocks
from jaxscape.sweep._grid import check_names, to_dataset
from jaxscape.sweep._layout import Layout
from jaxscape.sweep._provenance import inputs, provenance
from jaxscape.sweep._record import to_tolerance
from jaxscape.sweep._refine import ERROR, EVALUATED, LONG_NAMES, as_goal, in_rounds, in_words, refined_columns
from jaxscape.sweep._store import Store
from jaxscape.sweep._tolerances import as_tolerances, check_names_of, in_short
from jaxscape.types import Data, LossFn, Params

SAMPLE = "levels of priority samples"  # a store of the tolerance mode before that has other error bars
CHUNK = 128  # points that share a file of a store, at most


class Chart(NamedTuple):
    """The params ``origin + sum_k c[k] * basis[k]`` of a point with the coordinates ``c = coords(point)``.

    Attributes:
        grid: The points.
        origin: A pytree of floating arrays.
        basis: A pytree like origin with a leading axis on each leaf.
        coords: Takes points of the grid, shape ``(points, axes)``.
        attrs: What the directions are, for the attributes of the result.
        kind: What a store calls the points: the same basis can be used in other ways.
    """

    grid: Grid
    origin: Params
    basis: Params
    coords: Callable[[np.ndarray], np.ndarray] = lambda points: points
    attrs: Mapping[str, Any] = {}
    kind: str = "surface"


class Options(NamedTuple):
    """How the losses are evaluated; each as in `jaxscape.surface`."""

    rtol: Mapping[str, float] | None
    atol: Mapping[str, float]
    load: tuple[int | None, int | None]
    mesh: Mesh | None
    compute_dtype: str | None
    check: bool
    store: str | Path | None
    seed: int
    progress: bool | None
    refine: Goal | None = None
    preview: Callable[[xr.Dataset], Any] | None = None

    @classmethod
    def of(
        cls, *, rtol: Any, atol: Any, batch_size: Any, points_per_step: Any, refine: Any = None, **options: Any
    ) -> "Options":
        """Check the options of a call.

        Args:
            rtol: Relative tolerance, or one for each metric by name; None: exact.
            atol: Absolute tolerance, or one for each metric by name.
            batch_size: Examples in one call of the loss, at most, or ``"auto"``.
            points_per_step: Points side by side, or ``"auto"``.
            refine: What an adaptive grid must show right; None: no adaptive grid.
            **options: All others.

        Returns:
            The options.

        Raises:
            ValueError: One of them is out of its range.
            TypeError: One of them is of another type.
        """
        load = (as_batch_size(batch_size), _as_points_per_step(points_per_step))
        relative = None if rtol is None else as_tolerances(rtol, "rtol")
        result = cls(relative, as_tolerances(atol, "atol"), load=load, refine=as_goal(refine), **options)
        if rtol is None and any(result.atol.values()):
            raise ValueError(
                f"atol is {atol!r}, but rtol is None, which is exact; pass rtol=0.0 for an absolute tolerance."
            )
        if refine is not None and rtol is not None:
            raise ValueError(
                f"refine is {refine!r} and rtol is {rtol!r}; expected one of them: either fewer points, or fewer "
                "examples at each."
            )
        if result.preview is not None and (refine is None or not callable(result.preview)):
            raise ValueError(
                f"preview is {result.preview!r} with refine={refine!r}; expected a function of a Dataset, and refine, "
                "whose rounds it shows."
            )
        checks.check_count(result.seed, "seed", 0)
        checks.check_mesh(result.mesh)
        return result


def losses_on_grid(
    chart: Chart,
    params: Params,
    loss_fn: LossFn | Mapping[str, LossFn],
    data: Data,
    options: Options,
    attrs: Mapping[str, Any],
) -> xr.Dataset:
    """The mean of every metric at every point of a chart.

    Args:
        chart: The points.
        params: Those with the coordinates 0, where the loss is checked.
        loss_fn: As in `jaxscape.surface`.
        data: As in `jaxscape.surface`.
        options: How it is evaluated.
        attrs: Further attributes of the result.

    Returns:
        A dataset as `jaxscape.surface` gives it.
    """
    grid, rtol = chart.grid, options.rtol
    start = time.perf_counter()
    objective = Objective.of(
        loss_fn, params, data, compute_dtype=options.compute_dtype, check=options.check, batch_size=options.load[0]
    )
    reserved = grid.names if options.refine is None else (*grid.names, EVALUATED, ERROR)
    check_names(objective.metrics, reserved, stored=options.store is not None)
    for name, tolerances in (("rtol", rtol or {}), ("atol", {} if rtol is None else options.atol)):
        check_names_of(tolerances, objective.metrics, name)

    @functools.cache
    def hashes() -> dict[str, Any]:  # of a stream they are known when it has been read: not before the work
        return inputs(objective, chart.origin, chart.basis)

    @functools.cache
    def made_by() -> dict[str, Any]:
        return {**chart.attrs, **attrs, **provenance(hashes(), params)}

    points, center = _with_center(grid)
    where = (objective, chart.origin, chart.basis, chart.coords(points))
    running: dict[str, Any] = {"load": options.load, "mesh": options.mesh, "progress": options.progress}
    tolerance = None
    if rtol is not None:
        tolerance = engine.Tolerance(rtol, _positive(options.atol), options.seed, _levels(grid, center))

    def result_of(evaluation: Evaluation) -> xr.Dataset:
        result = _dataset(evaluation, grid, center)
        result.attrs |= {
            **made_by(),
            "seconds": round(time.perf_counter() - start, 3),
            **({} if rtol is None else {**_tolerance_attrs("rtol", rtol), **_tolerance_attrs("atol", options.atol)}),
            **_load_attrs(evaluation),
            "compute_dtype": str(options.compute_dtype),
            "num_devices": Placement.of(chart.origin, options.mesh).mesh.size,
        }
        return result

    if options.refine is not None:
        return _refined(where, chart, options, running, hashes, made_by, result_of, center)
    if options.store is None:
        if tolerance is None:
            return result_of(engine.evaluate(*where, **running))
        return result_of(engine.estimate(*where, tolerance, **running))
    layout = Layout.of(grid, columns_of(objective, len(points)), CHUNK)
    recipe = {"method": chart.kind, **hashes()}
    if rtol is not None:
        recipe |= {"rtol": in_short(rtol), "atol": in_short(options.atol), "seed": options.seed, "sample": SAMPLE}
    with Store(options.store, recipe, layout, _long_names(objective.metrics), made_by()) as store:
        if tolerance is None:
            result = result_of(in_blocks(*where, store, **running))
        else:
            result = result_of(to_tolerance(*where, tolerance, store, **running))
        return result.assign_attrs(store.finish(result.attrs))


def _refined(
    where: tuple[Objective, Params, Params, np.ndarray],
    chart: Chart,
    options: Options,
    running: Mapping[str, Any],
    hashes: Callable[[], Mapping[str, Any]],
    made_by: Callable[[], Mapping[str, Any]],
    result_of: Callable[[Evaluation], xr.Dataset],
    center: int,
) -> xr.Dataset:
    """The result on an adaptive grid."""
    (objective, *_, coords), grid, goal = where, chart.grid, options.refine
    assert goal is not None

    def dataset(columns: Mapping[str, np.ndarray], loads: Any = MappingProxyType({})) -> xr.Dataset:
        result = result_of(evaluation_of(columns, objective)._replace(loads=dict(loads)))
        num = int(np.prod(grid.shape))
        more = to_dataset({name: columns[name][:num] for name in (EVALUATED, ERROR)}, grid, LONG_NAMES)
        result = result.assign(more.data_vars)
        return result.assign_attrs(refine=in_words(goal), evaluated_points=int(columns[EVALUATED].sum()))

    preview = options.preview
    show = None if preview is None else lambda columns: preview(dataset(columns))
    if options.store is None:
        return dataset(*in_rounds(*where, grid, goal, None, **running, preview=show))
    layout = Layout.of(grid, refined_columns(objective, len(coords)), CHUNK)
    # The points depend on the whole grid, so no larger grid can take them over.
    digest = trees.fingerprint(dict(zip(grid.names, grid.axes, strict=True)))
    recipe = {"method": chart.kind, **hashes(), "refine": in_words(goal), "refined grid": digest}
    names = {**_long_names(objective.metrics), **LONG_NAMES}
    with Store(options.store, recipe, layout, names, made_by()) as store:
        result = dataset(*in_rounds(*where, grid, goal, store, **running, preview=show))
        return result.assign_attrs(store.finish(result.attrs))


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


def _levels(grid: Grid, center: int) -> np.ndarray:
    """The level of each point; params itself is of the first one."""
    levels = engine.levels(grid.shape).ravel()
    levels = np.pad(levels, (0, int(center == len(levels))))
    levels[center] = 0
    return levels


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


def _positive(tolerances: Mapping[str, float]) -> dict[str, float]:
    """An absolute tolerance of 0 is none."""
    return {metric: value for metric, value in tolerances.items() if value}


def _tolerance_attrs(name: str, tolerances: Mapping[str, float]) -> dict[str, float]:
    """Those of the loss under the name itself, those of other metrics with theirs."""
    return {name if metric == "loss" else f"{name}_{metric}": value for metric, value in tolerances.items()}


def _load_attrs(evaluation: Evaluation) -> dict[str, int]:
    """How much went side by side; of several terms, with their names."""
    return {
        f"{name}_{term}" if term else name: value
        for term, load in evaluation.loads.items()
        for name, value in load._asdict().items()
    }
