"""A Krylov basis whose vectors are lists of leaves: each step is one small program for each leaf.

One program for all leaves would hold temporary copies of several of them at once: 10 times the params for a GPT-2 in
place of none. It would also take longer to compile, while leaves of one shape share a program.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array

from jaxscape.linalg import _vectors as vectors


class LeafBasis:
    """Rows of equal shape, each a list of leaves; a leaf may be cut over the ambient mesh."""

    def __init__(self, like: list[Array], rows: int, specs: vectors.Specs, dtype: Any) -> None:
        """Begin with rows of zeros.

        Args:
            like: A vector: all rows have its shape.
            rows: How many.
            specs: How each leaf is cut; None: none is.
            dtype: Of the basis; vectors keep their own.
        """
        self.dtype = dtype
        self._rows: list[Array] = vectors.zero_rows(like, rows, dtype)
        self._specs: Sequence[PartitionSpec | None] = specs or [None] * len(like)

    def put(self, row: Any, vector: list[Array]) -> None:
        """Make a vector one of the rows."""
        self._rows = [self._done(_put(b, row, x)) for b, x in zip(self._rows, vector, strict=True)]

    def outside(self, vector: list[Array], known: Any) -> tuple[list[Array], Array]:
        """What a vector has outside of the first rows, which are orthonormal, and its coordinates in them.

        Args:
            vector: The vector; it is used up.
            known: How many rows.

        Returns:
            The rest, and as many coordinates as there are rows, 0 from ``known`` on.
        """
        within = jnp.zeros(len(self._rows[0]), vectors.dtype(vector))
        for _ in range(2):  # twice is enough against rounding
            parts = [self._done(_coordinates(b, x)) for b, x in zip(self._rows, vector, strict=True)]
            part = _summed(parts, known)
            vector = [self._done(_less(x, part, b)) for x, b in zip(vector, self._rows, strict=True)]
            within += part
        return vector, within

    @staticmethod
    def _done(leaf: Array) -> Array:
        """A leaf; over several devices of a CPU it is waited for."""
        # Devices that wait for each other in the programs of several leaves at once may take up all threads: with 8
        # devices on 2 cores it stood still.
        devices = leaf.devices()
        return leaf.block_until_ready() if len(devices) > 1 and next(iter(devices)).platform == "cpu" else leaf

    def combined(self, weights: Array) -> list[Array]:
        """Sums of the rows, with weights ``(k, rows)``: a basis in the dtype of the weights."""
        return [self._done(_sums(weights, b)) for b in self._rows]

    def combine(self, weights: Array) -> None:
        """Replace the first rows by sums of all rows, with weights ``(k, rows)``."""
        self._rows = [self._done(_combine(b, weights, spec)) for b, spec in zip(self._rows, self._specs, strict=True)]


@functools.partial(jax.jit, donate_argnums=0)
def _put(basis: Array, row: Any, x: Array) -> Array:
    return basis.at[row].set(x.astype(basis.dtype))


@jax.jit
def _coordinates(basis: Array, x: Array) -> Array:
    # A product and its sum are one loop without a copy; a dot product would copy x, and the basis in 16 bits.
    return jnp.sum(basis.astype(x.dtype) * x, axis=tuple(range(1, basis.ndim)))


@jax.jit
def _summed(parts: list[Array], known: Any) -> Array:
    total = functools.reduce(jnp.add, parts)
    return jnp.where(jnp.arange(len(total)) < known, total, 0)


@functools.partial(jax.jit, donate_argnums=0)
def _less(x: Array, weights: Array, basis: Array) -> Array:
    return x - _sum_of_rows(weights, basis)


@jax.jit
def _sums(weights: Array, basis: Array) -> Array:
    return jax.lax.map(lambda row: _sum_of_rows(row, basis), weights)


def _sum_of_rows(weights: Array, basis: Array) -> Array:
    """Written out, it is one loop over the entries without a copy: twice as fast as a matrix product."""
    return functools.reduce(jnp.add, (weights[i] * basis[i].astype(weights.dtype) for i in range(len(basis))))


@functools.partial(jax.jit, static_argnums=2, donate_argnums=0)
def _combine(basis: Array, weights: Array, spec: PartitionSpec | None) -> Array:
    return vectors.combined_in_place(weights, basis, spec)
