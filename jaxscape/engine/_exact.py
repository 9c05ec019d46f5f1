"""The mean over all of the data at every point."""

import functools
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float
from tqdm.auto import tqdm

from jaxscape.engine._calls import blocks
from jaxscape.engine._parts import mesh_of, parts_of, template_of, work_of
from jaxscape.engine._program import Load, Program
from jaxscape.engine._result import Estimate, Evaluation, add_terms
from jaxscape.engine._strategy import choose_load
from jaxscape.engine._summary import SUMS, from_device, join, mean_and_stderr
from jaxscape.objective import Objective, Term
from jaxscape.shards import gather, mesh_of_shards
from jaxscape.types import Params

Loads = tuple[int | None, int | None] | Mapping[str, tuple[int | None, int | None]]
"""Examples and points that go side by side, None where free; or the same for each term."""


class Evaluator:
    """The means of an objective at points ``params + sum_k coords[k] * basis[k]``; programs stay between calls."""

    def __init__(self, objective: Objective, params: Params, basis: Params, mesh: Mesh | None = None) -> None:
        """Nothing is compiled or computed yet.

        Args:
            objective: The loss over its data.
            params: The origin.
            basis: A pytree like params with a leading axis of length ``axes`` on each leaf.
            mesh: The devices; all of all processes by default. An axis named ``"data"`` shares the examples.
        """
        self._objective, self._params, self._basis, self._mesh = objective, params, basis, mesh
        self._programs: dict[Any, Program] = {}

    def choose(self, num_points: int, load: Loads = (None, None)) -> dict[str, Load]:
        """Choose examples and points that go side by side, in short trials.

        Args:
            num_points: How many points will be evaluated.
            load: What is fixed; None: as is fastest.

        Returns:
            The load of each term.
        """
        return {term.name: self._choose(term, num_points, load_of(load, term)) for term in self._objective.terms}

    def __call__(self, coords: Float[np.ndarray, "points axes"], loads: Mapping[str, Load], bar: tqdm) -> Evaluation:
        """Evaluate points.

        Args:
            coords: Their coordinates.
            loads: The load of each term.
            bar: It counts the points, of each term.

        Returns:
            All metrics.
        """
        return add_terms({t.name: self._evaluate(t, coords, loads[t.name], bar) for t in self._objective.terms})

    def _choose(self, term: Term, num_points: int, fixed: tuple[int | None, int | None]) -> Load:
        template, mesh = template_of(term), mesh_of(term, self._mesh)
        program = functools.partial(Program, template, self._params, self._basis, mesh=mesh)
        return choose_load(program, template, work_of(term, template, num_points), mesh, fixed)

    def _evaluate(self, term: Term, coords: np.ndarray, load: Load, bar: tqdm) -> Evaluation:
        first = bar.n

        def run(load: Load) -> dict[str, np.ndarray]:
            bar.n = first
            return _sums(self._parts(term, load), term, coords, bar)

        sums, used = with_retries(run, load)
        metrics = {}
        for name, per_example in term.per_example.items():
            mean, stderr = mean_and_stderr(sums[name], term.examples)
            metrics[name] = Estimate(mean, stderr if per_example else None)
        return Evaluation(metrics, np.full(len(coords), term.examples), {term.name: used})

    def _parts(self, term: Term, load: Load) -> Iterator[Program]:
        """Programs whose examples together are all of the term's."""
        template, padded = template_of(term), all(term.per_example.values())
        for part, part_load in parts_of(term, template, load):
            like = template if padded else part
            key = (term.name, like.examples, part_load)
            if key not in self._programs:
                mesh = mesh_of(term, self._mesh)
                self._programs[key] = Program(like, self._params, self._basis, part_load, mesh=mesh)
            yield self._programs[key].fed(part.data) if term.passes else self._programs[key]


