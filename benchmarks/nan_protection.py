"""What it costs that no NaN is lost on a CPU: surfaces compiled with and without the option, in turns.

    python -m benchmarks.nan_protection [CASE ...] [--turns 5] [--seconds 4]

The cases are those of `benchmarks.exact`, at the load that it reports. The table shows the fastest call of each, since
other work on the machine only adds time, and the median of the ratios of neighbouring calls.
"""

import statistics
from collections.abc import Callable
from typing import Any

import jax

import jaxscape as js
from benchmarks import cases
from benchmarks.exact import CASES, problem, seconds
from jaxscape.convolution import _transform

OPTION = "xla_cpu_experimental_ynn_fusion_type"
PROTECTION = _transform._CPU_OPTIONS[OPTION]  # noqa: SLF001


def measure(case: str, turns: int, budget: float) -> dict[str, Any]:
    """Measure one row of the table."""
    params, _, loss, data, _ = problem(case)
    directions = js.random_directions(0, params, num=1)
    load = {"batch_size": 8 if case.endswith("32") else 128, "points_per_step": 1, "check": False}

    def times(number: float) -> Callable[[Any, Any], Any]:
        """The loss times a number: another computation for each number, which finds no program in the cache."""
        return lambda params, batch: jax.tree.map(lambda x: number * x, loss(params, batch))

    functions = {True: times(2.0), False: times(3.0)}

    def run(points: int, protected: bool) -> Any:
        _transform._CPU_OPTIONS.pop(OPTION, None)  # noqa: SLF001
        if protected:
            _transform._CPU_OPTIONS[OPTION] = PROTECTION  # noqa: SLF001
        grid = js.Grid.line(0, 0.3, points)
        return js.surface(
            params, functions[protected], tuple(data), directions=directions, grid=grid, progress=False, **load
        )

    for protected in (True, False):
        run(2, protected)
    points = max(2, round(budget / seconds(lambda: run(4, True))[0] * 4 / 2) * 2)
    spent: dict[bool, list[float]] = {True: [], False: []}
    for turn in range(turns):
        for protected in (turn % 2 == 0, turn % 2 == 1):  # each is first in every other turn
            spent[protected].append(seconds(lambda p=protected: run(points, p))[0])
    with_it, without = min(spent[True]), min(spent[False])
    return {
        "case": case,
        "seconds with": f"{with_it:.3f}",
        "seconds without": f"{without:.3f}",
        "cost of the fastest": f"{with_it / without - 1:+.1%}",
        "median cost": f"{statistics.median(a / b for a, b in zip(spent[True], spent[False], strict=True)) - 1:+.1%}",
    }


if __name__ == "__main__":
    cases.run(measure, CASES, __doc__)
