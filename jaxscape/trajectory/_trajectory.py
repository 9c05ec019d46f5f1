"""The path of training on the surface it walked, in one call (paper section 7, figures 8 and 9)."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import xarray as xr
from jax.sharding import Mesh

from jaxscape import checks, engine, trees
from jaxscape.directions import Directions, as_directions
from jaxscape.grid import Grid
from jaxscape.meshes import outside_meshes
from jaxscape.objective import DATA_AXIS, Objective
from jaxscape.surface import surface
from jaxscape.trajectory._checkpoints import as_path
from jaxscape.trajectory._pca import Center, pca_directions
from jaxscape.trajectory._project import project
from jaxscape.types import Data, Ignore, LossFn, Params


class _Path(NamedTuple):
    """What is walked: the checkpoints as they are projected, and whole, as their own loss needs them."""

    checkpoints: Sequence[Params]
    whole: Sequence[Params]
    loss_fn: LossFn
    data: Data
    epochs: Sequence[float] | None
    drops: Iterable[float]


@outside_meshes
def trajectory(
    run: Any,
    loss_fn: LossFn | None = None,
    data: Data | None = None,
    *,
    directions: Directions | Any = None,
    origin: Params | None = None,
    center: Center = "last",
    ignore: Ignore = None,
    batch_stats: bool = False,
    grid: Grid | None = None,
    points: int | tuple[int, int] = 25,
    margin: float = 0.15,
    epochs: Sequence[float] | None = None,
    drops: Iterable[float] | None = None,
    progress: bool | None = None,
    **options: Any,
) -> xr.Dataset:
    """The path of training in its principal plane, with the loss around it and along it (paper section 7.2, figure 9).

    >>> import jax.numpy as jnp
    >>> path = [{"w": jnp.array([x, x**2, 0.0])} for x in (3.0, 2.0, 1.0, 0.0)]
    >>> ds = trajectory(path, lambda p, x: x * (p["w"] ** 2).sum(), jnp.ones(4), points=5, progress=False)
    >>> ds.loss.shape, ds.coordinates.shape, bool(abs(ds.true_loss - ds.in_plane_loss).max() < 1e-4)
    ((5, 5), (4, 2), True)

    Args:
        run: A run, as `load_run` gives it; or checkpoints, params in the order of training, which are read several
            times, one at a time. These are one of:

            - a sequence of pytrees. An iterator can be read only once and is refused.
            - a pytree that `jax.lax.scan` has stacked: each leaf has one more leading axis. A list or tuple is a
              sequence, unless it has the leaves of ``origin`` (or of ``directions``, if they are Directions) with that
              axis.
            - the path of a folder of orbax checkpoints, written by a `CheckpointManager` (its item ``params``,
              ``state``, ``default`` or ``pytree``) or as folders of steps. Of a pytree with the entry ``params``
              beside others, such as ``opt_state``, the params are read, unless the whole has the leaves of ``origin``.
              They get the structure of ``origin``: pass ``origin=nnx.state(model)`` where ``loss_fn`` needs an NNX
              state, which orbax gives as nested dicts.
            - a function without arguments that makes an iterator of params.
        loss_fn: As in `surface`; None: the run's.
        data: As in `surface`; None: the run's train split.
        directions: As in `surface`, for another plane, e.g. random ones (figure 8); None: the first two of
            `pca_directions`.
        origin: Where the coordinates are 0; None: the last checkpoint.
        center: As in `pca_directions`.
        ignore: As in `pca_directions`.
        batch_stats: Of a run: whether the running statistics of batch norm are coordinates, too. Otherwise the
            surface and ``in_plane_loss`` have those of the last checkpoint everywhere.
        grid: Where the surface is; None: ``points`` along each axis, 0 among them, over the path and a margin.
        points: How many, or how many along each axis; at least 3.
        margin: Around the path, in parts of its extent along each axis.
        epochs: Of each checkpoint; None: the run's.
        drops: Epochs after which the learning rate fell; None: those of the run's metrics.
        progress: True or False for progress bars; None for some on terminals and in notebooks.
        **options: Further options of `surface`.

    Returns:
        The Dataset of `surface` over ``alpha`` and ``beta`` joined with that of `project` over ``step`` and ``axis``;
        beside them, over ``step``: ``true_loss``, the loss at the checkpoint itself (with its own batch statistics);
        ``in_plane_loss``, that at ``origin + sum_k coordinates[k] * directions[k]``, which the picture shows under the
        dot; ``epoch``, if known, and ``lr_drop``, whether the learning rate fell after it; and
        ``explained_variance_ratio`` over ``component`` if the directions are principal ones.

    Raises:
        ValueError: As in `pca_directions`, `project` and `surface`; ``points`` or ``margin`` is out of its range,
            there are not two directions and no grid, ``epochs`` has another length than there are checkpoints, or
            ``batch_stats`` is asked of bare checkpoints.
        TypeError: ``loss_fn`` or ``data`` is missing beside bare checkpoints, or these are an iterator or none of the
            above.
        FileNotFoundError: There is no such folder of checkpoints.
        ImportError: A folder of checkpoints needs orbax, which is not installed.
    """
    like = directions[0] if origin is None and isinstance(directions, Directions) else origin
    path = _path(run, loss_fn, data, like, batch_stats, epochs, drops)
    counts = (points, points) if isinstance(points, int) else tuple(points)
    if len(counts) != 2 or min(counts) < 3:
        raise ValueError(f"points is {points!r}, expected at least 3, or two such numbers.")
    if not margin >= 0:
        raise ValueError(f"margin is {margin}, expected at least 0.")
    if not len(path.checkpoints):
        raise ValueError("checkpoints is empty; expected at least one.")
    origin = checks.as_params(path.checkpoints[-1] if origin is None else origin, "origin")
    extra: dict[str, Any] = {}
    if directions is None:
        directions, ratio = pca_directions(path.checkpoints, center=center, ignore=ignore, progress=progress)
        told = {"long_name": "share of each principal component in the path's variance"}
        extra["explained_variance_ratio"] = ("component", ratio, told)
    directions = as_directions(directions, origin)
    if grid is None and len(directions) != 2:
        raise ValueError(
            f"grid is missing: {len(directions)} directions have no default grid; pass e.g. js.Grid(axes)."
        )
    losses: list[float] = []
    check = options.get("check", True)
    walked = project(_measured(path, origin, losses, check), origin, directions, progress=progress)
    coords = walked.coordinates.values
    if grid is None:
        grid = Grid(tuple(_axis(column, count, margin) for column, count in zip(coords.T, counts, strict=True)))
    found = surface(origin, path.loss_fn, path.data, directions=directions, grid=grid, progress=progress, **options)
    objective = Objective.of(path.loss_fn, origin, path.data, check=False)  # checked by the surface
    in_plane = engine.evaluate(objective, origin, directions.basis, coords, mesh=options.get("mesh"), progress=False)
    extra |= {
        "true_loss": ("step", np.array(losses), {"long_name": "mean loss at the checkpoint"}),
        "in_plane_loss": ("step", in_plane.metrics["loss"].mean, {"long_name": "mean loss at its place in the plane"}),
    }
    if path.epochs is not None:
        extra["epoch"] = ("step", np.asarray(path.epochs, float))
        extra["lr_drop"] = ("step", _marked(np.asarray(path.epochs, float), path.drops))
    joined = found.assign(walked.data_vars).assign(extra).assign_coords(walked.coords)
    return joined.assign_attrs(walked.attrs)


def _path(
    run: Any,
    loss_fn: LossFn | None,
    data: Data | None,
    like: Params | None,
    batch_stats: bool,
    epochs: Sequence[float] | None,
    drops: Iterable[float] | None,
) -> _Path:
    """A run's parts, or what was passed instead of them."""
    if hasattr(run, "checkpoints"):
        whole = run.checkpoints.with_batch_stats()
        path = _Path(
            whole if batch_stats else run.checkpoints,
            whole,
            loss_fn or run.loss_fn,
            run.data if data is None else data,
            run.checkpoints.epochs if epochs is None else epochs,
            _falls(run.metrics) if drops is None else drops,
        )
    else:
        for name, value in (("loss_fn", loss_fn), ("data", data)):
            if value is None:
                raise TypeError(f"{name} is missing: checkpoints alone have none; pass it, or a run of js.load_run.")
        if batch_stats:
            raise ValueError("batch_stats is True, but bare checkpoints have what they have; put the statistics there.")
        checkpoints = as_path(run, like, "run")
        path = _Path(checkpoints, checkpoints, loss_fn, data, epochs, drops or ())  # type: ignore[arg-type]
    if path.epochs is not None and len(path.epochs) != len(path.checkpoints):
        raise ValueError(f"epochs has {len(path.epochs)} entries for {len(path.checkpoints)} checkpoints.")
    return path


