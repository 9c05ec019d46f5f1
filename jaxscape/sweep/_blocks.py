"""Means at every point, block by block, each kept on disk when it is done."""

import functools
import time
from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from jaxscape.engine import Estimate, Evaluation, Evaluator, Load, Loads, load_of, progress_bar
from jaxscape.objective import Objective, Placement, agree
from jaxscape.sweep._store import Store
from jaxscape.types import Params

SECONDS = 5.0  # of work in a block: what a killed run loses
GAIN = 1.05  # of the speed, where a larger block has the batches of a stream read less often for each point


def columns_of(objective: Objective, rows: int) -> dict[str, np.ndarray]:
    """An empty column for each variable of an evaluation.

    Args:
        objective: The loss over its data.
        rows: The number of points.

    Returns:
        By the names in the dataset: the metrics, their standard errors, and ``num_examples``.
    """
    names = [*objective.metrics, *(f"{name}_stderr" for name in objective.metrics_with_errors)]
    return {name: np.zeros(rows) for name in names} | {"num_examples": np.zeros(rows, int)}


def in_blocks(
    objective: Objective,
    params: Params,
    basis: Params,
    coords: Float[np.ndarray, "points axes"],
    store: Store,
    *,
    load: Loads,
    mesh: Mesh | None,
    progress: bool | None,
) -> Evaluation:
    """`jaxscape.engine.evaluate` of the points that a store lacks.

    A block is as many points as take SECONDS. How many examples and points go side by side is kept in the store, so
    that a resumed run gives the same numbers to the bit. Where a store got further metrics, only they are computed.

    Args:
        objective: The loss over its data.
        params: The origin.
        basis: A pytree like params with a leading axis of length ``axes`` on each leaf.
        coords: Coordinates of the points.
        store: An open store with the columns of `columns_of`.
        load: Examples and points that go side by side, as in `Load`.
        mesh: The devices; None: all of all processes.
        progress: True or False for a progress bar; None for one on terminals and in notebooks.

    Returns:
        The evaluation of all points.
    """
    num_terms = len(objective.terms)
    loads: Mapping[str, Load] = {}
    with progress_bar(len(coords) * num_terms, progress) as bar:
        bar.update(int(store.done.sum()) * num_terms)
        if not store.done.all():
            evaluators = functools.cache(lambda names: Evaluator(objective.only(names), params, basis, mesh))
            every = tuple(objective.metrics)
            noted = noted_loads(store, objective, load)
            loads = evaluators(every).choose(int((~store.done).sum()), noted)
            size = Placement.of(params, mesh).groups * max(each.points_per_step for each in loads.values())
            block, before = size, 0.0
            while not store.done.all():
                rows = _next_rows(store, block)
                lacking = [name for name, there in store.there.items() if not there[rows.start]]
                metrics = tuple(name for name in every if {name, f"{name}_stderr"} & set(lacking)) or every
                start = time.perf_counter()
                part = evaluators(metrics)(coords[rows], loads, bar)
                part = part._replace(num_examples=np.full(len(part.num_examples), objective.examples))
                loads = {**loads, **part.loads}
                note_loads(store, loads)
                if jax.process_index():
                    store.mark(rows)
                else:
                    store.write(rows, {name: column for name, column in columns_in(part).items() if name in lacking})
                speed = (rows.stop - rows.start) / agree(time.perf_counter() - start)
                wanted = speed * SECONDS
                if any(term.passes for term in objective.terms):
                    wanted = max(wanted, np.inf if speed > GAIN * before else block)
                block, before = int(np.clip(wanted, size, 4 * block)) // size * size, speed
    return evaluation_of(store.read(), objective)._replace(loads=dict(loads))


def _next_rows(store: Store, block: int) -> slice:
    """The first rows that are not done, at most ``block`` of them, which all lack the same variables."""
    start = int(np.argmin(store.done))
    masks = np.stack([store.done, *store.there.values()])[:, start : start + block]
    other = np.flatnonzero((masks != masks[:, :1]).any(0))
    return slice(start, start + int(other[0]) if other.size else start + masks.shape[1])


def noted_loads(store: Store, objective: Objective, load: Loads) -> dict[str, tuple[int | None, int | None]]:
    """What went side by side before, for each term.

    Args:
        store: It is open.
        objective: The loss over its data.
        load: What the caller has fixed.

    Returns:
        Examples and points; what the caller has fixed, what is noted for devices like these, or None.
    """
    noted = store.notes.get("loads", {}) if store.notes.get("devices") == _devices() else {}
    chosen = {}
    for term in objective.terms:
        fixed, before = load_of(load, term), noted.get(term.name, (None, None))
        chosen[term.name] = (fixed[0] or before[0], fixed[1] or before[1])
    return chosen


def note_loads(store: Store, loads: Mapping[str, Load]) -> None:
    """Keep what goes side by side, and on which devices.

    Args:
        store: It is open.
        loads: By the names of the terms.
    """
    noted = {name: list(load) for name, load in loads.items()}
    if store.notes.get("loads") != noted or store.notes.get("devices") != _devices():
        store.note(loads=noted, devices=_devices())


def _devices() -> str:
    return f"{jax.device_count()} {jax.devices()[0].device_kind}"


def columns_in(evaluation: Evaluation) -> dict[str, np.ndarray]:
    """The columns of `columns_of` with the numbers of an evaluation."""
    columns = {"num_examples": evaluation.num_examples}
    for name, estimate in evaluation.metrics.items():
        columns[name] = estimate.mean
        if estimate.stderr is not None:
            columns[f"{name}_stderr"] = estimate.stderr
    return columns


def evaluation_of(columns: Mapping[str, np.ndarray], objective: Objective) -> Evaluation:
    """The evaluation whose columns are those of `columns_of`."""
    metrics = {name: Estimate(columns[name], columns.get(f"{name}_stderr")) for name in objective.metrics}
    return Evaluation(metrics, columns["num_examples"], {})
