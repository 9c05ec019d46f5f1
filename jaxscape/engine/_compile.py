"""What a device runs: its points one step after another, and for each step the batches of the data.

Forward passes do not suffer from such loops on any backend.
"""

import functools
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float

from jaxscape import trees
from jaxscape.convolution import compiler_options, fast_convolutions
from jaxscape.types import Data, LossFn, Params

CAPACITY = 64  # points that a device can take in one call; how many it does take is data, not shape
WIDTHS = (1, 2, 4, 8, 16, 32, 64)  # points side by side: divisors of CAPACITY
DATA_AXIS = "data"
PRECISIONS = {"float32": "highest", "tensorfloat32": "tensorfloat32", "bfloat16": None}


def probe(loss_fn: LossFn, params: Params, data: Data, batch_size: int) -> dict[str, bool]:
    """Find out, without computing, what loss_fn gives.

    Args:
        loss_fn: ``loss_fn(params, batch)``.
        params: A pytree of floating arrays.
        data: Arrays with a common leading example axis.
        batch_size: Examples in one call.

    Returns:
        For each metric whether it is per example (True) or the mean of a batch (False).

    Raises:
        ValueError: A metric has a wrong shape, or ``"loss"`` is missing.
        TypeError: A metric is no real number.
    """
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x)[1:], x.dtype), data)
    leaves, treedef = jax.tree.flatten((jax.tree.map(_abstract, params), shapes))
    traced: Callable[..., Any] = _traced if isinstance(loss_fn, Hashable) else _traced.__wrapped__
    metrics = traced(loss_fn, treedef, tuple(leaves), batch_size)
    if "loss" not in metrics:
        raise ValueError(f"loss_fn returned a dict with the keys {sorted(metrics)}; expected one named 'loss'.")
    for name, value in metrics.items():
        if not hasattr(value, "shape") or value.shape not in ((), (batch_size,)):
            raise ValueError(
                f"loss_fn returned {getattr(value, 'shape', type(value).__name__)} for {name!r} on a batch of "
                f"{batch_size} examples; expected ({batch_size},), the value of each example, or () for the batch "
                "mean. Reduce over every axis but the first."
            )
        if not any(jnp.issubdtype(value.dtype, kind) for kind in (jnp.floating, jnp.integer, jnp.bool_)):
            raise TypeError(f"loss_fn returned {value.dtype} for {name!r}; expected real numbers.")
    return {name: value.ndim == 1 for name, value in metrics.items()}


@functools.lru_cache(maxsize=64)  # tracing a deep network takes 0.1 s, more than a small line through it
def _traced(loss_fn: Any, treedef: Any, leaves: tuple[jax.ShapeDtypeStruct, ...], batch_size: int) -> dict[str, Any]:
    """What loss_fn gives for a batch, by abstract evaluation alone."""
    params, examples = jax.tree.unflatten(treedef, leaves)
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct((batch_size, *x.shape), x.dtype), examples)
    return jax.eval_shape(functools.partial(_metrics, loss_fn), params, batch)


