"""Arithmetic of a Krylov space: vectors are flat arrays, or lists of leaves that may be cut over devices.

A basis has a leading axis on each leaf. No leaf is flattened where it is cut: a reshape would move data between
devices.
"""

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from jaxscape import trees
from jaxscape.shards import is_cut, mesh_and_spec, on_shards
from jaxscape.types import Vector

_COLUMNS = 2**16  # of the basis, that a restart combines at once: it needs no second basis
_HIGHEST = lax.Precision.HIGHEST

Specs = tuple[PartitionSpec, ...] | None
"""How each leaf of a vector is cut; None: the vector is flat."""


def size(vector: Vector) -> int:
    """The number of entries."""
    return sum(x.size for x in jax.tree.leaves(vector))


def dtype(vector: Vector) -> Any:
    """The dtype of all entries."""
    return jax.tree.leaves(vector)[0].dtype


def norm(vector: Vector) -> Array:
    """The Euclidean norm."""
    if isinstance(vector, jax.Array):
        return jnp.linalg.norm(vector)
    return jnp.sqrt(sum(jnp.sum(x * x) for x in vector))


def largest(vector: Vector) -> Array:
    """The largest magnitude."""
    return jnp.max(jnp.stack([jnp.max(jnp.abs(x), initial=0) for x in jax.tree.leaves(vector)]))


