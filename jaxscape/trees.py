"""Arithmetic on pytrees, and the checks that name the leaf which is wrong."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxscape.types import Params


def working_dtype(x: Array) -> jnp.dtype:
    """The dtype to compute in for a leaf: its own, but never less than float32."""
    return jnp.promote_types(x.dtype, jnp.float32)


def dot(a: Params, b: Params) -> Float[Array, ""]:
    """Inner product of two pytrees, the sum over all leaves and entries of ``a * b``.

    Leaves are not flattened (a reshape moves data when they are sharded), and the products keep full
    precision: TF32 on a GPU would spoil orthogonality at 1e-3.

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
        A pytree like ``params``; summed in at least float32, then cast to each leaf's own dtype.
    """

    def leaf(p: Array, d: Array) -> Array:
        dtype = working_dtype(p)
        moved = p.astype(dtype)
        for k in range(d.shape[0]):  # unrolled: it fuses to one pass, and no matmul rounds it to TF32
            moved = moved + coords[k].astype(dtype) * d[k].astype(dtype)
        return moved.astype(p.dtype)

    return jax.tree.map(leaf, params, basis)


def overlay(base: Any, top: Any) -> Any:
    """Nested dicts joined: the leaves of ``top``, and those of ``base`` that ``top`` lacks.

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
    """What nested dicts have of the keys of ``like``: the part of an `overlay` that was there before it.

    >>> restrict({"a": {"x": 1, "y": 2}, "b": 3}, {"a": {"y": 0}})
    {'a': {'y': 2}}

    Returns:
        A new dict.
    """
    if not isinstance(like, Mapping):
        return tree
    return {name: restrict(tree[name], value) for name, value in like.items()}


def size(tree: Params) -> int:
    """Number of entries over all leaves."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def fingerprint(*trees: Any) -> str:
    """A hash of paths, shapes, dtypes and contents: equal trees, equal fingerprints."""
    digest = hashlib.blake2b(digest_size=8)
    for path, leaf in jax.tree_util.tree_leaves_with_path(trees):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)}{array.shape}{array.dtype}".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def leaf_names(tree: Any) -> list[str]:
    """The readable path of each leaf, in order."""
    return [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def as_params(params: Any, name: str = "params") -> Params:
    """Check that a pytree holds floating arrays only, and give its leaves as JAX arrays.

    Args:
        params: What the caller passed.
        name: What the caller's argument is called, for the message.

    Returns:
        The same pytree, its leaves JAX arrays.

    Raises:
        ValueError: There is no leaf.
        TypeError: A leaf is no floating array; the message has its path.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    if not leaves:
        raise ValueError(f"{name} has no leaves; expected a pytree with at least one floating array.")
    for path, leaf in leaves:
        dtype = getattr(leaf, "dtype", type(leaf).__name__)
        if not hasattr(leaf, "dtype") or not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(
                f"{name}{jax.tree_util.keystr(path)} is {dtype}, but every leaf must be a floating array. Keep the "
                "trainable leaves only, e.g. `nnx.split(model, nnx.Param, ...)` or `eqx.partition(model, "
                "eqx.is_inexact_array)`, and put the rest back inside loss_fn."
            )
    return jax.tree.map(jnp.asarray, params)


def like(params: Params, tree: Any, name: str, leading: Sequence[int] = ()) -> Params:
    """Check that ``tree`` has the leaves of ``params``, and give it the very structure of ``params``.

    Args:
        params: The reference.
        tree: What the caller passed.
        name: What the caller's argument is called, for the message.
        leading: Axes that each leaf of ``tree`` has in front of the shape of its counterpart.

    Returns:
        The leaves of ``tree`` in the structure of ``params``.

    Raises:
        ValueError: A leaf is missing, is one too many, or has another shape; the message has its path.
    """
    wanted, given = leaf_names(params), leaf_names(tree)
    for path in wanted:
        if path not in given:
            raise ValueError(f"{name} has no leaf {path}, which params has; build it from the same pytree.")
    for path in given:
        if path not in wanted:
            raise ValueError(f"{name} has a leaf {path}, which params lacks; build it from the same pytree.")
    leaves = jax.tree.leaves(as_params(tree, name))
    for path, leaf, reference in zip(wanted, leaves, jax.tree.leaves(params), strict=True):
        expected = (*leading, *reference.shape)
        if leaf.shape != expected:
            raise ValueError(f"{name}{path} has shape {leaf.shape}, expected {expected} as in params.")
    return jax.tree.unflatten(jax.tree.structure(params), leaves)
