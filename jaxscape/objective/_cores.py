"""The cores of a CPU: a device runs calls from several threads side by side."""

import functools
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
from jax.sharding import Mesh


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


LARGE = 2**28  # bytes of params that one displaced copy is enough of: their products have work for all cores


def are_large(params: Any) -> bool:
    """Whether params, or their shapes and dtypes, take more than `LARGE`."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(params)) > LARGE


def num_lanes(mesh: Mesh, params: Any = ()) -> int:
    """How many calls a device is given at once: on a CPU its share of the cores, elsewhere 1.

    XLA runs a convolution network on a device of a CPU with little more than one core, but calls from two threads run
    side by side: ResNet-20 on 32x32 pixels, one device, two cores, 1,376 images/s by one thread and 2,789 by two. So
    the cores work without ``jax_num_cpu_devices``, which can't be set once JAX has started.

    Args:
        mesh: The devices.
        params: A pytree of arrays, or of their shapes and dtypes, of which each call has a copy.

    Returns:
        At least 1; 1 with several processes, which must send the same calls in the same order; and for params that are
        LARGE.
    """
    if are_large(params):
        return 1
    if mesh.devices.flat[0].platform != "cpu" or jax.process_count() > 1:
        return 1
    return max(1, cores() // jax.local_device_count())


def start(calls: Sequence[Callable[[], Any]]) -> Callable[[], list[Any]]:
    """Start calls, each in a thread, and return a function that waits for their results.

    A thread does not know what the caller's context has set, such as ``jax.enable_x64``: a call must be of a compiled
    program, not of a function that may be traced.

    Args:
        calls: They return arrays.

    Returns:
        The function; it gives one result for each call, ready, or raises the first error.
    """
    if len(calls) == 1:
        result = calls[0]()
        return lambda: [result]
    futures = [_threads(cores()).submit(_ready, call) for call in calls]
    return lambda: [future.result() for future in futures]


@functools.lru_cache(maxsize=1)
def _threads(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, thread_name_prefix="jaxscape-core")


def _ready(call: Callable[[], Any]) -> Any:
    return jax.block_until_ready(call())