def inner(a: Vector, b: Vector) -> Array:
    """The inner product, at full precision."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return _sum([jnp.tensordot(x, y, axes=x.ndim, precision=_HIGHEST) for x, y in pairs])


def _sum(parts: Sequence[Array]) -> Array:
    return functools.reduce(jnp.add, parts)


def over(vector: Vector, scale: Any) -> Vector:
    """The vector divided by a number."""
    return jax.tree.map(lambda x: x / scale, vector)


def minus(a: Vector, b: Vector) -> Vector:
    """The difference of two vectors."""
    return jax.tree.map(jnp.subtract, a, b)


def zero_where(condition: Array, vector: Vector) -> Vector:
    """Zero where the condition holds, else the vector."""
    return jax.tree.map(lambda x: jnp.where(condition, 0, x), vector)


def zero_rows(like: Vector, rows: int, dtype: Any = None) -> Vector:
    """A basis of zeros, cut as a vector is; of its dtype, or another one."""

    def leaf(x: Array) -> Array:
        where: dict[str, Any] = {}
        if is_cut(x):
            mesh, spec = mesh_and_spec(x)
            where = {"device": NamedSharding(mesh, PartitionSpec(None, *spec))}
        return jnp.zeros((rows, *x.shape), dtype or x.dtype, **where)

    return jax.tree.map(leaf, like)


def put(basis: Vector, row: Any, vector: Vector) -> Vector:
    """The basis with a vector as one of its rows."""
    return jax.tree.map(lambda b, x: b.at[row].set(x.astype(b.dtype)), basis, vector)


def rounded(vector: Vector, to: Any) -> Vector:
    """A vector with the digits that another dtype has, in its own dtype."""
    kept = jnp.finfo(to)
    if kept.bits >= jnp.finfo(dtype(vector)).bits:
        return vector
    # XLA may leave out two conversions that are each other's inverse.
    return jax.tree.map(lambda x: lax.reduce_precision(x, kept.nexp, kept.nmant), vector)


def rows_of(basis: Vector) -> Iterator[Vector]:
    """The vectors of a basis."""
    return (jax.tree.map(lambda b, i=i: b[i], basis) for i in range(len(jax.tree.leaves(basis)[0])))


def coordinates(basis: Vector, vector: Vector) -> Float[Array, " m"]:
    """Inner products of a vector with the rows of a basis, at full precision."""

    def product(b: Array, x: Array) -> Array:
        if b.dtype != x.dtype:  # row by row: no copy of the basis in the other dtype
            return lax.map(lambda row: jnp.tensordot(row.astype(x.dtype), x, axes=x.ndim, precision=_HIGHEST), b)
        return jnp.tensordot(b, x, axes=x.ndim, precision=_HIGHEST)

    return _sum([product(b, x) for b, x in zip(jax.tree.leaves(basis), jax.tree.leaves(vector), strict=True)])


def combined(weights: Array, basis: Vector) -> Vector:
    """Sums of the rows of a basis: a vector for weights ``(m,)``, a basis for weights ``(k, m)``."""

    def one(weights: Array, b: Array) -> Array:
        def add(total: Array, pair: tuple[Array, Array]) -> tuple[Array, None]:
            weight, row = pair
            return total + weight * row.astype(weights.dtype), None

        return lax.scan(add, jnp.zeros(b.shape[1:], weights.dtype), (weights, b))[0]

    def sums(b: Array) -> Array:
        if b.dtype == weights.dtype:
            return jnp.tensordot(weights, b, axes=1, precision=_HIGHEST)
        return one(weights, b) if weights.ndim == 1 else lax.map(lambda row: one(row, b), weights)

    return jax.tree.map(sums, basis)


def outside(basis: Vector, vector: Vector, known: Any) -> tuple[Vector, Array]:
    """What a vector has outside of the first ``known`` rows of an orthonormal basis, and its coordinates in them."""
    rows = len(jax.tree.leaves(basis)[0])
    within = jnp.zeros(rows, dtype(vector))
    for _ in range(2):  # twice is enough against rounding
        part = jnp.where(jnp.arange(rows) < known, coordinates(basis, vector), 0)
        vector = minus(vector, combined(part, basis))
        within += part
    return vector, within


def combined_in_place(weights: Float[Array, "k m"], basis: Array, spec: PartitionSpec | None = None) -> Array:
    """A leaf of a basis with sums of its rows as its first rows, in blocks of columns: it needs no second basis.

    Args:
        weights: Those of the sums.
        basis: The leaf; it is used up.
        spec: How the leaf of a vector is cut; None: it is whole.

    Returns:
        The basis; its other rows are as they were.
    """
    if spec is None:
        return _in_place(weights, basis)
    cut = PartitionSpec(None, *spec)
    return on_shards(_in_place, (None, cut), cut)(weights, basis)


def _in_place(weights: Array, basis: Array) -> Array:
    flat = basis.reshape(len(basis), math.prod(basis.shape[1:]))
    rows, n = flat.shape

    def combine(i: Any, flat: Array, columns: int = _COLUMNS) -> Array:
        where = (0, i * _COLUMNS)
        part = lax.dynamic_slice(flat, where, (rows, columns))
        sums = jnp.matmul(weights, part.astype(weights.dtype), precision=_HIGHEST)
        return lax.dynamic_update_slice(flat, sums.astype(flat.dtype), where)

    if n >= _COLUMNS:
        flat = lax.fori_loop(0, n // _COLUMNS, combine, flat)
    if n % _COLUMNS:
        flat = combine(n // _COLUMNS, flat, n % _COLUMNS)
    return flat.reshape(basis.shape)


def orthonormal(images: Sequence[Vector], others: Iterator[Vector]) -> Vector:
    """An orthonormal basis, by Gram-Schmidt, each vector twice.

    Args:
        images: At least one vector.
        others: What takes the place of a vector that lies in the span of those before it.

    Returns:
        As many rows as there are vectors.
    """
    basis = zero_rows(images[0], len(images))
    for i, image in enumerate(images):
        basis, is_new = _with_part_outside(basis, i, image)
        while not is_new:
            basis, is_new = _with_part_outside(basis, i, next(others))
    return basis


@functools.partial(jax.jit, donate_argnums=0)
def _with_part_outside(basis: Vector, row: Any, image: Vector) -> tuple[Vector, Array]:
    """The basis with a further vector, and whether that has a part outside of the others."""
    length = norm(image)
    unit, is_new = over(image, jnp.where(length > 0, length, 1)), jnp.ones((), bool)
    for _ in range(2):  # after the first time the rest may be rounding, of any direction
        unit = outside(basis, unit, row)[0]
        rest = norm(unit)
        is_new &= ~(rest <= 16 * jnp.finfo(dtype(unit)).eps)  # NaN stays
        unit = over(unit, jnp.where(is_new, rest, 1))
    return put(basis, row, unit), is_new


def power_of_two(vector: Vector) -> Array:
    """A power of two near the largest magnitude, at most that."""
    return trees.power_of_two(largest(vector)).reshape(())
