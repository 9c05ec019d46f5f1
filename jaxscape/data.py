"""In-memory data: one common example axis, cut into batches."""

from typing import Any

import jax
import numpy as np


def num_examples(data: Any) -> int:
    """The length of the example axis that all leaves of ``data`` share.

    Args:
        data: A pytree of arrays with one common leading example axis.

    Returns:
        The number of examples.

    Raises:
        ValueError: There is no leaf or no example, or the leaves differ in length.
        TypeError: A leaf is no array, or has no axis.
    """
    lengths = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(data):
        name = f"data{jax.tree_util.keystr(path)}"
        if not np.ndim(leaf):
            raise TypeError(f"{name} is {leaf!r}, expected an array with a leading example axis.")
        lengths[name] = len(leaf)
    if not lengths:
        raise ValueError("data has no leaves; expected arrays with a leading example axis, e.g. (images, labels).")
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{name}: {length}" for name, length in lengths.items())
        raise ValueError(f"the leaves of data differ in their number of examples ({told}); expected one length.")
    (length,) = set(lengths.values())
    if not length:
        raise ValueError("data has no examples (length 0); expected at least one.")
    return length


def as_batch_size(batch_size: Any, examples: int) -> int:
    """The batch size to use: the one asked for, at most all examples.

    Args:
        batch_size: What the caller passed.
        examples: How many examples there are.

    Returns:
        An integer in ``[1, examples]``.

    Raises:
        ValueError: It is no positive integer.
    """
    if not isinstance(batch_size, int | np.integer) or isinstance(batch_size, bool) or batch_size < 1:
        raise ValueError(f"batch_size is {batch_size!r}, expected 'auto' or a positive integer.")
    return min(int(batch_size), examples)
