"""Quadratic forms of a batch: the Hessian of the loss, and its Gauss-Newton matrix."""

import functools
import re
from collections.abc import Callable, Hashable
from typing import Any, Literal, NamedTuple, ParamSpec, Protocol, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxscape import trees
from jaxscape.objective import WEIGHT, Computation, Term, Traced, abstract, trace
from jaxscape.subspace import Subspace
from jaxscape.types import Data, Params

P = ParamSpec("P")
R = TypeVar("R")
ModelFn = Callable[[Params, Data], Array]


class Form(Hashable, Protocol):
    """A quadratic form of a batch at a point: what does not depend on the vector, and the product with a vector.

    A form is compared by what it computes: programs that are compiled for one serve all that are equal to it.
    """

    def prepare(self, subspace: Subspace, constants: Any, params: Params, batch: Data, weights: Array) -> Any:
        """What does not depend on the vector, a pytree."""

    def memory(self, subspace: Subspace, constants: Any, params: Params, batch: Data, weights: Array) -> Any:
        """Arrays as large as what a product has in memory beside the params."""

    def apply(self, prepared: Any, tangents: list[Array]) -> list[Array]:
        """The product, in the leaves of the subspace."""


Method = Literal["forward_over_reverse", "reverse_over_reverse", "finite_difference"]
"""How the gradient is differentiated along a vector."""

_REFUSED = re.compile("jvp|forward-mode|differentiat", re.IGNORECASE)
_OTHERS = (
    "The gradient is differentiated in forward mode here. Where a function refuses that, pass to js.hvp "
    "method='reverse_over_reverse', which needs reverse mode alone, or method='finite_difference', which needs "
    "gradients alone."
)


class Hessian(NamedTuple):
    """The Hessian of the loss.

    Attributes:
        loss: ``loss(constants, params, batch)`` -> a dict of metrics.
        rules: Identity of the user's own derivative rules in it.
        method: How the gradient is differentiated.
    """

    loss: Computation
    rules: Hashable
    method: Method = "forward_over_reverse"

    def prepare(self, subspace: Subspace, constants: Any, params: Params, batch: Data, weights: Array) -> Any:
        """The gradient, linearized; for finite differences the gradient itself, and the point."""
        total, inside = self._total(subspace, constants, params, batch, weights)
        gradient = jax.grad(total)
        if self.method == "finite_difference":
            return jax.tree_util.Partial(gradient), inside
        if self.method == "reverse_over_reverse":
            return jax.vjp(gradient, inside)[1]
        return jax.linearize(gradient, inside)[1]

    def memory(self, subspace: Subspace, constants: Any, params: Params, batch: Data, weights: Array) -> Any:
        """Arrays as large as what a product has in memory, for the choice of the batch size."""
        if self.method != "finite_difference":
            return self.prepare(subspace, constants, params, batch, weights)
        total, inside = self._total(subspace, constants, params, batch, weights)
        return jax.vjp(total, inside)[1]

    def _total(
        self, subspace: Subspace, constants: Any, params: Params, batch: Data, weights: Array
    ) -> tuple[Callable[[list[Array]], Array], list[Array]]:
        """The weighted loss of a batch as a function of the leaves of the subspace, and these leaves."""
        inside, outside = subspace.split(params)

        def total(inside: list[Array]) -> Array:
            return weighted_sum(self.loss(constants, subspace.join(inside, outside), batch), weights)

        return total, inside

    def apply(self, prepared: Any, tangents: list[Array]) -> list[Array]:
        """The derivative of the gradient."""
        if self.method == "finite_difference":
            gradient, point = prepared
            return _central_difference(gradient, point, tangents)
        # The Hessian is symmetric: what the gradient's derivative pulls back is what it pushes forward.
        return prepared(tangents)[0] if self.method == "reverse_over_reverse" else prepared(tangents)


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

    def memory(self, subspace: Subspace, constants: Any, params: Params, batch: Data, weights: Array) -> Any:
        """The same."""
        return self.prepare(subspace, constants, params, batch, weights)

    def apply(self, prepared: Any, tangents: list[Array]) -> list[Array]:
        """Along the model, along the gradient of the loss, and back."""
        model, loss = prepared
        return jax.linear_transpose(model, tangents)(loss(model(tangents)))[0]


def advised(function: Callable[P, R]) -> Callable[P, R]:
    """Tell of the other methods, where JAX refuses to differentiate a gradient in forward mode.

    Args:
        function: It traces or compiles a product with the Hessian.

    Returns:
        The function.
    """

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except Exception as error:
            if _REFUSED.search(str(error)) and _OTHERS not in getattr(error, "__notes__", []):
                error.add_note(_OTHERS)
            raise

    return wrapped


def _central_difference(
    gradient: Callable[[list[Array]], list[Array]], point: list[Array], tangents: list[Array]
) -> list[Array]:
    """``(g(x + h v) - g(x - h v)) / 2h``, h v a cube root of the machine precision as long as ``1 + norm(x)``.

    There the rounding of the gradient and the error of the difference are of one size (Press et al. 2007, section 5.7).

    Returns:
        The product.
    """
    length = trees.norm(tangents)
    eps = max(float(jnp.finfo(x.dtype).eps) for x in point)
    step = jnp.where(length > 0, eps ** (1 / 3) * (1 + trees.norm(point)) / jnp.where(length > 0, length, 1), 1)
    beyond, before = (
        gradient([x + (sign * step).astype(x.dtype) * v.astype(x.dtype) for x, v in zip(point, tangents, strict=True)])
        for sign in (1, -1)
    )
    return [(b - a) / (2 * step).astype(b.dtype) for a, b in zip(before, beyond, strict=True)]


class Source:
    """A term of an objective, as a product needs it: its form for batches of one size, and its constants."""

    def __init__(self, term: Term, method: Method = "forward_over_reverse") -> None:
        """The Hessian of a term."""
        self.term, self._method = term, method

    def form(self, batch_size: int) -> tuple[Form, Any]:
        """The form, and its constants."""
        traced = self.term.traced(batch_size)
        return Hessian(traced.computation, self.rules, self._method), traced.constants

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
            options: dict[str, Any] = {"compute_dtype": "float32", "mesh": self.term.mesh}
            model = trace(self._model_fn, self._params, batch, **options)
            loss = trace(self._loss_fn, model.computation.shapes, batch, **options)
            self._traced[batch_size] = model, loss
        model, loss = self._traced[batch_size]
        return GaussNewton(model.computation, loss.computation, self.rules), (model.constants, loss.constants)


def weighted_sum(metrics: dict[str, Array], weights: Array) -> Array:
    """The sum of weighted losses over a batch; an example of weight 0 adds nothing, whatever its loss."""
    if WEIGHT in metrics:
        weights = weights * metrics[WEIGHT]
    loss = metrics["loss"]
    return jnp.sum(jnp.where(weights != 0, loss * weights, 0)) if loss.ndim else loss * jnp.sum(weights)
