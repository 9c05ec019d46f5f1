"""What it costs to keep a surface on disk: `js.surface` with and without ``store=``, in turns.

    python -m benchmarks.storing [CASE ...] [--turns 5] [--seconds 20]

The cases are those of `benchmarks.exact`, at the load that it reports. The table shows the fastest call of each, since
other work on the machine only adds time, and the median of the ratios of neighbouring calls.
"""

import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

import jaxscape as js
from benchmarks import cases
from benchmarks.exact import CASES, problem, seconds


def measure(case: str, turns: int, budget: float) -> dict[str, Any]:
    """Measure one row of the table."""
    params, _, loss, data, _ = problem(case)
    directions = js.random_directions(0, params)
    load = {"batch_size": 8 if case.endswith("32") else 128, "points_per_step": 1, "check": False}
    folder = Path(tempfile.mkdtemp())

    def run(side: int, stored: bool) -> Any:
        grid = js.Grid.plane((-1, 1, side), (-1, 1, side))
        store = folder / "store" if stored else None
        shutil.rmtree(folder / "store", ignore_errors=True)
        options = {"directions": directions, "grid": grid, "store": store, "progress": False}
        return js.surface(params, loss, tuple(data), **options, **load)

    for stored in (True, False):
        run(2, stored)
    side = max(3, round((budget / seconds(lambda: run(3, False))[0] * 9) ** 0.5))
    spent: dict[bool, list[float]] = {True: [], False: []}
    for turn in range(turns):
        for stored in (turn % 2 == 0, turn % 2 == 1):  # each is first in every other turn
            spent[stored].append(seconds(lambda s=stored: run(side, s))[0])
    shutil.rmtree(folder)
    with_it, without = min(spent[True]), min(spent[False])
    return {
        "case": case,
        "points": side**2,
        "seconds with": f"{with_it:.3f}",
        "seconds without": f"{without:.3f}",
        "cost of the fastest": f"{with_it / without - 1:+.1%}",
        "median cost": f"{statistics.median(a / b for a, b in zip(spent[True], spent[False], strict=True)) - 1:+.1%}",
    }


if __name__ == "__main__":
    cases.run(measure, CASES, __doc__)
