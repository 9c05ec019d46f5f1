"""One plot of how the time of an exact surface grows with points, examples, parameters and devices.

python -m benchmarks.scaling --out docs/scaling.png
"""

import argparse
import os
import statistics
from collections.abc import Callable
from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np
from jax.sharding import Mesh
from matplotlib.figure import Figure

import jaxscape as js
from benchmarks import problems
from benchmarks.timing import seconds
from jaxscape import plot, trees


def median(run: Callable[[], Any]) -> float:
    """The median seconds of three calls, after a first call that compiles."""
    run()
    return statistics.median(seconds(run)[0] for _ in range(3))


def main() -> None:
    """Measure, and draw the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="docs/scaling.png")
    args = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", os.cpu_count())
    digits = problems.extended_digits(8192)
    models = {arch: problems.initialized(arch, digits) for arch in ("resnet20", "resnet32", "resnet56", "resnet110")}

    def run(points: int = 32, examples: int = 1024, arch: str = "resnet20", devices: int | None = None) -> float:
        params, _, loss = models[arch]
        mesh = Mesh(np.array(jax.devices()[:devices]), ("points",))
        data = tuple(x[:examples] for x in digits)
        options = {"grid": js.Grid.line(0, 1, points), "batch_size": 32, "mesh": mesh, "progress": False}
        return median(lambda: js.surface(params, loss, data, **options))

    sweeps = {
        "points": {n: run(points=n) for n in (8, 16, 32, 64, 128)},
        "examples": {n: run(examples=n) for n in (256, 512, 1024, 2048, 4096, 8192)},
        "parameters": {trees.size(models[arch][0]): run(arch=arch) for arch in models},
        "devices": {n: run(devices=n) for n in range(1, (os.cpu_count() or 1) + 1)},
    }
    for name, times in sweeps.items():
        print(name, {n: round(t, 3) for n, t in times.items()}, flush=True)
    print(plot.save(draw(sweeps), args.out))


def draw(sweeps: dict[str, dict[int, float]]) -> Figure:
    """Draw the seconds against each varied quantity."""
    figure, axes = plt.subplots(1, len(sweeps), figsize=(11, 2.8), layout="constrained", sharey=True)
    for ax, (name, times) in zip(axes, sweeps.items(), strict=True):
        x, y = np.array([*times]), np.array([*times.values()])
        power = -1.0 if name == "devices" else 1.0
        ax.loglog(x, y, "o-", label="measured")
        ax.loglog(x, y[-1] * (x / x[-1]) ** power, ":", color="0.5", label="proportional" if power > 0 else "inverse")
        ax.set_xticks(x, [f"{n / 1e6:.2g}M" if n > 1e5 else str(n) for n in x], minor=False)
        ax.set_xticks([], minor=True)
        ax.set(xlabel=name)
        ax.legend()
    axes[0].set_ylabel("seconds")
    axes[0].set_yticks([0.2, 0.5, 1, 2, 5], ["0.2", "0.5", "1", "2", "5"])
    axes[0].set_yticks([], minor=True)
    figure.suptitle("ResNet on 8x8 digits: 32 points, 1024 examples, ResNet-20, all devices, one varied at a time")
    return figure


if __name__ == "__main__":
    main()
