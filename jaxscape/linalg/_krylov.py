"""Both ends of a symmetric operator's spectrum from one Krylov space.

Thick-restart Lanczos (Wu and Simon 2000): equal to the implicitly restarted method of the paper (section 6, ARPACK) in
exact arithmetic, with memory bounded by the basis. Every new vector is made orthogonal to the whole basis twice, which
keeps the basis orthogonal to a small multiple of the machine precision ("twice is enough", Giraud, Langou and Rozloznik
2005): so inner products in float32 suffice, at the full precision of a matrix product. What is reported never rests on
the recurrence: eigenvalues are Rayleigh quotients of the final vectors, and residuals are measured with a product each.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

Which = Literal["BE", "LA", "SA", "LM"]
"""Both ends, the largest, the smallest, or the largest in magnitude, as ARPACK names them."""

_FLOOR = 16  # times the machine precision and the norm of the operator: what rounding makes of an eigenvalue 0
_COLUMNS = 2**16  # of the basis, that a restart combines at once: it needs no second basis


class Pairs(NamedTuple):
    """Ritz values in the order that was asked for, vectors of norm 1 as rows, and what is known of them."""

    values: Float[Array, " k"]
    vectors: Float[Array, "k n"]
    residuals: Float[Array, " k"]
    converged: Bool[Array, " k"]
    num_matvecs: Int[Array, ""]


class _Space(NamedTuple):
    """A Krylov space in the making."""

    basis: Float[Array, "m n"]  # orthonormal rows up to `size`, multiplied
    vector: Float[Array, " n"]  # the next one, apart: as the product's argument it needs no copy
    projected: Float[Array, "m m"]  # the operator in the basis, known up to `size`
    size: Int[Array, ""]
    left: Float[Array, ""]  # norm of what the last product had outside of the basis
    matvecs: Int[Array, ""]
    done: Bool[Array, ""]
    key: PRNGKeyArray


def krylov(
    matvec: Callable[[Array], Array],
    first: Float[Array, " n"],
    key: PRNGKeyArray,
    *,
    num: int,
    which: Which,
    max_matvecs: int,
    tol: float,
    max_basis: int,
) -> Pairs:
    """Some eigenpairs of a symmetric operator on flat vectors, as `lanczos` finds them.

    Args:
        matvec: ``v -> H v``.
        first: The first vector of the space, of any norm; it is used up: its memory goes to the space.
        key: Of the vectors with which it goes on from an invariant subspace.
        num: How many pairs.
        which: Which of them.
        max_matvecs: Products at most, ``num`` of them for the residuals.
        tol: As in `lanczos`.
        max_basis: Vectors in memory at most: the space, the next one and its product.

    Returns:
        The pairs.

    Raises:
        ValueError: An option is out of its range.
    """
    check_options(num, max_matvecs, tol, max_basis)
    space = _empty(first, key, min(max_basis - 2, first.shape[0]))
    kept: dict[str, Any] = {"num": num, "which": which}
    options: dict[str, Any] = {**kept, "tol": tol}

    def grow(space: _Space) -> _Space:
        space = _extend(space, matvec(space.vector), **options)
        space = _if(~space.done & (space.left == 0), _go_on, space)
        return _if(~space.done & (space.size == len(space.projected)), functools.partial(_restart, **kept), space)

    space = _while(lambda s: ~s.done & (s.matvecs < max_matvecs - num), grow, space)
    vectors, norm, matvecs = _ritz_vectors(space, num, which), jnp.linalg.norm(space.projected), space.matvecs + num
    del space  # the basis
    vectors = _of_norm_one(vectors)
    found = [_measured(v, matvec(v)) for v in vectors]
    values, residuals = (jnp.stack(column) for column in zip(*found, strict=True))
    return Pairs(values, vectors, residuals, _within(values, residuals, norm, tol), matvecs)


def check_options(num: int, max_matvecs: int, tol: float, max_basis: int) -> None:
    """Refuse what `krylov` cannot do.

    Args:
        num: How many pairs.
        max_matvecs: Products at most.
        tol: Relative residual.
        max_basis: Vectors in memory at most: the space, the next one and its product.

    Raises:
        ValueError: An option is out of its range.
    """
    for name, value, least in (("max_matvecs", max_matvecs, num + 1), ("max_basis", max_basis, num + 4)):
        if value < least:
            raise ValueError(f"{name} is {value}, expected at least {least} for {num} eigenpairs.")
    if not tol > 0:
        raise ValueError(f"tol is {tol}, expected a positive number.")


def quadrature(
    matvec: Callable[[Array], Array], first: Float[Array, " n"], key: PRNGKeyArray, steps: int
) -> tuple[Float[Array, " steps"], Float[Array, " steps"]]:
    """Nodes and weights of the Gauss quadrature that Lanczos makes of a vector (Golub and Meurant 2010).

    ``sum(weights * f(nodes))`` is ``u^T f(H) u`` with u the first vector at norm 1, exact for polynomials f of a degree
    up to ``2 * steps - 1``.

    Args:
        matvec: ``v -> H v``, symmetric.
        first: The vector, of any norm; it is used up as in `krylov`.
        key: Of the vectors with which it goes on from an invariant subspace.
        steps: Products; at most n are made.

    Returns:
        As many nodes, ascending, and their weights, which sum to 1.
    """
    steps = min(steps, first.shape[0])
    space = _empty(first, key, steps)

    def grow(space: _Space) -> _Space:
        space = _extend(space, matvec(space.vector), num=1, which="LA", tol=0.0)
        return _if((space.size < steps) & (space.left == 0), _go_on, space)

    space = _while(lambda s: s.size < steps, grow, space)
    nodes, vectors = jnp.linalg.eigh((space.projected + space.projected.T) / 2)
    return nodes, vectors[0] ** 2


@functools.partial(jax.jit, static_argnames="rows", donate_argnums=0)
def _empty(first: Array, key: PRNGKeyArray, rows: int) -> _Space:
    """The space of one vector, in one allocation."""
    zero, count = jnp.zeros((), first.dtype), jnp.zeros((), int)
    basis, projected = jnp.zeros((rows, len(first)), first.dtype), jnp.zeros((rows, rows), first.dtype)
    return _Space(basis, first / jnp.linalg.norm(first), projected, count, zero, count, jnp.zeros((), bool), key)


@functools.partial(jax.jit, static_argnames=("num", "which"))
def _ritz_vectors(space: _Space, num: int, which: Which) -> Float[Array, "num n"]:
    """The vectors of the best Ritz values."""
    return _product(_wanted(space, num, which)[1].T, space.basis)


@functools.partial(jax.jit, donate_argnums=0)
def _of_norm_one(vectors: Float[Array, "num n"]) -> Float[Array, "num n"]:
    return vectors / jnp.linalg.norm(vectors, axis=1, keepdims=True)


@jax.jit
def _measured(vector: Array, image: Array) -> tuple[Array, Array]:
    """Rayleigh quotient and the norm of the residual, of a vector of norm 1 and its product."""
    value = jnp.vdot(vector, image, precision=lax.Precision.HIGHEST)
    return value, jnp.linalg.norm(image - value * vector)


def _while(more: Callable[[_Space], Array], body: Callable[[_Space], _Space], space: _Space) -> _Space:
    """A loop on the device inside a transform, and on the host outside of one."""
    if isinstance(space.basis, jax.core.Tracer):
        return lax.while_loop(more, body, space)
    while more(space):
        space = body(space)
    return space


@functools.partial(jax.jit, static_argnames=("num", "which"), donate_argnums=0)
def _extend(space: _Space, image: Float[Array, " n"], *, num: int, which: Which, tol: float) -> _Space:
    """The space with the product of its last vector."""
    n, last = image.shape[0], space.size
    basis = space.basis.at[last].set(space.vector)
    rest, inside = _outside(basis, image, last + 1)
    projected = space.projected.at[last].set(inside).at[:, last].set(inside)
    left = jnp.linalg.norm(rest)
    exhausted = left <= _FLOOR * jnp.finfo(image.dtype).eps * jnp.linalg.norm(projected)
    rest, left = jnp.where(exhausted, 0, rest / left), jnp.where(exhausted, 0, left)
    space = _Space(basis, rest, projected, last + 1, left, space.matvecs + 1, space.done, space.key)
    values, _, bounds = _wanted(space, num, which)
    found = _within(values, bounds, jnp.linalg.norm(projected), tol).all()
    broken = ~jnp.isfinite(projected).all()  # a NaN stays: no product can mend it
    return space._replace(done=(space.size >= min(num, n)) & found | (space.size == n) | broken)


def _if(condition: Array, function: Callable[[_Space], _Space], space: _Space) -> _Space:
    """On the host where it can be: in a program of its own, what is not needed takes no memory."""
    if isinstance(condition, jax.core.Tracer):
        return lax.cond(condition, function, lambda s: s, space)
    return function(space) if condition else space


@functools.partial(jax.jit, donate_argnums=0)
def _go_on(space: _Space) -> _Space:
    """From an invariant subspace to what it lacks."""
    key, own = jax.random.split(space.key)
    vector = jax.random.normal(own, space.vector.shape, space.vector.dtype)
    vector = _outside(space.basis, vector, space.size)[0]
    return space._replace(vector=vector / jnp.linalg.norm(vector), key=key)


def _outside(basis: Array, vector: Array, known: Array) -> tuple[Array, Array]:
    """What a vector has outside of the first ``known`` rows of the basis, and its coordinates in them."""
    inside = jnp.zeros(len(basis), vector.dtype)
    for _ in range(2):
        coordinates = jnp.where(jnp.arange(len(basis)) < known, _product(basis, vector), 0)
        vector = vector - _product(coordinates, basis)
        inside += coordinates
    return vector, inside


def _product(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def _within(values: Array, residuals: Array, norm: Array, tol: float) -> Array:
    floor = _FLOOR * jnp.finfo(values.dtype).eps * norm
    return (residuals <= tol * jnp.abs(values)) | ((jnp.abs(values) <= floor) & (residuals <= floor))


def _wanted(space: _Space, num: int, which: Which) -> tuple[Array, Array, Array]:
    """The best Ritz values, their coordinates in the basis as columns, and the bounds of their residuals."""
    m = len(space.projected)
    used = jnp.arange(m) < space.size
    beyond = 2 * jnp.linalg.norm(space.projected) + 1  # where no Ritz value is: those of rows not used yet come last
    projected = jnp.where(used[:, None] & used, space.projected, 0) + jnp.diag(jnp.where(used, 0, beyond))
    values, coordinates = jnp.linalg.eigh((projected + projected.T) / 2)
    rank = jnp.arange(num)
    if which == "BE":
        chosen = jnp.where(rank % 2, space.size - 1 - rank // 2, rank // 2)
    elif which == "LM":
        chosen = jnp.argsort(jnp.where(used, -jnp.abs(values), jnp.inf))[:num]
    else:
        chosen = rank if which == "SA" else space.size - 1 - rank
    chosen = jnp.clip(chosen, 0, space.size - 1)
    last = coordinates[space.size - 1, chosen]
    return values[chosen], coordinates[:, chosen], space.left * jnp.abs(last)


@functools.partial(jax.jit, static_argnames=("num", "which"), donate_argnums=0)
def _restart(space: _Space, num: int, which: Which) -> _Space:
    """The space of the best half of the Ritz vectors."""
    m = len(space.projected)
    kept = max(num, m // 2)
    values, combination, _ = _wanted(space, kept, which)
    n = len(space.vector)

    def combine(i: Any, basis: Array, columns: int = _COLUMNS) -> Array:
        where = (0, i * _COLUMNS)
        part = lax.dynamic_slice(basis, where, (m, columns))
        return lax.dynamic_update_slice(basis, _product(combination.T, part), where)

    basis = space.basis
    if n >= _COLUMNS:
        basis = lax.fori_loop(0, n // _COLUMNS, combine, basis)
    if n % _COLUMNS:
        basis = combine(n // _COLUMNS, basis, n % _COLUMNS)
    projected = jnp.zeros_like(space.projected).at[jnp.arange(kept), jnp.arange(kept)].set(values)
    return space._replace(basis=basis, projected=projected, size=jnp.asarray(kept, space.size.dtype))
