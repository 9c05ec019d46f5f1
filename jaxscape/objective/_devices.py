"""Devices: what every process has in full goes onto them, and comes back."""

import contextlib
import os
import time
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding

from jaxscape.objective._cores import cores
from jaxscape.shards import put

DATA_AXIS = "data"
"""The mesh axis along which devices share the examples."""


_PATIENCE = "--xla_cpu_collective_call_terminate_timeout_seconds"
"""How long XLA lets one device of a CPU wait for the others before it ends the process; jaxlib 0.8 has it, too."""


def use_all_cores() -> None:
    """Make each core of a CPU a device, for training and for several processes; leave any setting of the user alone.

    One process that measures needs no such devices: see `num_lanes`.

    Devices wait for each other where they add up. XLA ends the process after 40 seconds of waiting, which a busy
    machine exceeds; here it is an hour, unless ``XLA_FLAGS`` has the time.
    """
    flags = os.getenv("XLA_FLAGS", "")
    if _PATIENCE not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {_PATIENCE}=3600".strip()
    flagged = "xla_force_host_platform_device_count" in flags
    if flagged or jax.config.jax_num_cpu_devices != -1:  # type: ignore[attr-defined]
        return
    with contextlib.suppress(RuntimeError):  # JAX has started already, with devices of its own
        jax.config.update("jax_num_cpu_devices", cores())


def default_mesh() -> Mesh:
    """All devices of all processes, sharing the points."""
    return Mesh(np.array(jax.devices()), ("points",))


def place(tree: Any, sharding: NamedSharding) -> Any:
    """Put a pytree that every process has in full onto the devices; each moves its own part only."""
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)
    return jax.tree.map(lambda x: put(x, sharding), tree)


def fetch(tree: Any) -> Any:
    """The pytree in full, on every process; of arrays on devices of this process alone those."""
    _wait(tree)
    if all(leaf.is_fully_addressable for leaf in jax.tree.leaves(tree)):
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)


def own_mesh(mesh: Mesh | None, axis: str) -> Mesh | None:
    """The mesh as it is with one process; with several the devices of this one, along an axis."""
    return mesh if jax.process_count() == 1 else Mesh(np.array(jax.local_devices()), (axis,))


def _wait(tree: Any) -> None:
    """Wait for arrays in Python: a wait within XLA would not let Ctrl-C through."""
    start = time.perf_counter()
    for leaf in jax.tree.leaves(tree):
        while not leaf.is_ready():
            time.sleep(min(max(0.02 * (time.perf_counter() - start), 1e-4), 0.1))


def agree(seconds: float) -> float:
    """The time that process 0 measured: all processes must send the same calls."""
    if jax.process_count() == 1:
        return seconds
    return float(multihost_utils.broadcast_one_to_all(np.float32(seconds)))
