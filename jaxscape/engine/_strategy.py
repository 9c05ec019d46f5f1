"""The choice of how many examples and points are evaluated together: by short trials, where the work is worth them."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxscape.convolution import has_convolution
from jaxscape.engine._compile import CAPACITY
from jaxscape.engine._program import Load, Program
from jaxscape.objective import Term, agree, cached_examples, default_mesh, num_lanes, results_of_products

FIRST_BATCH = 128  # on a CPU
FIRST_RESULTS = 2**26  # numbers in the result of a product or convolution on accelerators: 8,192 images, ResNet-56
WORTH = 10  # a trial, with its compilation, may take 1 / WORTH of the time that the work would take
GAIN = 0.97  # a gain of less than 3 % is noise
ENOUGH = 0.05  # a call of this many seconds stands out from noise
SMALL = 16  # batches of one point, for each call that runs at once: a trial would evaluate as many
REPEATS = 3  # calls, of which the fastest counts, since other work on the machine only adds time


@dataclasses.dataclass
class _Known:
    """The measurements of a function on its devices, remembered until the process ends.

    Attributes:
        seconds: For each load, the seconds for one point and example, and the seconds of the trial with its
            compilation.
        slow_vmap: Whether `jax.vmap` over points is too slow; None: not known yet.
    """

    seconds: dict[Load, tuple[float, float]] = dataclasses.field(default_factory=dict)
    slow_vmap: bool | None = None


REMEMBERED = 64  # computations whose choice is kept
_known: dict[Any, _Known] = {}


def choose_load(
    program: Callable[[Load], Program],
    term: Term,
    num_points: int,
    mesh: Mesh | None,
    fixed: tuple[int | None, int | None],
) -> Load:
    """Choose the load that is fastest in short timed trials; the process remembers the measurements.

    The batch size starts at FIRST_BATCH examples, or for convolutions on a CPU at the number of examples that its
    cache holds, and on accelerators where products and convolutions give FIRST_RESULTS numbers, or less where their
    memory does not suffice. It grows by factors of two; if the first step up gains nothing, it shrinks by factors of
    two instead. Then the number of points side by side grows from one by factors of four. Each search goes on as long
    as a step gains, and the remaining work is worth a trial. Work of SMALL batches has no trial at all.

    Args:
        program: A function that returns the program for a load.
        term: The loss and its data.
        num_points: The number of points to evaluate.
        mesh: The devices; None: all devices.
        fixed: The batch size and the points per step that the caller has fixed; None: chosen here.

    Returns:
        The load.
    """
    examples = term.examples
    batch_size, width = fixed
    if term.mesh is not None:  # all devices evaluate a point together
        width, mesh = width or 1, mesh or term.mesh
    best = Load(min(batch_size or first_batch(term), examples), width or 1)
    if batch_size and width:
        return best
    shapes = jax.tree.leaves(term.batch_like(examples))
    key = (term.traced(term.canonical).computation, mesh, tuple((x.shape, x.dtype) for x in shapes))
    known = _known.setdefault(key, _Known())
    while len(_known) > REMEMBERED:
        del _known[next(iter(_known))]
    if known.slow_vmap is None:
        known.slow_vmap = _has_slow_vmap(term)
    if known.slow_vmap and not batch_size:
        best = best._replace(batch_size=min(best.batch_size, cached_examples(term.data)))
    mesh = mesh or default_mesh()
    if num_points * -(-examples // best.batch_size) <= SMALL * mesh.size * num_lanes(mesh):
        return best
    trial = _Trial(program, num_points * examples, known.seconds)
    if batch_size is None:
        while best.batch_size > 1 and trial(best) == np.inf:  # the memory does not suffice
            best = best._replace(batch_size=best.batch_size // 2)
        start = best
        best = _climb(trial, best, lambda load: load._replace(batch_size=min(2 * load.batch_size, examples)))
        if best == start:
            best = _climb(trial, best, lambda load: load._replace(batch_size=max(load.batch_size // 2, 1)))
    if width is None and not known.slow_vmap:
        best = _climb(trial, best, lambda load: load._replace(points_per_step=min(4 * load.points_per_step, CAPACITY)))
    return best


def _climb(trial: "_Trial", best: Load, step: Callable[[Load], Load]) -> Load:
    """Take steps from a load as long as each is faster, and is either measured already or worth a trial."""
    while (candidate := step(best)) != best and trial.knows_or_pays(candidate, best):
        if trial(candidate) > GAIN * trial(best):
            break
        best = candidate
    return best


class _Trial:
    """The seconds for one point and example at a load; each load is measured once."""

    def __init__(self, program: Callable[[Load], Program], work: int, table: dict[Load, tuple[float, float]]) -> None:
        self.program, self.work, self.table = program, work, table

    def __call__(self, load: Load) -> float:
        """The seconds for one point and example; infinite if the memory of the device does not suffice."""
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

    def knows_or_pays(self, candidate: Load, best: Load) -> bool:
        """Whether the candidate was measured before, or the work at the best load takes longer than WORTH trials."""
        left = self.work * self(best)
        return candidate in self.table or left > WORTH * max(spent for _, spent in self.table.values())


def first_batch(term: Term) -> int:
    """Examples in the first batch that is tried; a power of two."""
    if jax.default_backend() == "cpu":
        return FIRST_BATCH
    results = results_of_products(term.traced(term.canonical).computation.jaxpr)
    each = max(float(np.mean(results or [0])) / term.canonical, 1.0)
    return int(2 ** np.clip(np.round(np.log2(FIRST_RESULTS / each)), 0, 20))


def _has_slow_vmap(term: Term) -> bool:
    """Whether the loss has a convolution on a CPU: under vmap it is 8 to 9 times slower, and a trial takes 17 s."""
    return jax.default_backend() == "cpu" and has_convolution(term.traced(term.canonical).computation.rewritten().jaxpr)


def _measure(program: Program) -> float:
    """The seconds per point and example, from the fastest of REPEATS calls that take at least ENOUGH seconds."""
    step = program.load.points_per_step * program.capacity // CAPACITY
    points, last = step, 1

    def call(points: int, batches: int) -> float:
        start = time.perf_counter()
        program.summaries(np.zeros((points, program.num_axes)), batches)()
        return time.perf_counter() - start

    call(points, last)  # compiles
    while True:
        seconds = agree(call(points, last))  # or processes would go on with other calls, and wait for each other
        whole = last == program.layout.local_batches
        if seconds > ENOUGH or (whole and points == program.capacity):
            return min(seconds, *(call(points, last) for _ in range(REPEATS - 1))) / (points * program.count(last))
        points = min(4 * points, program.capacity) if whole else points
        last = min(4 * last, program.layout.local_batches)
