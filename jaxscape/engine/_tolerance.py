"""As many examples at each point as a tolerance needs.

The loss at a point is a mean over N examples, and a sample estimates it. Four things make the sample small:

- *Control variates.* The losses of the single examples at neighbouring points are nearly the same vector. A few
  points, the roots, are evaluated on all examples; elsewhere the losses are regressed on those of neighbours
  (`_regression`).
- *Levels.* Points halfway between the roots come next, then those halfway between these, and so on (`_levels`). The
  neighbours of a point are those of earlier levels with at least as many examples: the closer they are, the less is
  left to chance. The errors of their means, and how these go together, are carried on (`_estimates`).
- *One order.* All points take the same examples in the same order, so the surface is smooth at any n. Examples that
  the roots show to matter come early (`_draw`).
- *Rounds.* A point takes no more examples once its standard error is under the tolerance.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float
from tqdm.auto import tqdm

from jaxscape.engine._exact import Loads, load_of, progress_bar, with_retries
from jaxscape.engine._parts import mesh_of, some, work_of
from jaxscape.engine._program import Load
from jaxscape.engine._record import Record
from jaxscape.engine._result import Estimate, Evaluation, add_terms
from jaxscape.engine._sampling import Sampling
from jaxscape.engine._source import Place, Source
from jaxscape.engine._strategy import choose_load
from jaxscape.engine._stream import StreamSource
from jaxscape.objective import Objective, Term
from jaxscape.types import Params

NOTHING = Record()


class Tolerance(NamedTuple):
    """How well each metric is wanted: a standard error of at most ``max(rtol * abs(mean), atol)``.

    Attributes:
        rtol: Relative tolerances by the names of metrics, as in an `Evaluation`; without one a metric is not looked at.
        atol: Absolute tolerances by the names of metrics.
        seed: Of the order in which all points take the examples.
        levels: The level of each point, shape ``(points,)``; those of level 0 are evaluated on all examples.
    """

    rtol: Mapping[str, float]
    atol: Mapping[str, float]
    seed: int
    levels: np.ndarray


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
    """Mean of every metric to a tolerance: a standard error of at most ``max(rtol * abs(mean), atol)``.

    Of several terms each is brought to ``rtol`` of itself, or to its share of ``atol``: so their sum is to the
    tolerance where no term is negative. What was reached is in the standard errors.

    Args:
        objective: The loss over its data, with a loss for each example.
        params: The origin.
        basis: A pytree like params with a leading axis of length ``axes`` on each leaf.
        coords: Coordinates of the points.
        tolerance: How well each metric is wanted.
        load: Examples and points that go side by side, as in `Load`; None: as is fastest in a short trial.
        mesh: The devices; all of all processes by default. An axis named ``"data"`` shares the examples.
        progress: True or False for a bar with points/s and time left; None for one on terminals and in notebooks.
        record: What is known of earlier calls, and keeps what this one computes.

    Returns:
        Every metric, with the standard error against the mean over all of the data: 0 where all were evaluated.
        Metrics without a tolerance take the examples that the others need, and have error bars of their own.

    Raises:
        ValueError: The loss gives means of batches, or weights that depend on params.
    """
    for term in objective.terms:
        if not all(term.per_example.values()):
            name = f"loss_fn[{term.name!r}]" if term.name else "loss_fn"
            raise ValueError(f"rtol needs the loss of each example, but {name} returned the mean of a batch.")
    evaluations: dict[str, Evaluation] = {}

    def finished(rows: np.ndarray, of_term: Mapping[str, Evaluation]) -> None:
        """Keep the points that no term will change."""
        if len(evaluations) == len(objective.terms) - 1:
            before = {name: _rows_of(each, rows) for name, each in evaluations.items()}
            record.finish(rows, add_terms({**before, **of_term}))

    with progress_bar(len(coords) * len(objective.terms), progress) as bar:
        for term in objective.terms:
            one = some(term.sample, 0, term.passes.largest) if term.passes else term  # a batch is evaluated by itself
            place = Place(one, params, basis, coords, mesh_of(term, mesh))
            roots = work_of(term, place.term, int((tolerance.levels == 0).sum()))
            chosen = choose_load(place.program, term.sample, roots, place.mesh, load_of(load, term))
            wanted = _of_term(tolerance, term, len(objective.terms))
            evaluations[term.name] = _estimate_term(term, place, chosen, wanted, record, finished, bar)
    return add_terms(evaluations)


def _of_term(tolerance: Tolerance, term: Term, terms: int) -> Tolerance:
    """The tolerances of a term's metrics, by their names in the term."""
    names = {name: f"{name}_{term.name}" if term.name and name != "loss" else name for name in term.per_example}
    rtol, atol = (
        {name: given[full] for name, full in names.items() if full in given}
        for given in (tolerance.rtol, tolerance.atol)
    )
    if "loss" in atol:
        atol["loss"] /= np.sqrt(terms)
    return tolerance._replace(rtol=rtol, atol=atol)


def _estimate_term(
    term: Term,
    place: Place,
    load: Load,
    tolerance: Tolerance,
    record: Record,
    finished: Callable[[np.ndarray, Mapping[str, Evaluation]], None],
    bar: tqdm,
) -> Evaluation:
    """An estimate of one term; ``finished`` gets the points that will not change, as they come."""
    name, first = term.name, bar.n

    def run(load: Load) -> Evaluation:
        bar.n = first
        record.begin(name, load)
        source = StreamSource(term, place, load, record) if term.passes else Source(place, load, record)
        sampling = Sampling(source, tolerance.levels, tolerance.rtol, tolerance.atol)
        for rows in sampling.run(tolerance.seed, bar.update):
            finished(rows, {name: _rows_of(_evaluation(sampling, name, load), rows)})
        return _evaluation(sampling, name, load)

    return with_retries(run, load)[0]


def _evaluation(sampling: Sampling, term: str, load: Load) -> Evaluation:
    metrics = {name: Estimate(each.mean, each.stderr) for name, each in sampling.estimates.items()}
    return Evaluation(metrics, sampling.source.examples(sampling.counts), {term: load})


def _rows_of(evaluation: Evaluation, rows: np.ndarray) -> Evaluation:
    metrics = {
        name: Estimate(each.mean[rows], None if each.stderr is None else each.stderr[rows])
        for name, each in evaluation.metrics.items()
    }
    return evaluation._replace(metrics=metrics, num_examples=evaluation.num_examples[rows])
