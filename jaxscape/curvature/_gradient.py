"""The mean loss over all of the data and its gradient, at any point."""

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array

from jaxscape.convolution import fast_convolutions
from jaxscape.curvature._batches import choose_batch_size
from jaxscape.curvature._forms import Form, Source, weighted_sum
from jaxscape.curvature._product import Product
from jaxscape.objective import Computation, Objective
from jaxscape.subspace import Subspace
from jaxscape.types import Data, Params

LossAndGradient = Callable[[Params], tuple[float, Array]]
"""``params -> (loss, gradient)``; the gradient is a flat vector of the subspace."""


def loss_and_gradient(
    objective: Objective, params: Params, subspace: Subspace, batch_size: int | None, mesh: Mesh
) -> LossAndGradient:
    """The mean loss over all of the data, and its gradient, as a function of params.

    Args:
        objective: The loss over its data.
        params: A pytree of floating arrays; the function takes such ones.
        subspace: The leaves that the gradient is taken in.
        batch_size: Examples of each device at a time, at most; None: as for products with the Hessian.
        mesh: The devices, along an axis ``"data"``.

    Returns:
        The function. The loss is a sum in the dtype of the gradient, at least float32.
    """
    scale = jnp.zeros((), subspace.dtype)
    both = Subspace.of((params, scale), None)
    both = both._replace(free=(*subspace.free, True))
    size = batch_size or min(choose_batch_size(Source(term), subspace) for term in objective.terms)
    sources = [_GradientSource(term) for term in objective.terms]
    product = Product(objective, sources, both, size, mesh, linearize=False)
    no_vector = jnp.zeros(both.size, both.dtype)

    def evaluate(params: Params) -> tuple[float, Array]:
        vector = product.at((params, scale))(no_vector)
        return float(vector[-1]), vector[:-1].astype(subspace.dtype)

    return evaluate


class _ScaledGradient(NamedTuple):
    """The gradient of ``(1 + s) * loss`` in params and in s, at s = 0: in s it is the loss itself.

    It has the methods of a `Form`, so that a `Product` takes it over all batches and devices; it has no vector.

    Attributes:
        loss: ``loss(constants, params, batch)`` -> a dict of metrics.
        rules: Identity of the user's own derivative rules in it.
    """

    loss: Computation
    rules: Hashable

    def prepare(self, subspace: Subspace, constants: Any, params: Params, batch: Data, weights: Array) -> Any:
        """The gradient of a batch; params is ``(params, s)``."""
        inside, outside = subspace.split(params)

        def total(inside: list[Array]) -> Array:
            point, scale = subspace.join(inside, outside)
            return (1 + scale) * weighted_sum(self.loss(constants, point, batch), weights)

        return fast_convolutions(jax.grad(total))(inside)

    def memory(self, subspace: Subspace, constants: Any, params: Params, batch: Data, weights: Array) -> Any:
        """The same."""
        return self.prepare(subspace, constants, params, batch, weights)

    def apply(self, prepared: Any, tangents: list[Array]) -> list[Array]:
        """The same."""
        del tangents
        return prepared


class _GradientSource(Source):
    """The gradient of a term."""

    def form(self, batch_size: int) -> tuple[Form, Any]:
        """The form, and its constants."""
        traced = self.term.traced(batch_size)
        return _ScaledGradient(traced.computation, self.rules), traced.constants
