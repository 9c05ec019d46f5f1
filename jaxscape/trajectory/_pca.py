"""Principal directions of a path (paper section 7.2)."""

import tempfile
from collections.abc import Callable, Iterable
from typing import IO, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array
from tqdm.auto import tqdm

from jaxscape import checks, trees
from jaxscape.directions import Directions
from jaxscape.meshes import outside_meshes
from jaxscape.subspace import Subspace
from jaxscape.trajectory._checkpoints import as_checkpoints
from jaxscape.trajectory._rows import Rows
from jaxscape.types import Ignore, Params

Center = Literal["last", "mean"]


@outside_meshes
def pca_directions(
    checkpoints: Any,
    *,
    num: int = 2,
    center: Center = "last",
    ignore: Ignore = None,
    progress: bool | None = None,
) -> tuple[Directions, np.ndarray]:
    """The directions in which a path varies most, and how much of its variance each has (paper section 7.2).

    The right singular vectors of ``[theta_0 - theta_n; ...; theta_{n-1} - theta_n]``, found through the Gram matrix of
    its rows: ``G = X X^T = U S^2 U^T`` and ``direction_k = X^T u_k / s_k``. The checkpoints are read once, one at a
    time; their weights wait in a temporary file, as large as all of them, in the folder that TMPDIR names. Only blocks
    of columns smaller than a checkpoint come back to memory, shared by the devices of this process.

    >>> path = [{"w": jnp.array([3.0, 4.0, 1.0])}, {"w": jnp.array([3.0, 4.0, 0.0])}, {"w": jnp.zeros(3)}]
    >>> directions, ratio = pca_directions(path, num=1)
    >>> [abs(round(float(x), 3)) for x in directions[0]["w"]], [round(float(r), 3) for r in ratio]
    ([0.597, 0.796, 0.1], [0.99, 0.01])

    Args:
        checkpoints: Params in the order of training, read once, one at a time. One of:

            - a sequence of pytrees, or an iterator of them. Several paths in one plane:
              ``itertools.chain(first.checkpoints, second.checkpoints)``.
            - a run's ``checkpoints``; with its running statistics as well: ``run.checkpoints.with_batch_stats()``.
            - a pytree that `jax.lax.scan` has stacked: each leaf has one more leading axis. A list or tuple is always
              a sequence here.
            - the path of a folder of orbax checkpoints, written by a `CheckpointManager` (its item ``params``,
              ``state``, ``default`` or ``pytree``) or as folders of steps. Of a pytree with the entry ``params``
              beside others, such as ``opt_state``, the params are read. An NNX state comes as nested dicts.
            - a function without arguments that makes an iterator of params.
        num: How many directions.
        center: ``"last"``: rows are what is left to the last checkpoint, as in the paper; then the path ends at the
            origin. ``"mean"``: rows, that of the last checkpoint among them, are differences to their mean, as in
            textbooks and scikit-learn.
        ignore: As in `jaxscape.random_directions`: leaves that take no part; None: all do.
        progress: True or False for a progress bar; None for one on terminals and in notebooks.

    Returns:
        Orthonormal directions, zero in ignored leaves; and the explained variance ratios of ALL components, in falling
        order: ``s_k^2 / sum(s^2)``. The largest coordinate of the path along each direction is positive.

    Raises:
        ValueError: ``num`` or ``center`` is unknown, the path spans fewer dimensions than ``num``, a checkpoint has
            other leaves than the first or is not finite (the message says which), all checkpoints hold the same arrays
            (snapshots that alias a live module), the leaves of a stacked pytree have no common leading axis, or a
            folder has no checkpoints to be read.
        TypeError: A leaf is not floating, or ``checkpoints`` is none of the above.
        FileNotFoundError: There is no such folder.
        ImportError: A folder needs orbax, which is not installed.
    """
    if num < 1:
        raise ValueError(f"num is {num}, expected at least 1 direction.")
    if center not in ("last", "mean"):
        raise ValueError(f"center is {center!r}, expected 'last' or 'mean'.")
    centered = _from_last if center == "last" else _from_mean
    with tempfile.TemporaryFile() as file:
        subspace, rows = _collect(as_checkpoints(checkpoints), ignore, file, progress)
        squares, vectors = np.linalg.eigh(_gram(rows, centered))
        squares, vectors = np.maximum(squares[::-1], 0), vectors[:, ::-1]
        _check_rank(squares, num, len(rows), subspace.dtype)
        coordinates = vectors[:, :num] * np.sqrt(squares[:num])
        flat = _directions(rows, centered, coordinates)
    ratio = squares[: subspace.size] / squares.sum()
    basis = jax.vmap(subspace.embed)(jnp.asarray(flat))
    told = {"directions": "PCA", "center": center, "pca_ignore": str(ignore), "num_checkpoints": len(rows)}
    return Directions(basis, recipe=tuple((name, str(value)) for name, value in told.items())), ratio


