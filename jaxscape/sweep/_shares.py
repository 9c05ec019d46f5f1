"""Work at every row, in shares that the devices of all processes take in turn."""

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from jaxscape import checks
from jaxscape.engine import progress_bar
from jaxscape.objective import DATA_AXIS
from jaxscape.sweep._store import Store

SHARE = 8  # rows that a group of devices takes at a time, and that a store keeps at a time


class StoppedError(Exception):
    """Another thread has failed, or the user has interrupted: this one ends."""


Visit = Callable[[int], dict[str, Any]]
"""The values of a row."""


def in_shares(
    begin: Callable[[Mesh, threading.Event], Visit],
    columns: Mapping[str, np.ndarray],
    groups: list[Mesh],
    store: Store | None,
    progress: bool | None,
    *,
    together: bool = False,
) -> dict[str, np.ndarray]:
    """Visit every row, in shares of SHARE; each group of devices takes the next share when it is free.

    Args:
        begin: What a group of devices does first, in a thread of its own. It gives the function that visits a row,
            which raises `StoppedError` soon after the event is set.
        columns: An array for each value, rows along its first axis; they are filled in.
        groups: The devices of this process, as `device_groups` gives them.
        store: Rows that are done; None: nothing is kept on disk.
        progress: True or False for a progress bar; None for one on terminals and in notebooks.
        together: Whether all processes visit each row together, since each has a part of params.

    Returns:
        The columns with the rows of all processes.
    """
    num = len(next(iter(columns.values())))
    shares = store.layout.shares if store else [slice(i, min(i + SHARE, num)) for i in range(0, num, SHARE)]
    done = store.done.copy() if store else np.zeros(num, bool)
    waiting = [share for share in shares if not done[share].all()]
    own = waiting if together else waiting[jax.process_index() :: jax.process_count()]
    keeps = store is not None and not (together and jax.process_index())
    left = iter(own)
    lock, stop = threading.Lock(), threading.Event()

    def work(group: Mesh, bar: Any) -> None:
        with contextlib.suppress(StoppedError), jax.default_device(group.local_devices[0]):
            visit = begin(group, stop)
            for share in _next_shares(left, lock):
                for i in np.flatnonzero(~done[share]) + share.start:
                    for name, value in visit(int(i)).items():
                        columns[name][i] = value
                    if store is not None and keeps:
                        store.write(slice(i, i + 1), {name: column[i : i + 1] for name, column in columns.items()})
                    elif store is not None:
                        store.mark(slice(i, i + 1))
                    bar.update()

    groups = groups[: len(own)]  # more than that would begin, and find nothing to do
    with progress_bar(num, progress) as bar, ThreadPoolExecutor(max(len(groups), 1)) as pool:
        bar.update(int(done.sum()))
        try:
            for future in as_completed([pool.submit(work, group, bar) for group in groups]):
                future.result()
        finally:
            stop.set()  # a failed or interrupted thread ends the others
    return _of_all_processes(columns, store)


def device_groups(mesh: Mesh | None) -> list[Mesh]:
    """The devices of this process, in groups that share the examples of a point.

    Args:
        mesh: Devices along an axis ``"data"`` are one group; others are groups of one. None: all devices.

    Returns:
        A mesh with the axis ``"data"`` for each group.

    Raises:
        ValueError: The axis ``"data"`` spans several processes.
    """
    checks.check_mesh(mesh)
    if mesh is None:
        return [Mesh(np.array([device]), (DATA_AXIS,)) for device in jax.local_devices()]
    devices = mesh.devices.reshape(-1, 1)
    if DATA_AXIS in mesh.axis_names:
        axis = mesh.axis_names.index(DATA_AXIS)
        devices = np.moveaxis(mesh.devices, axis, -1).reshape(-1, mesh.devices.shape[axis])
    groups = [row for row in devices if row[0].process_index == jax.process_index()]
    if any(device.process_index != jax.process_index() for row in groups for device in row):
        raise ValueError("mesh has an axis 'data' over several processes, expected one within each; reshape it.")
    return [Mesh(row, (DATA_AXIS,)) for row in groups]


def _next_shares(shares: Iterator[slice], lock: threading.Lock) -> Iterator[slice]:
    """The shares that this thread gets to."""
    while True:
        with lock:
            share = next(shares, None)
        if share is None:
            return
        yield share


def _of_all_processes(columns: Mapping[str, np.ndarray], store: Store | None) -> dict[str, np.ndarray]:
    """All rows: of the store, or of all processes, each of which has zeros where others were at work."""
    if store is not None:
        return store.read()
    if jax.process_count() == 1:
        return dict(columns)
    return {name: np.asarray(_gathered(column)) for name, column in columns.items()}


def _gathered(column: np.ndarray) -> np.ndarray:
    """The rows of the one process that has each; as bytes, since JAX would round float64."""
    parts = multihost_utils.process_allgather(column.view(np.uint8).reshape(len(column), -1))
    return parts.max(0).reshape(-1).view(column.dtype).reshape(column.shape)
