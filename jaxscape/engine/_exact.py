"""The mean over all of the data at every point."""

import time
import warnings
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float
from tqdm.auto import tqdm

from jaxscape.data import num_examples
from jaxscape.engine._compile import CAPACITY
from jaxscape.engine._program import Load, Pending, Program, agree, ahead
from jaxscape.engine._result import Estimate, Evaluation
from jaxscape.engine._strategy import choose_load
from jaxscape.types import Data, LossFn, Params

CALL_SECONDS = 0.3  # a call this long keeps the progress bar alive and makes the cost of dispatch (< 1 ms) vanish


def evaluate(
    loss_fn: LossFn,
    params: Params,
    basis: Params,
    coords: Float[np.ndarray, "points axes"],
    data: Data,
    *,
    load: tuple[int | None, int | None] = (None, None),
    mesh: Mesh | None = None,
    compute_dtype: str | None = None,
    progress: bool | None = None,
) -> Evaluation:
    """Mean of every metric over all examples, at each point.

    Args:
        loss_fn: ``loss_fn(params, batch)``, as `jaxscape.types.LossFn` says.
        params: The origin.
        basis: A pytree like params with a leading axis of length ``axes`` on each leaf.
        coords: Coordinates of the points.
        data: Arrays with a common leading example axis; the last batch may be ragged.
        load: Examples and points that go side by side, as in `Load`; None: as is fastest in a short trial.
        mesh: The devices; all of all processes by default. An axis named ``"data"`` shares the examples.
        compute_dtype: As in `Program`.
        progress: True or False for a bar with points/s and time left; None for one on terminals and in notebooks.

    Returns:
        Every metric; its standard error is that of the mean over the examples taken as a sample, ``s / sqrt(N)`` with
        s the standard deviation of the per-example values (N - 1 in its denominator).

    Raises:
        ValueError: loss_fn gives a wrong shape or lacks ``"loss"``.
        TypeError: loss_fn gives something that is no real number.
    """

    def make(part: Data, load: Load) -> Program:
        return Program(loss_fn, params, basis, part, load, mesh=mesh, compute_dtype=compute_dtype)

    key = (loss_fn, mesh, compute_dtype) if isinstance(loss_fn, Hashable) else None
    chosen = choose_load(lambda load: make(data, load), data, len(coords), key, load)
    with progress_bar(len(coords), progress) as bar:
        parts, used = with_retries(lambda load: _evaluate_parts(make, data, load, coords, bar), chosen)
    metrics = {name: _join([part[name] for part in parts]) for name in parts[0]}
    return Evaluation(metrics, np.full(len(coords), num_examples(data)), used)


def mean_metrics(
    loss_fn: LossFn, params: Params, data: Data, *, batch_size: int = 128, mesh: Mesh | None = None
) -> dict[str, float]:
    """Mean of every metric over all examples, at ``params`` itself.

    >>> data = np.arange(5.0)
    >>> mean_metrics(lambda p, x: p * x, np.float32(2.0), data, batch_size=2)
    {'loss': 4.0}

    Args:
        loss_fn: ``loss_fn(params, batch)``, as `jaxscape.types.LossFn` says.
        params: A pytree of floating arrays.
        data: Arrays with a common leading example axis.
        batch_size: Examples in one call of loss_fn, at most.
        mesh: The devices, with an axis named ``"data"``; the first one by default.

    Returns:
        A number for each metric.
    """
    no_direction = jax.tree.map(lambda x: np.zeros((0, *np.shape(x)), x.dtype), params)
    mesh = mesh or Mesh(np.array(jax.local_devices()[:1]), ("points",))
    point, load = np.zeros((1, 0)), (batch_size, 1)
    found = evaluate(loss_fn, params, no_direction, point, data, load=load, mesh=mesh, progress=False)
    return {name: float(estimate.mean[0]) for name, estimate in found.metrics.items()}


def with_retries(run: Callable[[Load], Any], load: Load) -> tuple[Any, Load]:
    """Run; when memory runs out, halve the load and run again, with one warning.

    Args:
        run: Takes a load.
        load: The first one.

    Returns:
        What the run gave, and the load that it needed.

    Raises:
        jax.errors.JaxRuntimeError: Memory runs out with one point and one example, or the failure is another one.
    """
    first = load
    while True:
        try:
            found = run(load)
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
            return found, load


