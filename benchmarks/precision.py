"""Lower precision against float32: the error of the loss in a plane of a trained ResNet-20, and the time.

    python -m benchmarks.precision [--turns 3] [--points 21]

The data are digits, and the plane is filter-normalized over [-1, 1]. On a CPU, TF32 is computed as float32.
"""

import argparse
import os
import statistics

import jax
import numpy as np
import xarray as xr

import jaxscape as js
from benchmarks import problems
from benchmarks.timing import seconds
from jaxscape.objective import PRECISIONS


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--points", type=int, default=21)
    args = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", os.cpu_count())
    run = problems.trained("resnet20")
    axis = (-1.0, 1.0, args.points)
    names = (None, *PRECISIONS)

    def surface(name: str | None) -> xr.Dataset:
        grid = js.Grid.plane(axis, axis)
        return js.surface(run.params, run.loss_fn, run.data, grid=grid, compute_dtype=name, progress=False)

    results = {name: surface(name) for name in names}  # compiles
    times: dict[str | None, list[float]] = {name: [] for name in names}
    for _ in range(args.turns):
        for name in names:
            times[name].append(seconds(lambda n=name: surface(n))[0])
    print(jax.devices()[0].device_kind)
    print("| compute_dtype | seconds | median relative error | 95 % | largest | largest error of accuracy |")
    print("|---" * 6 + "|")
    exact = results[None]
    for name in names:
        error = np.abs(results[name].loss / exact.loss - 1).values.ravel()
        accuracy = float(np.abs(results[name].accuracy - exact.accuracy).max())
        print(
            f"| {name or 'as params'} | {statistics.median(times[name]):.2f} | {np.median(error):.1e} "
            f"| {np.quantile(error, 0.95):.1e} | {error.max():.1e} | {accuracy:.1e} |"
        )


if __name__ == "__main__":
    main()
