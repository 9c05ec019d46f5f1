"""Means at every point, block by block, each kept on disk when it is done."""

import functools
import time
from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from jaxscape.engine import Estimate, Evaluation, Evaluator, Load, Loads, load_of, progress_bar
from jaxscape.objective import Objective, agree
from jaxscape.sweep._store import Store
from jaxscape.types import Params

SECONDS = 5.0  # of work in a block: what a killed run loses


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
            loads = _noted_loads(store, objective, load) or evaluators(every).choose(int((~store.done).sum()), load)
            devices = mesh.size if mesh else jax.device_count()
            size = devices * max(each.points_per_step for each in loads.values())
            block = size
            while not store.done.all():
                rows = _next_rows(store, block)
                lacking = [name for name, there in store.there.items() if not there[rows.start]]
                metrics = tuple(name for name in every if {name, f"{name}_stderr"} & set(lacking)) or every
                start = time.perf_counter()
                part = evaluators(metrics)(coords[rows], loads, bar)
                part = part._replace(num_examples=np.full(len(part.num_examples), objective.examples))
                loads = {**loads, **part.loads}
                _note_loads(store, loads)
                if jax.process_index():
                    store.mark(rows)
                else:
                    store.write(rows, {name: column for name, column in _columns(part).items() if name in lacking})
                speed = (rows.stop - rows.start) / agree(time.perf_counter() - start)
                block = int(np.clip(speed * SECONDS, size, 4 * block)) // size * size
    return _evaluation(store.read(), objective)._replace(loads=dict(loads))


def _next_rows(store: Store, block: int) -> slice:
    """The first rows that are not done, at most ``block`` of them, which all lack the same variables."""
    start = int(np.argmin(store.done))
    masks = np.stack([store.done, *store.there.values()])[:, start : start + block]
    other = np.flatnonzero((masks != masks[:, :1]).any(0))
    return slice(start, start + int(other[0]) if other.size else start + masks.shape[1])


def _noted_loads(store: Store, objective: Objective, load: Loads) -> dict[str, Load]:
    """What went side by side before, on devices like these; empty where that is not known."""
    noted = store.notes.get("loads", {})
    if store.notes.get("devices") != _devices() or set(noted) != {term.name for term in objective.terms}:
        return {}
    chosen = {}
    for term in objective.terms:
        batch_size, width = load_of(load, term)
        chosen[term.name] = Load(batch_size or noted[term.name][0], width or noted[term.name][1])
    return chosen


def _note_loads(store: Store, loads: Mapping[str, Load]) -> None:
    noted = {name: list(load) for name, load in loads.items()}
    if store.notes.get("loads") != noted or store.notes.get("devices") != _devices():
        store.note(loads=noted, devices=_devices())


def _devices() -> str:
    return f"{jax.device_count()} {jax.devices()[0].device_kind}"


def _columns(evaluation: Evaluation) -> dict[str, np.ndarray]:
    columns = {"num_examples": evaluation.num_examples}
    for name, estimate in evaluation.metrics.items():
        columns[name] = estimate.mean
        if estimate.stderr is not None:
            columns[f"{name}_stderr"] = estimate.stderr
    return columns


def _evaluation(columns: Mapping[str, np.ndarray], objective: Objective) -> Evaluation:
    metrics = {name: Estimate(columns[name], columns.get(f"{name}_stderr")) for name in objective.metrics}
    return Evaluation(metrics, columns["num_examples"], {})
