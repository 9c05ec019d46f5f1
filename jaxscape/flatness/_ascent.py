"""The largest loss in a box or in a ball, by projected gradient ascent."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

# In units of the region. With the first step a box is crossed, and a ball nearly so: then the ascent is the power
# method for a convex loss, which never falls (Journee et al. 2010).
_FIRST_STEP = 8.0

Evaluate = Callable[[Array], tuple[Array, Array]]
"""``u -> (loss, gradient in u)``; u has the shape (..., n), one row for each problem that is solved side by side."""


class Region(NamedTuple):
    """All u with a norm of at most 1.

    Attributes:
        box: Whether the norm is the largest magnitude; otherwise it is the Euclidean norm.
    """

    box: bool

    def random(self, key: PRNGKeyArray, shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
        """Points to start from: uniform in the box, or on the sphere."""
        if self.box:
            return jax.random.uniform(key, shape, dtype, -1, 1)
        return self.steepest(jax.random.normal(key, shape, dtype))

    def steepest(self, gradient: Array) -> Array:
        """The direction of norm 1 along which the loss rises most; zero where the gradient is."""
        return jnp.sign(gradient) if self.box else gradient / _length(gradient, least=0)

    def project(self, u: Array) -> Array:
        """The nearest point of the region."""
        return jnp.clip(u, -1, 1) if self.box else u / _length(u, least=1)


class _State(NamedTuple):
    """Where the ascent is.

    Attributes:
        largest: The largest loss so far.
        best: The point with the largest loss so far, but for points with a gradient of zero, such as a saddle.
        loss: Its loss.
        gradient: Its gradient.
        step: Length of the next step.
        next: The point to evaluate next.
    """

    largest: Array
    best: Array
    loss: Array
    gradient: Array
    step: Array
    next: Array


def largest_loss(
    evaluate: Evaluate, center: tuple[Array, Array], start: Float[Array, "*batch n"], region: Region, num_steps: int
) -> tuple[Float[np.ndarray, "*batch"], int]:
    """The largest loss that the ascent finds: a lower bound of the largest loss in the region.

    From the best point so far it goes along the steepest direction, back into the region, and halves its step where the
    loss is not larger there. It leaves a point with a gradient of zero, be it a minimum or a saddle.

    Args:
        evaluate: The loss and its gradient.
        center: Both at u = 0.
        start: The first point.
        region: Where u may be.
        num_steps: Evaluations.

    Returns:
        The largest loss, at least that at u = 0, and how many evaluations were not finite.
    """
    loss, gradient = center
    step = jnp.full(loss.shape, _FIRST_STEP, start.dtype)
    state = _State(loss, jnp.zeros_like(start), loss, gradient, step, start)
    nonfinite = 0
    for _ in range(num_steps):
        loss, gradient = evaluate(state.next)
        nonfinite += int(np.sum(~np.isfinite(loss)))
        state = _advance(state, loss, gradient, region)
    return np.asarray(state.largest, np.float64), nonfinite


@functools.partial(jax.jit, static_argnames="region")
def _advance(state: _State, loss: Array, gradient: Array, region: Region) -> _State:
    better = (loss > state.loss) | (jnp.isfinite(loss) & ~jnp.any(state.gradient != 0, axis=-1))  # not where it is NaN
    row = better[..., None]
    largest = jnp.where(loss > state.largest, loss, state.largest)
    best, gradient = jnp.where(row, state.next, state.best), jnp.where(row, gradient, state.gradient)
    step = jnp.where(better, state.step, state.step / 2)
    following = region.project(best + step[..., None] * region.steepest(gradient))
    return _State(largest, best, jnp.where(better, loss, state.loss), gradient, step, following)


def _length(x: Array, least: float) -> Array:
    """Norms of rows, at least `least`; 1 where a row is zero."""
    scale = jnp.max(jnp.abs(x), axis=-1, keepdims=True, initial=0)  # squares of entries may not be numbers of the dtype
    scale = jnp.where((scale > 0) & jnp.isfinite(scale), scale, 1)
    length = jnp.maximum(scale * jnp.linalg.norm(x / scale, axis=-1, keepdims=True), least)
    return jnp.where(length > 0, length, 1)
