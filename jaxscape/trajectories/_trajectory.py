"""The path of training and the loss surface around it, in one call (paper section 7, figures 8 and 9)."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import xarray as xr
from jax.sharding import Mesh

from jaxscape import checks, engine, trees
from jaxscape.arguments import checked
from jaxscape.directions import Directions, as_directions
from jaxscape.grid import Grid
from jaxscape.objective import DATA_AXIS, Objective
from jaxscape.shards import mesh_of_shards
from jaxscape.subspace import Subspace
from jaxscape.surfaces import surface
from jaxscape.sweep import check_names
from jaxscape.trajectories._checkpoints import as_path
from jaxscape.trajectories._pca import Center, pca_directions
from jaxscape.trajectories._project import project
from jaxscape.types import Data, Ignore, LossFn, Params

VARIABLES = (
    *("step", "axis", "coordinates", "distance", "off_plane_distance", "step_cosine", "axis_variance"),
    *("true_loss", "in_plane_loss", "epoch", "lr_drop", "component", "explained_variance_ratio"),
)
"""What the result has beside the surface."""


class _Path(NamedTuple):
    """The parts of a path: the checkpoints to project, and the whole checkpoints, which their own loss needs."""

    checkpoints: Sequence[Params]
    whole: Sequence[Params]
    loss_fn: LossFn
    data: Data
    epochs: Sequence[float] | None
    drops: Iterable[float]


@checked
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
        run: A run, as `load_run` returns it; or checkpoints: params in the order of training, which are read several
            times, one at a time. Checkpoints have one of these forms:

            - a sequence of pytrees. An iterator is refused, because it can be read only once.
            - a pytree stacked by `jax.lax.scan`: each leaf has one additional leading axis. A list or a tuple counts
              as a sequence, unless it has the leaves of ``origin`` (or of ``directions``, if these are `Directions`)
              with this additional axis.
            - the path of a folder of orbax checkpoints, written by a `CheckpointManager` (its item ``params``,
              ``state``, ``default`` or ``pytree``) or as folders of steps. If the saved pytree has the entry
              ``params`` and other entries, such as ``opt_state``, only ``params`` is read, unless the whole pytree has
              the leaves of ``origin``. The params get the structure of ``origin``: orbax restores an NNX state as
              nested dicts, so pass ``origin=nnx.state(model)`` if ``loss_fn`` needs an NNX state.
            - a function without arguments that returns an iterator of params.
        loss_fn: ``loss_fn(params, batch)`` -> the loss of each example, shape ``(batch,)``; or a dict of such vectors
            with the key ``"loss"``; or the other forms that `surface` accepts. None: the loss of the run.
        data: A pytree of arrays with a common leading example axis, for example ``(images, labels)``; or the other
            forms that `surface` accepts. None: the train split of the run.
        directions: The directions of the plane: `Directions`, one pytree like the checkpoints, or a sequence of such
            pytrees, for example random directions (figure 8). None: the first two of `pca_directions`.
        origin: The params where the coordinates are 0; None: the last checkpoint.
        center: How principal directions are centered. ``"last"``: on the last checkpoint, as in the paper.
            ``"mean"``: on the mean of the checkpoints, as in textbooks.
        ignore: Which leaves have no part in principal directions: None, all leaves take part; ``"bias_norm"``, biases
            and normalization parameters are left out; or a predicate on (path, leaf) that is true for a leaf to leave
            out.
        batch_stats: Whether the running statistics of batch norm of a run are coordinates too. False: the surface and
            ``in_plane_loss`` use the statistics of the last checkpoint everywhere.
        grid: The coordinates of the surface. None: ``points`` evenly spaced coordinates along each axis, which include
            0 and cover the path with a margin.
        points: The number of points along each axis: one number for both axes, or one number for each; at least 3.
        margin: The margin around the path, as a fraction of the path's extent along each axis.
        epochs: The epoch of each checkpoint; None: the epochs of the run.
        drops: The epochs after which the learning rate fell; None: those in the metrics of the run.
        progress: True or False turns the progress bars on or off; None shows them on terminals and in notebooks.
        **options: Further options of `surface`, such as ``batch_size``, ``mesh``, ``compute_dtype`` or ``store``.

    Returns:
        The Dataset of `surface` over ``alpha`` and ``beta``, joined with the Dataset of `project` over ``step`` and
        ``axis``, and these further variables:

        - ``true_loss`` ``(step,)``, the loss at the checkpoint itself (with its own batch statistics);
        - ``in_plane_loss`` ``(step,)``, the loss at ``origin + sum_k coordinates[k] * directions[k]``, the point where
          a picture draws the checkpoint;
        - ``epoch`` and ``lr_drop`` ``(step,)``, if the epochs are known; ``lr_drop`` says whether the learning rate
          fell after this checkpoint;
        - ``explained_variance_ratio`` ``(component,)``, if the directions are principal directions.

    Raises:
        ValueError: `pca_directions`, `project` or `surface` refuses its arguments, ``points`` or ``margin`` is out of
            range, there is no grid and the number of directions is not two, the length of ``epochs`` is not the number
            of checkpoints, or ``batch_stats`` is True without a run.
        TypeError: ``loss_fn`` or ``data`` is missing and ``run`` is not a run, or the checkpoints are an iterator or
            have none of the forms above.
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
    objective = Objective.of(path.loss_fn, origin, path.data, check=False)  # the surface checks it
    check_names(objective.metrics, VARIABLES)
    extra: dict[str, Any] = {}
    if directions is None:
        directions, ratio = pca_directions(path.checkpoints, center=center, ignore=ignore, progress=progress)
        attrs = {"long_name": "share of each principal component in the path's variance"}
        extra["explained_variance_ratio"] = ("component", ratio, attrs)
    directions = as_directions(directions, origin)
    if grid is None and len(directions) != 2:
        raise ValueError(
            f"grid is missing: {len(directions)} directions have no default grid; pass e.g. js.Grid(axes)."
        )
    losses: list[float] = []
    check = options.get("check", True)
    projection = project(_with_losses(path, origin, losses, check), origin, directions, progress=progress)
    coords = projection.coordinates.values
    if grid is None:
        grid = Grid(tuple(_axis(column, count, margin) for column, count in zip(coords.T, counts, strict=True)))
    result = surface(origin, path.loss_fn, path.data, directions=directions, grid=grid, progress=progress, **options)
    in_plane = engine.evaluate(objective, origin, directions.operand, coords, mesh=options.get("mesh"), progress=False)
    extra |= {
        "true_loss": ("step", np.array(losses), {"long_name": "mean loss at the checkpoint"}),
        "in_plane_loss": ("step", in_plane.metrics["loss"].mean, {"long_name": "mean loss at its place in the plane"}),
    }
    if path.epochs is not None:
        extra["epoch"] = ("step", np.asarray(path.epochs, float))
        extra["lr_drop"] = ("step", _last_before(np.asarray(path.epochs, float), path.drops))
    joined = result.assign(projection.data_vars).assign(extra).assign_coords(projection.coords)
    return joined.assign_attrs(projection.attrs)


def _path(
    run: Any,
    loss_fn: LossFn | None,
    data: Data | None,
    like: Params | None,
    batch_stats: bool,
    epochs: Sequence[float] | None,
    drops: Iterable[float] | None,
) -> _Path:
    """The parts of a run; an argument that the caller passed replaces the part of the run."""
    if hasattr(run, "checkpoints"):
        whole = run.checkpoints.with_batch_stats()
        path = _Path(
            whole if batch_stats else run.checkpoints,
            whole,
            loss_fn or run.loss_fn,
            run.data if data is None else data,
            run.checkpoints.epochs if epochs is None else epochs,
            _drops(run.metrics) if drops is None else drops,
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


def _drops(metrics: Sequence[dict[str, float]]) -> list[float]:
    """The epochs after which the learning rate is at most half of the previous rate."""
    pairs = zip(metrics[:-1], metrics[1:], strict=True)
    return [a["epoch"] for a, b in pairs if a["epoch"] > 0 and b["lr"] <= 0.5 * a["lr"]]


def _last_before(epochs: np.ndarray, drops: Iterable[float]) -> np.ndarray:
    """A mask of the checkpoints, true for the last checkpoint before each drop of the learning rate."""
    mask = np.zeros(len(epochs), bool)
    for drop in drops:
        before = np.flatnonzero(epochs <= drop)
        mask[before[-1:]] = True
    return mask


def _with_losses(path: _Path, origin: Params, losses: list[float], check: bool) -> Iterator[Params]:
    """Yield the checkpoints; append the loss of each to the list while the checkpoint is in memory."""
    objective: Objective | None = None
    for whole in path.whole:
        whole = checks.as_params(whole, f"checkpoints[{len(losses)}]")
        if objective is None:
            mesh = mesh_of_shards(whole) or Mesh(np.array(jax.devices()), (DATA_AXIS,))
            subspace = Subspace.of(whole, None)
            objective = Objective.of(path.loss_fn, whole, path.data, check=check)
        losses.append(engine.mean_metrics(objective, subspace.place(whole), mesh=mesh)["loss"])
        yield whole if path.whole is path.checkpoints else trees.restrict(whole, origin)


def _axis(coords: np.ndarray, count: int, margin: float) -> np.ndarray:
    """``count`` evenly spaced coordinates over the path and a margin around it; one of them is exactly 0."""
    finite = coords[np.isfinite(coords)]
    low, high = min(finite.min(initial=0), 0), max(finite.max(initial=0), 0)
    extent = (high - low) or 1.0
    low, high = low - max(margin, 1e-3) * extent, high + max(margin, 1e-3) * extent
    step = (high - low) / (count - 2)
    return (np.arange(count) - np.ceil(-low / step)) * step
