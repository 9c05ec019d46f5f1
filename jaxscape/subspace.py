"""The leaves that take part in curvature or in a path, and the conversion between pytrees and vectors.

A vector is a flat array; where params are cut over devices, it is a list of leaves, each cut as that of params. It is a
list of leaves, too, where params are so large that the copy which a flat array needs beside its leaves matters.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PRNGKeyArray

from jaxscape import trees
from jaxscape.normalize import reasons_to_ignore
from jaxscape.shards import (
    Part,
    filled,
    is_threefry,
    key_words,
    mesh_of_shards,
    normal,
    on_shards,
    put,
    signs,
    specs_of,
    within,
)
from jaxscape.types import Ignore, Params, Vector


class Subspace(NamedTuple):
    """The leaves of a pytree that a vector contains, in the order of the leaves. It is hashable.

    Attributes:
        treedef: The structure of params.
        shapes: The shape of every leaf.
        dtypes: The dtype of every leaf.
        free: For every leaf, whether it is in the vector.
        mesh: The one that params are cut over; None: they are whole.
        specs: For every leaf, how it is cut; None: none is.
        in_leaves: Whether vectors are lists of leaves although params are whole.
    """

    treedef: Any
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[Any, ...]
    free: tuple[bool, ...]
    mesh: Mesh | None = None
    specs: tuple[PartitionSpec, ...] | None = None
    in_leaves: bool = False

    @classmethod
    def of(cls, params: Params, ignore: Ignore, *, in_leaves: bool = False) -> "Subspace":
        """The subspace of params without the leaves that are ignored.

        Args:
            params: A pytree of floating arrays.
            ignore: Which leaves are not in the subspace: ``"bias_norm"``, biases and normalization parameters; None,
                no leaf is ignored; or a predicate on (path, leaf) that is true for a leaf to ignore.
            in_leaves: Whether vectors are lists of leaves although params are whole.

        Returns:
            The subspace.

        Raises:
            ValueError: Every leaf is ignored, or ``ignore`` is unknown.
        """
        free = tuple(reason is None for reason in reasons_to_ignore(params, ignore))
        if not any(free):
            raise ValueError(f"ignore is {ignore!r}, which leaves no leaf of params; expected at least one.")
        shapes, dtypes = zip(*((leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(params)), strict=True)
        mesh = mesh_of_shards(params)
        specs = None if mesh is None else specs_of(params)
        return cls(jax.tree.structure(params), shapes, dtypes, free, mesh, specs, in_leaves)

    def on(self, mesh: Mesh) -> "Subspace":
        """The same for params that are cut over another mesh with axes of the same names."""
        return self if self.mesh is None else self._replace(mesh=mesh)

    @property
    def is_flat(self) -> bool:
        """Whether a vector is one flat array."""
        return self.mesh is None and not self.in_leaves

    @property
    def free_specs(self) -> tuple[PartitionSpec, ...] | None:
        """How each leaf of a vector is cut; None: none is."""
        if self.specs is None:
            return None
        return tuple(spec for spec, free in zip(self.specs, self.free, strict=True) if free)

    @property
    def params_like(self) -> Params:
        """A pytree like params with the shape and the dtype of each leaf."""
        leaves = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in zip(self.shapes, self.dtypes, strict=True)]
        return jax.tree.unflatten(self.treedef, leaves)

    @property
    def free_names(self) -> list[str]:
        """The paths of the leaves in the vector: what an ``ignore`` came to, whatever function it was."""
        return [name for name, free in zip(trees.leaf_names(self.params_like), self.free, strict=True) if free]

    @property
    def size(self) -> int:
        """The length of a flat vector."""
        return sum(math.prod(shape) for shape, free in zip(self.shapes, self.free, strict=True) if free)

    @property
    def dtype(self) -> Any:
        """The dtype of a flat vector, at least float32."""
        return jnp.result_type(jnp.float32, *(d for d, free in zip(self.dtypes, self.free, strict=True) if free))

    def free_leaves(self, params: Params) -> list[Array]:
        """The leaves of params in the vector, as they are."""
        return [x for x, free in zip(jax.tree.leaves(params), self.free, strict=True) if free]

    def split(self, params: Params) -> tuple[list[Array], list[Array]]:
        """Split params into the leaves in the vector, cast to at least float32, and the other leaves."""
        leaves = list(zip(jax.tree.leaves(params), self.free, strict=True))
        return [x.astype(trees.working_dtype(x)) for x, free in leaves if free], [x for x, free in leaves if not free]

    def join(self, inside: list[Array], outside: list[Array]) -> Params:
        """Join the two lists of leaves of `split` to a pytree, with the dtypes of params."""
        parts = {True: iter(inside), False: iter(outside)}
        leaves = [next(parts[free]).astype(dtype) for free, dtype in zip(self.free, self.dtypes, strict=True)]
        return jax.tree.unflatten(self.treedef, leaves)

    def vector(self, leaves: list[Array]) -> Vector:
        """The vector of the leaves of the subspace."""
        dtype = self.dtype
        if not self.is_flat:
            return [x.astype(dtype) for x in leaves]
        return jnp.concatenate([x.astype(dtype).reshape(-1) for x in leaves])

    def leaves(self, vector: Vector) -> list[Array]:
        """The leaves of the subspace, with at least float32, of a vector."""
        parts, out, start = None if self.is_flat else iter(vector), [], 0
        for shape, dtype, free in zip(self.shapes, self.dtypes, self.free, strict=True):
            if free:
                stop = start + math.prod(shape)
                leaf = next(parts) if parts is not None else vector[start:stop].reshape(shape)
                out.append(leaf.astype(jnp.promote_types(dtype, jnp.float32)))
                start = stop
        return out

    @functools.partial(jax.jit, static_argnums=0)
    def embed(self, vector: Vector) -> Params:
        """The pytree of a vector, with at least float32; ignored leaves are zero."""
        inside = iter(self.leaves(vector))
        zeros = (jnp.promote_types(dtype, jnp.float32) for dtype in self.dtypes)
        leaves = [
            next(inside) if free else jnp.zeros(shape, dtype)
            for shape, dtype, free in zip(self.shapes, zeros, self.free, strict=True)
        ]
        return self.place(jax.tree.unflatten(self.treedef, leaves))

    @functools.partial(jax.jit, static_argnums=0)
    def embed_rows(self, rows: Vector) -> Params:
        """The pytrees of several vectors, along a leading axis of each leaf."""
        return jax.vmap(self.embed)(rows)

    @functools.partial(jax.jit, static_argnums=0)
    def extract(self, tree: Params) -> Vector:
        """The vector of a pytree, without its ignored leaves."""
        return self.vector(self.split(tree)[0])

    def place(self, tree: Params) -> Params:
        """A pytree like params cut as params are; as it is where they are whole."""
        if self.mesh is None or self.specs is None:
            return tree
        pairs = zip(jax.tree.leaves(tree), self.specs, strict=True)
        return jax.tree.unflatten(self.treedef, [put(x, NamedSharding(self.mesh, spec)) for x, spec in pairs])

    def normal(self, key: PRNGKeyArray) -> Vector:
        """A vector of independent standard normal numbers: the same, however params are cut."""
        if self.mesh is None and not is_threefry(key):
            return self._split(jax.random.normal(key, (self.size,), self.dtype))
        with within(self.mesh):
            return _drawn(self, normal, key_words(key))

    def signs(self, key: PRNGKeyArray) -> Vector:
        """A vector of random signs: the same, however params are cut."""
        if self.mesh is None and not is_threefry(key):
            return self._split(jax.random.rademacher(key, (self.size,), self.dtype))
        with within(self.mesh):
            return _drawn(self, signs, key_words(key))

    def _split(self, flat: Array) -> Vector:
        """The vector of a flat array."""
        return flat if self.is_flat else self._replace(in_leaves=False).leaves(flat)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _drawn(subspace: Subspace, draw: Any, words: Array) -> Vector:
    """A vector whose entries are drawn by their places in the flat vector."""
    if subspace.is_flat:
        return draw(words, jnp.arange(subspace.size, dtype=jnp.uint32), subspace.dtype)
    shapes = [shape for shape, free in zip(subspace.shapes, subspace.free, strict=True) if free]
    specs = subspace.free_specs or [None] * len(shapes)
    firsts = np.concatenate([[0], np.cumsum([math.prod(shape) for shape in shapes])]).tolist()

    def leaf(shape: tuple[int, ...], spec: PartitionSpec | None, first: int) -> Array:
        part = Part(shape, spec)

        def on_device(words: Array) -> Array:
            def rows(start: Any, count: int) -> Array:
                return draw(words, part.rows(start, count), subspace.dtype, first)

            return filled(part.local_shape, rows, subspace.dtype)

        return on_shards(on_device, (None,), spec)(words)

    return [leaf(*one) for one in zip(shapes, specs, firsts[:-1], strict=True)]
