"""As many examples at each point as a tolerance needs.

The loss at a point is a mean over N examples, and a random subset estimates it. Three things make the subset small:

- *Control variates.* The losses of the single examples at neighbouring points are nearly the same vector. A coarse
  sub-grid of anchors is evaluated on all examples; elsewhere the losses are regressed on those of the nearest anchors,
  whose means are known, and only the residuals are left to chance (Cochran 1977, chapter 7, the regression estimator).
- *Common random numbers.* All points take the same examples in the same order, so the surface is smooth at any n.
- *Rounds.* A point takes no more examples once its standard error is under the tolerance.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float
from tqdm.auto import tqdm

from jaxscape.engine._compile import CAPACITY
from jaxscape.engine._exact import Loads, load_of, progress_bar, with_retries
from jaxscape.engine._program import Load, Program, ahead
from jaxscape.engine._record import Record
from jaxscape.engine._regression import Sample
from jaxscape.engine._result import Estimate, Evaluation, add_terms
from jaxscape.engine._strategy import choose_load
from jaxscape.objective import WEIGHT, Objective, Term, rows_of
from jaxscape.types import Params

NEIGHBOURS = 4  # anchors that a point is regressed on: the corners of its cell in a plane
FIRST_EXAMPLES = 256  # of the first round: below that neither the residuals' spread nor the coefficients are known well
IN_A_CALL = 2**16  # examples, over all points
NOTHING = Record()
GROWTH = 4  # a round takes a point to at most so many times the examples it had


def anchor_stride(examples: int, rtol: float, points: Sequence[int]) -> int:
    """The distance between anchors, in points along each axis.

    Anchors cost ``examples / stride ** axes`` examples a point; the points between them ``(r * stride / rtol) ** 2``,
    where ``r * stride`` is the residuals' relative spread, 0.03 for neighbours on a plane of 21 points over [-1, 1]
    (ResNet-20 on digits) and less on a finer one. The stride makes the sum least.

    >>> anchor_stride(20_000, 0.01, (31, 31))
    8

    Returns:
        At least 2.
    """
    axes = len(points)
    relative = 0.03 * 20 / max(max(points) - 1, 1) / max(rtol, 1e-9)
    return max(2, round((axes * examples / (2 * relative**2)) ** (1 / (axes + 2))))


def anchors(points: Sequence[int], stride: int) -> np.ndarray:
    """A mask of the grid's anchors: about every stride-th point of each axis, both ends included."""
    chosen = [np.unique(np.linspace(0, n - 1, -(-(n - 1) // stride) + 1).round().astype(int)) for n in points]
    mask = np.zeros(points, bool)
    mask[np.ix_(*chosen)] = True
    return mask


class Tolerance(NamedTuple):
    """How well the loss is wanted: a standard error of at most ``max(rtol * abs(loss), atol)``.

    Attributes:
        rtol: Relative tolerance.
        atol: Absolute tolerance.
        seed: Of the order in which all points take the examples.
        exact: For a number of examples, a mask of the points that are evaluated on all of them: the anchors of the
            others.
    """

    rtol: float
    atol: float
    seed: int
    exact: Callable[[int], np.ndarray]


def estimate(
    objective: Objective,
    params: Params,
    basis: Params,
    coords: Float[np.ndarray, "points axes"],
    tolerance: Tolerance,
    *,
    load: Loads = (None, None),
    mesh: Mesh | None = None,
    progress: bool | None = None,
    record: Record = NOTHING,
) -> Evaluation:
    """Mean of every metric to a tolerance: the standard error of the loss at most ``max(rtol * abs(loss), atol)``.

    Of several terms each is brought to ``rtol`` of itself, or to its share of ``atol``: so their sum is to the
    tolerance where no term is negative. What was reached is in the standard errors.

    Args:
        objective: The loss over its data, with a loss for each example.
        params: The origin.
        basis: A pytree like params with a leading axis of length ``axes`` on each leaf.
        coords: Coordinates of the points.
        tolerance: How well the loss is wanted.
        load: Examples and points that go side by side, as in `Load`; None: as is fastest in a short trial.
        mesh: The devices; all of all processes by default. An axis named ``"data"`` shares the examples.
        progress: True or False for a bar with points/s and time left; None for one on terminals and in notebooks.
        record: What is known of earlier calls, and keeps what this one computes.

    Returns:
        Every metric, with the standard error against the mean over all of the data: 0 where all were evaluated. Other
        metrics than the loss take the examples that the loss needs, and have error bars of their own.

    Raises:
        ValueError: The loss gives means of batches, or weights that depend on params.
    """
    for term in objective.terms:
        if not all(term.per_example.values()):
            name = f"loss_fn[{term.name!r}]" if term.name else "loss_fn"
            raise ValueError(f"rtol needs the loss of each example, but {name} returned the mean of a batch.")
    atol = tolerance.atol / np.sqrt(len(objective.terms))
    evaluations: dict[str, Evaluation] = {}

    def finished(rows: np.ndarray, of_term: Mapping[str, Evaluation]) -> None:
        """Keep the points that no term will change."""
        if len(evaluations) == len(objective.terms) - 1:
            before = {name: _rows_of(each, rows) for name, each in evaluations.items()}
            record.finish(rows, add_terms({**before, **of_term}))

    with progress_bar(len(coords) * len(objective.terms), progress) as bar:
        for term in objective.terms:
            order = np.random.default_rng(tolerance.seed).permutation(term.examples)
            shuffled = term.with_data(rows_of(term.data, order))
            points = _Points(coords, tolerance.exact(term.examples), tolerance.rtol, atol)
            program = functools.partial(Program, shuffled, params, basis, mesh=mesh)
            chosen = choose_load(program, shuffled, int(points.exact.sum()), mesh, load_of(load, term))
            evaluations[term.name] = _estimate_term(program, chosen, points, record, finished, bar)
    return add_terms(evaluations)


class _Points(NamedTuple):
    """Where a term is wanted, and how well."""

    coords: np.ndarray
    exact: np.ndarray
    rtol: float
    atol: float


def _estimate_term(
    program: Callable[[Load], Program],
    load: Load,
    points: _Points,
    record: Record,
    finished: Callable[[np.ndarray, Mapping[str, Evaluation]], None],
    bar: tqdm,
) -> Evaluation:
    """An estimate of one term; the points that are finished are told as they come."""
    first = bar.n

    def run(load: Load) -> Evaluation:
        bar.n = first
        part = program(load)
        record.begin(part.term.name, load)
        samples: dict[str, Sample] = {}
        loads = {part.term.name: load}
        for rows, samples in _sample(part, points, record, bar.update):
            finished(rows, {part.term.name: _rows_of(_evaluation(samples, loads), rows)})
        return _evaluation(samples, loads)

    return with_retries(run, load)[0]


def _evaluation(samples: Mapping[str, Sample], loads: dict[str, Load]) -> Evaluation:
    metrics = {name: Estimate(sample.mean, sample.stderr) for name, sample in samples.items()}
    return Evaluation(metrics, samples["loss"].counts.astype(int), loads)


def _rows_of(evaluation: Evaluation, rows: np.ndarray) -> Evaluation:
    metrics = {
        name: Estimate(each.mean[rows], None if each.stderr is None else each.stderr[rows])
        for name, each in evaluation.metrics.items()
    }
    return evaluation._replace(metrics=metrics, num_examples=evaluation.num_examples[rows])


def _weighted(values: dict[str, np.ndarray], term: Term) -> dict[str, np.ndarray]:
    """Values whose plain mean over all examples is the weighted mean: ``w x`` over the mean weight, which is known."""
    if not term.weighted:
        return values
    weights = values[WEIGHT] * (term.examples / term.total_weight)
    return {
        name: np.where(weights != 0, weights * value, 0).astype(value.dtype)
        for name, value in values.items()
        if name != WEIGHT
    }


def _sample(
    program: Program, points: _Points, record: Record, advance: Callable[[int], Any]
) -> Iterator[tuple[np.ndarray, dict[str, Sample]]]:
    """The anchors on all examples, then rounds for the points between them; yield the points that are finished."""
    coords, exact, rtol, atol = points
    term, batches = program.term, program.local_batches
    held = np.cumsum([0, *(program.count(i + 1) - program.count(i) for i in range(batches))])  # before each batch
    full: dict[int, dict[str, np.ndarray]] = {}
    for rows, values in _values(program, coords, np.flatnonzero(exact), (0, batches), record):
        full |= {row: {name: x[i] for name, x in values.items()} for i, row in enumerate(rows.tolist())}
        advance(len(rows))
    samples = {
        name: Sample(np.stack([full[row][name] for row in sorted(full)]), exact, _nearest(coords, exact))
        for name in term.per_example
    }
    del full
    yield np.flatnonzero(exact), samples
    loss = samples["loss"]
    done = np.where(exact, batches, 0)  # batches that each point has taken
    target = np.where(exact, 0, np.searchsorted(held, min(FIRST_EXAMPLES, held[-1])))
    while (waiting := np.flatnonzero(target > done)).size:
        for first, last in sorted({(done[i], target[i]) for i in waiting}):
            same = waiting[(done[waiting] == first) & (target[waiting] == last)]
            for rows, values in _values(program, coords, same, (first, last), record):
                for name, metric in values.items():
                    samples[name].add(rows, program.examples(first, last), metric)
                done[rows] = last
        for sample in samples.values():
            sample.solve(waiting)
        wanted = np.minimum(1.1 * loss.examples_for(waiting, rtol, atol), GROWTH * loss.counts[waiting])
        over = loss.stderr[waiting] > np.maximum(rtol * np.abs(loss.mean[waiting]), atol)
        further = np.maximum(np.searchsorted(held, wanted), done[waiting] + 1)
        steps = np.unique(np.append(np.ceil(1.5 ** np.arange(64)).clip(max=batches), batches)).astype(int)
        further = steps[np.minimum(np.searchsorted(steps, further), len(steps) - 1)]  # few sizes: full calls
        target[waiting] = np.where(over, further, done[waiting])
        finished = waiting[~over | (done[waiting] == batches)]
        yield finished, samples
        advance(len(finished))


def _values(
    program: Program, coords: np.ndarray, rows: np.ndarray, window: tuple[int, int], record: Record
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """The values of the examples in some batches, with their weights in them: those of the record, then the others."""
    term, examples = program.term, program.examples(*window)
    left = []
    for row in rows:
        known = record.find(term.name, int(row), examples)
        if known is None:
            left.append(row)
        else:
            yield np.array([row]), _weighted({name: values[None] for name, values in known.items()}, term)
    blocks = _blocks(np.array(left, int), program, len(examples))
    for block, values in ahead((block, program.values(coords[block], *window)) for block in blocks):
        record.keep(term.name, block, examples, values)
        yield block, _weighted(values, term)


def _nearest(coords: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """For each point the NEIGHBOURS anchors that are nearest, in units of the grid's extent; shape ``(points, k)``."""
    extent = np.ptp(coords, axis=0)
    scaled = coords / np.where(extent > 0, extent, 1)
    apart = ((scaled[:, None] - scaled[exact][None]) ** 2).sum(-1)
    return np.argsort(apart, axis=1, kind="stable")[:, :NEIGHBOURS]


def _blocks(rows: np.ndarray, program: Program, examples: int) -> Iterator[np.ndarray]:
    """Cut rows into calls of about IN_A_CALL examples, whole steps of all devices; the same on every process."""
    step = program.load.points_per_step * program.capacity // CAPACITY
    size = int(np.clip(IN_A_CALL // max(examples, 1) // step * step, step, program.capacity))
    return (rows[i : i + size] for i in range(0, len(rows), size))
