"""Ritz pairs of a Krylov space, and whether something better than they may be missing.

A small residual says that an eigenvalue is near, not that none lies beyond it: the eigenvectors of a neighbouring
operator may be exact eigenvectors here too, and no longer those of the ends. What is missing shows in the growth of
the space. After k products the next basis vector is ``p(H) u``, with u the first vector at norm 1 and p the
polynomial of degree k whose roots are the Ritz values, those that restarts discarded (the exact shifts of Sorensen
1992) and the present ones, ``p(mu) = prod(mu - roots) / prod(norms)``, where the norms are those of what each product
had outside of the space. An eigenvector x of H with eigenvalue ``mu`` has the coordinate ``p(mu) (x . u)`` in the
next vector, and ``r / (mu - theta)`` times as much in a Ritz vector of value ``theta`` and residual r. Since x has
norm 1,

    ``abs(x . u) <= 1 / q(mu)``, ``q(mu) = abs(p(mu)) sqrt(1 + sum((r / (mu - theta))^2))``.

The first vector holds Gaussian noise g, whose entries have variance 1: ``u = (start + a g) / norm(start + a g)``. So
``x . u`` has the standard deviation ``a / norm(start + a g)`` whatever the start, and is as small as that with a
probability of at most ``sqrt(2 / pi) norm(start + a g) / (a q(mu))``; the worst case is a mean of 0. A pair waits
until this is at most `RISK` for every ``mu`` that is better than it by more than the tolerance.

This is the bound of van Dorsselaer, Hochstenbach and van der Vorst (2000, "Computing probabilistic bounds for extreme
eigenvalues of symmetric matrices with the Lanczos method"), with a start beside the noise, and through restarts. It
needs no product of its own, and it holds for every spectrum. What lies farther out than the tolerance is missing less
often: p is convex beyond its roots.
"""

from typing import Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jaxscape.linalg._vectors import size
from jaxscape.types import Vector

Which = Literal["BE", "LA", "SA", "LM"]
"""Both ends, the largest, the smallest, or the largest in magnitude, as ARPACK names them."""

RISK = 1e-2
"""The probability, at most, that an eigenvalue is missing which should have been reported in place of a converged one.

On diagonal matrices with an eigenvalue 1.1, 2 or 3 times the tolerance of 1 % beyond the end, 0.1 missed 22, 7 and 2 of
800 ends, 0.03 missed 4, 1 and 1, 0.01 missed 1, 1 and 0, with 23.8, 26.1 and 27.8 products each.
"""

_FLOOR = 16  # times the machine precision and the norm of the operator: what rounding makes of an eigenvalue 0


class Goal(NamedTuple):
    """Which pairs are wanted of a space, and how well.

    Attributes:
        num: How many pairs.
        which: From both ends in turn, beginning with the smallest (``"BE"``), the largest (``"LA"``), the smallest
            (``"SA"``), or the largest in magnitude (``"LM"``).
        tol: A pair is converged when its residual is at most ``tol`` times the magnitude of its eigenvalue and nothing
            better is likely to be missing. For an eigenvalue that rounding cannot tell from 0, what rounding makes of 0
            takes the place of that product.
        by: What must be within the tolerance: the residual, which bounds the error of the eigenvalue strictly, or the
            error as `errors` estimates it, which is far smaller.
        risk: The probability, at most, of each eigenvalue to be missing that should have come before a pair and differs
            by more than the tolerance from all that did; infinity: the residual is enough.
    """

    num: int
    which: Which
    tol: float
    risk: float = RISK
    by: Literal["residual", "error"] = "residual"


class Space(NamedTuple):
    """A Krylov space in the making."""

    basis: Vector | None  # orthonormal rows up to `size`, multiplied; None: on the host
    vector: Vector  # the next one, apart: as the product's argument it needs no copy
    projected: Float[Array, "m m"]  # the operator, over `scale`, in the basis; known up to `size`
    scale: Float[Array, ""]  # a power of two of the size of the first product that was not 0; 0 before
    size: Int[Array, ""]
    left: Float[Array, ""]  # norm of what the last product had outside of the basis
    discarded: Float[Array, " d"]  # Ritz values that restarts left out: `matvecs - size` of them
    log_norms: Float[Array, ""]  # sum of the logarithms of `left` after each product; -inf once the space is invariant
    log_odds: Float[Array, ""]  # the logarithm of what the polynomial must exceed where nothing may be missing
    matvecs: Int[Array, ""]
    done: Bool[Array, ""]
    key: PRNGKeyArray


class Ritz(NamedTuple):
    """All Ritz pairs of a space, the best first; those from `size` on mean nothing."""

    values: Float[Array, " m"]
    coordinates: Float[Array, "m m"]  # in the basis, as columns
    bounds: Float[Array, " m"]  # of the residuals


