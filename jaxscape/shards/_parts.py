"""The part of an array that a device has, row by row: temporary memory stays small beside the part itself."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Array

Kind = Literal["sum", "max"]

ROWS = 2**16  # entries that are computed at once, where a row has fewer: temporary memory of 2.5 MB, as fast as 2**20


class Part(NamedTuple):
    """An array that may be cut over the axes of the ambient mesh. It is hashable.

    Attributes:
        shape: Of the whole array.
        spec: Along which mesh axes each of its axes is cut; None: each device has the whole.
    """

    shape: tuple[int, ...]
    spec: PartitionSpec | None = None

    def names(self, axis: int) -> tuple[str, ...]:
        """The mesh axes along which an axis is cut."""
        entry = self.spec[axis] if self.spec is not None and axis < len(self.spec) else None
        return () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)

    @property
    def local_shape(self) -> tuple[int, ...]:
        """The shape of the part that a device has."""
        mesh = jax.sharding.get_abstract_mesh()
        cuts = [math.prod(mesh.shape[name] for name in self.names(axis)) for axis in range(len(self.shape))]
        return tuple(length // cut for length, cut in zip(self.shape, cuts, strict=True))

    def rows(self, start: Any, count: int) -> Array:
        """The places of some rows of this device's part in the whole array, row-major; for use in `on_shards`.

        Args:
            start: The first row, along the first axis of the part that is longer than 1.
            count: How many.

        Returns:
            Unsigned integers, shape ``(count, ...)`` without the axes of length 1 before.

        Raises:
            ValueError: The array has more than 2**32 entries.
        """
        if math.prod(self.shape) > 2**32:
            raise ValueError(f"a leaf of shape {self.shape} has more than 2**32 entries; cut it in two leaves.")
        local = self.local_shape
        strides = [math.prod(self.shape[axis + 1 :]) for axis in range(len(local))]
        place = jnp.zeros((), jnp.uint32)
        for axis, (length, stride) in enumerate(zip(local, strides, strict=True)):
            if names := self.names(axis):
                place += lax.axis_index(names).astype(jnp.uint32) * jnp.uint32(length * stride % 2**32)
        lead = _lead(local)
        shape = (count, *local[lead + 1 :])
        for axis, stride in enumerate(strides[lead:]):
            along = lax.broadcasted_iota(jnp.uint32, shape, axis)
            along = along + jnp.asarray(start).astype(jnp.uint32) if axis == 0 else along
            place = place + along * jnp.uint32(stride)
        return jnp.broadcast_to(place, shape)


def on_shards(
    function: Callable[..., Any], parts: Sequence[PartitionSpec | None], out: PartitionSpec | None
) -> Callable[..., Any]:
    """A function of whole arrays of a function of each device's parts, inside `jax.jit` within the ambient mesh.

    Args:
        function: It takes and gives the parts of a device.
        parts: How each argument is cut; None: it is not.
        out: How the result is cut; None: nothing is, and the function is called as it is.

    Returns:
        The function of whole arrays.
    """
    if out is None:
        return function
    mesh = jax.sharding.get_abstract_mesh()
    names = {name for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind == AxisType.Auto}
    specs = tuple(PartitionSpec() if spec is None else spec for spec in parts)
    return jax.shard_map(function, axis_names=names, in_specs=specs, out_specs=out, check_vma=False)


def filled(shape: Sequence[int], rows: Callable[[Any, int], Array], dtype: Any) -> Array:
    """An array that is computed in blocks of rows.

    Args:
        shape: Its shape.
        rows: ``rows(start, count)`` -> these rows along the first axis that is longer than 1.
        dtype: Its dtype.

    Returns:
        The array.
    """
    if 0 in shape:
        return jnp.zeros(shape, dtype)
    length, rest, count = _blocks(shape)
    if count == length:
        return rows(0, length).astype(dtype).reshape(shape)

    def fill(i: Array, out: Array) -> Array:
        start = jnp.minimum(i * count, length - count)  # the last block overlaps the one before
        return lax.dynamic_update_slice_in_dim(out, rows(start, count).astype(dtype), start, 0)

    return lax.fori_loop(0, -(-length // count), fill, jnp.zeros((length, *rest), dtype)).reshape(shape)


def folded_rows(shape: Sequence[int], step: Callable[[Any, Any, int, Array], Any], first: Any) -> Any:
    """Go through the rows of an array block by block.

    Args:
        shape: The shape of the array.
        step: ``step(carry, start, count, is_new)`` -> the next carry; ``is_new`` says which entries of these rows no
            step before had, an array of the rank of the rows.
        first: The first carry.

    Returns:
        The last carry.
    """
    if 0 in shape:
        return first
    length, rest, count = _blocks(shape)

    def block(i: Any, carry: Any) -> Any:
        start = jnp.minimum(i * count, length - count)
        is_new = start + jnp.arange(count) >= i * count  # the last block overlaps the one before
        return step(carry, start, count, is_new.reshape(-1, *(1,) * len(rest)))

    return lax.fori_loop(0, -(-length // count), block, first)


def reduced_rows(shape: Sequence[int], rows: Callable[[Any, int], Any], axes: Sequence[int], kind: Kind) -> Any:
    """The reduction of an array that has entries along axes, in blocks of rows.

    Args:
        shape: The shape of the array.
        rows: As in `filled`, of an array or a pytree of arrays; what it gives is added up exactly, or the order
            matters.
        axes: Which axes are reduced; the result keeps them with length 1.
        kind: The sum, or the largest of numbers that are not negative.

    Returns:
        The reduced array, with the dtype of the rows; or a pytree of them.
    """
    length, _, count = _blocks(shape)
    reduce, combine = (_sum, jnp.add) if kind == "sum" else (jnp.max, jnp.maximum)
    lead = _lead(shape)
    inner = tuple(axis - lead for axis in axes if axis > lead)
    kept = tuple(1 if axis in axes else n for axis, n in enumerate(shape))

    def of_rows(start: Any) -> Any:
        return jax.tree.map(lambda x: reduce(x, axis=inner, keepdims=True), rows(start, count))

    def along_lead(block: Array) -> Array:
        return reduce(block, axis=0, keepdims=True) if lead in axes else block

    def step(i: Array, total: Any) -> Any:
        start = jnp.minimum(i * count, length - count)
        new = start + jnp.arange(count) >= i * count  # the last block overlaps the one before

        def add(out: Array, block: Array) -> Array:
            if lead not in axes:
                return lax.dynamic_update_slice_in_dim(out, block, start, 0)
            return combine(out, along_lead(jnp.where(new.reshape(-1, *(1,) * (block.ndim - 1)), block, 0)))

        return jax.tree.map(add, total, of_rows(start))

    if count == length:
        total = jax.tree.map(along_lead, of_rows(0))
    else:
        blocks = jax.eval_shape(lambda: of_rows(0))
        first = jax.tree.map(lambda x: jnp.zeros((1 if lead in axes else length, *x.shape[1:]), x.dtype), blocks)
        total = lax.fori_loop(0, -(-length // count), step, first)
    return jax.tree.map(lambda x: x.reshape(kept), total)


def _sum(x: Array, **options: Any) -> Array:
    return jnp.sum(x, dtype=x.dtype, **options)


def rows_of(array: Array, start: Any, count: int) -> Array:
    """Some rows along the first axis that is longer than 1."""
    return lax.dynamic_slice_in_dim(array.reshape(array.shape[_lead(array.shape) :] or (1,)), start, count)


def _lead(shape: Sequence[int]) -> int:
    """The first axis that is longer than 1, else the last."""
    return next((axis for axis, length in enumerate(shape) if length > 1), max(len(shape) - 1, 0))


def _blocks(shape: Sequence[int]) -> tuple[int, tuple[int, ...], int]:
    """The number of rows, the shape of one, and how many are computed at once."""
    length, *rest = tuple(shape)[_lead(shape) :] or (1,)
    return length, tuple(rest), max(1, min(length, ROWS // max(math.prod(rest), 1)))
