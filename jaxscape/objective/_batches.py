"""In-memory data: one common example axis, cut into batches."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxscape.types import Data


def num_examples(data: Any, name: str = "data") -> int:
    """The length of the example axis that all leaves of ``data`` share.

    Args:
        data: A pytree of arrays with one common leading example axis; None: a loss without data has one example.
        name: What the caller's argument is called, for the message.

    Returns:
        The number of examples.

    Raises:
        ValueError: There is no leaf or no example, or the leaves differ in length.
        TypeError: A leaf is no array of numbers, or has no axis.
    """
    if data is None:
        return 1
    if hasattr(data, "__next__"):
        _refuse_loader(data, name)  # JAX will not take it for a leaf
    lengths = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(data):
        leaf_name = f"{name}{jax.tree_util.keystr(path)}"
        if type(leaf).__module__.startswith("xarray") and not hasattr(leaf, "shape"):
            raise TypeError(f"{leaf_name} is {type(leaf).__name__}, expected an array with a leading example axis.")
        _refuse_loader(leaf, leaf_name)
        if not np.ndim(leaf):
            raise TypeError(f"{leaf_name} is {leaf!r}, expected an array with a leading example axis.")
        dtype = leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype
        if not (jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key) or np.dtype(dtype).kind not in "OSUMm"):
            raise TypeError(f"{leaf_name} is an array of {dtype}, expected numbers, booleans or PRNG keys.")
        lengths[leaf_name] = len(leaf)
    if not lengths:
        raise ValueError(f"{name} has no leaves; expected arrays with a leading example axis, e.g. (images, labels).")
    if len(set(lengths.values())) > 1:
        counts = ", ".join(f"{leaf_name}: {length}" for leaf_name, length in lengths.items())
        hint = " Where it is a list of batches, pass js.Stream(data)." if isinstance(data, list) else ""
        raise ValueError(
            f"the leaves of {name} differ in their number of examples ({counts}); expected one length.{hint}"
        )
    (length,) = set(lengths.values())
    if not length:
        raise ValueError(f"{name} has no examples (length 0); expected at least one.")
    return length


def _refuse_loader(leaf: Any, name: str) -> None:
    is_array = hasattr(leaf, "shape") or isinstance(leaf, str | bytes)
    if not is_array and (callable(leaf) or any(hasattr(leaf, x) for x in ("__iter__", "__next__", "__getitem__"))):
        raise TypeError(
            f"{name} is {type(leaf).__name__}, expected an array with a leading example axis. Where it gives batches, "
            "as a data loader does, pass js.Stream(loader)."
        )


def as_batch_size(batch_size: Any) -> int | None:
    """The batch size that the caller asked for.

    Args:
        batch_size: What the caller passed.

    Returns:
        A positive integer; None for ``"auto"``.

    Raises:
        ValueError: It is neither.
    """
    if isinstance(batch_size, str) and batch_size == "auto":
        return None
    if not isinstance(batch_size, int | np.integer) or isinstance(batch_size, bool) or batch_size < 1:
        raise ValueError(f"batch_size is {batch_size!r}, expected 'auto' or a positive integer.")
    return int(batch_size)


def cached_examples(data: Data) -> int:
    """Examples that a CPU's cache holds, by the leaf with most numbers: 8 images of CIFAR-10; 64 are 19 % slower."""
    largest = max((math.prod(np.shape(x)[1:]) for x in jax.tree.leaves(data)), default=1)
    return max(1, 8 * 32 * 32 * 3 // max(largest, 1))


def even_size(examples: int, batch_size: int) -> int:
    """The size of batches that are as even as can be, so that little is padded.

    >>> even_size(10, 6)
    5

    Returns:
        At most ``batch_size``.
    """
    return -(-examples // -(-examples // batch_size))


def batch_sizes(examples: int, batch_size: int, shares: int) -> np.ndarray:
    """How many examples each batch holds, where as few batches as can be are of one size, as even as can be.

    >>> batch_sizes(10, 4, 1).tolist()
    [4, 4, 2]

    Args:
        examples: Their number.
        batch_size: Examples in a batch, at most.
        shares: A number that the batches are to be a multiple of.

    Returns:
        Shape ``(batches,)``; some may be smaller than the others, and some empty.
    """
    size = even_size(examples, batch_size)
    batches = math.ceil(math.ceil(examples / size) / shares) * shares
    return np.clip(examples - size * np.arange(batches), 0, size)


def stack_batches(data: Data, batches: int, size: int) -> Data:
    """Cut the data into batches of one size, so that one program does it all.

    >>> stack_batches(np.arange(10), 3, 4).tolist()
    [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 9, 9]]

    Args:
        data: Arrays with a common leading example axis, at most ``batches * size`` examples.
        batches: Their number.
        size: Examples in each.

    Returns:
        The data as ``(batches, size, ...)``, padded by repeating the last example; `batch_sizes` has how many count.
    """
    examples = num_examples(data)

    def leaf(x: Any) -> Any:
        if isinstance(x, jax.Array):
            return _stacked(x, batches, size)
        x = np.asarray(x)
        rows = np.arange(batches * size)
        whole = x if len(rows) == examples else x[np.minimum(rows, examples - 1)]
        return whole.reshape(batches, size, *x.shape[1:])

    return jax.tree.map(leaf, data)


def rows_of(data: Data, rows: Any) -> Data:
    """Some examples of the data, by a slice or an array of indices."""

    def leaf(x: Any) -> Any:
        if isinstance(x, jax.Array) and isinstance(rows, np.ndarray):
            return _take(x, rows)
        return (x if hasattr(x, "dtype") else np.asarray(x))[rows]

    return jax.tree.map(leaf, data)


@jax.jit  # outside of `jax.jit` an index is five programs
def _take(x: jax.Array, rows: jax.Array) -> jax.Array:
    return x[rows]


@functools.partial(jax.jit, static_argnames=("batches", "size"))
def _stacked(x: jax.Array, batches: int, size: int) -> jax.Array:
    padding = batches * size - len(x)
    whole = jnp.concatenate([x, jnp.broadcast_to(x[-1:], (padding, *x.shape[1:]))]) if padding else x
    return whole.reshape(batches, size, *x.shape[1:])
