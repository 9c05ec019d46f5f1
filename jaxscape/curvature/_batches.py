"""The batches of a product: as large as a cache holds, dealt out to the devices, with the weights of examples."""

import functools
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from jaxscape import trees
from jaxscape.curvature._forms import Source
from jaxscape.objective import Term, batch_sizes, even_size, num_examples, rows_of, stack_batches
from jaxscape.subspace import Subspace
from jaxscape.types import Data

Stack = tuple[Data, Array | np.ndarray]
"""Batches (devices, batches, batch, ...), and the weight of each example, its share of the mean."""

_ROOMY = 2**33  # bytes of it on accelerators: 2,048 images of 32x32 pixels, 10 % faster than 512 (ResNet-20, H200)
_CACHED = 2**25  # bytes of a batch's linear function on a CPU: of 32x32 pixels 8 images, of 8x8 64 (ResNet-20) are best


def stacks_of(
    term: Term,
    batch_size: int,
    shares: int,
    dtype: Any,
    *,
    total_weight: float | None = None,
    rows: int | None = None,
    parts: int = 1,
) -> list[Stack]:
    """The data as batches of one size, the last of them padded with examples of weight 0.

    Where the loss is the mean of a batch no batch may be padded: the rest is computed by every device alike.

    Args:
        term: The loss and its data.
        batch_size: Examples of each device at a time, at most.
        shares: Devices.
        dtype: Of the weights.
        total_weight: Of all examples that the mean is over; None: of those of the term.
        rows: Examples that the stack has room for; None: as many as the term has.
        parts: What the size of a batch is a multiple of, where it can be padded.

    Returns:
        One stack, or two of different batch sizes.
    """
    total_weight = total_weight or term.total_weight
    if term.per_example["loss"]:
        return [_stack(term.data, batch_size, shares, 1 / total_weight, dtype, rows, parts)]
    batch_size = min(batch_size, max(term.examples // shares, 1))
    cut = term.examples - term.examples % (batch_size * shares)
    stacks = []
    if cut:
        stacks.append(_stack(rows_of(term.data, slice(cut)), batch_size, shares, 1 / total_weight, dtype))
    if rest := term.examples - cut:
        tiled = rows_of(term.data, cut + np.tile(np.arange(rest), shares))
        stacks.append(_stack(tiled, rest, shares, 1 / (shares * total_weight), dtype))
    return stacks


def _stack(
    data: Data, batch_size: int, shares: int, weight: float, dtype: Any, rows: int | None = None, parts: int = 1
) -> Stack:
    examples = num_examples(data)
    count, width = len(batch_sizes(rows or examples, batch_size, shares)), even_size(rows or examples, batch_size)
    width = -(-width // parts) * parts
    sizes = np.clip(examples - width * np.arange(count), 0, width)
    batches = stack_batches(data, count, width)
    weights = np.where(np.arange(width) < sizes[:, None], weight, 0)
    deal = lambda x: x.reshape(shares, len(x) // shares, *x.shape[1:])  # noqa: E731
    return jax.tree.map(deal, (batches, weights.astype(dtype)))


def bytes_of(tree: Any) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def choose_batch_size(source: Source, subspace: Subspace, lanes: int = 1) -> int:
    """Examples of each device at a time: as many as a CPU's cache holds the linear function of, or ROOMY elsewhere.

    Args:
        source: A term of the objective.
        subspace: The leaves that the product is taken in.
        lanes: Threads that share the examples of a device.

    Returns:
        A power of two; or 8 at least, where the threads would find no batch for each.
    """
    term, on_cpu = source.term, jax.default_backend() == "cpu"
    form, constants = source.form(term.canonical)
    batch = term.batch_like(term.canonical)
    weights = jax.ShapeDtypeStruct((term.canonical,), subspace.dtype)
    prepared = jax.eval_shape(functools.partial(form.memory, subspace), constants, subspace.params_like, batch, weights)
    params = trees.size(subspace.params_like) * subspace.dtype.itemsize
    each = max(bytes_of(prepared) - params, term.canonical) / term.canonical
    room = _CACHED if on_cpu else min(_ROOMY, *(_memory(device) / 8 for device in jax.local_devices()))
    size = int(2 ** np.clip(np.round(np.log2(room / each)), *((3, 9) if on_cpu else (0, 20))))
    if term.passes:  # its batches are joined
        return size
    return min(size, max(8 if on_cpu else 1, -(-term.examples // lanes)))


def _memory(device: jax.Device) -> float:
    """Its bytes; infinite where it does not say."""
    return (device.memory_stats() or {}).get("bytes_limit", np.inf)