def _abstract(x: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(np.shape(x), x.dtype)


def _metrics(loss_fn: LossFn, params: Params, batch: Data) -> dict[str, Array]:
    value = loss_fn(params, batch)
    return dict(value) if isinstance(value, Mapping) else {"loss": value}


@functools.lru_cache(maxsize=64)  # as many compiled programs are kept, for calls with the same loss_fn
def compiled(
    loss_fn: LossFn, mesh: Mesh, width: int, compute_dtype: str | None, keep: bool
) -> Callable[..., dict[str, Array]]:
    """Compile the program: (params, basis, batches, sizes, coords, count, window) -> what each batch says.

    Args:
        loss_fn: The loss.
        mesh: The devices.
        width: Points side by side.
        compute_dtype: What loss_fn computes in.
        keep: Whether a batch says the value of each example, or their sum and spread.

    Returns:
        The jitted function. ``coords`` has CAPACITY rows for each device, ``count`` says how many of them it is to
        evaluate, ``window`` from which batch to which.
    """
    loss = fast_convolutions(in_precision(loss_fn, compute_dtype))

    def at_point(params: Params, batch: Data, size: Array) -> dict[str, Array]:
        metrics = {name: v.astype(trees.working_dtype(v)) for name, v in _metrics(loss, params, batch).items()}
        return metrics if keep else {name: _summarize(value, size) for name, value in metrics.items()}

    at_points = jax.vmap(at_point, in_axes=(0, None, None))

    def local(
        params: Params, basis: Params, batches: Data, sizes: Array, coords: Array, count: Array, window: Array
    ) -> dict[str, Array]:
        def of_batch(points: Params, i: Array) -> dict[str, Array]:
            batch = jax.tree.map(lambda x: x[i], batches)
            if width > 1:
                return at_points(points, batch, sizes[i])
            single = jax.tree.map(lambda p: p[0], points)  # no vmap: it would make grouped convolutions
            return jax.tree.map(lambda x: x[None], at_point(single, batch, sizes[i]))

        def step(k: Array, out: dict[str, Array]) -> dict[str, Array]:
            rows = jax.lax.dynamic_slice_in_dim(coords, k * width, width)
            points = jax.vmap(trees.displace, in_axes=(None, None, 0))(params, basis, rows)

            def batch(i: Array, out: dict[str, Array]) -> dict[str, Array]:
                def write(o: Array, value: Array) -> Array:
                    return jax.lax.dynamic_update_slice(
                        o, value[:, None], (k * width, i, *(jnp.zeros_like(i),) * (o.ndim - 2))
                    )

                return jax.tree.map(write, out, of_batch(points, i))

            return jax.lax.fori_loop(window[0], window[1], batch, out)

        one = jax.eval_shape(lambda: at_point(params, jax.tree.map(lambda x: x[0], batches), sizes[0]))
        empty = jax.tree.map(lambda s: jnp.zeros((CAPACITY, len(sizes), *s.shape), s.dtype), one)
        return jax.lax.fori_loop(0, (count[0] + width - 1) // width, step, empty)

    points_axes = tuple(name for name in mesh.axis_names if name != DATA_AXIS) or None
    data_axis = DATA_AXIS if DATA_AXIS in mesh.shape else None
    whole, by_data, by_points = PartitionSpec(), PartitionSpec(data_axis), PartitionSpec(points_axes)
    specs = (whole, whole, by_data, by_data, by_points, by_points, whole)
    out = PartitionSpec(points_axes, data_axis)
    program = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=out, check_vma=False)
    return jax.jit(program, compiler_options=compiler_options())


def in_precision(loss_fn: LossFn, compute_dtype: str | None) -> LossFn:
    """The loss in another precision: bfloat16 by casting what goes in, the others by how products are rounded."""
    if compute_dtype is None:
        return loss_fn

    def cast(x: Array) -> Array:
        return x.astype(jnp.bfloat16) if jnp.issubdtype(x.dtype, jnp.floating) else x

    def loss(params: Params, batch: Data) -> Any:
        if compute_dtype == "bfloat16":
            params, batch = jax.tree.map(cast, (params, batch))
        with jax.default_matmul_precision(PRECISIONS[compute_dtype] or "default"):
            return loss_fn(params, batch)

    return loss


def _summarize(values: Array, size: Array) -> Float[Array, "2"]:
    """Sum, and root of the sum of squared deviations, of the first ``size`` values of a batch.

    The sum, not the mean: that of a hit-or-miss metric is exact. The deviations are scaled before they are squared:
    losses far from a minimizer pass 1e19, where squares overflow in float32. The mean of a batch, a scalar, is summed
    as if each example had it.

    Returns:
        The two, in at least float32.
    """
    if not values.ndim:
        return jnp.stack([jnp.where(size > 0, values * size, 0), jnp.zeros_like(values)])
    counted = jnp.arange(len(values)) < size
    total = jnp.sum(jnp.where(counted, values, 0))
    deviations = jnp.where(counted, jnp.abs(values - total / jnp.maximum(size, 1)), 0)
    scale = jnp.max(deviations)
    root = scale * jnp.sqrt(jnp.sum((deviations / jnp.where(scale > 0, scale, 1)) ** 2))
    return jnp.stack([total, root])
