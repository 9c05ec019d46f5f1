"""The calls of programs, for the points in blocks."""

import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxscape.engine._compile import CAPACITY
from jaxscape.engine._program import Pending, Program, ahead
from jaxscape.objective import agree

CALL_SECONDS = 0.3  # a call this long keeps the progress bar alive and makes the cost of dispatch (< 1 ms) vanish


def blocks(
    programs: Iterator[Program], coords: np.ndarray, *, alone: bool
) -> Iterator[tuple[tuple[Program, slice], Any]]:
    """Send the points to the devices, for each program in calls of about CALL_SECONDS.

    Args:
        programs: They evaluate one batch of data after another.
        coords: Coordinates of the points, shape ``(points, axes)``.
        alone: Whether other processes send other calls.

    Yields:
        A program and rows of the points, and their summaries, as they come.
    """
    step = block = 0

    def calls() -> Iterator[tuple[tuple[Program, slice], Pending]]:
        nonlocal step, block
        for program in programs:
            step = program.capacity * program.load.points_per_step // CAPACITY  # one step of each device
            block, done = max(block, step), 0
            while done < len(coords):
                left = len(coords) - done
                even = -(-left // -(-left // block))  # no small block at the end
                rows = slice(done, min(done + -(-even // step) * step, len(coords)))
                yield (program, rows), program.summaries(coords[rows])
                done = rows.stop

    start = time.perf_counter()
    for (program, rows), summaries in ahead(calls()):
        yield (program, rows), summaries
        now = time.perf_counter()
        wanted = (rows.stop - rows.start) * CALL_SECONDS / (now - start if alone else agree(now - start))
        # At most twice as many as before: the first call's time is mostly compilation.
        block, start = int(np.clip(wanted, step, min(2 * block, program.capacity))) // step * step, now
