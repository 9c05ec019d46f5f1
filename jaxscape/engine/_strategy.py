"""How many examples and points go side by side: measured on the real function and devices, where that pays."""

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxscape.engine._compile import CAPACITY
from jaxscape.engine._program import Load, Program
from jaxscape.objective import Term, agree

FIRST_BATCH = 128
CACHED = 8 * 32 * 32 * 3  # numbers that a first batch of images has on a CPU: 8 of CIFAR-10, where 64 are 19 % slower
WORTH = 10  # a trial, compilation included, may take 1 / WORTH of the time that the work would take
GAIN = 0.97  # what is less than 3 % faster is noise
ENOUGH = 0.05  # seconds of a call that can be told from noise
REPEATS = 3  # of which the fastest counts: what else runs on the machine only ever adds


@dataclasses.dataclass
class _Known:
    """What was measured of a function on its devices, for the life of the process.

    Attributes:
        seconds: For one point and example at a load, and what it cost to find out, compilation included.
        slow_vmap: Whether points side by side are out of the question.
    """

    seconds: dict[Load, tuple[float, float]] = dataclasses.field(default_factory=dict)
    slow_vmap: bool | None = None


_known: dict[Any, _Known] = {}


def choose_load(
    program: Callable[[Load], Program],
    term: Term,
    num_points: int,
    mesh: Mesh | None,
    fixed: tuple[int | None, int | None],
) -> Load:
    """The load that is fastest in a short timed trial; what was measured is kept for the process.

    It climbs from a FIRST_BATCH of examples, or for convolutions on a CPU as many as are CACHED, by factors of two, up
    or else down, then from one point side by side by factors of four, as long as that is faster and the work left is
    worth a trial.

    Args:
        program: The program for a load.
        term: The loss and its data.
        num_points: How many points are to be evaluated.
        mesh: The devices; None: all.
        fixed: The batch size and points per step that the caller insists on; None where free.

    Returns:
        The load.
    """
    examples = term.examples
    batch_size, width = fixed
    best = Load(min(batch_size or FIRST_BATCH, examples), width or 1)
    if batch_size and width:
        return best
    shapes = jax.tree.leaves(term.batch_like(examples))
    key = (term.traced(term.canonical).computation, mesh, tuple((x.shape, x.dtype) for x in shapes))
    known = _known.setdefault(key, _Known())
    while len(_known) > 64:
        del _known[next(iter(_known))]
    if known.slow_vmap is None:
        known.slow_vmap = _has_slow_vmap(program(best))
    if known.slow_vmap and not batch_size:
        largest = max(math.prod(x.shape[1:]) for x in shapes)
        best = best._replace(batch_size=max(1, min(best.batch_size, CACHED // max(largest, 1))))
    trial = _Trial(program, num_points * examples, known.seconds)
    if batch_size is None:
        start = best
        best = _climb(trial, best, lambda at: at._replace(batch_size=min(2 * at.batch_size, examples)))
        if best == start:
            best = _climb(trial, best, lambda at: at._replace(batch_size=max(at.batch_size // 2, 1)))
    if width is None and not known.slow_vmap:
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

    def __init__(self, program: Callable[[Load], Program], work: int, table: dict[Load, tuple[float, float]]) -> None:
        self.program, self.work, self.table = program, work, table

    def __call__(self, load: Load) -> float:
        """Measure, or remember."""
        if load not in self.table:
            begin = time.perf_counter()
            try:
                seconds = agree(_measure(self.program(load)))
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


def _has_slow_vmap(program: Program) -> bool:
    """On a CPU a vmapped convolution is 8 to 9 times slower, and takes 17 s to find that out."""
    return jax.default_backend() == "cpu" and program.has_convolution()


def _measure(program: Program) -> float:
    """Seconds per point and example: of a call that takes long ENOUGH, the fastest of REPEATS."""
    step = program.load.points_per_step * program.capacity // CAPACITY
    points, last = step, 1

    def call(points: int, batches: int) -> float:
        start = time.perf_counter()
        program.summaries(np.zeros((points, program.num_axes)), batches)()
        return time.perf_counter() - start

    call(points, last)  # compiles
    while True:
        seconds = call(points, last)
        whole = last == program.local_batches
        if seconds > ENOUGH or (whole and points == program.capacity):
            return min(seconds, *(call(points, last) for _ in range(REPEATS - 1))) / (points * program.count(last))
        points = min(4 * points, program.capacity) if whole else points
        last = min(4 * last, program.local_batches)
