"""The coordinates of a path in a plane, and its distance from the plane."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array

from jaxscape import checks, trees
from jaxscape.arguments import checked
from jaxscape.directions import Directions, as_directions
from jaxscape.objective import fetch, refuse_inside_transform
from jaxscape.shards import Drawn, is_drawn, within
from jaxscape.subspace import Subspace
from jaxscape.trajectories._checkpoints import as_checkpoints
from jaxscape.trajectories._pca import checkpoint_bar
from jaxscape.types import Params


@checked
def project(
    checkpoints: Any,
    origin: Params,
    directions: Directions | Any,
    *,
    progress: bool | None = None,
) -> xr.Dataset:
    """The nearest point to each checkpoint in a plane: ``theta_i = origin + sum_k c_ik * directions[k] + rest_i``.

    The coordinates are the least-squares solution ``c_i = (D^T D)^{-1} D^T (theta_i - origin)``, where the columns of
    D are the directions. This is exact also for directions that are neither orthogonal nor of length 1; cosines (the
    ``cos`` projection of the original tool) are not exact there. The rest is orthogonal to all directions.

    >>> skewed = [{"w": jnp.array([2.0, 0.0, 0.0])}, {"w": jnp.array([1.0, 1.0, 0.0])}]
    >>> ds = project([{"w": jnp.array([5.0, 3.0, 4.0])}], {"w": jnp.zeros(3)}, skewed)
    >>> ds.coordinates.values.tolist(), ds.off_plane_distance.values.tolist()
    ([[1.0, 3.0]], [4.0])

    Args:
        checkpoints: Params in the order of training, read once, one at a time. One of these forms:

            - a sequence or an iterator of pytrees.
            - the ``checkpoints`` of a run; to include the running statistics of batch norm, pass
              ``run.checkpoints.with_batch_stats()``.
            - a pytree stacked by `jax.lax.scan`: each leaf has one additional leading axis. A list or a tuple counts
              as a sequence, unless it has the leaves of ``origin`` with this additional axis.
            - the path of a folder of orbax checkpoints, written by a `CheckpointManager` (its item ``params``,
              ``state``, ``default`` or ``pytree``) or as folders of steps. If the saved pytree has the entry
              ``params`` and other entries, such as ``opt_state``, only ``params`` is read, unless the whole pytree has
              the leaves of ``origin``.
            - a function without arguments that returns an iterator of params.
        origin: The params at coordinates 0, a pytree of floating arrays with the leaves of the checkpoints.
        directions: `Directions`, one pytree like ``origin``, or a sequence of such pytrees.
        progress: True or False turns a progress bar on or off; None shows one on terminals and in notebooks.

    Returns:
        A Dataset over ``step`` and ``axis`` with these variables. They are NaN at checkpoints that are not finite.

        - ``coordinates`` ``(step, axis)``, in units of the directions;
        - ``distance`` ``(step,)``, the distance of the checkpoint from the origin in parameter space;
        - ``off_plane_distance`` ``(step,)``, the length of the rest in parameter space;
        - ``step_cosine`` ``(step,)``, the cosine of the angle between the step to this checkpoint and the plane; NaN
          for the first checkpoint and for a step of length 0;
        - ``axis_variance`` ``(axis,)``, the share of ``sum_i distance_i^2`` along each direction alone.

        ``attrs["variance_captured"]`` is the share in the plane. ``attrs["nonfinite_steps"]`` counts the checkpoints
        that are not finite; the shares leave them out.

    Raises:
        ValueError: There is no checkpoint, a checkpoint or a direction does not have the leaves of origin, the
            directions are linearly dependent, all checkpoints hold the same arrays (snapshots that alias a live
            module), the leaves of a stacked pytree have no common leading axis, or a folder has no readable
            checkpoints.
        TypeError: A leaf is not floating, or ``checkpoints`` has none of the forms above.
        FileNotFoundError: There is no such folder.
        ImportError: A folder needs orbax, which is not installed.
    """
    refuse_inside_transform("js.project")
    origin = checks.as_params(origin, "origin")
    path = as_checkpoints(checkpoints, origin)
    directions = as_directions(directions, origin)
    subspace = Subspace.of(origin, None)  # it says how leaves are cut
    origin, basis = subspace.place(origin), directions.operand
    with within(subspace.mesh):
        metric = fetch(_metric(basis))
    _check_independent(metric, directions)
    rows: list[tuple[np.ndarray, ...]] = []
    previous: Params | None = None
    for i, checkpoint in enumerate(checkpoint_bar(path, progress)):
        name = f"checkpoints[{i}]"
        point = subspace.place(checks.like(origin, checks.as_params(checkpoint, name), name))
        with within(subspace.mesh):
            inner = fetch(_inner(point, origin, basis))
            coords = np.linalg.solve(metric, inner)
            step = np.nan if previous is None else fetch(_distance(point, previous))
            lengths = fetch((_distance(point, origin), _rest_length(point, origin, basis, coords)))
        rows.append((coords, inner, *lengths, np.asarray(step)))
        previous = point
    if not rows:
        raise ValueError("checkpoints is empty; expected at least one.")
    coords, inner, distance, off, steps = (np.array(column) for column in zip(*rows, strict=True))
    return _dataset(coords, inner, distance, off, steps, metric)


def _dataset(
    coords: np.ndarray, inner: np.ndarray, distance: np.ndarray, off: np.ndarray, steps: np.ndarray, metric: np.ndarray
) -> xr.Dataset:
    moves = np.diff(coords, axis=0, prepend=np.nan)
    with np.errstate(all="ignore"):
        lengths = np.sqrt(np.maximum(np.einsum("ij,jk,ik->i", moves, metric, moves), 0))
        cosine = np.where(steps > 0, np.minimum(lengths / steps, 1), np.nan)
        finite = np.isfinite(distance)
        total = np.sum(distance[finite] ** 2)
        shares = np.sum(inner[finite] ** 2, axis=0) / np.diag(metric) / total
        captured = 1 - np.sum(off[finite] ** 2) / total
    variables = {
        "coordinates": (("step", "axis"), coords, {"long_name": "coordinates in units of the directions"}),
        "distance": ("step", distance, {"long_name": "norm(theta - origin)"}),
        "off_plane_distance": ("step", off, {"long_name": "distance from the plane"}),
        "step_cosine": ("step", cosine, {"long_name": "cosine of the step with the plane"}),
        "axis_variance": ("axis", shares, {"long_name": "share of the path's variance along the axis"}),
    }
    labels = {"step": np.arange(len(coords)), "axis": np.arange(coords.shape[1])}
    return xr.Dataset(
        variables, labels, {"variance_captured": float(captured), "nonfinite_steps": int((~finite).sum())}
    )


# Float64 throughout: the coordinates in two directions that include an angle of 0.01 are differences of numbers 100
# times as large, and a float32 sum over a million weights has four digits to spare at best.


@trees.in_float64
def _metric(basis: Params) -> Array:
    """Inner products of all directions."""
    directions = _each(basis)
    return jnp.stack([jnp.stack([trees.dot64(a, b) for b in directions]) for a in directions])


@trees.in_float64
def _inner(point: Params, origin: Params, basis: Params) -> Array:
    """Inner products of the displacement from the origin with the directions."""
    displacement = _difference(point, origin)
    return jnp.stack([trees.dot64(direction, displacement) for direction in _each(basis)])


@trees.in_float64
def _distance(a: Params, b: Params) -> Array:
    """The distance of two points."""
    difference = _difference(a, b)
    return jnp.sqrt(trees.dot64(difference, difference))


@trees.in_float64
def _rest_length(point: Params, origin: Params, basis: Params, coords: Array) -> Array:
    """The length of the component of a displacement that is not in the plane."""
    rest = _difference(point, origin)
    for k, direction in enumerate(_each(basis)):
        rest = jax.tree.map(lambda r, d, k=k: r - coords[k] * d, rest, direction)
    return jnp.sqrt(trees.dot64(rest, rest))


def _difference(a: Params, b: Params) -> Params:
    return jax.tree.map(lambda x, y: x.astype(jnp.float64) - y.astype(jnp.float64), a, b)


def _each(basis: Params) -> list[Params]:
    """The directions one by one."""
    num = len(jax.tree.leaves(basis)[0])

    def one(x: Array | Drawn, k: int) -> Array:
        return (x.entries(k) if isinstance(x, Drawn) else x[k]).astype(jnp.float64)

    return [jax.tree.map(functools.partial(one, k=k), basis, is_leaf=is_drawn) for k in range(num)]


def _check_independent(metric: np.ndarray, directions: Directions) -> None:
    lengths = np.sqrt(np.diag(metric))
    for k, length in enumerate(lengths):
        if not (np.isfinite(length) and length > 0):
            raise ValueError(f"directions[{k}] has length {length}, expected a finite one above 0; leave it out.")
    eps = max(float(jnp.finfo(x.dtype).eps) for x in jax.tree.leaves(directions.operand, is_leaf=is_drawn))
    smallest = np.linalg.eigvalsh(metric / np.outer(lengths, lengths))[0]
    if smallest <= max((100 * eps) ** 2, 1e-13):  # the directions' own rounding leaves 1 % of such an angle unknown
        raise ValueError(
            f"directions depend on each other (the smallest eigenvalue of their cosines is {smallest:.1e}): "
            "coordinates are not unique; leave one out."
        )
