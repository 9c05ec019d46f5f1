"""How many examples and points go side by side: measured on the real function and devices, where that pays."""

import time
from collections.abc import Callable, Hashable
from typing import Any

import jax
import numpy as np

from jaxscape.data import num_examples
from jaxscape.engine._compile import CAPACITY
from jaxscape.engine._program import Load, Program, agree
from jaxscape.types import Data

FIRST_BATCH = 32, 128  # on a CPU (ResNet-20, 32x32: 2707 images/s at 32, 2388 at 128, for the cache), and elsewhere
WORTH = 10  # a trial, compilation included, may take 1 / WORTH of the time that the work would take
GAIN = 0.97  # what is less than 3 % faster is noise
ENOUGH = 0.05  # seconds of a call that can be told from noise

_Table = dict[Load, tuple[float, float]]
"""Seconds for one point and example at a load, and what it cost to find out, compilation included."""

_tables: dict[Any, _Table] = {}


def choose_load(
    make: Callable[[Load], Program], data: Data, num_points: int, key: Hashable | None, fixed: tuple[Any, Any]
) -> Load:
    """The load that is fastest in a short timed trial; what was measured is kept for the process.

    It climbs from a FIRST_BATCH of examples by factors of two, up or else down, then from one point side by side by
    factors of four, as long as that is faster and the work left is worth a trial.

    Args:
        make: Gives the program for a load.
        data: The data.
        num_points: How many points are to be evaluated.
        key: What identifies the function and devices in the process; None: nothing does.
        fixed: The batch size and points per step that the caller insists on; None where free.

    Returns:
        The load.
    """
    examples = num_examples(data)
    batch_size, width = fixed
    best = Load(min(batch_size or FIRST_BATCH[jax.default_backend() != "cpu"], examples), width or 1)
    if batch_size and width:
        return best
    shapes = tuple((np.shape(x), str(x.dtype)) for x in jax.tree.leaves(data))
    table: _Table = {} if key is None else _tables.setdefault((key, shapes), {})
    while len(_tables) > 64:
        del _tables[next(iter(_tables))]
    trial = _Trial(make, num_points * examples, table)
    if batch_size is None:
        start = best
        best = _climb(trial, best, lambda at: at._replace(batch_size=min(2 * at.batch_size, examples)))
        if best == start:
            best = _climb(trial, best, lambda at: at._replace(batch_size=max(at.batch_size // 2, 1)))
    if width is None and not trial.has_slow_vmap(best):
        best = _climb(trial, best, lambda at: at._replace(points_per_step=min(4 * at.points_per_step, CAPACITY)))
    return best


def _climb(trial: "_Trial", best: Load, step: Callable[[Load], Load]) -> Load:
    """Go on as long as it gains, and what is not known yet is worth a trial."""
    while (further := step(best)) != best and trial.knows_or_pays(further, best):
        if trial(further) > GAIN * trial(best):
            break
        best = further
    return best


class _Trial:
    """Seconds for one point and example at a load, each measured once."""

    def __init__(self, make: Callable[[Load], Program], work: int, table: _Table) -> None:
        self.make, self.work, self.table = make, work, table

    def __call__(self, load: Load) -> float:
        """Measure, or remember."""
        if load not in self.table:
            begin = time.perf_counter()
            try:
                seconds = agree(_measure(self.make(load)))
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                seconds = np.inf
            self.table[load] = seconds, agree(time.perf_counter() - begin)
        return self.table[load][0]

    def knows_or_pays(self, further: Load, best: Load) -> bool:
        """Whether a load was measured before, or the work at the best one would take longer than WORTH trials."""
        left = self.work * self(best)
        return further in self.table or left > WORTH * max(spent for _, spent in self.table.values())

    def has_slow_vmap(self, load: Load) -> bool:
        """On a CPU a vmapped convolution is 8 to 9 times slower, and takes 17 s to find that out."""
        return jax.default_backend() == "cpu" and self.make(load).has_convolution()


def _measure(program: Program) -> float:
    """Seconds per point and example: of a call that takes long ENOUGH, after the one that compiles."""
    step = program.load.points_per_step * program.capacity // CAPACITY
    points, last = step, 1
    program.summaries(np.zeros((points, program.num_axes)), last)()
    while True:
        start = time.perf_counter()
        program.summaries(np.zeros((points, program.num_axes)), last)()
        seconds = time.perf_counter() - start
        whole = last == program.local_batches
        if seconds > ENOUGH or (whole and points == program.capacity):
            return seconds / (points * program.count(last))
        points = min(4 * points, program.capacity) if whole else points
        last = min(4 * last, program.local_batches)
