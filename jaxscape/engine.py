"""Evaluate a loss function at many points ``params + sum_k coords[k] * basis[k]`` over all of the data.

One compiled program takes params, directions and data as arguments; each device goes through its own share of the
points one after another, and through the batches of each point. Forward passes do not suffer from such loops on any
backend, while points side by side (`jax.vmap` over weights) would turn every convolution into a grouped one, 8 times
slower on a CPU.
"""

import functools
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float
from tqdm.auto import tqdm

from jaxscape import trees
from jaxscape.convolution import fast_convolutions
from jaxscape.data import batch_sizes, num_examples, take_batch
from jaxscape.types import Data, LossFn, Params

CAPACITY = 64  # points that a device can take in one call; how many it does take is chosen by the clock
CALL_SECONDS = 0.3  # a call this long keeps the progress bar alive and makes the cost of dispatch (< 1 ms) vanish


class Estimate(NamedTuple):
    """One metric at many points.

    Attributes:
        mean: Mean over all examples, shape ``(points,)``, float64.
        stderr: Standard error of that mean, ``s / sqrt(N)`` with s the standard deviation of the per-example values
            (N - 1 in its denominator); None if loss_fn gives batch means only.
    """

    mean: np.ndarray
    stderr: np.ndarray | None


def evaluate(
    loss_fn: LossFn,
    params: Params,
    basis: Params,
    coords: Float[np.ndarray, "points axes"],
    data: Data,
    *,
    batch_size: int,
    mesh: Mesh | None = None,
    progress: bool | None = None,
) -> dict[str, Estimate]:
    """Mean of every metric over all examples, at each point.

    Args:
        loss_fn: ``loss_fn(params, batch)``, as `jaxscape.types.LossFn` says.
        params: The origin.
        basis: A pytree like params with a leading axis of length ``axes`` on each leaf.
        coords: Coordinates of the points.
        data: Arrays with a common leading example axis; the last batch may be ragged.
        batch_size: Examples in one call of loss_fn, at most all of them.
        mesh: The devices to share the points; all local ones by default.
        progress: True or False for a bar with points/s and time left; None for one on terminals and in notebooks.

    Returns:
        An `Estimate` for each metric.

    Raises:
        ValueError: loss_fn gives a wrong shape or lacks ``"loss"``.
        TypeError: loss_fn gives something that is no real number.
    """
    sizes = batch_sizes(num_examples(data), batch_size)
    per_example = probe(loss_fn, params, data, batch_size)
    mesh = mesh or Mesh(np.array(jax.local_devices()), ("points",))
    run = _program(loss_fn if isinstance(loss_fn, Hashable) else lambda p, b: loss_fn(p, b), mesh, batch_size)
    everywhere = NamedSharding(mesh, PartitionSpec())
    operands = jax.device_put((params, basis, data), everywhere)
    means, stderrs = ({name: np.full(len(coords), np.nan) for name in per_example} for _ in range(2))
    for rows, block in _blocks(functools.partial(run, *operands), coords, mesh.size, progress):
        for name, summaries in block.items():
            means[name][rows], stderrs[name][rows] = _combine(summaries, sizes, per_example[name])
    return {name: Estimate(means[name], stderrs[name] if each else None) for name, each in per_example.items()}


def mean_metrics(loss_fn: LossFn, params: Params, data: Data, *, batch_size: int = 128) -> dict[str, float]:
    """Mean of every metric over all examples, at ``params`` itself and on one device.

    >>> data = jnp.arange(5.0)
    >>> mean_metrics(lambda p, x: p * x, jnp.float32(2.0), data, batch_size=2)
    {'loss': 4.0}

    Args:
        loss_fn: ``loss_fn(params, batch)``, as `jaxscape.types.LossFn` says.
        params: A pytree of floating arrays.
        data: Arrays with a common leading example axis.
        batch_size: Examples in one call of loss_fn.

    Returns:
        A number for each metric.
    """
    no_direction = jax.tree.map(lambda x: jnp.zeros((0, *jnp.shape(x)), x.dtype), params)
    mesh = Mesh(np.array(jax.local_devices()[:1]), ("points",))
    batch_size = min(batch_size, num_examples(data))
    point = np.zeros((1, 0))
    metrics = evaluate(loss_fn, params, no_direction, point, data, batch_size=batch_size, mesh=mesh, progress=False)
    return {name: float(estimate.mean[0]) for name, estimate in metrics.items()}


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
    metrics = jax.eval_shape(lambda p, d: _metrics(loss_fn, p, take_batch(d, 0, batch_size)), params, data)
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


def _metrics(loss_fn: LossFn, params: Params, batch: Data) -> dict[str, Array]:
    value = loss_fn(params, batch)
    return dict(value) if isinstance(value, Mapping) else {"loss": value}


