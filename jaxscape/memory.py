"""The memory that devices have left."""

import os
from collections.abc import Sequence

import jax


def free_bytes(devices: Sequence[jax.Device]) -> int:
    """Of devices of this process together; those of a CPU share its memory.

    Args:
        devices: They are of this process.

    Returns:
        Bytes.
    """
    stats = [device.memory_stats() for device in devices]
    if all(stats):
        return sum(s["bytes_limit"] - s["bytes_in_use"] for s in stats)
    pages = "SC_AVPHYS_PAGES" if "SC_AVPHYS_PAGES" in os.sysconf_names else "SC_PHYS_PAGES"
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf(pages) * len(stats) // jax.local_device_count()
