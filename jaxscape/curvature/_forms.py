"""Quadratic forms of a batch: the Hessian of the loss, and its Gauss-Newton matrix."""

import functools
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxscape.objective import WEIGHT, Computation, Term, Traced, abstract, trace
from jaxscape.subspace import Subspace
from jaxscape.types import Data, Params

ModelFn = Callable[[Params, Data], Array]


class Form(Hashable, Protocol):
    """A quadratic form of a batch at a point: what does not depend on the vector, and the product with a vector.

    A form is compared by what it computes: programs that are compiled for one serve all that are equal to it.
    """

    def prepare(self, subspace: Subspace, constants: Any, params: Params, batch: Data, weights: Array) -> Any:
        """What does not depend on the vector, a pytree."""

    def apply(self, prepared: Any, tangents: list[Array]) -> list[Array]:
        """The product, in the leaves of the subspace."""


class Hessian(NamedTuple):
    """The Hessian of the loss.

    Attributes:
        loss: ``loss(constants, params, batch)`` -> a dict of metrics.
        rules: Identity of the user's own derivative rules in it.
    """

    loss: Computation
    rules: Hashable

    def prepare(self, subspace: Subspace, constants: Any, params: Params, batch: Data, weights: Array) -> Any:
        """The gradient, linearized."""
        inside, outside = subspace.split(params)

        def total(inside: list[Array]) -> Array:
            return weighted_sum(self.loss(constants, subspace.join(inside, outside), batch), weights)

        return jax.linearize(jax.grad(total), inside)[1]

    def apply(self, prepared: Any, tangents: list[Array]) -> list[Array]:
        """The derivative of the gradient."""
        return prepared(tangents)


class GaussNewton(NamedTuple):
    """``J^T H J``: J the Jacobian of the outputs, H the Hessian of the loss in the outputs.

    Attributes:
        model: ``model(constants, params, batch)`` -> outputs.
        loss: ``loss(constants, outputs, batch)`` -> a dict of metrics.
        rules: Identity of the user's own derivative rules in both.
    """

    model: Computation
    loss: Computation
    rules: Hashable

    def prepare(self, subspace: Subspace, constants: Any, params: Params, batch: Data, weights: Array) -> Any:
        """The model and the gradient of the loss, linearized."""
        inside, outside = subspace.split(params)
        of_model, of_loss = constants
        outputs, model = jax.linearize(lambda x: self.model(of_model, subspace.join(x, outside), batch), inside)
        gradient = jax.grad(lambda y: weighted_sum(self.loss(of_loss, y, batch), weights))
        return model, jax.linearize(gradient, outputs)[1]

    def apply(self, prepared: Any, tangents: list[Array]) -> list[Array]:
        """Along the model, along the gradient of the loss, and back."""
        model, loss = prepared
        return jax.linear_transpose(model, tangents)(loss(model(tangents)))[0]


class Source:
    """A term of an objective, as a product needs it: its form for batches of one size, and its constants."""

    def __init__(self, term: Term) -> None:
        """The Hessian of a term."""
        self.term = term

    def form(self, batch_size: int) -> tuple[Form, Any]:
        """The form, and its constants."""
        traced = self.term.traced(batch_size)
        return Hessian(traced.computation, self.rules), traced.constants

    @functools.cached_property
    def rules(self) -> Hashable:
        """Identity of the user's own derivative rules."""
        return self.term.rules


class GaussNewtonSource(Source):
    """The Gauss-Newton matrix of a term."""

    def __init__(self, term: Term, model_fn: ModelFn, loss_fn: Callable[..., Any], params: Params) -> None:
        """Split a term into model and loss.

        Args:
            term: The loss of the model.
            model_fn: ``model_fn(params, batch)`` -> outputs.
            loss_fn: ``loss_fn(outputs, batch)`` -> the loss of each example.
            params: A pytree of floating arrays.
        """
        super().__init__(term)
        self._model_fn, self._loss_fn, self._params = model_fn, loss_fn, abstract(params)
        self._traced: dict[int, tuple[Traced, Traced]] = {}

    def form(self, batch_size: int) -> tuple[Form, Any]:
        """The form, and its constants."""
        if batch_size not in self._traced:
            batch = self.term.batch_like(batch_size)
            model = trace(self._model_fn, self._params, batch, compute_dtype="float32")
            loss = trace(self._loss_fn, model.computation.shapes, batch, compute_dtype="float32")
            self._traced[batch_size] = model, loss
        model, loss = self._traced[batch_size]
        return GaussNewton(model.computation, loss.computation, self.rules), (model.constants, loss.constants)


def weighted_sum(metrics: dict[str, Array], weights: Array) -> Array:
    """The sum of weighted losses over a batch; an example of weight 0 adds nothing, whatever its loss."""
    if WEIGHT in metrics:
        weights = weights * metrics[WEIGHT]
    loss = metrics["loss"]
    return jnp.sum(jnp.where(weights != 0, loss * weights, 0)) if loss.ndim else loss * jnp.sum(weights)
