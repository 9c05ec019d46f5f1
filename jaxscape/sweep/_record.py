"""Means to a tolerance at every point; a store keeps the values of single examples, from which a later call goes on."""

import hashlib
import io
import re
import time
import warnings
from collections import defaultdict
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from jaxscape.engine import Evaluation, Load, Loads, Record, Tolerance, estimate
from jaxscape.objective import Objective
from jaxscape.sweep import _blocks
from jaxscape.sweep._blocks import columns_in, evaluation_of, note_loads, noted_loads
from jaxscape.sweep._extend import EXAMPLES, rows_at
from jaxscape.sweep._store import Store, together
from jaxscape.types import Params

_NAME = re.compile(r"\d{6,}-[0-9a-f]{32}\.npz")
_METRIC = "metric "  # before the name of a metric, so that it cannot be the name of another array


def to_tolerance(
    objective: Objective,
    params: Params,
    basis: Params,
    coords: Float[np.ndarray, "points axes"],
    tolerance: Tolerance,
    store: Store,
    *,
    load: Loads,
    mesh: Mesh | None,
    progress: bool | None,
) -> Evaluation:
    """`jaxscape.engine.estimate` of all points; examples whose values a store has are not evaluated again.

    Args:
        objective: The loss over its data.
        params: The origin.
        basis: A pytree like params with a leading axis of length ``axes`` on each leaf.
        coords: Coordinates of the points.
        tolerance: How well the loss is wanted.
        store: An open store with the columns of `columns_of`.
        load: Examples and points that go side by side, as in `Load`.
        mesh: The devices; None: all of all processes.
        progress: True or False for a progress bar; None for one on terminals and in notebooks.

    Returns:
        The evaluation of all points.
    """
    loads: dict[str, Load] = {}
    if not store.done.all():
        record = StoreRecord(store, coords)
        noted = noted_loads(store, objective, load)
        where = (objective, params, basis, coords, tolerance)
        try:
            loads = estimate(*where, load=noted, mesh=mesh, progress=progress, record=record).loads
        finally:
            record.flush()
        note_loads(store, loads)
    return evaluation_of(store.read(), objective)._replace(loads=loads)


class StoreRecord(Record):
    """Values at points of a store, example by example, in files; each is written once, in one step.

    A file has the digest of its contents in its name. A damaged one is left out with a warning, and its values are
    computed anew. Points are known by their coordinates, so that the values serve a larger grid, too.
    """

    def __init__(self, store: Store, coords: np.ndarray) -> None:
        """Read what is there.

        Args:
            store: It is open.
            coords: Coordinates of its rows.
        """
        self._store, self._coords = store, coords
        self._parts: dict[tuple[str, int], list[tuple[np.ndarray, dict[str, np.ndarray]]]] = defaultdict(list)
        self._waiting: list[dict[str, np.ndarray]] = []
        self._since = time.perf_counter()
        files = sorted(file for file in (store.path / EXAMPLES).glob("*.npz") if _NAME.fullmatch(file.name))
        self._number = int(files[-1].name.split("-")[0]) + 1 if files else 0
        damaged = [file.name for file in files if not self._read(file)]
        together("read examples")  # none writes before all have read the same
        for name in () if jax.process_index() else damaged:
            (store.path / EXAMPLES / name).unlink()
        if damaged:
            warnings.warn(
                f"store {store.path}: {len(damaged)} files of {EXAMPLES} are damaged ({damaged[0]}"
                f"{', ...' if len(damaged) > 1 else ''}); what they held is computed anew.",
                stacklevel=2,
            )

    def begin(self, term: str, load: Load) -> None:
        """Note how much goes side by side, as in `Record.begin`: a later call gives the same numbers to the bit."""
        note_loads(self._store, {**self._store.notes.get("loads", {}), term: load})

    def find(self, term: str, row: int, examples: np.ndarray) -> dict[str, np.ndarray] | None:
        """Values that earlier calls have kept, as in `Record.find`."""
        parts = self._parts.get((term, row))
        if not parts:
            return None
        known = np.concatenate([numbers for numbers, _ in parts])
        order = np.argsort(known, kind="stable")
        at = order[np.minimum(np.searchsorted(known, examples, sorter=order), len(known) - 1)]
        if not np.array_equal(known[at], examples):
            return None
        return {name: np.concatenate([values[name] for _, values in parts])[at] for name in parts[0][1]}

    def keep(self, term: str, rows: np.ndarray, examples: np.ndarray, values: dict[str, np.ndarray]) -> None:
        """Keep values, as in `Record.keep`; they are in a file after about SECONDS of work."""
        if jax.process_index():
            return
        metrics = {_METRIC + name: value for name, value in values.items()}
        name = np.array(term)
        self._waiting.append({"term": name, "coords": self._coords[rows], "examples": examples, **metrics})
        if time.perf_counter() - self._since > _blocks.SECONDS:
            self.flush()

    def finish(self, rows: np.ndarray, evaluation: Evaluation) -> None:
        """Keep the result at points, as in `Record.finish`."""
        new = ~self._store.done[rows]
        if jax.process_index():
            self._store.mark(rows)
        elif new.any():
            self._store.write(rows[new], {name: column[new] for name, column in columns_in(evaluation).items()})

    def flush(self) -> None:
        """Write the values that wait."""
        if self._waiting:
            buffer = io.BytesIO()
            arrays: Any = {f"{i} {name}": x for i, part in enumerate(self._waiting) for name, x in part.items()}
            np.savez(buffer, **arrays)
            content = buffer.getvalue()
            self._store.write_file(f"{EXAMPLES}/{self._number:06}-{_digest(content)}.npz", content)
            self._number, self._waiting = self._number + 1, []
        self._since = time.perf_counter()

    def _read(self, file: Path) -> bool:
        content = file.read_bytes()
        if not file.stem.endswith(f"-{_digest(content)}"):
            return False
        parts: dict[str, dict[str, np.ndarray]] = defaultdict(dict)
        with np.load(io.BytesIO(content)) as arrays:
            for key, array in arrays.items():
                number, name = key.split(" ", 1)
                parts[number][name] = array
        for part in parts.values():
            metrics = {name.removeprefix(_METRIC): x for name, x in part.items() if name.startswith(_METRIC)}
            for i, row in enumerate(rows_at(self._store.layout, part["coords"])):
                if row >= 0:
                    values = {name: x[i] for name, x in metrics.items()}
                    self._parts[str(part["term"]), int(row)].append((part["examples"], values))
        return True


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()
