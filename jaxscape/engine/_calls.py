"""The calls of programs: the data in pieces that a program takes, the points in blocks."""

import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxscape.engine._compile import CAPACITY
from jaxscape.engine._program import Load, Pending, Program, ahead
from jaxscape.objective import Term, agree, own_mesh, rows_of

CALL_SECONDS = 0.3  # a call this long keeps the progress bar alive and makes the cost of dispatch (< 1 ms) vanish


def mesh_of(term: Term, mesh: Mesh | None) -> Mesh | None:
    """The devices that evaluate a term: for a stream, with several processes, those of this process."""
    return own_mesh(mesh, "points") if term.passes else mesh


def work_of(term: Term, num_points: int) -> int:
    """How many points of the first batch are as much work as these points of a stream; of arrays as many.

    Returns:
        0 for a stream with several processes: their batches may differ in size, and trials would, too.
    """
    if term.passes is None:
        return num_points
    return num_points * term.passes.expected_batches if jax.process_count() == 1 else 0


def pieces(part: Term, load: Load, most: int) -> Iterator[tuple[Term, Load]]:
    """Examples in memory, cut into what one program takes, and the loads of these.

    Where the loss is the mean of a batch, a padded batch would spoil it: the ragged last one is a piece of its own.
    Elsewhere a piece has at most ``most`` examples.

    Args:
        part: The loss and its examples.
        load: How much goes side by side.
        most: Examples in a piece, at most.

    Yields:
        Terms and their loads.
    """
    examples = part.examples
    if all(part.per_example.values()):
        for start in range(0, examples, most):
            yield _some(part, start, min(start + most, examples)), load
        return
    ragged = examples % load.batch_size
    if examples > ragged:
        yield _some(part, 0, examples - ragged), load
    if ragged:
        yield _some(part, examples - ragged, examples), load._replace(batch_size=ragged)


def _some(term: Term, start: int, stop: int) -> Term:
    """The same loss of some of the examples."""
    if (start, stop) == (0, term.examples):
        return term
    return term.with_data(rows_of(term.data, slice(start, stop)))


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
                rows = slice(done, min(done + block, len(coords)))
                yield (program, rows), program.summaries(coords[rows])
                done = rows.stop

    start = time.perf_counter()
    for (program, rows), summaries in ahead(calls()):
        yield (program, rows), summaries
        now = time.perf_counter()
        wanted = (rows.stop - rows.start) * CALL_SECONDS / (now - start if alone else agree(now - start))
        # At most twice as many as before: the first call's time is mostly compilation.
        block, start = int(np.clip(wanted, step, min(2 * block, program.capacity))) // step * step, now
