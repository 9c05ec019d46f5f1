"""One compiled program, with params, directions and data in place on the devices.

Points are shared by the devices of a mesh. A mesh axis named ``"data"`` shares the examples instead: for data too large
for one device.
"""

import contextlib
import functools
import os
from collections.abc import Callable, Hashable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from jaxscape.convolution import fast_convolutions
from jaxscape.data import num_examples
from jaxscape.engine._compile import CAPACITY, DATA_AXIS, PRECISIONS, compiled, probe
from jaxscape.types import Data, LossFn, Params

Pending = Callable[[], dict[str, np.ndarray]]
"""Waits for a call that is under way."""


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
        self._run = functools.partial(compiled, hashable, self.mesh, load.points_per_step, compute_dtype)

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

    def summaries(self, coords: np.ndarray, last: int | None = None) -> "Pending":
        """Sum and root of the sum of squared deviations of each batch, shape ``(points, batches, 2)``.

        Args:
            coords: At most ``capacity`` points.
            last: The batch of each share of the data after the last one to evaluate; None: all.

        Returns:
            A call that waits for the result: an array for each metric, zero in batches that were not evaluated.
        """
        return self._send(coords, (0, self.local_batches if last is None else last), keep=False)

    def values(self, coords: np.ndarray, first: int, last: int) -> "Pending":
        """Every example's own value, of batches first to last of each share of the data.

        Args:
            coords: At most ``capacity`` points.
            first: The first batch.
            last: The batch after the last one.

        Returns:
            A call that waits for the result: for each metric an array ``(points, examples)``, in the order of
            `examples`.
        """
        chosen = self._rows(first, last)
        wait = self._send(coords, (first, last), keep=True)
        return lambda: {name: values.reshape(len(coords), -1)[:, chosen] for name, values in wait().items()}

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

    def _send(self, coords: np.ndarray, window: tuple[int, int], *, keep: bool) -> "Pending":
        """One call of the compiled program on at most ``capacity`` points, dealt out evenly."""
        shares = [len(share) for share in np.array_split(np.arange(len(coords)), self._devices)]
        slots = np.concatenate([d * CAPACITY + np.arange(share) for d, share in enumerate(shares)])
        padded = np.zeros((self.capacity, coords.shape[1]))
        padded[slots] = coords
        shared = PartitionSpec(self._points_axes or None)
        given = self._place((padded, np.array(shares, np.int32)), shared)
        limits = self._place(np.array(window, np.int32), PartitionSpec())
        out = self._run(keep)(*self._operands, *given, limits)
        return lambda: {name: values[slots] for name, values in fetch(out).items()}


def ahead(calls: Iterator[tuple[Any, Pending]]) -> Iterator[tuple[Any, dict[str, np.ndarray]]]:
    """Wait for each call only when the next one is under way, so that no device idles between two."""
    before = next(calls, None)
    while before is not None:
        after = next(calls, None)
        yield before[0], before[1]()
        before = after


def use_all_cores() -> None:
    """Make each core of a CPU a device, so that all of them share the work; leave any setting of the user alone.

    XLA runs a network on one device with little more than one core: ResNet-56 on 32x32 pixels, two cores, 491 images/s
    on one device and 1051 on two.
    """
    flagged = "xla_force_host_platform_device_count" in os.getenv("XLA_FLAGS", "")
    if flagged or jax.config.jax_num_cpu_devices != -1:  # type: ignore[attr-defined]
        return
    with contextlib.suppress(RuntimeError):  # JAX has started already, with devices of its own
        jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)


def default_mesh() -> Mesh:
    """All devices of all processes, sharing the points."""
    return Mesh(np.array(jax.devices()), ("points",))


def place(tree: Any, sharding: NamedSharding) -> Any:
    """Put a pytree that every process has in full onto the devices; each moves its own part only."""
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)

    def leaf(x: Any) -> Array:
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
