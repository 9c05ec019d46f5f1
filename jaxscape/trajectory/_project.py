"""A path in the coordinates of a plane, and how far it is from it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array

from jaxscape import checks, trees
from jaxscape.directions import Directions, as_directions
from jaxscape.meshes import outside_meshes
from jaxscape.trajectory._checkpoints import as_checkpoints
from jaxscape.trajectory._pca import checkpoint_bar
from jaxscape.types import Params


@outside_meshes
def project(
    checkpoints: Any,
    origin: Params,
    directions: Directions | Any,
    *,
    progress: bool | None = None,
) -> xr.Dataset:
    """Each checkpoint's nearest point in a plane: ``theta_i = origin + sum_k c_ik * directions[k] + rest_i``.

    Least squares in the directions' own metric, ``c_i = (D^T D)^{-1} D^T (theta_i - origin)`` with D the directions as
    columns: exact for directions that are neither orthogonal nor of length 1, where cosines (the original tool's
    ``cos`` projection) are not. The rest is orthogonal to all directions.

    >>> skewed = [{"w": jnp.array([2.0, 0.0, 0.0])}, {"w": jnp.array([1.0, 1.0, 0.0])}]
    >>> ds = project([{"w": jnp.array([5.0, 3.0, 4.0])}], {"w": jnp.zeros(3)}, skewed)
    >>> ds.coordinates.values.tolist(), ds.off_plane_distance.values.tolist()
    ([[1.0, 3.0]], [4.0])

    Args:
        checkpoints: Params in the order of training, read once, one at a time. One of:

            - a sequence of pytrees, or an iterator of them.
            - a run's ``checkpoints``; with its running statistics as well: ``run.checkpoints.with_batch_stats()``.
            - a pytree that `jax.lax.scan` has stacked: each leaf has one more leading axis. A list or tuple is a
              sequence, unless it has the leaves of ``origin`` with that axis.
            - the path of a folder of orbax checkpoints, written by a `CheckpointManager` (its item ``params``,
              ``state``, ``default`` or ``pytree``) or as folders of steps. Of a pytree with the entry ``params``
              beside others, such as ``opt_state``, the params are read, unless the whole has the leaves of ``origin``.
            - a function without arguments that makes an iterator of params.
        origin: Params at coordinates 0.
        directions: As in `surface`: Directions, one pytree like params, or a sequence of these.
        progress: True or False for a progress bar; None for one on terminals and in notebooks.

    Returns:
        A Dataset over ``step`` and ``axis``: ``coordinates`` in units of the directions, ``(step, axis)``; lengths in
        parameter space ``distance`` (from the origin) and ``off_plane_distance`` (of the rest), ``(step,)``;
        ``step_cosine`` ``(step,)``, the cosine of the angle between the step to this checkpoint and the plane, NaN for
        the first one and for a step of length 0; ``axis_variance`` ``(axis,)``, the share of
        ``sum_i distance_i^2`` that each direction has alone. ``attrs["variance_captured"]`` is the plane's share.
        NaN at checkpoints that are not finite, which ``attrs["nonfinite_steps"]`` counts and the shares leave out.

    Raises:
        ValueError: There is no checkpoint, a checkpoint or a direction is not like origin, the directions depend on
            each other, all checkpoints hold the same arrays (snapshots that alias a live module), the leaves of a
            stacked pytree have no common leading axis, or a folder has no checkpoints to be read.
        TypeError: A leaf is not floating, or ``checkpoints`` is none of the above.
        FileNotFoundError: There is no such folder.
        ImportError: A folder needs orbax, which is not installed.
    """
    origin = checks.as_params(origin, "origin")
    path = as_checkpoints(checkpoints, origin)
    directions = as_directions(directions, origin)
    metric = np.array([[float(trees.dot(a, b)) for b in directions] for a in directions])
    _check_independent(metric, directions)
    rows: list[tuple[np.ndarray, np.ndarray, float, float, float]] = []
    before: Params | None = None
    for i, checkpoint in enumerate(checkpoint_bar(path, progress)):
        name = f"checkpoints[{i}]"
        point = checks.like(origin, checks.as_params(checkpoint, name), name)
        away, inner = _against(point, origin, directions.basis)
        inner = np.asarray(inner, np.float64)
        coords = np.linalg.solve(metric, inner)
        step = np.nan if before is None else float(trees.norm(trees.axpy(-1, before, away)))
        rows.append((coords, inner, float(trees.norm(away)), float(_rest(away, directions.basis, coords)), step))
        before = away
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


@jax.jit
def _against(point: Params, origin: Params, basis: Params) -> tuple[Params, Array]:
    """The way from the origin, and its inner products with the directions."""

    def leaf(a: Array, b: Array) -> Array:
        dtype = trees.working_dtype(b)
        return a.astype(dtype) - b.astype(dtype)

    away = jax.tree.map(leaf, point, origin)
    num = jax.tree.leaves(basis)[0].shape[0]
    return away, jnp.stack([trees.dot(jax.tree.map(lambda x, k=k: x[k], basis), away) for k in range(num)])


@jax.jit
def _rest(away: Params, basis: Params, coords: Array) -> Array:
    """Length of what is not in the plane."""
    return trees.norm(trees.displace(away, basis, -coords))


def _check_independent(metric: np.ndarray, directions: Directions) -> None:
    lengths = np.sqrt(np.diag(metric))
    for k, length in enumerate(lengths):
        if not (np.isfinite(length) and length > 0):
            raise ValueError(f"directions[{k}] has length {length}, expected a finite one above 0; leave it out.")
    eps = max(float(jnp.finfo(leaf.dtype).eps) for leaf in jax.tree.leaves(directions.basis))
    smallest = np.linalg.eigvalsh(metric / np.outer(lengths, lengths))[0]
    if smallest <= 10 * eps:
        raise ValueError(
            f"directions depend on each other (the smallest eigenvalue of their cosines is {smallest:.1e}): "
            "coordinates are not unique; leave one out."
        )