def _evaluate_parts(
    make: Callable[[Data, Load], Program], data: Data, load: Load, coords: np.ndarray, bar: tqdm
) -> list[dict[str, tuple[np.ndarray, bool]]]:
    """All of the data as one part; or full batches and the rest, where loss_fn gives batch means.

    A padded batch would spoil such a mean, so the ragged last batch is a program of its own.

    Returns:
        For each part and metric the `_moments` of all points, and whether it is per example.
    """
    examples = num_examples(data)
    whole = make(data, load)
    ragged = examples % load.batch_size
    if all(whole.per_example.values()) or not ragged or ragged == examples:
        programs = [whole]
    else:
        cut = examples - ragged
        head, tail = (jax.tree.map(lambda x, s=s: x[s], data) for s in (slice(cut), slice(cut, None)))
        programs = [make(head, load), make(tail, Load(ragged, load.points_per_step))]
    found = []
    for program in programs:
        moments: dict[str, np.ndarray] = {name: np.empty((3, len(coords))) for name in program.per_example}
        for rows, block in _blocks(program, coords, bar if program is programs[-1] else None):
            for name, summaries in block.items():
                moments[name][:, rows] = _moments(summaries, program.sizes)
        found.append({name: (m, program.per_example[name]) for name, m in moments.items()})
    return found


def _moments(summaries: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Count, sum, and sum of squared deviations of each point from the summaries of its batches.

    Chan, Golub & LeVeque 1983 for the squared deviations; all in float64.

    Args:
        summaries: Shape ``(points, batches, 2)``.
        sizes: Examples in each batch.

    Returns:
        Shape ``(3, points)``.
    """
    used = sizes > 0
    sums, roots = np.moveaxis(summaries[:, used].astype(np.float64), -1, 0)
    sizes = sizes[used]
    with np.errstate(all="ignore"):  # a NaN or infinite loss is a result
        total, count = sums.sum(-1), sizes.sum()
        squares = (roots**2).sum(-1) + (sums / sizes - (total / count)[:, None]) ** 2 @ sizes
    return np.stack([np.full(len(total), float(count)), total, squares])


def _join(parts: list[tuple[np.ndarray, bool]]) -> Estimate:
    """Mean and standard error over all parts of the data."""
    counts, sums, squares = np.stack([moments for moments, _ in parts], axis=1)
    with np.errstate(all="ignore"):
        count = counts.sum(0)
        mean = sums.sum(0) / count
        squares = squares.sum(0) + (counts * (sums / counts - mean) ** 2).sum(0)
        stderr = np.sqrt(squares / (count - 1) / count)
    return Estimate(mean, stderr if parts[0][1] else None)


def _blocks(program: Program, coords: np.ndarray, bar: tqdm | None) -> Iterator[tuple[slice, dict[str, np.ndarray]]]:
    """Send the points to the devices in calls of about CALL_SECONDS; yield rows and their summaries as they come."""
    step = program.capacity * program.load.points_per_step // CAPACITY  # one step of each device
    block = step

    def calls() -> Iterator[tuple[slice, Pending]]:
        done = 0
        while done < len(coords):
            rows = slice(done, min(done + block, len(coords)))
            yield rows, program.summaries(coords[rows])
            done = rows.stop

    start = time.perf_counter()
    for rows, summaries in ahead(calls()):
        yield rows, summaries
        if bar is not None:
            bar.update(rows.stop - rows.start)
        now = time.perf_counter()
        wanted = (rows.stop - rows.start) * CALL_SECONDS / agree(now - start)
        # At most twice as many as before: the first call's time is mostly compilation.
        block, start = int(np.clip(wanted, step, min(2 * block, program.capacity))) // step * step, now


def progress_bar(points: int, progress: bool | None) -> tqdm:
    """Points done, points/s and time left; on one process only."""
    shown = progress if jax.process_index() == 0 else False
    return tqdm(total=points, unit="point", desc="points", disable=None if shown is None else not shown)
