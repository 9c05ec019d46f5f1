"""The seconds until the first number, in new processes: a first point in Python, and a whole command.

    python -m benchmarks.first [--turns 3] [--other CHECKOUT]

For a ResNet-20 and a ResNet-110 on 8x8 digits, `js.surface` of one point, from the call to its result: without compiled
programs on disk, and with those of an earlier process (as the commands keep them). Then `jaxscape surface RUN --points
3`, and what of it is not evaluation. `--other` is a second checkout of this repository, whose program runs in turn with
this one: for what a change has gained.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import problems

HERE = Path(__file__).parents[1]
POINT = """
import sys, time
import jax
import jaxscape as js
from benchmarks import problems
data = js.datasets.load("digits")[0]
params, _, loss = problems.initialized(sys.argv[1], data)
directions = js.random_directions(0, params, num=1)
start = time.perf_counter()
js.surface(params, loss, tuple(data), directions=directions, grid=js.Grid.line(0, 1, 1), progress=False)
print(time.perf_counter() - start)
"""


def first_point(checkout: Path, arch: str, cache: str | None) -> float:
    """The seconds of a first point in a new process; compiled programs are kept in the folder ``cache``."""
    setting = {"JAX_COMPILATION_CACHE_DIR": cache} if cache else {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    return float(_run(checkout, "-c", POINT, arch, **setting).split()[-1])


def command(checkout: Path, run: Path, evaluation: bool) -> float:
    """The seconds of `jaxscape surface`; without its evaluation for ``evaluation=False``."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        out = str(Path(folder) / "surface.zarr")
        _run(checkout, "-m", "jaxscape", "surface", str(run), "--points", "3", "--out", out)
        whole = time.perf_counter() - start
        spent = json.loads((Path(out) / "zarr.json").read_text())["attributes"]["seconds"]
    return whole if evaluation else whole - spent


def _run(checkout: Path, *args: str, **setting: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(checkout)} | setting
    with tempfile.TemporaryDirectory() as folder:  # Python looks for modules in the working directory first
        done = subprocess.run(
            [sys.executable, *args], cwd=folder, env=environment, text=True, capture_output=True, check=True
        )
    return done.stdout


def main() -> None:
    """Measure in turns, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--other", type=Path, help="another checkout")
    args = parser.parse_args()
    checkouts = [HERE] + ([args.other.resolve()] if args.other else [])
    run = problems.trained("resnet20").path.resolve()
    with tempfile.TemporaryDirectory() as caches:
        cache = {checkout: str(Path(caches) / str(i)) for i, checkout in enumerate(checkouts)}
        rows = {
            "ResNet-20, first point": lambda where: first_point(where, "resnet20", None),
            "the same, compiled before": lambda where: first_point(where, "resnet20", cache[where]),
            "ResNet-110, first point": lambda where: first_point(where, "resnet110", None),
            "the same, compiled before ": lambda where: first_point(where, "resnet110", cache[where]),
            "`jaxscape surface RUN --points 3`": lambda where: command(where, run, True),
            "the same, without the evaluation": lambda where: command(where, run, False),
        }
        heads = ["", "seconds", "seconds of the other checkout"][: len(checkouts) + 1] + ["ratio"]
        print("| " + " | ".join(heads) + " |\n|" + "---|" * len(heads))
        for name, measure in rows.items():
            for where in checkouts if "before" in name else ():
                measure(where)  # fills the cache
            turns = [[measure(where) for where in checkouts] for _ in range(args.turns)]
            columns = [", ".join(f"{turn[i]:.2f}" for turn in turns) for i in range(len(checkouts))]
            ratio = statistics.median(turn[0] for turn in turns) / statistics.median(turn[-1] for turn in turns)
            print(f"| {name.strip()} | " + " | ".join(columns) + f" | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