@functools.lru_cache(maxsize=32)  # as many compiled programs are kept, for calls with the same loss_fn
def _program(loss_fn: LossFn, mesh: Mesh, batch_size: int) -> Callable[..., dict[str, Array]]:
    """The compiled program (params, basis, data, coords, counts) -> summaries, points shared by the mesh's devices.

    ``coords`` has CAPACITY rows for each device, ``counts`` how many of them each is to evaluate. A count is data,
    not shape, so calls of any length are one program.
    """  # noqa: DOC201  (the summary line says it)

    def local(params: Params, basis: Params, data: Data, coords: Array, count: Array) -> dict[str, Array]:
        def point(row: Array) -> dict[str, Array]:
            return _summaries(fast_convolutions(loss_fn), trees.displace(params, basis, row), data, batch_size)

        def body(i: Array, out: dict[str, Array]) -> dict[str, Array]:
            return jax.tree.map(lambda o, value: o.at[i].set(value), out, point(coords[i]))

        shapes = jax.eval_shape(point, coords[0])
        empty = jax.tree.map(lambda s: jnp.zeros((CAPACITY, *s.shape), s.dtype), shapes)
        return jax.lax.fori_loop(0, count[0], body, empty)

    whole, shared = PartitionSpec(), PartitionSpec(mesh.axis_names)
    specs = (whole, whole, whole, shared, shared)
    return jax.jit(jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=shared, check_vma=False))


def _summaries(loss_fn: LossFn, params: Params, data: Data, batch_size: int) -> dict[str, Float[Array, "batches 2"]]:
    """Summarize every batch; the ragged last one is a call of its own, so no example is padded or counted twice."""
    full, ragged = divmod(num_examples(data), batch_size)

    def batch(start: int | Array, length: int) -> dict[str, Array]:
        return jax.tree.map(_summarize, _metrics(loss_fn, params, take_batch(data, start, length)))

    stacked = jax.lax.map(lambda i: batch(i * batch_size, batch_size), jnp.arange(full))
    if not ragged:
        return stacked
    last = batch(full * batch_size, ragged)
    return jax.tree.map(lambda s, x: jnp.concatenate([s, x[None]]), stacked, last)


def _summarize(values: Array) -> Float[Array, "2"]:
    """Sum, and root of the sum of squared deviations, of one batch.

    The sum, not the mean: that of a hit-or-miss metric is exact. The deviations are scaled before they are squared:
    losses far from a minimizer pass 1e19, where squares overflow in float32.

    Returns:
        The two, in at least float32.
    """
    values = values.astype(trees.working_dtype(values))
    deviations = jnp.abs(values - jnp.mean(values))
    scale = jnp.max(deviations)
    root = scale * jnp.sqrt(jnp.sum((deviations / jnp.where(scale > 0, scale, 1)) ** 2))
    return jnp.stack([jnp.sum(values), root])


def _combine(summaries: np.ndarray, sizes: np.ndarray, per_example: bool) -> tuple[np.ndarray, np.ndarray]:
    """Join the batches of each point in float64 (Chan, Golub & LeVeque 1983, for the squared deviations).

    Args:
        summaries: What `_summarize` gave, shape ``(points, batches, 2)``.
        sizes: The number of examples in each batch.
        per_example: Whether a batch was summarized from its examples, or is the mean of a batch.

    Returns:
        Mean and its standard error for each point.
    """
    sums, roots = np.moveaxis(summaries.astype(np.float64), -1, 0)
    sums = sums if per_example else sums * sizes
    total = sizes.sum()
    with np.errstate(all="ignore"):  # a NaN or infinite loss is a result
        mean = sums.sum(-1) / total
        squares = (roots**2).sum(-1) + (sums / sizes - mean[:, None]) ** 2 @ sizes
        return mean, np.sqrt(squares / (total - 1) / total)


def _blocks(
    run: Callable[..., dict[str, Array]], coords: np.ndarray, devices: int, progress: bool | None
) -> Iterator[tuple[slice, dict[str, np.ndarray]]]:
    """Send the points to the devices in calls of about CALL_SECONDS; yield rows and their summaries as they come."""
    done, per_device = 0, 1
    bar = tqdm(total=len(coords), unit="point", desc="points", disable=None if progress is None else not progress)
    with bar:
        while done < len(coords):
            rows = slice(done, min(done + per_device * devices, len(coords)))
            start = time.perf_counter()
            yield rows, _call(run, coords[rows], devices)
            seconds = time.perf_counter() - start
            # At most twice as many as before: the first call's time is mostly compilation.
            per_device = int(np.clip(per_device * CALL_SECONDS / seconds, 1, min(2 * per_device, CAPACITY)))
            bar.update(rows.stop - rows.start)
            done = rows.stop


def _call(run: Callable[..., dict[str, Array]], coords: np.ndarray, devices: int) -> dict[str, np.ndarray]:
    """One call of the compiled program on at most ``CAPACITY * devices`` points, dealt out evenly."""
    shares = [len(share) for share in np.array_split(np.arange(len(coords)), devices)]
    slots = np.concatenate([d * CAPACITY + np.arange(share) for d, share in enumerate(shares)])
    padded = np.zeros((devices * CAPACITY, coords.shape[1]))
    padded[slots] = coords
    out: Any = jax.device_get(run(padded, np.array(shares, np.int32)))
    return {name: values[slots] for name, values in out.items()}
