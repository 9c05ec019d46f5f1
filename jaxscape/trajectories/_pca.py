"""Principal directions of a path (paper section 7.2)."""

import tempfile
from collections.abc import Callable, Iterable
from typing import IO, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from tqdm.auto import tqdm

from jaxscape import checks, trees
from jaxscape.arguments import checked
from jaxscape.directions import Directions
from jaxscape.normalize import described
from jaxscape.objective import refuse_inside_transform
from jaxscape.shards import Columns
from jaxscape.subspace import Subspace
from jaxscape.trajectories._checkpoints import as_checkpoints
from jaxscape.trajectories._rows import Rows
from jaxscape.types import Ignore, Params

Center = Literal["last", "mean"]


@checked
def pca_directions(
    checkpoints: Any,
    *,
    num: int = 2,
    center: Center = "last",
    ignore: Ignore = None,
    progress: bool | None = None,
) -> tuple[Directions, np.ndarray]:
    """The directions in which a path varies most, and the share of the variance along each (paper section 7.2).

    The directions are the right singular vectors of ``X = [theta_0 - theta_n; ...; theta_{n-1} - theta_n]``. They are
    computed from the Gram matrix of the rows: ``G = X X^T = U S^2 U^T`` and ``direction_k = X^T u_k / s_k``. The
    checkpoints are read once, one at a time. Their weights are written to a temporary file, as large as all
    checkpoints together, in the folder that TMPDIR names. The file is then read in blocks of columns, each smaller than
    a checkpoint. Differences and sums are computed in float64 on the host: near convergence the weights move by little
    more than the rounding of float32. Of leaves that are cut over devices each process writes and sums its own parts.

    >>> path = [{"w": jnp.array([3.0, 4.0, 1.0])}, {"w": jnp.array([3.0, 4.0, 0.0])}, {"w": jnp.zeros(3)}]
    >>> directions, ratio = pca_directions(path, num=1)
    >>> [abs(round(float(x), 3)) for x in directions[0]["w"]], [round(float(r), 3) for r in ratio]
    ([0.597, 0.796, 0.1], [0.99, 0.01])

    Args:
        checkpoints: Params in the order of training, read once, one at a time. One of these forms:

            - a sequence or an iterator of pytrees. For several paths in one plane, pass
              ``itertools.chain(first.checkpoints, second.checkpoints)``.
            - the ``checkpoints`` of a run; to include the running statistics of batch norm, pass
              ``run.checkpoints.with_batch_stats()``.
            - a pytree stacked by `jax.lax.scan`: each leaf has one additional leading axis. A list or a tuple always
              counts as a sequence.
            - the path of a folder of orbax checkpoints, written by a `CheckpointManager` (its item ``params``,
              ``state``, ``default`` or ``pytree``) or as folders of steps. If the saved pytree has the entry
              ``params`` and other entries, such as ``opt_state``, only ``params`` is read. An NNX state is restored
              as nested dicts.
            - a function without arguments that returns an iterator of params.
        num: The number of directions.
        center: ``"last"``: the rows of X are the differences from the last checkpoint, as in the paper; then the path
            ends at the origin. ``"mean"``: the rows, now with the last checkpoint, are the differences from their
            mean, as in textbooks and scikit-learn.
        ignore: Which leaves have no part in the directions: None, all leaves take part; ``"bias_norm"``, biases and
            normalization parameters are left out; or a predicate on (path, leaf) that is true for a leaf to leave out.
        progress: True or False turns a progress bar on or off; None shows one on terminals and in notebooks.

    Returns:
        Orthonormal directions, zero in the ignored leaves; and the explained variance ratios of ALL components,
        ``s_k^2 / sum(s^2)``, in descending order. The sign of each direction is chosen so that the largest coordinate
        of the path along it (in absolute value) is positive.

    Raises:
        ValueError: ``num`` or ``center`` is unknown, the path spans fewer dimensions than ``num``, a checkpoint has
            other leaves than the first or is not finite (the message says which), all checkpoints hold the same arrays
            (snapshots that alias a live module), the leaves of a stacked pytree have no common leading axis, or a
            folder has no readable checkpoints.
        TypeError: A leaf is not floating, or ``checkpoints`` has none of the forms above.
        FileNotFoundError: There is no such folder.
        ImportError: A folder needs orbax, which is not installed.
    """
    refuse_inside_transform("js.pca_directions")
    checks.check_count(num, "num")
    if center not in ("last", "mean"):
        raise ValueError(f"center is {center!r}, expected 'last' or 'mean'.")
    centered = _from_last if center == "last" else _from_mean
    with tempfile.TemporaryFile() as file:
        subspace, columns, rows = _collect(as_checkpoints(checkpoints), ignore, file, progress)
        squares, vectors = np.linalg.eigh(_gram(columns, rows, centered))
        squares, vectors = np.maximum(squares[::-1], 0), vectors[:, ::-1]
        _check_rank(squares, num, len(rows), subspace.dtype)
        coordinates = vectors[:, :num] * np.sqrt(squares[:num])
        flat = _directions(columns, rows, centered, coordinates)
    ratio = squares[: subspace.size] / squares.sum()
    basis = subspace.embed_rows(jnp.asarray(flat) if subspace.mesh is None else columns.arrays(flat))
    recipe = {"directions": "PCA", "center": center, "pca_ignore": described(ignore), "num_checkpoints": len(rows)}
    return Directions(basis, recipe=tuple((name, str(value)) for name, value in recipe.items())), ratio