def _falls(metrics: Sequence[dict[str, float]]) -> list[float]:
    """The epochs after which the rate is at most half of what it was."""
    pairs = zip(metrics[:-1], metrics[1:], strict=True)
    return [a["epoch"] for a, b in pairs if a["epoch"] > 0 and b["lr"] <= 0.5 * a["lr"]]


def _marked(epochs: np.ndarray, drops: Iterable[float]) -> np.ndarray:
    """The last checkpoint before each drop."""
    marked = np.zeros(len(epochs), bool)
    for drop in drops:
        before = np.flatnonzero(epochs <= drop)
        marked[before[-1:]] = True
    return marked


def _measured(path: _Path, origin: Params, losses: list[float], check: bool) -> Iterator[Params]:
    """The checkpoints; the loss of each goes into the list while it is in memory."""
    mesh = Mesh(np.array(jax.devices()), (DATA_AXIS,))
    objective: Objective | None = None
    for whole in path.whole:
        if objective is None:
            objective = Objective.of(path.loss_fn, checks.as_params(whole, "checkpoints[0]"), path.data, check=check)
        losses.append(engine.mean_metrics(objective, whole, mesh=mesh)["loss"])
        yield whole if path.whole is path.checkpoints else trees.restrict(whole, origin)


def _axis(coords: np.ndarray, count: int, margin: float) -> np.ndarray:
    """So many evenly spaced coordinates over the path and a margin, one of them exactly 0."""
    finite = coords[np.isfinite(coords)]
    low, high = min(finite.min(initial=0), 0), max(finite.max(initial=0), 0)
    extent = (high - low) or 1.0
    low, high = low - max(margin, 1e-3) * extent, high + max(margin, 1e-3) * extent
    step = (high - low) / (count - 2)
    return (np.arange(count) - np.ceil(-low / step)) * step
