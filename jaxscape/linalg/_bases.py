"""Where the basis of a Krylov space is kept, and the steps of a space with such a basis.

A basis of flat vectors is part of the space, and a step is one program, which uses up the space that it is given: no
step needs a second basis. Inside a transform all bases are kept so. Other bases are apart from the space: those of
vectors in leaves (`jaxscape.linalg._leaf_basis`) and those in the host's memory (`jaxscape.linalg._host_basis`).

In bfloat16 a basis takes half of float32's memory. Every vector is rounded before it is multiplied, so the projected
operator is that of the rounded vectors; what the recurrence lacks is the rounding of each next vector, about 1e-3 of
its norm, and the residuals of eigenpairs, which are measured, show it.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, PRNGKeyArray

from jaxscape.linalg import _vectors as vectors
from jaxscape.linalg._host_basis import HostBasis
from jaxscape.linalg._leaf_basis import LeafBasis
from jaxscape.linalg._ritz import Ritz, Space, Which, known, negligible, ritz_pairs
from jaxscape.objective import is_traced
from jaxscape.shards import mesh_of_shards
from jaxscape.types import Vector

Storage = Literal["device", "bfloat16", "host"]
"""Where a basis is: on the device as vectors are, on the device in bfloat16, or in the memory of the host."""


class Basis(Protocol):
    """The steps of a space."""

    def begin(self, first: Vector, rows: int, key: PRNGKeyArray, products: int) -> Space:
        """The space of a first vector, with room for so many rows and products."""

    def extend(self, space: Space, image: Vector) -> Space:
        """The space with the product of its last vector."""

    def go_on(self, space: Space) -> Space:
        """From an invariant subspace to what it lacks."""

    def restart(self, space: Space, num: int, which: Which) -> Space:
        """The space of the best half of its Ritz vectors."""

    def combined(self, space: Space, weights: Array) -> Vector:
        """Sums of the basis vectors, with weights ``(k, rows)``: a basis on the device."""


def basis_in(storage: Storage, vector: Vector, specs: vectors.Specs) -> Basis:
    """A basis for vectors like one.

    Args:
        storage: Where it is kept.
        vector: Any vector.
        specs: How each leaf of it is cut.

    Returns:
        The basis.

    Raises:
        ValueError: It is the host inside a transform.
    """
    if storage == "host":
        _refuse_traced(vector)
        return Apart(functools.partial(HostBasis, mesh=mesh_of_shards(vector), specs=specs))
    dtype = jnp.bfloat16 if storage == "bfloat16" else vectors.dtype(vector)
    if is_traced(vector) or isinstance(vector, jax.Array):
        return Within(specs, dtype)
    return Apart(functools.partial(LeafBasis, specs=specs, dtype=dtype))


def _refuse_traced(vector: Vector) -> None:
    if is_traced(vector):
        raise ValueError(
            "basis is 'host', which works between the products: call it outside of JAX transforms, or pass 'device'."
        )


class Within(NamedTuple):
    """A basis that is part of the space.

    Attributes:
        specs: How each leaf of a vector is cut; None: vectors are flat.
        dtype: Of the basis.
    """

    specs: vectors.Specs
    dtype: Any

    def begin(self, first: Vector, rows: int, key: PRNGKeyArray, products: int) -> Space:
        """See `Basis`."""
        return _begun(first, vectors.zero_rows(first, rows, self.dtype), key, rows, products, self.dtype)

    def extend(self, space: Space, image: Vector) -> Space:
        """See `Basis`."""
        return _extended_within(space, image)

    def go_on(self, space: Space) -> Space:
        """See `Basis`."""
        return _gone_on_within(space)

    def restart(self, space: Space, num: int, which: Which) -> Space:
        """See `Basis`."""
        return _restarted_within(space, num, which, self.specs)

    def combined(self, space: Space, weights: Array) -> Vector:
        """See `Basis`."""
        return _combined(weights, space.basis)


class Apart:
    """A basis beside the space."""

    def __init__(self, make: Callable[[Vector, int], Any]) -> None:
        """Nothing is allocated yet.

        Args:
            make: It makes a `LeafBasis` or a `HostBasis` of a vector and a number of rows.
        """
        self._make = make

    def begin(self, first: Vector, rows: int, key: PRNGKeyArray, products: int) -> Space:
        """See `Basis`."""
        self._basis = self._make(first, rows)
        return _begun(first, None, key, rows, products, self._basis.dtype)

    def extend(self, space: Space, image: Vector) -> Space:
        """See `Basis`."""
        _refuse_traced(image)
        size = int(space.size)
        self._basis.put(size, space.vector)
        for leaf in jax.tree.leaves(space.vector):
            leaf.delete()  # as a donation does: the caller holds the space until this returns
        scale, image = _scaled_in_place(space._replace(vector=None), image)
        rest, inside = self._basis.outside(image, size + 1)
        return _extended_in_place(space._replace(vector=None), rest, inside, scale, self._basis.dtype)

    def go_on(self, space: Space) -> Space:
        """See `Basis`."""
        space, noise = _noise(space)
        return _gone_on(space, self._basis.outside(noise, int(space.size))[0], self._basis.dtype)

    def restart(self, space: Space, num: int, which: Which) -> Space:
        """See `Basis`."""
        space, weights = _restarted(space, num, which)
        self._basis.combine(weights)
        return space

    def combined(self, space: Space, weights: Array) -> Vector:
        """See `Basis`."""
        return self._basis.combined(weights)


@functools.partial(jax.jit, static_argnames=("rows", "products", "kept"), donate_argnums=(0, 1))
def _begun(first: Vector, basis: Vector | None, key: PRNGKeyArray, rows: int, products: int, kept: Any) -> Space:
    dtype = vectors.dtype(first)
    zero, count = jnp.zeros((), dtype), jnp.zeros((), int)
    return Space(
        basis=basis,
        vector=vectors.rounded(vectors.over(first, vectors.norm(first)), kept),
        projected=jnp.zeros((rows, rows), dtype),
        scale=zero,
        size=count,
        left=zero,
        discarded=jnp.zeros(products + rows, dtype),  # a restart writes `rows` of them at once
        log_norms=zero,
        log_odds=zero,
        matvecs=count,
        done=jnp.zeros((), bool),
        key=key,
    )


@functools.partial(jax.jit, donate_argnums=0)
def _extended_within(space: Space, image: Vector) -> Space:
    scale, image = _scaled(space, image)
    basis = vectors.put(space.basis, space.size, space.vector)
    rest, inside = vectors.outside(basis, image, space.size + 1)
    return _extended(space._replace(basis=basis), rest, inside, scale, vectors.dtype(basis))


def _scaled(space: Space, image: Vector) -> tuple[Array, Vector]:
    """The power of two that the operator is divided by, and a product divided by it."""
    first = jnp.where(vectors.largest(image) > 0, vectors.power_of_two(image), 0)  # 0: not known yet
    scale = jnp.where(space.scale > 0, space.scale, first)
    return scale, vectors.over(image, known(scale))


def _rounding(kept: Any, dtype: Any) -> float:
    """How much of a vector is lost where a basis keeps fewer digits; 0 where it keeps all."""
    return float(jnp.finfo(kept).eps) / 2 if jnp.finfo(kept).bits < jnp.finfo(dtype).bits else 0.0


_scaled_in_place = jax.jit(_scaled, donate_argnums=1)


def _extended(space: Space, rest: Vector, inside: Array, scale: Array, kept: Any) -> Space:
    """The space with a product whose coordinates in the basis, and whose rest outside of it, are known."""
    last = space.size
    projected = space.projected.at[last].set(inside).at[:, last].set(inside)
    left = vectors.norm(rest)
    # What the rounding of the vectors makes of a product within the space is no new direction.
    noise = _rounding(kept, left.dtype) * jnp.sqrt(jnp.sum(inside**2) + left**2)
    exhausted = left <= jnp.maximum(negligible(jnp.linalg.norm(projected)), noise)
    rest, left = vectors.zero_where(exhausted, vectors.over(rest, left)), jnp.where(exhausted, 0, left)
    return space._replace(
        vector=vectors.rounded(rest, kept),
        projected=projected,
        scale=scale,
        size=last + 1,
        left=left,
        log_norms=space.log_norms + jnp.log(left),
        matvecs=space.matvecs + 1,
    )


_extended_in_place = jax.jit(_extended, static_argnames="kept", donate_argnums=(0, 1))


@functools.partial(jax.jit, donate_argnums=0)
def _gone_on_within(space: Space) -> Space:
    space, noise = _noise(space)
    return _gone_on(space, vectors.outside(space.basis, noise, space.size)[0], vectors.dtype(space.basis))


@jax.jit
def _noise(space: Space) -> tuple[Space, Vector]:
    key, own = jax.random.split(space.key)
    leaves, treedef = jax.tree.flatten(space.vector)
    keys = [own] if len(leaves) == 1 else jax.random.split(own, len(leaves))
    noise = [jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)]
    return space._replace(key=key), jax.tree.unflatten(treedef, noise)


@functools.partial(jax.jit, static_argnames="kept")
def _gone_on(space: Space, vector: Vector, kept: Any) -> Space:
    return space._replace(vector=vectors.rounded(vectors.over(vector, vectors.norm(vector)), kept))


@functools.partial(jax.jit, static_argnames=("num", "which", "specs"), donate_argnums=0)
def _restarted_within(space: Space, num: int, which: Which, specs: vectors.Specs) -> Space:
    space, weights = _restarted(space, num, which)
    leaves, treedef = jax.tree.flatten(space.basis)
    basis = [
        vectors.combined_in_place(weights, b, s) for b, s in zip(leaves, specs or [None] * len(leaves), strict=True)
    ]
    return space._replace(basis=jax.tree.unflatten(treedef, basis))


@functools.partial(jax.jit, static_argnames=("num", "which"))
def _restarted(space: Space, num: int, which: Which) -> tuple[Space, Array]:
    """The space of the best half of the Ritz vectors, but for its basis, and these vectors in the old basis."""
    m = len(space.projected)
    rows = min(max(num, m // 2), m)
    ritz: Ritz = ritz_pairs(space, num, which)
    diagonal = jnp.arange(rows)
    projected = jnp.zeros_like(space.projected).at[diagonal, diagonal].set(ritz.values[:rows])
    where = (space.matvecs - space.size,)
    discarded = lax.dynamic_update_slice(space.discarded, ritz.values[rows:], where)
    size = jnp.asarray(rows, space.size.dtype)
    space = space._replace(projected=projected, size=size, discarded=discarded)
    return space, ritz.coordinates[:, :rows].T


_combined = jax.jit(vectors.combined)
