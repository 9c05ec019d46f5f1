"""One leaf of directions that is not stored: keys and scales, from which entries are drawn where they are used."""

import dataclasses
import functools
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from jaxscape.shards._mesh import put
from jaxscape.shards._noise import normal
from jaxscape.shards._parts import Part, filled, on_shards, rows_of


def _on_one_device(x: Array) -> Array:
    several = isinstance(x, jax.Array) and len(x.sharding.device_set) > 1
    return jnp.asarray(np.asarray(x)) if several else x


def is_drawn(x: Any) -> bool:
    """Whether a node of a pytree is a leaf that is drawn."""
    return isinstance(x, Drawn)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Drawn:
    """One leaf of directions: entry i of direction k is ``scales[k] * normal(keys[k], i)``.

    Attributes:
        keys: The words of a key for each direction, shape ``(num, 2)``.
        scales: Shape ``(num, ...)``, each like the leaf with length 1 along the axes that a filter runs over.
        part: The shape of the leaf and how it is cut.
        dtype: Of the entries.
        ignored: Whether all entries are 0.
    """

    keys: Array
    scales: Array
    part: Part = field(metadata={"static": True})
    dtype: Any = field(metadata={"static": True})
    ignored: bool = field(default=False, metadata={"static": True})

    @property
    def cut_scales(self) -> PartitionSpec | None:
        """How the scales of one direction are cut: as the leaf, along the axes that they have."""
        if self.part.spec is None:
            return None
        pairs = zip(self.part.spec, self.scales.shape[1:], strict=False)
        return PartitionSpec(*(names if length > 1 else None for names, length in pairs))

    def placed(self, mesh: Mesh | None, spec: PartitionSpec | None) -> "Drawn":
        """The same leaf cut over a mesh; for None whole.

        Args:
            mesh: The mesh.
            spec: How the leaf is cut.

        Returns:
            The leaf, its keys on every device, its scales cut as the leaf.
        """
        other = dataclasses.replace(self, part=Part(self.part.shape, spec))
        if mesh is None:
            return jax.tree.map(_on_one_device, other)
        scales = NamedSharding(mesh, PartitionSpec(None, *(other.cut_scales or ())))
        keys = put(self.keys, NamedSharding(mesh, PartitionSpec()))
        return dataclasses.replace(other, keys=keys, scales=put(self.scales, scales))

    def displaced(self, origin: Array, coords: Array) -> Array:
        """``origin + sum_k coords[k] * direction_k``, in at least float32, then in the dtype of the origin.

        Args:
            origin: The leaf of params.
            coords: A coordinate for each direction.

        Returns:
            An array like ``origin``.
        """
        if self.ignored:
            return origin

        def on_device(origin: Array, keys: Array, scales: Array, coords: Array) -> Array:
            def rows(start: Any, count: int) -> Array:
                moved = rows_of(origin, start, count).astype(self.dtype)
                for k in range(coords.shape[0]):
                    c = coords[k].astype(self.dtype)
                    step = c * self._rows(keys[k], scales[k], start, count)
                    moved = moved + jnp.where(c == 0, jnp.zeros_like(step), step)  # 0 times infinity would be NaN
                return moved.astype(origin.dtype)

            return filled(self.part.local_shape, rows, origin.dtype)

        spec, scales = self.part.spec, self.cut_scales
        stacked = None if scales is None else PartitionSpec(None, *scales)
        return on_shards(on_device, (spec, None, stacked, None), spec)(origin, self.keys, self.scales, coords)

    def entries(self, index: Any) -> Array:
        """One direction's leaf."""

        def on_device(words: Array, scale: Array) -> Array:
            if self.ignored:
                return jnp.zeros(self.part.local_shape, self.dtype)
            rows = functools.partial(self._rows, words, scale)
            return filled(self.part.local_shape, rows, self.dtype)

        spec = self.part.spec
        return on_shards(on_device, (None, self.cut_scales), spec)(self.keys[index], self.scales[index])

    def stored(self) -> Array:
        """The leaf of all directions, as it would be stored: with a leading axis."""

        def on_device(keys: Array, scales: Array) -> Array:
            def entries(pair: tuple[Array, Array]) -> Array:
                return filled(self.part.local_shape, functools.partial(self._rows, *pair), self.dtype)

            if self.ignored:
                return jnp.zeros((len(keys), *self.part.local_shape), self.dtype)
            return lax.map(entries, (keys, scales))

        if self.part.spec is None:
            return on_device(self.keys, self.scales)
        scales = self.cut_scales
        assert scales is not None
        cut = PartitionSpec(None, *self.part.spec)
        return on_shards(on_device, (None, PartitionSpec(None, *scales)), cut)(self.keys, self.scales)

    def _rows(self, words: Array, scale: Array, start: Any, count: int) -> Array:
        """Rows of one direction, on a device."""
        numbers = normal(words, self.part.rows(start, count), self.dtype)
        local = self.part.local_shape
        lead = len(local) - numbers.ndim if local else 0
        own = scale.reshape(scale.shape[lead:] or (1,))
        if own.shape[0] > 1:
            own = lax.dynamic_slice_in_dim(own, start, count)
        # XLA would multiply the scale by a factor of the numbers first, which rounds in another way.
        return lax.optimization_barrier(numbers) * own
