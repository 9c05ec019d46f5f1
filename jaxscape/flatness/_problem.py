"""What all measures of a point share: the loss, its derivatives, and the options."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, PRNGKeyArray

from jaxscape import engine, trees
from jaxscape.curvature import Options as HessianOptions
from jaxscape.curvature import hessian_product, loss_and_gradient, one_mesh
from jaxscape.directions import random_directions
from jaxscape.linalg import Operator
from jaxscape.normalize import reasons_to_ignore, running_statistics
from jaxscape.objective import Objective
from jaxscape.subspace import Subspace
from jaxscape.types import Data, FilterAxis, Ignore, Params

_SIDE_BY_SIDE = 8  # random displacements in memory at once


class Options(NamedTuple):
    """The options of a call; each as in `jaxscape.sharpness`."""

    rho: float
    epsilon: float
    sigma: float
    num_samples: int
    num_steps: int
    m: int
    layer: str | None
    preconditioner: Params | None
    update: Params | None
    filter_axis: FilterAxis
    ignore: Ignore
    batch_size: int | None
    mesh: Mesh | None
    check: bool


class Problem:
    """A loss at a point.

    Attributes:
        params: The point.
        loss_fn: As in `jaxscape.surface`.
        data: As in `jaxscape.surface`.
        objective: The loss over its data.
        ignore: The leaves that are not displaced: those that the caller names, and running statistics.
        subspace: The leaves that are displaced.
        options: Those of the call.
        key: The random key of the measure that is computed.
    """

    def __init__(self, params: Params, loss_fn: Any, data: Data, options: Options) -> None:
        """Trace the loss; nothing is computed."""
        self.params, self.loss_fn, self.data, self.options = params, loss_fn, data, options
        self.objective = Objective.of(
            loss_fn, params, data, compute_dtype="float32", check=options.check, batch_size=options.batch_size
        )
        self.ignore = _with_statistics(params, options.ignore)
        self.subspace = Subspace.of(params, self.ignore)
        self.key: PRNGKeyArray = jax.random.key(0)
        self._loads: dict[int, dict[str, engine.Load]] = {}

    @property
    def one_term(self) -> bool:
        """Whether the loss is one mean over data."""
        return len(self.objective.terms) == 1 and not self.objective.terms[0].name

    @property
    def per_example(self) -> bool:
        """Whether the loss is known for each example."""
        return self.one_term and self.objective.terms[0].per_example["loss"]

    @functools.cached_property
    def weights(self) -> Array:
        """The params of the subspace, a flat vector."""
        return self.subspace.extract(self.params)

    @functools.cached_property
    def hessian(self) -> Operator:
        """The Hessian at the point."""
        options = self.options
        how = HessianOptions(options.batch_size or "auto", self.ignore, check=False, flat=True)
        params, product = hessian_product(self.loss_fn, self.params, self.data, how, one_mesh(options.mesh))
        return Operator(product.at(params), product.subspace)

    @functools.cached_property
    def _loss_and_gradient(self) -> Callable[[Params], tuple[float, Array]]:
        mesh = one_mesh(self.options.mesh)
        return loss_and_gradient(self.objective, self.params, self.subspace, self.options.batch_size, mesh)

    @functools.cached_property
    def center(self) -> tuple[float, Array]:
        """Loss and gradient at the point."""
        return self._loss_and_gradient(self.params)

    def at(self, displacement: Array) -> tuple[float, Array]:
        """Loss and gradient at ``params + displacement``."""
        return self._loss_and_gradient(_displaced(self.subspace, self.params, displacement))

    def losses_along(self, direction: Params, coords: np.ndarray) -> np.ndarray:
        """Losses at ``params + coords[i] * direction``, in one program."""
        basis = jax.tree.map(lambda x: x[None], direction)
        return self._losses(basis, coords[:, None])

    def losses_at_random(self, scale: Params) -> Iterator[np.ndarray]:
        """The loss at params, and those at ``params + scale * N(0, 1)``, some at a time, ``num_samples`` in all.

        Args:
            scale: Standard deviations, a pytree like params.

        Yields:
            Losses.
        """
        left, block = self.options.num_samples, min(_SIDE_BY_SIDE, self.options.num_samples)
        for i in range(-(-left // block)):
            key = jax.random.fold_in(self.key, i)
            noise = random_directions(key, self.params, num=block, norm=None, ignore=self.ignore).basis
            basis = _scaled(noise, scale)
            coords = np.eye(block)[: left - i * block]
            yield self._losses(basis, coords if i else np.concatenate([np.zeros((1, block)), coords]))

    def _losses(self, basis: Params, coords: np.ndarray) -> np.ndarray:
        evaluator = engine.Evaluator(self.objective, self.params, basis, self.options.mesh)
        if coords.shape[1] not in self._loads:
            self._loads[coords.shape[1]] = evaluator.choose(len(coords), (self.options.batch_size, None))
        with engine.progress_bar(0, progress=False) as bar:
            return evaluator(coords, self._loads[coords.shape[1]], bar).metrics["loss"].mean


def _with_statistics(params: Params, ignore: Ignore) -> Ignore:
    """What is ignored, and running statistics, which are no weights: a displaced variance can be negative."""
    kinds, reasons = running_statistics(params), reasons_to_ignore(params, ignore)
    if not any(kinds):
        return ignore
    columns = zip(trees.leaf_names(params), kinds, reasons, strict=True)
    ignored = {name for name, kind, reason in columns if kind is not None or reason is not None}
    return lambda path, leaf: jax.tree_util.keystr(path) in ignored


@jax.jit
def _scaled(noise: Params, scale: Params) -> Params:
    return jax.tree.map(lambda x, s: x * s.astype(x.dtype), noise, scale)


@functools.partial(jax.jit, static_argnums=0)
def _displaced(subspace: Subspace, params: Params, displacement: Array) -> Params:
    basis = jax.tree.map(lambda x: x[None], subspace.embed(displacement))
    return trees.displace(params, basis, jnp.ones(1, subspace.dtype))
