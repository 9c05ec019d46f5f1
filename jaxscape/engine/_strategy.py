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
TRIAL_EXAMPLES = 2048

_chosen: dict[Any, Load] = {}


def choose_load(
    make: Callable[[Load], Program], data: Data, num_points: int, key: Hashable | None, fixed: tuple[Any, Any]
) -> Load:
    """The load that is fastest in a short timed trial, kept for the process.

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
    key = (key, shapes, fixed)
    if key in _chosen and key[0] is not None:
        return _chosen[key]
    trial = _Trial(make, num_points * examples)
    if batch_size is None:
        start = best
        best = _climb(trial, best, lambda at: at._replace(batch_size=min(2 * at.batch_size, examples)))
        if best == start:
            best = _climb(trial, best, lambda at: at._replace(batch_size=max(at.batch_size // 2, 1)))
    if width is None and not trial.has_slow_vmap(best):
        best = _climb(trial, best, lambda at: at._replace(points_per_step=min(4 * at.points_per_step, CAPACITY)))
    if not trial.refused:  # else larger work may be worth more trials later
        _chosen[key] = best
        while len(_chosen) > 64:
            del _chosen[next(iter(_chosen))]
    return best


def _climb(trial: "_Trial", best: Load, step: Callable[[Load], Load]) -> Load:
    """Go on as long as it pays and gains."""
    while trial.pays(best):
        further = step(best)
        if further == best or trial(further) > GAIN * trial(best):
            break
        best = further
    return best


class _Trial:
    """Seconds for one point and example at a load, each measured once."""

    def __init__(self, make: Callable[[Load], Program], work: int) -> None:
        self.make, self.work = make, work
        self.seconds: dict[Load, float] = {}
        self.spent = 0.0  # by the last trial, compilation included
        self.refused = False

    def __call__(self, load: Load) -> float:
        """Measure, or remember."""
        if load not in self.seconds:
            begin = time.perf_counter()
            try:
                self.seconds[load] = agree(_measure(self.make(load)))
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                self.seconds[load] = np.inf
            self.spent = agree(time.perf_counter() - begin)
        return self.seconds[load]

    def pays(self, load: Load) -> bool:
        """Whether the work at this load would take longer than WORTH further trials."""
        worth = self.work * self(load) > WORTH * self.spent
        self.refused |= not worth
        return worth

    def has_slow_vmap(self, load: Load) -> bool:
        """On a CPU a vmapped convolution is 8 to 9 times slower, and takes 17 s to find that out."""
        return jax.default_backend() == "cpu" and self.make(load).has_convolution()


def _measure(program: Program) -> float:
    """Seconds per point and example: the better of two calls after the one that compiles."""
    points = np.zeros((program.load.points_per_step * program.capacity // CAPACITY, program.num_axes))
    last = min(program.local_batches, max(1, TRIAL_EXAMPLES // program.load.batch_size))
    program.summaries(points, last)()
    times = []
    for _ in range(2):
        start = time.perf_counter()
        program.summaries(points, last)()
        times.append(time.perf_counter() - start)
    return min(times) / (len(points) * program.count(last))
