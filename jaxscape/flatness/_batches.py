"""m-sharpness: how much the loss of a batch rises within a ball, for many batches side by side."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from jaxscape.convolution import compiler_options, fast_convolutions
from jaxscape.curvature import one_mesh, weighted_sum
from jaxscape.flatness._ascent import Region, largest_loss
from jaxscape.flatness._problem import Problem
from jaxscape.objective import DATA_AXIS, Computation, place, rows_of
from jaxscape.subspace import Subspace
from jaxscape.types import Data, Params


def rise_of_batches(problem: Problem) -> tuple[np.ndarray, np.ndarray, int]:
    """``max L_B(w + d) - L_B(w)`` over ``norm(d) <= rho``, for random batches of ``m`` examples.

    The batches share no example; those that are left over after the last whole batch are left out. Each device has a
    batch, so as many ascend side by side.

    Args:
        problem: The loss at a point, one mean over data.

    Returns:
        The rise of each batch, at most ``num_samples`` of them, their losses at the point, and how many evaluations
        were not finite.
    """
    options, term = problem.options, problem.objective.terms[0]
    mesh, rho = one_mesh(options.mesh), options.rho
    m = min(options.m, term.examples)
    order_key, start_key = jax.random.split(problem.key)
    order = np.asarray(jax.random.permutation(order_key, term.examples))
    batches = order[: term.examples // m * m].reshape(-1, m)[: options.num_samples]
    loss, constants = term.traced(m)
    evaluate = functools.partial(_evaluate, loss, problem.subspace, mesh)
    params, constants = place((problem.params, constants), NamedSharding(mesh, PartitionSpec()))
    region, n = Region(box=False), problem.subspace.size
    rises, losses, nonfinite = [], [], 0
    for first in range(0, len(batches), mesh.size):
        rows = np.arange(first, first + mesh.size)
        data = rows_of(term.data, batches[np.minimum(rows, len(batches) - 1)].ravel())  # devices without a batch repeat
        data = jax.tree.map(lambda x: x.reshape(mesh.size, m, *x.shape[1:]), data)
        data = place(data, NamedSharding(mesh, PartitionSpec(DATA_AXIS)))
        keys = jax.vmap(functools.partial(jax.random.fold_in, start_key))(rows)
        start = jax.vmap(lambda key: region.random(key, (n,), problem.subspace.dtype))(keys)

        def at(u: Array, data: Data = data) -> tuple[Array, Array]:
            losses, gradients = evaluate(constants, params, data, rho * u)
            return losses, rho * gradients

        center = at(jnp.zeros_like(start))
        largest, bad = largest_loss(at, center, start, region, options.num_steps)
        used = rows < len(batches)
        losses.append(np.asarray(center[0], np.float64)[used])
        rises.append(largest[used] - losses[-1])
        nonfinite += bad
    return np.concatenate(rises), np.concatenate(losses), nonfinite


def _evaluate(
    loss: Computation, subspace: Subspace, mesh: Mesh, constants: Any, params: Params, data: Data, displacements: Array
) -> tuple[Array, Array]:
    return _program(loss, subspace, mesh)(constants, params, data, displacements)


@functools.lru_cache(maxsize=8)
def _program(loss: Computation, subspace: Subspace, mesh: Mesh) -> Any:
    """The compiled loss and gradient, of a batch on each device at its own displacement."""

    def one(constants: Any, params: Params, batch: Data, displacement: Array) -> tuple[Array, Array]:
        inside, outside = subspace.split(params)

        def mean(moved: list[Array]) -> Array:
            metrics = loss(constants, subspace.join(moved, outside), batch)
            examples = jax.tree.leaves(batch)[0].shape[0]
            ones = jnp.ones(examples, subspace.dtype)
            total = jnp.sum(metrics["weight"]) if "weight" in metrics else examples
            return weighted_sum(metrics, ones) / total

        moved = [x + d for x, d in zip(inside, subspace.leaves(displacement), strict=True)]
        value, gradient = fast_convolutions(jax.value_and_grad(mean))(moved)
        return value, subspace.vector(gradient)

    def local(constants: Any, params: Params, data: Data, displacements: Array) -> tuple[Array, Array]:
        batch = jax.tree.map(lambda x: x[0], data)
        value, gradient = one(constants, params, batch, displacements[0])
        return value[None], gradient[None]

    every, shared = PartitionSpec(), PartitionSpec(DATA_AXIS)
    mapped = jax.shard_map(local, mesh=mesh, in_specs=(every, every, shared, shared), out_specs=shared, check_vma=False)
    return jax.jit(mapped, compiler_options=compiler_options())
