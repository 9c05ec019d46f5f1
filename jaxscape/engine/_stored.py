"""The mean at every point, block by block, each kept on disk when it is done."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from jaxscape.engine._exact import evaluate, progress_bar
from jaxscape.engine._program import Load
from jaxscape.engine._result import Estimate, Evaluation
from jaxscape.store import Store
from jaxscape.types import Data, LossFn, Params

BLOCK = 128  # points; a killed run loses no more than these


def evaluate_stored(
    store: str | Path,
    recipe: Mapping[str, Any],
    loss_fn: LossFn,
    params: Params,
    basis: Params,
    coords: Float[np.ndarray, "points axes"],
    data: Data,
    *,
    load: tuple[int | None, int | None] = (None, None),
    progress: bool | None = None,
    **options: Any,
) -> Evaluation:
    """`evaluate`, which goes on from what a store has.

    Args:
        store: A folder.
        recipe: What the numbers depend on, as in `Store`.
        loss_fn: As in `evaluate`.
        params: As there.
        basis: As there.
        coords: As there.
        data: As there.
        load: As there; what the first block chose is that of all.
        progress: As there.
        **options: Further options of `evaluate`.

    Returns:
        What `evaluate` gives; ``load`` is as it was given where nothing was left to do.
    """
    kept = Store(store, recipe, len(coords), BLOCK)
    with progress_bar(len(coords), progress) as bar:
        bar.update(int(kept.done.sum()))
        for start in range(0, len(coords), BLOCK):
            rows = slice(start, min(start + BLOCK, len(coords)))
            if kept.done[rows].all():
                continue
            found = evaluate(loss_fn, params, basis, coords[rows], data, load=load, progress=False, **options)
            load = found.load
            if not jax.process_index():
                kept.write(rows, _columns(found))
            bar.update(rows.stop - rows.start)
    return _evaluation(kept.read(), load)


def _columns(found: Evaluation) -> dict[str, np.ndarray]:
    columns = {f"{name} mean": estimate.mean for name, estimate in found.metrics.items()}
    columns |= {f"{name} stderr": e.stderr for name, e in found.metrics.items() if e.stderr is not None}
    return columns | {"num_examples": found.num_examples}


def _evaluation(columns: Mapping[str, np.ndarray], load: tuple[int | None, int | None]) -> Evaluation:
    names = sorted(name.removesuffix(" mean") for name in columns if name.endswith(" mean"))
    metrics = {name: Estimate(columns[f"{name} mean"], columns.get(f"{name} stderr")) for name in names}
    return Evaluation(metrics, columns["num_examples"], Load(*load))  # type: ignore[arg-type]