def _collect(
    checkpoints: Iterable[Params], ignore: Ignore, file: IO[bytes], progress: bool | None
) -> tuple[Subspace, Rows]:
    """One pass over the checkpoints, each checked before it is kept."""
    like, rows = None, None
    for i, checkpoint in enumerate(checkpoint_bar(checkpoints, progress)):
        params = checks.as_params(checkpoint, f"checkpoints[{i}]")
        if like is None or rows is None:
            subspace = Subspace.of(params, ignore)
            like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
            rows = Rows(file, subspace.size, subspace.dtype)
        params = checks.like(like, params, f"checkpoints[{i}]")
        row = _row(subspace, params)
        if not np.isfinite(row).all():
            raise ValueError(_not_finite(i, params, subspace))
        rows.append(row)
    if rows is None or len(rows) < 2:
        raise ValueError(f"checkpoints has {0 if rows is None else 1} of them, expected at least 2 for a path.")
    return subspace, rows


def _row(subspace: Subspace, params: Params) -> np.ndarray:
    """The free leaves as a vector, put together on the host: on a device it is a call for each leaf."""
    leaves, dtype = zip(jax.tree.leaves(params), subspace.free, strict=True), subspace.dtype
    return np.concatenate([np.asarray(x).reshape(-1).astype(dtype, copy=False) for x, free in leaves if free])


def checkpoint_bar(checkpoints: Iterable[Params], progress: bool | None) -> Any:
    """The checkpoints, with a bar; on one process only."""
    shown = progress if jax.process_index() == 0 else False
    return tqdm(checkpoints, unit="checkpoint", desc="checkpoints", disable=None if shown is None else not shown)


def _not_finite(index: int, params: Params, subspace: Subspace) -> str:
    leaves = zip(trees.leaf_names(params), jax.tree.leaves(params), subspace.free, strict=True)
    name = next(name for name, leaf, free in leaves if free and not bool(jnp.isfinite(leaf).all()))
    return f"checkpoints[{index}]{name} has NaN or infinite entries; leave this checkpoint, and what follows it, out."


def _from_last(block: np.ndarray) -> np.ndarray:
    return block[:-1] - block[-1]


def _from_mean(block: np.ndarray) -> np.ndarray:
    return block - block.mean(0, dtype=np.float64).astype(block.dtype)


def _gram(rows: Rows, centered: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Inner products of all rows: of each block on the devices at full precision, summed in float64."""
    mesh = Mesh(np.array(jax.local_devices()), ("columns",))
    sharding, total = NamedSharding(mesh, PartitionSpec(None, "columns")), np.zeros(())
    for block in rows.blocks():
        part = centered(block)
        part = np.pad(part, ((0, 0), (0, -part.shape[1] % mesh.size)))
        total = total + np.asarray(_inner(jax.device_put(part, sharding)), np.float64)
    return total


@jax.jit
def _inner(block: Array) -> Array:
    return jnp.matmul(block, block.T, precision=jax.lax.Precision.HIGHEST)


def _check_rank(squares: np.ndarray, num: int, rows: int, dtype: Any) -> None:
    """Refuse directions that are nothing but rounding."""
    if not squares[0] > 0:
        raise ValueError("checkpoints are all equal: a path that does not move has no directions.")
    rank = int(np.sum(squares > rows * np.finfo(dtype).eps * squares[0]))
    if rank < num:
        raise ValueError(
            f"num is {num}, but the path of the checkpoints spans {rank} dimension{'s' * (rank > 1)}; pass "
            f"num={rank}, more checkpoints, or directions of your own, e.g. a random one beside it."
        )


def _directions(rows: Rows, centered: Callable[[np.ndarray], np.ndarray], weights: np.ndarray) -> np.ndarray:
    """``X^T weights`` with columns made orthonormal, as rows; the largest entry of each column of weights positive."""
    largest = weights[np.abs(weights).argmax(0), np.arange(weights.shape[1])]
    weights = (weights * np.sign(largest)).T.astype(rows.dtype)
    flat = np.concatenate([weights @ centered(block) for block in rows.blocks()], axis=1)
    for k, direction in enumerate(flat):
        direction /= np.linalg.norm(direction)
        for other in flat[:k]:  # rounding of the Gram matrix leaves a little of the larger in the smaller
            direction -= (other @ direction) * other
        direction /= np.linalg.norm(direction)
    return flat
