"""Means at some points of a grid, round by round, and interpolated values at the others."""

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxtyping import Float

from jaxscape.engine import Evaluator, Load, Loads, progress_bar
from jaxscape.grid import Grid
from jaxscape.objective import Objective, agree
from jaxscape.sweep._adaptive import AdaptiveGrid, Goal
from jaxscape.sweep._blocks import SECONDS, columns_in, columns_of, note_loads, noted_loads
from jaxscape.sweep._store import Store
from jaxscape.types import Params

EVALUATED, ERROR = "evaluated", "interpolation_error"
CONTOURS = "contours"
LONG_NAMES = {EVALUATED: "whether the loss was evaluated", ERROR: "estimated error of the interpolated loss"}
SHARE = 4  # a trial of the load is worth while for 1 / SHARE of the points

Columns = dict[str, np.ndarray]


def as_goal(refine: Any) -> Goal | None:
    """What an adaptive grid must show right, as the caller says it.

    >>> as_goal("contours"), as_goal(0.01)
    (Goal(levels=None, rtol=None), Goal(levels=None, rtol=0.01))

    Args:
        refine: None, ``"contours"``, ascending levels, or a relative error.

    Returns:
        The goal; None: all points are evaluated.

    Raises:
        ValueError: It is not positive, levels do not ascend, or the word is another one.
        TypeError: It is of another type.
    """
    expected = "expected 'contours', ascending levels such as [0.1, 1.0], or a relative error such as 0.01"
    if refine is None:
        return None
    if isinstance(refine, str):
        if refine != CONTOURS:
            raise ValueError(f"refine is {refine!r}, {expected}.")
        return Goal()
    try:
        array = np.asarray(refine, float)
    except (TypeError, ValueError) as error:
        raise TypeError(f"refine is {type(refine).__name__}, {expected}.") from error
    if isinstance(refine, bool) or array.ndim > 1:
        raise TypeError(f"refine is {refine!r}, {expected}.")
    if (
        not array.size
        or not np.isfinite(array).all()
        or (array.ndim == 0 and array <= 0)
        or (np.diff(array.ravel()) <= 0).any()
    ):
        raise ValueError(f"refine is {refine!r}, {expected}.")
    return Goal(rtol=float(array)) if array.ndim == 0 else Goal(levels=array)


def in_words(goal: Goal) -> Any:
    """The goal as a value that a file can hold."""
    if goal.rtol is not None:
        return goal.rtol
    return CONTOURS if goal.levels is None else goal.levels.tolist()


def refined_columns(objective: Objective, rows: int) -> Columns:
    """An empty column for each variable of an adaptive grid: those of `columns_of`, EVALUATED and ERROR."""
    return {**columns_of(objective, rows), EVALUATED: np.zeros(rows, bool), ERROR: np.full(rows, np.nan)}


def in_rounds(
    objective: Objective,
    params: Params,
    basis: Params,
    coords: Float[np.ndarray, "points axes"],
    grid: Grid,
    goal: Goal,
    store: Store | None,
    *,
    load: Loads,
    mesh: Mesh | None,
    progress: bool | None,
    preview: Callable[[Columns], None] | None,
) -> tuple[Columns, dict[str, Load]]:
    """Evaluate the points of a grid that a goal asks for, and interpolate the others.

    Args:
        objective: The loss over its data.
        params: The origin.
        basis: A pytree like params with a leading axis of length ``axes`` on each leaf.
        coords: Coordinates of the points of the grid, and maybe of params itself after them.
        grid: The grid.
        goal: What it must show right.
        store: An open store with the columns of `refined_columns`; None: nothing is kept.
        load: Examples and points that go side by side, as in `Load`; None: as is fastest in a short trial.
        mesh: The devices; None: all of all processes.
        progress: True or False for a progress bar; None for one on terminals and in notebooks.
        preview: It takes the columns as they are after each round.

    Returns:
        All columns, and how much went side by side in each term.
    """
    if store is not None and store.done.all():
        return store.read(), {}
    num = int(np.prod(grid.shape))
    adaptive = AdaptiveGrid(grid.shape, goal)
    work = _Work(Evaluator(objective, params, basis, mesh), coords, refined_columns(objective, len(coords)), store)
    center = np.arange(num, len(coords))
    with progress_bar(len(coords) * len(objective.terms), progress) as bar:
        work.begin(objective, load)
        while (rows := _agreed(adaptive.next_rows(), num)).size:
            work.evaluate(np.concatenate([rows, center]), bar)
            center = center[:0]
            adaptive.add(rows, work.columns["loss"][rows])
            if preview is not None and not jax.process_index():
                preview(_filled(work.columns, adaptive, objective))
        bar.total = bar.n
        bar.refresh()
    columns = _filled(work.columns, adaptive, objective)
    if store is not None:
        rest = np.flatnonzero(~columns[EVALUATED])
        if jax.process_index():
            store.mark(rest)
        elif rest.size:
            store.write(rest, {name: column[rest] for name, column in columns.items()})
        columns = store.read()
    return columns, work.loads


