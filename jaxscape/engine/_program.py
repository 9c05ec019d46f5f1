"""One compiled program, with params, directions and data in place on the devices.

Points are shared by the devices of a mesh; each goes through its own share one step after another, and through the
batches of each step. Forward passes do not suffer from such loops on any backend. A mesh axis named ``"data"`` shares
the examples instead: for data too large for one device.
"""

import functools
from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from jaxscape import trees
from jaxscape.convolution import fast_convolutions
from jaxscape.data import num_examples, take_batch
from jaxscape.types import Data, LossFn, Params

CAPACITY = 64  # points that a device can take in one call; how many it does take is data, not shape
WIDTHS = (1, 2, 4, 8, 16, 32, 64)  # points side by side: divisors of CAPACITY
DATA_AXIS = "data"
PRECISIONS = {"float32": "highest", "tensorfloat32": "tensorfloat32", "bfloat16": None}


class Load(NamedTuple):
    """How much goes side by side.

    Attributes:
        batch_size: Examples in one call of loss_fn, at most.
        points_per_step: Points that a device evaluates at once, by `jax.vmap`; a power of two up to CAPACITY.
    """

    batch_size: int
    points_per_step: int = 1


class Program:
    """``program(coords)`` gives what every batch has to say of every metric at every point.

    Attributes:
        per_example: For each metric whether loss_fn gives it per example (True) or as the mean of a batch (False).
        sizes: How many examples each batch holds, shape ``(batches,)``; some may be padded and some empty.
        mesh: The devices.
        capacity: Points that one call can take.
    """

    def __init__(
        self,
        loss_fn: LossFn,
        params: Params,
        basis: Params,
        data: Data,
        load: Load,
        *,
        mesh: Mesh | None = None,
        compute_dtype: str | None = None,
    ) -> None:
        """Check what loss_fn gives, put the operands in place; nothing is compiled or computed yet.

        Args:
            loss_fn: ``loss_fn(params, batch)``, as `jaxscape.types.LossFn` says.
            params: The origin.
            basis: A pytree like params with a leading axis of length ``axes`` on each leaf.
            data: Arrays with a common leading example axis. Where loss_fn gives batch means, their number must be a
                multiple of the batch size.
            load: How much goes side by side.
            mesh: The devices; by default all of all processes.
            compute_dtype: ``"float32"``, ``"tensorfloat32"`` or ``"bfloat16"``; None: as JAX is configured.

        Raises:
            ValueError: loss_fn gives a wrong shape, lacks ``"loss"``, or compute_dtype is unknown.
            TypeError: loss_fn gives something that is no real number.
        """
        if compute_dtype is not None and compute_dtype not in PRECISIONS:
            raise ValueError(f"compute_dtype is {compute_dtype!r}, expected None or one of {', '.join(PRECISIONS)}.")
        self.loss_fn, self.load = loss_fn, load
        self.mesh = mesh or default_mesh()
        self.per_example = probe(loss_fn, params, data, min(load.batch_size, num_examples(data)))
        self._points_axes = tuple(name for name in self.mesh.axis_names if name != DATA_AXIS)
        self._devices = self.mesh.size // self.mesh.shape.get(DATA_AXIS, 1)
        self.capacity = CAPACITY * self._devices
        batches, self.sizes = stack_batches(data, load.batch_size, self.mesh.shape.get(DATA_AXIS, 1))
        whole, shared = PartitionSpec(), PartitionSpec(DATA_AXIS if DATA_AXIS in self.mesh.shape else None)
        self._operands = (
            *self._place((params, basis), whole),
            *self._place((batches, self.sizes.astype(np.int32)), shared),
        )
        # An unhashable loss_fn gets a name of its own, and is compiled for this program only.
        hashable: Any = loss_fn if isinstance(loss_fn, Hashable) else lambda p, b: loss_fn(p, b)
        self._run = functools.partial(_compiled, hashable, self.mesh, load.points_per_step, compute_dtype)

    @property
    def local_batches(self) -> int:
        """Batches on each share of the data."""
        return len(self.sizes) // self.mesh.shape.get(DATA_AXIS, 1)

    @property
    def num_axes(self) -> int:
        """Directions."""
        return jax.tree.leaves(self._operands[1])[0].shape[0]

    def count(self, last: int) -> int:
        """How many examples there are before batch ``last`` of each share of the data."""
        return int(self._rows(0, last).sum())

    def has_convolution(self) -> bool:
        """Whether a native convolution is left in the loss after the rewrite."""
        batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), self._operands[2])
        jaxpr = jax.make_jaxpr(fast_convolutions(self.loss_fn))(self._operands[0], batch)
        return "conv_general_dilated" in str(jaxpr)

    def summaries(self, coords: np.ndarray, last: int | None = None) -> dict[str, np.ndarray]:
        """Sum and root of the sum of squared deviations of each batch, shape ``(points, batches, 2)``.

        Args:
            coords: At most ``capacity`` points.
            last: The batch of each share of the data after the last one to evaluate; None: all.

        Returns:
            An array for each metric, zero in batches that were not evaluated.
        """
        return self._call(coords, (0, self.local_batches if last is None else last), keep=False)

    def values(self, coords: np.ndarray, first: int, last: int) -> dict[str, np.ndarray]:
        """Every example's own value, of batches first to last of each share of the data.

        Args:
            coords: At most ``capacity`` points.
            first: The first batch.
            last: The batch after the last one.

        Returns:
            For each metric an array ``(points, examples)``, in the order of `examples`.
        """
        chosen = self._rows(first, last)
        out = self._call(coords, (first, last), keep=True)
        return {name: values.reshape(len(coords), -1)[:, chosen] for name, values in out.items()}

    def examples(self, first: int, last: int) -> np.ndarray:
        """Which examples are in batches first to last of each share of the data, as rows of the data."""
        return np.cumsum(self._rows(0, self.local_batches))[self._rows(first, last)] - 1

    def _rows(self, first: int, last: int) -> np.ndarray:
        """A mask over all padded rows: those of examples, within these batches of each share."""
        batch = np.arange(len(self.sizes)) % self.local_batches
        mine = (first <= batch) & (batch < last)
        width = jax.tree.leaves(self._operands[2])[0].shape[1]
        return (mine[:, None] & (np.arange(width) < self.sizes[:, None])).ravel()

    def _place(self, tree: Any, spec: PartitionSpec) -> Any:
        return place(tree, NamedSharding(self.mesh, spec))

    def _call(self, coords: np.ndarray, window: tuple[int, int], *, keep: bool) -> dict[str, np.ndarray]:
        """One call of the compiled program on at most ``capacity`` points, dealt out evenly."""
        shares = [len(share) for share in np.array_split(np.arange(len(coords)), self._devices)]
        slots = np.concatenate([d * CAPACITY + np.arange(share) for d, share in enumerate(shares)])
        padded = np.zeros((self.capacity, coords.shape[1]))
        padded[slots] = coords
        shared = PartitionSpec(self._points_axes or None)
        given = self._place((padded, np.array(shares, np.int32)), shared)
        limits = self._place(np.array(window, np.int32), PartitionSpec())
        out = fetch(self._run(keep)(*self._operands, *given, limits))
        return {name: values[slots] for name, values in out.items()}


