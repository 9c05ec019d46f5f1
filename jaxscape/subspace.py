"""The leaves that take part in curvature or in a path, and the conversion between pytrees and flat vectors."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxscape import trees
from jaxscape.normalize import reasons_to_ignore
from jaxscape.types import Ignore, Params


class Subspace(NamedTuple):
    """The leaves of a pytree that a flat vector contains, in the order of the leaves. It is hashable.

    Attributes:
        treedef: The structure of params.
        shapes: The shape of every leaf.
        dtypes: The dtype of every leaf.
        free: For every leaf, whether it is in the vector.
    """

    treedef: Any
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[Any, ...]
    free: tuple[bool, ...]

    @classmethod
    def of(cls, params: Params, ignore: Ignore) -> "Subspace":
        """The subspace of params without the leaves that are ignored.

        Args:
            params: A pytree of floating arrays.
            ignore: Which leaves are not in the subspace: ``"bias_norm"``, biases and normalization parameters; None,
                no leaf is ignored; or a predicate on (path, leaf) that is true for a leaf to ignore.

        Returns:
            The subspace.

        Raises:
            ValueError: Every leaf is ignored, or ``ignore`` is unknown.
        """
        free = tuple(reason is None for reason in reasons_to_ignore(params, ignore))
        if not any(free):
            raise ValueError(f"ignore is {ignore!r}, which leaves no leaf of params; expected at least one.")
        shapes, dtypes = zip(*((leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(params)), strict=True)
        return cls(jax.tree.structure(params), shapes, dtypes, free)

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

    def split(self, params: Params) -> tuple[list[Array], list[Array]]:
        """Split params into the leaves in the vector, cast to at least float32, and the other leaves."""
        leaves = list(zip(jax.tree.leaves(params), self.free, strict=True))
        return [x.astype(trees.working_dtype(x)) for x, free in leaves if free], [x for x, free in leaves if not free]

    def join(self, inside: list[Array], outside: list[Array]) -> Params:
        """Join the two lists of leaves of `split` to a pytree, with the dtypes of params."""
        parts = {True: iter(inside), False: iter(outside)}
        leaves = [next(parts[free]).astype(dtype) for free, dtype in zip(self.free, self.dtypes, strict=True)]
        return jax.tree.unflatten(self.treedef, leaves)

    def flatten(self, leaves: list[Array]) -> Float[Array, " n"]:
        """Concatenate the leaves of the subspace to a vector."""
        dtype = self.dtype
        return jnp.concatenate([x.astype(dtype).reshape(-1) for x in leaves])

    def leaves(self, vector: Float[Array, " n"]) -> list[Array]:
        """Cut a vector into the leaves of the subspace, with at least float32."""
        out, start = [], 0
        for shape, dtype, free in zip(self.shapes, self.dtypes, self.free, strict=True):
            if free:
                stop = start + math.prod(shape)
                out.append(vector[start:stop].reshape(shape).astype(jnp.promote_types(dtype, jnp.float32)))
                start = stop
        return out

    @functools.partial(jax.jit, static_argnums=0)
    def embed(self, vector: Float[Array, " n"]) -> Params:
        """The pytree of a vector, with at least float32; ignored leaves are zero."""
        inside = iter(self.leaves(vector))
        zeros = (jnp.promote_types(dtype, jnp.float32) for dtype in self.dtypes)
        leaves = [
            next(inside) if free else jnp.zeros(shape, dtype)
            for shape, dtype, free in zip(self.shapes, zeros, self.free, strict=True)
        ]
        return jax.tree.unflatten(self.treedef, leaves)

    @functools.partial(jax.jit, static_argnums=0)
    def extract(self, tree: Params) -> Float[Array, " n"]:
        """The vector of a pytree, without its ignored leaves."""
        return self.flatten(self.split(tree)[0])