def evaluate(
    objective: Objective,
    params: Params,
    basis: Params,
    coords: Float[np.ndarray, "points axes"],
    *,
    load: Loads = (None, None),
    mesh: Mesh | None = None,
    progress: bool | None = None,
) -> Evaluation:
    """Mean of every metric over all examples, at each point ``params + sum_k coords[k] * basis[k]``.

    Args:
        objective: The loss over its data.
        params: The origin.
        basis: A pytree like params with a leading axis of length ``axes`` on each leaf.
        coords: Coordinates of the points.
        load: Examples and points that go side by side, as in `Load`; None: as is fastest in a short trial.
        mesh: The devices; all of all processes by default. An axis named ``"data"`` shares the examples.
        progress: True or False for a bar with points/s and time left; None for one on terminals and in notebooks.

    Returns:
        Every metric; its standard error is that of the mean over the examples taken as a sample, ``s / sqrt(N)`` with
        s the standard deviation of the per-example values (N - 1 in its denominator), and for weighted examples that of
        the ratio ``sum(w x) / sum(w)``.
    """
    evaluator = Evaluator(objective, params, basis, mesh)
    with progress_bar(len(coords) * len(objective.terms), progress) as bar:
        return evaluator(coords, evaluator.choose(len(coords), load), bar)


def load_of(load: Loads, term: Term) -> tuple[int | None, int | None]:
    """What is fixed of the load of a term."""
    return load[term.name] if isinstance(load, Mapping) else load


def mean_metrics(
    objective: Objective, params: Params, *, batch_size: int = 128, mesh: Mesh | None = None
) -> dict[str, float]:
    """Mean of every metric over all examples, at ``params`` itself.

    >>> data = np.arange(5.0)
    >>> objective = Objective.of(lambda p, x: p * x, np.float32(2.0), data)
    >>> mean_metrics(objective, np.float32(2.0), batch_size=2)
    {'loss': 4.0}

    Args:
        objective: The loss over its data.
        params: A pytree of floating arrays, like that of the objective.
        batch_size: Examples in one call of the loss, at most.
        mesh: The devices, with an axis named ``"data"``; by default those that params are cut over, or the first one.

    Returns:
        A number for each metric.
    """
    no_direction = jax.tree.map(lambda x: np.zeros((0, *np.shape(x)), x.dtype), params)
    mesh = mesh or mesh_of_shards(params) or Mesh(np.array(jax.local_devices()[:1]), ("points",))
    point, load = np.zeros((1, 0)), (batch_size, 1)
    evaluation = evaluate(objective, params, no_direction, point, load=load, mesh=mesh, progress=False)
    return {name: float(estimate.mean[0]) for name, estimate in evaluation.metrics.items()}


def with_retries(run: Callable[[Load], Any], load: Load) -> tuple[Any, Load]:
    """Run; when memory runs out, halve the load and run again, with one warning.

    Args:
        run: Takes a load.
        load: The first one.

    Returns:
        The result of the run, and the load that it needed.

    Raises:
        jax.errors.JaxRuntimeError: Memory runs out with one point and one example, or the failure is another one.
    """
    first = load
    while True:
        try:
            result = run(load)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error) or load == (1, 1):
                raise
            width, size = load.points_per_step, load.batch_size
            load = Load(size, width // 2) if width > 1 else Load(max(size // 2, 1), 1)
        else:
            if load != first:
                warnings.warn(
                    f"out of memory with {first}; went on with {load}. Pass it to spare the tries.", stacklevel=4
                )
            return result, load


def _sums(programs: Iterator[Program], term: Term, coords: np.ndarray, bar: tqdm) -> dict[str, np.ndarray]:
    """The sums of `summarize` over all examples, for each metric an array ``(5, points)``.

    Returns:
        By the names of the metrics.
    """
    sums = {name: np.zeros((SUMS, len(coords))) for name in term.per_example}
    expected = term.passes.expected_examples if term.passes else term.examples
    first, evaluated = bar.n, 0
    for (program, rows), block in blocks(programs, coords, alone=bool(term.passes)):
        for name, summaries in block.items():
            new = join(from_device(summaries[:, program.layout.sizes > 0]))
            sums[name][:, rows] = join(np.stack([sums[name][:, rows], new], axis=-1))
        evaluated += (rows.stop - rows.start) * int(program.layout.sizes.sum())
        bar.update(first + min(evaluated // expected, len(coords)) - bar.n)
    if term.passes:
        return {name: join(np.moveaxis(gather(own), 0, -1)) for name, own in sums.items()}
    return sums


def progress_bar(points: int, progress: bool | None) -> tqdm:
    """Points done, points/s and time left; on one process only."""
    shown = progress if jax.process_index() == 0 else False
    return tqdm(total=points, unit="point", desc="points", disable=None if shown is None else not shown)