class _Work:
    """The evaluated points, in memory and in a store.

    Attributes:
        columns: The values of the points that are evaluated.
        loads: How much goes side by side in each term.
    """

    def __init__(self, evaluator: Evaluator, coords: np.ndarray, columns: Columns, store: Store | None) -> None:
        self.columns = columns
        self.loads: dict[str, Load] = {}
        self._evaluator, self._coords, self._store = evaluator, coords, store
        if store is not None:
            before = store.read()
            there = store.done & before[EVALUATED]
            for name, column in columns.items():
                column[there] = before[name][there]

    def begin(self, objective: Objective, load: Loads) -> None:
        """Choose how much goes side by side."""
        noted = load if self._store is None else noted_loads(self._store, objective, load)
        self.loads = self._evaluator.choose(max(1, len(self._coords) // SHARE), noted)

    def evaluate(self, rows: np.ndarray, bar: Any) -> None:
        """Evaluate those of the points that are not there yet, in blocks of SECONDS if they are stored."""
        bar.update(int(self.columns[EVALUATED][rows].sum()) * len(self.loads))
        rows = rows[~self.columns[EVALUATED][rows]]
        block = len(rows) if self._store is None else 1
        while rows.size:
            now, rows = rows[:block], rows[block:]
            start = time.perf_counter()
            part = self._evaluator(self._coords[now], self.loads, bar)
            self.loads = {**self.loads, **part.loads}
            values = {**columns_in(part), EVALUATED: np.ones(len(now), bool), ERROR: np.zeros(len(now))}
            for name, value in values.items():
                self.columns[name][now] = value
            if self._store is not None:
                note_loads(self._store, self.loads)
                if jax.process_index():
                    self._store.mark(now)
                else:
                    self._store.write(now, values)
                speed = len(now) / agree(time.perf_counter() - start)
                block = int(np.clip(speed * SECONDS, 1, 4 * block))


def _filled(columns: Columns, adaptive: AdaptiveGrid, objective: Objective) -> Columns:
    """The columns with interpolated values, which have no standard error, where nothing is evaluated."""
    filled = {name: column.copy() for name, column in columns.items()}
    num, rest = len(adaptive.done), ~adaptive.done
    for name in objective.metrics_with_errors:
        filled[f"{name}_stderr"][:num][rest] = np.nan
    for name in objective.metrics:
        column = columns[name][:num]
        values, known = adaptive.interpolate(column), column[adaptive.done & np.isfinite(column)]
        if name != "loss" and known.size:  # an accuracy above 1 would be none
            values = np.clip(values, known.min(), known.max())
        elif known.size and known.min() >= 0:
            values = np.maximum(values, 0.0)
        filled[name][:num][rest] = values[rest]
    filled[ERROR][:num] = adaptive.error()
    return filled


def _agreed(rows: np.ndarray, num: int) -> np.ndarray:
    """The points that process 0 has chosen: all processes must evaluate the same."""
    if jax.process_count() == 1:
        return rows
    chosen = np.zeros(num, bool)
    chosen[rows] = True
    return np.flatnonzero(multihost_utils.broadcast_one_to_all(chosen))
