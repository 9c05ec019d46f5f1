"""Arithmetic on pytrees."""

import hashlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxscape.types import Params


def working_dtype(x: Array) -> jnp.dtype:
    """The dtype for computations with a leaf: the dtype of the leaf, but at least float32."""
    return jnp.promote_types(x.dtype, jnp.float32)


def dot(a: Params, b: Params) -> Float[Array, ""]:
    """Inner product of two pytrees, the sum over all leaves and entries of ``a * b``.

    Leaves are not flattened, since a reshape of a sharded leaf moves data between devices. Products have full
    precision: TF32 on a GPU would limit the accuracy of orthogonality to 1e-3.

    Args:
        a: Any pytree of floating arrays.
        b: A pytree with the same leaves.

    Returns:
        A scalar of at least float32.
    """

    def leaf(x: Array, y: Array) -> Array:
        dtype = working_dtype(x)
        return jnp.tensordot(x.astype(dtype), y.astype(dtype), axes=x.ndim, precision=jax.lax.Precision.HIGHEST)

    return sum(jax.tree.leaves(jax.tree.map(leaf, a, b)), start=jnp.float32(0))


def norm(tree: Params) -> Float[Array, ""]:
    """Euclidean norm over all leaves, ``sqrt(dot(tree, tree))``."""
    return jnp.sqrt(dot(tree, tree))


def axpy(scale: Any, x: Params, y: Params) -> Params:
    """``scale * x + y``, leaf by leaf."""
    return jax.tree.map(lambda a, b: scale * a + b, x, y)


def displace(params: Params, basis: Params, coords: Float[Array, " axes"]) -> Params:
    """The point ``params + sum_k coords[k] * basis[k]``.

    Args:
        params: The origin.
        basis: A pytree like ``params`` whose leaves have a leading axis of length ``axes``.
        coords: One coordinate for each direction.

    Returns:
        A pytree like ``params``; the sum is computed in at least float32, then cast to the dtype of each leaf.
    """

    def leaf(p: Array, d: Array) -> Array:
        dtype = working_dtype(p)
        moved = p.astype(dtype)
        for k in range(d.shape[0]):  # unrolled: XLA fuses it into one pass, and no matrix product rounds to TF32
            moved = moved + coords[k].astype(dtype) * d[k].astype(dtype)
        return moved.astype(p.dtype)

    return jax.tree.map(leaf, params, basis)


def overlay(base: Any, top: Any) -> Any:
    """Merge nested dicts: all leaves of ``top``, and the leaves of ``base`` that are missing in ``top``.

    >>> overlay({"a": {"x": 1, "y": 2}}, {"a": {"y": 3}})
    {'a': {'x': 1, 'y': 3}}

    Returns:
        A new dict; neither argument is changed.
    """
    if not isinstance(base, Mapping) or not isinstance(top, Mapping):
        return top
    joined = {name: overlay(base[name], value) if name in base else value for name, value in top.items()}
    return {**base, **joined}


def restrict(tree: Any, like: Any) -> Any:
    """The part of nested dicts with the keys of ``like``.

    >>> restrict({"a": {"x": 1, "y": 2}, "b": 3}, {"a": {"y": 0}})
    {'a': {'y': 2}}

    Returns:
        A new dict.
    """
    if not isinstance(like, Mapping):
        return tree
    return {name: restrict(tree[name], value) for name, value in like.items()}


def size(tree: Params) -> int:
    """The number of entries in all leaves together."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def fingerprint(*trees: Any) -> str:
    """A hash of the paths, shapes, dtypes and contents of all leaves; equal trees have equal fingerprints."""
    digest = hashlib.blake2b(digest_size=8)
    for path, leaf in jax.tree_util.tree_leaves_with_path(trees):
        digest.update(f"{jax.tree_util.keystr(path)}{array_digest(leaf)}".encode())
    return digest.hexdigest()


def array_digest(array: Any) -> str:
    """A hash of the dtype, shape and contents of an array; PRNG keys count as arrays."""
    array = array if hasattr(array, "dtype") else np.asarray(array)
    kind = str(array.dtype)
    if isinstance(array, jax.Array) and jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    contents = np.ascontiguousarray(array)
    digest = hashlib.blake2b(f"{kind}{contents.shape}".encode(), digest_size=16)
    digest.update(contents.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def leaf_names(tree: Any) -> list[str]:
    """The readable path of each leaf, in order."""
    return [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