def _collect(
    checkpoints: Iterable[Params], ignore: Ignore, file: IO[bytes], progress: bool | None
) -> tuple[Subspace, Columns, Rows]:
    """Read the checkpoints once; check each of them and write it to the file as one row."""
    like, rows = None, None
    for i, checkpoint in enumerate(checkpoint_bar(checkpoints, progress)):
        params = checks.as_params(checkpoint, f"checkpoints[{i}]")
        if like is None or rows is None:
            subspace = Subspace.of(params, ignore)
            like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
            columns = Columns(subspace.free_leaves(subspace.place(params)), subspace.mesh)
            rows = Rows(file, columns.count, subspace.dtype)
        params = subspace.place(checks.like(like, params, f"checkpoints[{i}]"))
        row = columns.row(subspace.free_leaves(params), subspace.dtype)
        if columns.summed(np.array(~np.isfinite(row).all(), int)):
            raise ValueError(_not_finite(i, params, subspace))
        rows.append(row)
    if rows is None or len(rows) < 2:
        raise ValueError(f"checkpoints has {0 if rows is None else 1} of them, expected at least 2 for a path.")
    return subspace, columns, rows


def checkpoint_bar(checkpoints: Iterable[Params], progress: bool | None) -> Any:
    """The checkpoints with a progress bar; only process 0 shows it."""
    shown = progress if jax.process_index() == 0 else False
    return tqdm(checkpoints, unit="checkpoint", desc="checkpoints", disable=None if shown is None else not shown)


def _not_finite(index: int, params: Params, subspace: Subspace) -> str:
    leaves = zip(trees.leaf_names(params), jax.tree.leaves(params), subspace.free, strict=True)
    name = next(name for name, leaf, free in leaves if free and not bool(jnp.isfinite(leaf).all()))
    return f"checkpoints[{index}]{name} has NaN or infinite entries; leave this checkpoint, and what follows it, out."


def _from_last(block: np.ndarray) -> np.ndarray:
    return block[:-1] - block[-1]


def _from_mean(block: np.ndarray) -> np.ndarray:
    return block - block.mean(0)


def _gram(columns: Columns, rows: Rows, centered: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Inner products of all rows, in float64."""
    total, left = np.zeros((1, 1)), columns.counted
    for block in rows.blocks():
        part = centered(block[:, :left].astype(np.float64))
        total, left = total + part @ part.T, max(left - block.shape[1], 0)
    return columns.summed(total)


def _check_rank(squares: np.ndarray, num: int, rows: int, dtype: Any) -> None:
    """Refuse directions that would consist of rounding errors only."""
    if not squares[0] > 0:
        raise ValueError("checkpoints are all equal: a path that does not move has no directions.")
    # The weights themselves are rounded to `dtype`: on a straight path that leaves about eps of its length.
    floor = max((8 * np.finfo(dtype).eps) ** 2, np.finfo(np.float64).eps)
    rank = int(np.sum(squares > rows * floor * squares[0]))
    if rank < num:
        raise ValueError(
            f"num is {num}, but the path of the checkpoints spans {rank} dimension{'s' * (rank > 1)}; pass "
            f"num={rank}, more checkpoints, or directions of your own, e.g. a random one beside it."
        )


def _directions(
    columns: Columns, rows: Rows, centered: Callable[[np.ndarray], np.ndarray], weights: np.ndarray
) -> np.ndarray:
    """Compute ``X^T weights`` and orthonormalize its columns; the largest entry of each column of weights is positive.

    Returns:
        The columns, as the rows of an array.
    """
    largest = weights[np.abs(weights).argmax(0), np.arange(weights.shape[1])]
    weights = (weights / largest).T  # of any scale
    flat = np.concatenate([weights @ centered(block.astype(np.float64)) for block in rows.blocks()], axis=1)

    def inner(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return columns.summed(np.array(a[: columns.counted] @ b[: columns.counted]))

    for k, direction in enumerate(flat):
        direction /= np.sqrt(inner(direction, direction))
        for other in flat[:k]:  # the rounding of the Gram matrix leaves a small component along the others
            direction -= inner(other, direction) * other
        direction /= np.sqrt(inner(direction, direction))
    return flat.astype(rows.dtype)
