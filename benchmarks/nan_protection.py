"""What it costs that no NaN is lost on a CPU: surfaces compiled with and without the option, in turns.

    python -m benchmarks.nan_protection [CASE ...] [--turns 5] [--seconds 4]

The cases are those of `benchmarks.exact`, at the load that it reports. The table shows the fastest call of each, since
other work on the machine only adds time, and the median of the ratios of neighbouring calls.
"""

import statistics
from typing import Any

import jax

import jaxscape as js
from benchmarks import cases
from benchmarks.exact import CASES, problem, seconds
from jaxscape.convolution import _transform

OPTION = "xla_cpu_experimental_ynn_fusion_type"


def measure(case: str, turns: int, budget: float) -> dict[str, Any]:
    """Measure one row of the table."""
    params, _, loss, data, _ = problem(case)
    directions = js.random_directions(0, params, num=1)
    protection = _transform._CPU_OPTIONS[OPTION]  # noqa: SLF001
    load = {"batch_size": 8 if case.endswith("32") else 128, "points_per_step": 1, "check": False}

    def twice(params: Any, batch: Any) -> Any:
        """The same loss by another computation, which finds no program in the cache."""
        return jax.tree.map(lambda x: 2.0 * x, loss(params, batch))

    def run(points: int, protected: bool) -> Any:
        _transform._CPU_OPTIONS.pop(OPTION, None)  # noqa: SLF001
        if protected:
            _transform._CPU_OPTIONS[OPTION] = protection  # noqa: SLF001
        grid = js.Grid.line(0, 0.3, points)
        function = loss if protected else twice
        return js.surface(params, function, tuple(data), directions=directions, grid=grid, progress=False, **load)

    for protected in (True, False):
        run(2, protected)
    points = max(2, round(budget / seconds(lambda: run(4, True))[0] * 4 / 2) * 2)
    times = [(seconds(lambda: run(points, True))[0], seconds(lambda: run(points, False))[0]) for _ in range(turns)]
    with_it, without = map(min, zip(*times, strict=True))
    return {
        "case": case,
        "seconds with": f"{with_it:.3f}",
        "seconds without": f"{without:.3f}",
        "cost of the fastest": f"{with_it / without - 1:+.1%}",
        "median cost": f"{statistics.median(a / b for a, b in times) - 1:+.1%}",
    }


if __name__ == "__main__":
    cases.run(measure, CASES, __doc__)
