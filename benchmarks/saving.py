"""The cost of saving the weights of a training at every step.

    python -m benchmarks.saving [--arch resnet56] [--turns 3] [--epochs 4]

`train.py` trains on digits with batches of 128: without `--save-steps`, with full values of every step, and with
16-bit differences of every step. The seconds are those of the epochs after the second, with the evaluation. The
megabytes are those of the steps on disk.
"""

import argparse
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

import jax

import train
from jaxscape.run_checkpoints import STEPS
from training.config import Config

OPTIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "every step": {"save_steps": 1},
    "every step, float16": {"save_steps": 1, "steps_dtype": "float16"},
}


def main() -> None:
    """Train in turns, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="resnet56")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=4, help="at least 3")
    args = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", os.cpu_count())
    spent: dict[str, list[float]] = {name: [] for name in OPTIONS}
    sizes: dict[str, str] = {}
    for _ in range(args.turns):
        for name, options in OPTIONS.items():
            with tempfile.TemporaryDirectory() as folder:
                config = Config(arch=args.arch, lr=0.05, epochs=args.epochs, save_every=args.epochs, **options)
                run = train.train(config, Path(folder) / "run", progress=False)
                spent[name].append(sum(row["seconds"] for row in run.metrics if row["epoch"] > 2))
                size = sum(file.stat().st_size for file in (run.path / STEPS).rglob("*") if file.is_file())
                sizes[name] = f"{size / 1e6 / len(run.steps):.1f}" if len(run.steps) else "-"
            print(name, spent[name][-1], flush=True)
    print("\n| kept | seconds an epoch | times that of none | MB a step |\n|---|---|---|---|")
    for name, times in spent.items():
        ratio = statistics.median(a / b for a, b in zip(times, spent["none"], strict=True))
        print(f"| {name} | {statistics.median(times) / (args.epochs - 2):.2f} | {ratio:.2f} | {sizes[name]} |")


if __name__ == "__main__":
    main()
