"""Surfaces of a stream against those of the same arrays in memory, in turns.

    python -m benchmarks.streaming [--turns 5] [--points 16] [--batch-size 128] [--examples 20000]

ResNet-20 on the train split of 8x8 digits and copies of it with shifts and noise. The batches of the stream are parts
of the same arrays: what it costs to read, hash and place them shows. The pass of the slow loader takes as long as the
surface of the fast stream: both are to go on side by side.
"""

import argparse
import statistics
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

import jaxscape as js
from benchmarks import problems
from benchmarks.timing import seconds


def main() -> None:
    """Measure in turns, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--points", type=int, default=16)
    parser.add_argument("--examples", type=int, default=20_000)
    parser.add_argument("--batch-size", type=int, default=128)
    args = parser.parse_args()
    digits = problems.extended_digits(args.examples)
    params, _, loss = problems.initialized("resnet20", digits)
    data = tuple(map(np.asarray, digits))
    directions, grid = js.random_directions(0, params, num=1), js.Grid.line(0, 0.3, args.points)
    starts = range(0, len(data[0]), args.batch_size)
    batches = [tuple(x[start : start + args.batch_size] for x in data) for start in starts]
    pause = 0.0

    def slow() -> Iterator[Any]:
        for batch in batches:
            time.sleep(pause)
            yield batch

    def surface(data: Any) -> np.ndarray:
        return js.surface(params, loss, data, directions=directions, grid=grid, progress=False).loss.values

    programs = {"arrays": data, "stream": js.Stream(batches), "slow loader": js.Stream(slow)}
    for source in programs.values():
        surface(source)  # compiles, and chooses the load
    spent: dict[str, list[float]] = {name: [] for name in programs}
    results: dict[str, np.ndarray] = {}
    for _ in range(args.turns):
        for name, source in programs.items():
            if name == "slow loader":
                pause = spent["stream"][-1] / len(batches)
            taken, losses = seconds(lambda source=source: surface(source))
            spent[name].append(taken)
            results[name] = losses
    for losses in results.values():
        np.testing.assert_allclose(losses, results["arrays"], rtol=1e-5)
    print(f"{jax.device_count()} devices, {args.turns} turns, {len(batches)} batches of {args.batch_size}")
    print("| data | seconds | speed, arrays are 1 |\n|---|---|---|")
    for name, times in spent.items():
        ratio = statistics.median(a / b for a, b in zip(spent["arrays"], times, strict=True))
        print(f"| {name} | {statistics.median(times):.2f} | {ratio:.2f} |")
    cost = statistics.median(slow / fast for slow, fast in zip(spent["slow loader"], spent["stream"], strict=True))
    print(f"slow loader: {cost:.2f} times its own pass, which is as long as the surface of the stream")


if __name__ == "__main__":
    main()
