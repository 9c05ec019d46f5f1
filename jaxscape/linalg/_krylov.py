"""Both ends of a symmetric operator's spectrum from one Krylov space.

Thick-restart Lanczos (Wu and Simon 2000): equal to the implicitly restarted method of the paper (section 6, ARPACK) in
exact arithmetic, with memory bounded by the basis. Every new vector is made orthogonal to the whole basis twice, which
keeps the basis orthogonal to a small multiple of the machine precision ("twice is enough", Giraud, Langou and Rozloznik
2005): so inner products in float32 suffice, at the full precision of a matrix product. What is reported never rests on
the recurrence: eigenvalues are Rayleigh quotients of the final vectors, and residuals are measured with a product each.

A pair is converged when its residual is small and nothing better is likely to be missing: see `jaxscape.linalg._ritz`.

The operator is divided by a power of two near the size of its first product, and what is found is multiplied by it: the
digits are the same at any scale. Without that, the squares in norms are 0 for an operator of 1e-23 in float32, every
residual with them, and infinite for one of 1e19.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jaxscape.linalg import _vectors as vectors
from jaxscape.linalg._bases import Storage, basis_in
from jaxscape.linalg._ritz import Goal, Ritz, Space, complete, errors, gaps, known, negligible, ritz_pairs, small
from jaxscape.types import Vector

_NOISE = 3.0  # its norm over that of a start: residuals fell as fast as with 0.1, and what is missing showed sooner


class Pairs(NamedTuple):
    """Ritz values in the order that was asked for, vectors of norm 1 as rows, and what is known of them."""

    values: Float[Array, " k"]
    vectors: Vector  # a basis
    residuals: Float[Array, " k"]
    errors: Float[Array, " k"]  # of the values, as `jaxscape.linalg._ritz.errors` estimates them
    gaps: Float[Array, " k"]  # how far the values are at least from those that are not among them
    converged: Bool[Array, " k"]
    num_matvecs: Int[Array, ""]


def krylov(
    matvec: Callable[[Vector], Vector],
    noise: Vector,
    key: PRNGKeyArray,
    goal: Goal,
    *,
    max_matvecs: int,
    max_basis: int,
    start: Vector | None = None,
    specs: vectors.Specs = None,
    storage: Storage = "device",
    similar: tuple[Float[Array, " num"], Float[Array, " num"]] | None = None,
) -> Pairs:
    """Some eigenpairs of a symmetric operator on vectors, as `lanczos` finds them.

    Args:
        matvec: ``v -> H v``.
        noise: Independent Gaussian entries of mean 0 and variance 1: where to look first. It is used up: its memory
            goes to the space.
        key: A JAX random key, of the vectors with which it goes on from an invariant subspace.
        goal: Which pairs, and how well.
        max_matvecs: Products at most, one of them for the residual of each pair.
        max_basis: Vectors in memory at most: the space, the next one and its product.
        start: Where to look first beside the noise, say the sum of a neighbour's eigenvectors: residuals are small
            sooner. Whether something is missing rests on the noise alone.
        specs: How each leaf of a vector is cut over the ambient mesh; None: vectors are flat.
        storage: Where the space is kept.
        similar: The values of an operator much like this one, and how far they are there from others, for the errors:
            a small space knows few of the others. Gaps count less twice what the values differ by.

    Returns:
        The pairs.

    Raises:
        ValueError: An option is out of its range.
    """
    num, which = goal.num, goal.which
    check_options(num, max_matvecs, goal.tol, max_basis)
    rows, dtype = min(max_basis - 2, vectors.size(noise)), vectors.dtype(noise)
    basis = basis_in(storage, noise, specs)
    first, log_odds = _first(noise, start, goal.risk)
    del noise, start
    space = basis.begin(first, rows, key, max_matvecs)._replace(log_odds=log_odds)
    similar = similar or (jnp.zeros(num, dtype), jnp.full(num, jnp.inf, dtype))
    del first

    def grow(space: Space) -> Space:
        space = _judged(basis.extend(space, _image(matvec, space.vector)), goal, max_matvecs - num, similar)
        exhausted, full = _flags(space)
        space = _if(exhausted, basis.go_on, space)
        return _if(full, functools.partial(basis.restart, num=num, which=which), space)

    space = _until_done(grow, space)
    answer = _answer(space, goal, similar)
    found = _of_norm_one(basis.combined(space, answer.coordinates))
    del space, basis
    measured = [_measured(v, matvec(v), answer.scale) for v in vectors.rows_of(found)]
    values, residuals, off, converged = _judged_pairs(measured, answer, goal)
    return Pairs(values, found, residuals, off, answer.gaps * answer.scale, converged, answer.matvecs)


def check_options(num: int, max_matvecs: int, tol: float, max_basis: int) -> None:
    """Refuse what `krylov` cannot do.

    Args:
        num: How many pairs.
        max_matvecs: Products at most.
        tol: Relative residual.
        max_basis: Vectors in memory at most: the space, the next one and its product.

    Raises:
        ValueError: An option is out of its range.
        TypeError: A number of products or vectors is None.
    """
    for name, value, least in (("max_matvecs", max_matvecs, num + 1), ("max_basis", max_basis, num + 4)):
        if value is None:
            raise TypeError(f"{name} is None, expected an integer of at least {least}.")
        if value < least:
            raise ValueError(f"{name} is {value}, expected at least {least} for {num} eigenpairs.")
    if not tol > 0:
        raise ValueError(f"tol is {tol}, expected a positive number.")


def quadrature(
    matvec: Callable[[Vector], Vector],
    first: Vector,
    key: PRNGKeyArray,
    steps: int,
    specs: vectors.Specs = None,
    storage: Storage = "device",
) -> tuple[Float[Array, " steps"], Float[Array, " steps"]]:
    """Nodes and weights of the Gauss quadrature that Lanczos makes of a vector (Golub and Meurant 2010).

    ``sum(weights * f(nodes))`` is ``u^T f(H) u`` with u the first vector at norm 1, exact for polynomials f of a degree
    up to ``2 * steps - 1``.

    Args:
        matvec: ``v -> H v``, symmetric.
        first: The vector, of any norm; it is used up as in `krylov`.
        key: Of the vectors with which it goes on from an invariant subspace.
        steps: Products; at most n are made.
        specs: How each leaf of a vector is cut over the ambient mesh; None: vectors are flat.
        storage: Where the space is kept.

    Returns:
        As many nodes, ascending, and their weights, which sum to 1.
    """
    steps = min(steps, vectors.size(first))
    basis = basis_in(storage, first, specs)
    space = basis.begin(first, steps, key, steps)

    def grow(space: Space) -> Space:
        space = _counted(basis.extend(space, _image(matvec, space.vector)), steps)
        return _if(_flags(space)[0], basis.go_on, space)

    return _quadrature(_until_done(grow, space))


@functools.partial(jax.jit, donate_argnums=0)
def _first(noise: Vector, start: Vector | None, risk: float) -> tuple[Vector, Array]:
    """The first vector, and the logarithm of what its polynomial must exceed where nothing may be missing."""
    scale = jnp.ones((), vectors.dtype(noise))
    if start is not None:
        start = vectors.over(start, vectors.power_of_two(start))
        scale = _NOISE * vectors.norm(start) / vectors.norm(noise)
        scale = jnp.where(scale > 0, scale, 1)  # a start of 0 says nothing
    vector = jax.tree.map(lambda x: scale * x, noise)
    vector = vector if start is None else jax.tree.map(jnp.add, start, vector)
    norm = vectors.norm(vector)
    return vectors.over(vector, norm), jnp.log(norm / scale * math.sqrt(2 / math.pi) / risk)


class _Answer(NamedTuple):
    """The best Ritz vectors, and what is known of the space when it is gone.

    Attributes:
        coordinates: Those of the vectors in the basis, as rows.
        complete: Whether nothing is missing before each.
        gaps: How far the values over ``scale`` are from others.
        norm: Of the operator over ``scale``.
        scale: The power of two that the operator is divided by.
        matvecs: Products, with those that measure the residuals.
    """

    coordinates: Float[Array, "num m"]
    complete: Bool[Array, " num"]
    gaps: Float[Array, " num"]
    norm: Float[Array, ""]
    scale: Float[Array, ""]
    matvecs: Int[Array, ""]


@functools.partial(jax.jit, static_argnames="goal")
def _answer(space: Space, goal: Goal, similar: tuple[Array, Array]) -> _Answer:
    ritz = ritz_pairs(space, goal.num, goal.which)
    norm, matvecs = jnp.linalg.norm(space.projected), space.matvecs + goal.num
    apart = _apart(space, ritz, similar)
    return _Answer(
        ritz.coordinates[:, : goal.num].T, complete(space, ritz, goal), apart, norm, known(space.scale), matvecs
    )


def _apart(space: Space, ritz: Ritz, similar: tuple[Array, Array]) -> Array:
    """How far the values over ``scale`` are from others: as far as in this space, and as for a similar operator."""
    values, there = (x / known(space.scale) for x in similar)
    num = len(values)
    there = jnp.maximum(there - 2 * jnp.abs(ritz.values[:num] - values), 0)
    return jnp.minimum(gaps(space, ritz, num), jnp.where(jnp.isfinite(there), there, jnp.inf))


@functools.partial(jax.jit, static_argnames="goal")
def _judged_pairs(
    measured: list[tuple[Array, Array]], answer: _Answer, goal: Goal
) -> tuple[Array, Array, Array, Array]:
    """Values, residuals and errors of the values, of the operator itself, and which pairs are converged."""
    values, residuals = (jnp.stack(column) for column in zip(*measured, strict=True))
    off = jnp.maximum(errors(residuals, answer.gaps), negligible(answer.norm))  # the values are rounded, too
    converged = small(off if goal.by == "error" else residuals, values, answer.norm, goal.tol) & answer.complete
    return values * answer.scale, residuals * answer.scale, off * answer.scale, converged


@jax.jit
def _quadrature(space: Space) -> tuple[Array, Array]:
    """Nodes and weights."""
    nodes, vectors = jnp.linalg.eigh((space.projected + space.projected.T) / 2)
    return nodes * known(space.scale), vectors[0] ** 2


@functools.partial(jax.jit, donate_argnums=0)
def _of_norm_one(basis: Vector) -> Vector:
    norms = jax.vmap(vectors.norm)(basis)
    return jax.tree.map(lambda b: b / norms.reshape(-1, *(1,) * (b.ndim - 1)), basis)


@jax.jit
def _measured(vector: Vector, image: Vector, scale: Array) -> tuple[Array, Array]:
    """Rayleigh quotient and the norm of the residual over ``scale``, of a vector of norm 1 and its product."""
    image = vectors.over(image, scale)
    value = vectors.inner(vector, image)
    return value, vectors.norm(jax.tree.map(lambda y, x: y - value * x, image, vector))


def _image(matvec: Callable[[Vector], Vector], vector: Vector) -> Vector:
    """The product with a vector, in memory of its own, since `_extend` uses up that of the space and its vector."""
    leaves = {id(x) for x in jax.tree.leaves(vector)}
    return jax.tree.map(lambda x: jnp.copy(x) if id(x) in leaves else x, matvec(vector))


def _until_done(body: Callable[[Space], Space], space: Space) -> Space:
    """A loop on the device inside a transform, and on the host outside of one."""
    while not isinstance(space.done, jax.core.Tracer):  # under `jax.vmap` it is one after the first product
        if space.done:
            return space
        space = body(space)
    return lax.while_loop(lambda s: ~s.done, body, space)


@jax.jit
def _flags(space: Space) -> tuple[Bool[Array, ""], Bool[Array, ""]]:
    """Whether a space that is to grow on is invariant, and whether its basis is full; in one program for the host."""
    return ~space.done & (space.left == 0), ~space.done & (space.size == len(space.projected))


@functools.partial(jax.jit, static_argnames="goal", donate_argnums=0)
def _judged(space: Space, goal: Goal, max_matvecs: int, similar: tuple[Array, Array]) -> Space:
    """The space, done if it has all that is wanted or can have no more."""
    n, norm = vectors.size(space.vector), jnp.linalg.norm(space.projected)
    ritz = ritz_pairs(space, goal.num, goal.which)
    off = ritz.bounds[: goal.num]
    if goal.by == "error":
        off = errors(off, _apart(space, ritz, similar))
    converged = small(off, ritz.values[: goal.num], norm, goal.tol) & complete(space, ritz, goal)
    broken = ~jnp.isfinite(norm)  # a NaN stays: no product can mend it
    ended = (space.size == n) | (space.matvecs >= max_matvecs)
    return space._replace(done=converged.all() | ended | broken)


@functools.partial(jax.jit, donate_argnums=0)
def _counted(space: Space, steps: int) -> Space:
    """The space, done after so many products."""
    return space._replace(done=space.size >= steps)


def _if(condition: Array, function: Callable[[Space], Space], space: Space) -> Space:
    """On the host where it can be: in a program of its own, what is not needed takes no memory."""
    if isinstance(condition, jax.core.Tracer):
        return lax.cond(condition, function, lambda s: s, space)
    return function(space) if condition else space
