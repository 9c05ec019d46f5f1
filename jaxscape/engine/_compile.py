"""What a device runs: its points one step after another, and for each step the batches of the data.

Forward passes do not suffer from such loops on any backend.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array

from jaxscape import trees
from jaxscape.convolution import compiler_options
from jaxscape.engine._summary import summarize
from jaxscape.objective import DATA_AXIS, WEIGHT, Computation, Placement
from jaxscape.types import Data, Params

CAPACITY = 64  # points that a device can take in one call; how many it does take is data, not shape
WIDTHS = (1, 2, 4, 8, 16, 32, 64)  # points side by side: divisors of CAPACITY


@functools.lru_cache(maxsize=64)  # compiled programs that are kept, for calls that compute the same
def compiled(loss: Computation, placement: Placement, width: int, keep: bool) -> jax.stages.Wrapped:
    """Compile the program: (params, basis, constants, batches, sizes, coords, count, window) -> metrics of batches.

    Args:
        loss: ``loss(constants, params, batch)`` -> a dict of metrics.
        placement: Where the operands lie.
        width: Points side by side.
        keep: Whether the result has the value of each example, or the sums of `summarize` for each batch.

    Returns:
        The jitted function, to be traced within the placement's mesh. ``coords`` has CAPACITY rows for each group of
        devices, ``count`` says how many of them it is to evaluate, ``window`` from which batch to which.
    """

    def kept(metrics: dict[str, Array], batch: Data, size: Array) -> dict[str, Array]:
        metrics = {name: v.astype(trees.working_dtype(v)) for name, v in metrics.items()}
        if keep:
            return metrics
        counted = jnp.arange(jax.tree.leaves(batch)[0].shape[0]) < size
        weights = jnp.where(counted, metrics.pop(WEIGHT, jnp.ones(())), 0)
        return {name: summarize(value, weights.astype(value.dtype)) for name, value in metrics.items()}

    def at_point(params: Params, constants: Any, batch: Data, size: Array) -> dict[str, Array]:
        return kept(loss(constants, params, batch), batch, size)

    at_points = jax.vmap(at_point, in_axes=(0, None, None, None))

    def local(
        params: Params,
        basis: Params,
        constants: Any,
        batches: Data,
        sizes: Array,
        coords: Array,
        count: Array,
        window: Array,
    ) -> dict[str, Array]:
        def of_batch(points: Params, i: Array) -> dict[str, Array]:
            batch = jax.tree.map(lambda x: x[i], batches)
            if width > 1:
                return at_points(points, constants, batch, sizes[i])
            return jax.tree.map(lambda x: x[None], at_point(points, constants, batch, sizes[i]))

        def step(k: Array, out: dict[str, Array]) -> dict[str, Array]:
            rows = jax.lax.dynamic_slice_in_dim(coords, k * width, width)
            if width > 1:
                points = jax.vmap(trees.displace, in_axes=(None, None, 0))(params, basis, rows)
            else:  # no vmap: it would make grouped convolutions
                points = placement.constrained(trees.displace(params, basis, rows[0]))

            def batch(i: Array, out: dict[str, Array]) -> dict[str, Array]:
                def write(o: Array, value: Array) -> Array:
                    return jax.lax.dynamic_update_slice(
                        o, value[:, None], (k * width, i, *(jnp.zeros_like(i),) * (o.ndim - 2))
                    )

                return jax.tree.map(write, out, of_batch(points, i))

            return jax.lax.fori_loop(window[0], window[1], batch, out)

        shapes = jax.eval_shape(kept, loss.shapes, jax.tree.map(lambda x: x[0], batches), sizes[0])
        empty = jax.tree.map(lambda s: jnp.zeros((CAPACITY, len(sizes), *s.shape), s.dtype), shapes)
        return jax.lax.fori_loop(0, (count[0] + width - 1) // width, step, empty)

    points_axes = placement.points_axes or None
    data_axis = DATA_AXIS if placement.shares > 1 else None
    whole, by_data, by_points = PartitionSpec(), PartitionSpec(data_axis), PartitionSpec(points_axes)
    specs = (whole, whole, whole, by_data, by_data, by_points, by_points, whole)
    names = placement.points_axes if placement.is_cut else placement.mesh.axis_names
    program = local
    if names:  # XLA deals out the work along the other axes
        program = jax.shard_map(
            local,
            mesh=placement.mesh,
            axis_names=set(names),
            in_specs=specs,
            out_specs=PartitionSpec(points_axes, data_axis),
            check_vma=False,
        )
    return jax.jit(program, compiler_options=compiler_options())