def ritz_pairs(space: Space, num: int, which: Which) -> Ritz:
    """The Ritz pairs, the best first."""
    m = len(space.projected)
    used = jnp.arange(m) < space.size
    beyond = 2 * jnp.linalg.norm(space.projected) + 1  # where no Ritz value is: those of rows not used yet come last
    projected = jnp.where(used[:, None] & used, space.projected, 0) + jnp.diag(jnp.where(used, 0, beyond))
    values, coordinates = jnp.linalg.eigh((projected + projected.T) / 2)
    rank = jnp.arange(max(m, num))
    if which == "BE":
        order = jnp.where(rank % 2, space.size - 1 - rank // 2, rank // 2)
    elif which == "LM":
        order = jnp.argsort(jnp.where(used, -jnp.abs(values), jnp.inf))
    else:
        order = rank if which == "SA" else space.size - 1 - rank
    order = jnp.clip(order, 0, space.size - 1)
    last = coordinates[space.size - 1, order]
    return Ritz(values[order], coordinates[:, order], space.left * jnp.abs(last))


def complete(space: Space, ritz: Ritz, goal: Goal) -> Bool[Array, " num"]:
    """For each pair, whether no eigenvalue is likely to be missing that is better by more than the tolerance.

    Between neighbouring roots of p, and beyond all of them, the logarithm of its magnitude is concave: it is large
    throughout an interval without roots if it is so at both ends. Ritz values only move outwards, so no root but the
    reported Ritz values lies among the better values, and the ends of their intervals of tolerance are what to test.

    Args:
        space: The space.
        ritz: Its Ritz pairs.
        goal: Which of them are wanted.

    Returns:
        One answer for each pair.
    """
    values, rank = ritz.values[: goal.num], jnp.arange(goal.num)
    near = jnp.maximum(goal.tol * jnp.abs(values), negligible(jnp.linalg.norm(space.projected)))
    ends = jnp.concatenate([values + near, values - near])
    ends = jnp.concatenate([ends, -ends])  # in magnitude, what is better lies on both sides
    if goal.which == "LM":
        better = jnp.abs(ends) > jnp.abs(values)[:, None]
    else:
        low = rank % 2 == 0 if goal.which == "BE" else jnp.full(goal.num, goal.which == "SA")
        better = jnp.where(low[:, None], ends < values[:, None], ends > values[:, None])
    reported = jnp.abs(ends - values[:, None]) < 0.99 * near[:, None]  # an end is not within its own interval
    reported = (jnp.tri(goal.num, dtype=bool)[:, :, None] & reported).any(1)  # by a pair or by one before it
    likely = ~(log_growth(space, ritz, ends) >= space.log_odds)  # what is not a number proves nothing
    missing = (better & ~reported & likely).any(1) | (rank >= space.size)
    return ~missing | (space.size == size(space.vector))


def log_growth(space: Space, ritz: Ritz, at: Float[Array, " k"]) -> Float[Array, " k"]:
    """The logarithm of q: how much larger than its part of the first vector an eigenvector's part of the space is.

    Once a product stays within the space, every eigenvector with a part in the first vector is in the space.

    Args:
        space: The space.
        ritz: Its Ritz pairs.
        at: Eigenvalues that the eigenvector may have.

    Returns:
        One for each eigenvalue.
    """
    used = jnp.arange(len(ritz.values)) < space.size
    discarded = jnp.arange(len(space.discarded)) < space.matvecs - space.size
    distances = at[:, None] - jnp.concatenate([ritz.values, space.discarded])
    factors = jnp.where(jnp.concatenate([used, discarded]), jnp.log(jnp.abs(distances)), 0)
    coordinates = jnp.where(used, ritz.bounds / distances[:, : len(used)], 0)
    growth = factors.sum(1) - space.log_norms + jnp.log1p((coordinates**2).sum(1)) / 2
    return jnp.where(jnp.isneginf(space.log_norms), jnp.inf, growth)


def known(scale: Float[Array, ""]) -> Float[Array, ""]:
    """The power of two that the operator is divided by; 1 while all products were 0."""
    return jnp.where(scale > 0, scale, 1)


def negligible(norm: Float[Array, ""]) -> Float[Array, ""]:
    """What rounding makes of an eigenvalue 0 of an operator of this norm."""
    return _FLOOR * jnp.finfo(norm.dtype).eps * norm


def errors(residuals: Array, gaps: Array) -> Array:
    """The errors of Ritz values: ``min(r, r^2 / gap)`` (Temple 1928, Kato 1949; Parlett 1998, theorem 11.7.1).

    Args:
        residuals: Norms ``r`` of the residuals.
        gaps: Distances to the nearest of the other eigenvalues, as far as they are known; 0: not known.

    Returns:
        One for each value.
    """
    return jnp.where(residuals < gaps, residuals**2 / jnp.where(gaps > 0, gaps, 1), residuals)


def gaps(space: Space, ritz: Ritz, num: int) -> Float[Array, " num"]:
    """How far the first Ritz values are at least from all others, less what these may still move; 0: too near."""
    other = (jnp.arange(len(ritz.values)) >= num) & (jnp.arange(len(ritz.values)) < space.size)
    apart = jnp.abs(ritz.values[:num, None] - ritz.values) - ritz.bounds
    nearest = jnp.min(jnp.where(other, apart, jnp.inf), axis=1)
    return jnp.where(jnp.isfinite(nearest), jnp.maximum(nearest, 0), 0)


def small(residuals: Array, values: Array, norm: Array, tol: float) -> Array:
    """Whether residuals are within the tolerance of their values."""
    floor = negligible(norm)
    return (residuals <= tol * jnp.abs(values)) | ((jnp.abs(values) <= floor) & (residuals <= floor))
