"""Means at every point, block by block, each kept on disk when it is done."""

from collections.abc import Callable, Mapping

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from jaxscape.engine import Estimate, Evaluation, Load, Loads, evaluate, progress_bar
from jaxscape.objective import Objective
from jaxscape.sweep._store import Store
from jaxscape.types import Params

BLOCK = 128  # points; a killed run loses no more than these


def in_blocks(
    objective: Objective,
    params: Params,
    basis: Params,
    coords: Float[np.ndarray, "points axes"],
    open_store: Callable[[int, int], Store],
    *,
    load: Loads,
    mesh: Mesh | None,
    progress: bool | None,
) -> Evaluation:
    """`jaxscape.engine.evaluate` of the points that a store lacks.

    Args:
        objective: The loss over its data.
        params: The origin.
        basis: A pytree like params with a leading axis of length ``axes`` on each leaf.
        coords: Coordinates of the points.
        open_store: The store for a number of points and points in a block.
        load: Examples and points that go side by side; what the first block chose is that of all.
        mesh: The devices; None: all of all processes.
        progress: True or False for a progress bar; None for one on terminals and in notebooks.

    Returns:
        The evaluation of all points; ``loads`` is empty where nothing was left to do.
    """
    loads: Mapping[str, Load] = {}
    store = open_store(len(coords), BLOCK)
    with progress_bar(len(coords), progress) as bar:
        bar.update(int(store.done.sum()))
        for start in range(0, len(coords), BLOCK):
            rows = slice(start, min(start + BLOCK, len(coords)))
            if store.done[rows].all():
                continue
            part = evaluate(objective, params, basis, coords[rows], load=loads or load, mesh=mesh, progress=False)
            loads = part.loads
            if not jax.process_index():
                store.write(rows, _columns(part))
            bar.update(rows.stop - rows.start)
    return _evaluation(store.read())._replace(loads=dict(loads))


def _columns(evaluation: Evaluation) -> dict[str, np.ndarray]:
    columns = {f"{name} mean": estimate.mean for name, estimate in evaluation.metrics.items()}
    errors = {f"{name} stderr": estimate.stderr for name, estimate in evaluation.metrics.items()}
    columns |= {name: stderr for name, stderr in errors.items() if stderr is not None}
    return columns | {"num_examples": evaluation.num_examples}


def _evaluation(columns: Mapping[str, np.ndarray]) -> Evaluation:
    names = sorted(name.removesuffix(" mean") for name in columns if name.endswith(" mean"))
    metrics = {name: Estimate(columns[f"{name} mean"], columns.get(f"{name} stderr")) for name in names}
    return Evaluation(metrics, columns["num_examples"], {})