def default_mesh() -> Mesh:
    """All devices of all processes, sharing the points."""
    return Mesh(np.array(jax.devices()), ("points",))


def place(tree: Any, sharding: NamedSharding) -> Any:
    """Put a pytree that every process has in full onto the devices; each moves its own part only."""

    def leaf(x: Any) -> Array:
        if jax.process_count() == 1:
            return jax.device_put(x, sharding)
        local = np.asarray(x)
        return jax.make_array_from_callback(local.shape, sharding, lambda index: local[index])

    return jax.tree.map(leaf, tree)


def fetch(tree: Any) -> Any:
    """The pytree in full, on every process."""
    return jax.device_get(tree) if jax.process_count() == 1 else multihost_utils.process_allgather(tree, tiled=True)


def agree(seconds: float) -> float:
    """The time that process 0 measured: all processes must send the same calls."""
    if jax.process_count() == 1:
        return seconds
    return float(multihost_utils.broadcast_one_to_all(np.float32(seconds)))


def stack_batches(data: Data, batch_size: int, shares: int) -> tuple[Data, np.ndarray]:
    """Cut the data into batches of one size, as even as can be, so that little is padded and one program does it all.

    >>> batches, sizes = stack_batches(np.arange(10), 4, 1)
    >>> batches.shape, sizes.tolist()
    ((3, 4), [4, 4, 2])

    Args:
        data: Arrays with a common leading example axis.
        batch_size: Examples in a batch, at most.
        shares: A number that the batches are to be a multiple of.

    Returns:
        The data as ``(batches, batch, ...)``, padded by repeating examples, and how many of each batch count.
    """
    examples = num_examples(data)
    batches = -(-examples // batch_size)
    size = -(-examples // batches)
    batches = -(-batches // shares) * shares

    def leaf(x: Any) -> Any:
        xp = jnp if isinstance(x, jax.Array) else np
        x = xp.asarray(x)
        rows = np.arange(batches * size)
        whole = x if len(rows) == examples else x[np.minimum(rows, examples - 1)]
        return whole.reshape(batches, size, *x.shape[1:])

    return jax.tree.map(leaf, data), np.clip(examples - size * np.arange(batches), 0, size)


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


@functools.lru_cache(maxsize=64)  # as many compiled programs are kept, for calls with the same loss_fn
def _compiled(
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
    loss = fast_convolutions(_in_precision(loss_fn, compute_dtype))

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
    return jax.jit(jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=out, check_vma=False))


def _in_precision(loss_fn: LossFn, compute_dtype: str | None) -> LossFn:
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
