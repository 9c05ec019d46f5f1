"""The tolerance mode against the exact mode: work, time and true error on a trained ResNet-20.

    python -m benchmarks.tolerance [--turns 1] [--noshort]

The grid has 31x31 points over [-1, 1]. The data are the train split of digits, extended to 20,000 examples with small
shifts and noise. Each turn measures the exact surface and two surfaces with rtol=0.01: one with atol=0, and one with
atol equal to 1 % of the median loss.
"""

import argparse
import os
import statistics
from typing import Any

import jax
import numpy as np
import xarray as xr

import jaxscape as js
from benchmarks import problems
from benchmarks.timing import seconds

RTOL = 0.01


def row(name: str, estimate: xr.Dataset, exact: xr.Dataset, spent: list[float], base: list[float], atol: float) -> str:
    """A row of the table: the work, the time and the true error of a tolerance."""
    deviation = np.abs(estimate.loss - exact.loss).values
    relative = deviation / np.abs(exact.loss.values)
    allowed = deviation / np.maximum(np.abs(exact.loss.values), atol / RTOL)
    sampled = estimate.loss_stderr.values > 0
    inside = (deviation[sampled] < 2 * estimate.loss_stderr.values[sampled]).mean()
    ratio = statistics.median(b / s for b, s in zip(base, spent, strict=True))
    return (
        f"| {name} | {exact.num_examples.values.sum() / estimate.num_examples.values.sum():.1f} | {ratio:.1f} "
        f"| {(relative < 0.02).mean():.1%} | {relative.max():.3f} "
        f"| {(allowed < 0.02).mean():.1%} | {allowed.max():.3f} | {inside:.1%} |"
    )


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--noshort", action="store_true")
    parser.add_argument("--points", type=int, default=31)
    parser.add_argument("--examples", type=int, default=20_000)
    args = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", os.cpu_count())
    run = problems.trained("resnet20", noshort=args.noshort)
    data = problems.extended_digits(args.examples)
    axis = (-1.0, 1.0, args.points)

    directions = js.random_directions(0, run.params)  # the same for all; ``seed`` sets only the order of the examples

    def surface(**options: Any) -> xr.Dataset:
        grid = js.Grid.plane(axis, axis)
        return js.surface(run.params, run.loss_fn, data, directions=directions, grid=grid, **options)

    js.surface(run.params, run.loss_fn, data, grid=js.Grid.line(0, 1, 2), rtol=1.0)  # compiles
    times: dict[str, list[float]] = {"exact": [], "no": [], "median": []}
    for seed in range(args.turns):
        spent, exact = seconds(surface)
        times["exact"].append(spent)
        atol = RTOL * float(exact.loss.median())
        estimates = {}
        for name, value in (("no", 0.0), ("median", atol)):
            spent, estimates[name] = seconds(lambda v=value, s=seed: surface(rtol=RTOL, atol=v, seed=s))
            times[name].append(spent)
    print(f"exact: {statistics.median(times['exact']):.1f} s, {args.turns} turns, median loss {atol / RTOL:.3g}")
    print(
        "| atol | evaluations | faster | rel. error < 0.02 | largest | of max(loss, atol/rtol) | largest | < 2 stderr |"
    )
    print("|---" * 8 + "|")
    print(row("0", estimates["no"], exact, times["no"], times["exact"], 0.0))
    print(row("1 % of the median", estimates["median"], exact, times["median"], times["exact"], atol))


if __name__ == "__main__":
    main()
