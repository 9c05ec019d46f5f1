"""Adaptive grids against the full grid: points evaluated, time, and how far level lines are displaced.

    python -m benchmarks.refine [--points 51] [--seeds 0 1]

ResNet-20 with and without shortcuts, trained on digits, all 1,437 images, filter-normalized planes over [-1, 1]. The
displacement is the largest distance (Hausdorff) between a drawn level line of the two results, in cells of the full
grid, for the levels that `plot.levels` chooses for the full grid.
"""

import argparse
import time

import contourpy
import numpy as np
from scipy.spatial import cKDTree

import jaxscape as js
from benchmarks import problems


def lines(values: np.ndarray, level: float) -> np.ndarray:
    """Points along a level line, a fifth of a cell apart or less; shape ``(points, 2)``."""
    pieces = [
        a + np.linspace(0, 1, 6)[:, None] * (b - a)
        for line in contourpy.contour_generator(z=values).lines(level)
        for a, b in zip(line[:-1], line[1:], strict=True)
    ]
    return np.concatenate(pieces) if pieces else np.zeros((0, 2))


def displacements(full: np.ndarray, few: np.ndarray, levels: np.ndarray) -> dict[float, float]:
    """The distance of each level line that crosses the full grid; infinite where one result lacks it."""
    apart = {}
    for level in levels:
        one, other = lines(full, level), lines(few, level)
        if len(one) and len(other):
            there, back = cKDTree(one).query(other)[0].max(), cKDTree(other).query(one)[0].max()
            apart[float(level)] = float(max(there, back))
        elif len(one) or len(other):
            apart[float(level)] = np.inf
    return apart


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=51)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="of the directions")
    options = parser.parse_args()
    num = options.points
    print(
        "| network | seed | points evaluated | fewer | faster | first picture | largest displacement | "
        "errors under their estimate |\n|---|---|---|---|---|---|---|---|"
    )
    for noshort in (False, True):
        run = problems.trained("resnet20", noshort=noshort)
        grid = js.Grid.plane((-1, 1, num), (-1, 1, num))
        for seed in options.seeds:
            directions = js.random_directions(seed, run.params, num=2)
            measure = {"directions": directions, "grid": grid, "progress": False}
            start = time.perf_counter()
            full = js.surface(run.params, run.loss_fn, run.data, **measure)
            whole = time.perf_counter() - start
            first: list[float] = []
            start = time.perf_counter()
            few = js.surface(
                run.params,
                run.loss_fn,
                run.data,
                refine="contours",
                preview=lambda _, first=first, start=start: first.append(time.perf_counter() - start),
                **measure,
            )
            seconds = time.perf_counter() - start
            apart = displacements(full.loss.values, few.loss.values, js.plot.levels(full))
            rest = ~few.evaluated.values
            off = np.abs(few.loss.values - full.loss.values)[rest]
            held = np.mean(off <= few.interpolation_error.values[rest])
            print(
                f"| ResNet-20{' without shortcuts' if noshort else ''} | {seed} | "
                f"{few.attrs['evaluated_points']} | {full.loss.size / few.attrs['evaluated_points']:.1f} | "
                f"{whole / seconds:.1f} | {first[0] / whole:.1%} | {max(apart.values()):.2f} of {len(apart)} lines "
                f"| {held:.1%} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
