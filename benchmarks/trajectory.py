"""Principal directions of checkpoints on disk, against a program that has all checkpoints in memory.

    python -m benchmarks.trajectory [--checkpoints 300] [--turns 3]

The path is a random walk of a ResNet-56 for digits, written as `train.py` writes it: full checkpoints of every epoch
(``epochs``; weights and batch statistics, without the optimizer), or one vector for every step, 20 in a file
(``steps``). Both programs read the same files and give the same first two directions to 1e-3. Each program runs in a
separate process. Its memory is the peak of the resident set minus the resident set after a warm-up call, in units of
the weights. The warm-up call uses four checkpoints, repeated to the same number.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx

import jaxscape as js
import models
from jaxscape import trees
from jaxscape.run_checkpoints import (
    CHECKPOINTS,
    STEPS,
    Checkpoints,
    checkpoint_manager,
    epoch_checkpoints,
    step_checkpoints,
    to_vector,
)


def write(folder: Path, count: int) -> None:
    """Write a random walk in both forms."""
    model = models.create("resnet56", num_classes=10, image_shape=(8, 8, 1), seed=0)
    params, stats = map(nnx.to_pure_dict, nnx.state(model, nnx.Param, nnx.BatchStat))
    rng = np.random.default_rng(0)
    drift = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), params)
    whole, steps = (checkpoint_manager(folder / name) for name in (CHECKPOINTS, STEPS))
    first, waiting = {"params": params, "batch_stats": stats}, dict[str, Any]()
    for i in range(count):
        params = jax.tree.map(
            lambda x, d: x + 0.01 * d + 0.003 * rng.normal(size=x.shape).astype(x.dtype), params, drift
        )
        current = {"params": params, "batch_stats": stats}
        whole.save(i, args=ocp.args.Composite(variables=ocp.args.StandardSave(current)))
        waiting |= {str(i): to_vector(current, first, "float32")} if i else {}
        if len(waiting) == 20 or i == count - 1:
            steps.save(i, args=ocp.args.Composite(variables=ocp.args.StandardSave(waiting)))
            waiting = {}
    whole.close()
    steps.close()


def ours(path: Any) -> tuple[np.ndarray, np.ndarray]:
    """The directions and variance ratios of the library."""
    directions, ratio = js.pca_directions(path, center="mean", progress=False)
    return np.stack([_flat(d) for d in directions]), ratio


def theirs(path: Any) -> tuple[np.ndarray, np.ndarray]:
    """The Gram matrix of one NumPy array; scikit-learn's PCA, a singular value decomposition, takes minutes."""
    rows = np.stack([_flat(params) for params in path])
    rows -= rows.mean(0)
    squares, vectors = np.linalg.eigh((rows @ rows.T).astype(np.float64))
    directions = vectors[:, :-3:-1].T.astype(np.float32) @ rows
    return directions / np.linalg.norm(directions, axis=1, keepdims=True), squares[::-1] / squares.sum()


def _flat(params: Any) -> np.ndarray:
    return np.concatenate([np.asarray(leaf).reshape(-1) for leaf in jax.tree.leaves(params)])


PROGRAMS: dict[str, Callable[[Any], tuple[np.ndarray, np.ndarray]]] = {"ours": ours, "in memory": theirs}


def open_checkpoints(folder: Path, form: str) -> Checkpoints:
    """Open the checkpoints in one of the forms."""
    return epoch_checkpoints(folder) if form == "epochs" else step_checkpoints(folder, 1)


def once(folder: Path, form: str, program: str) -> None:
    """Run a program in this process, save its directions, and print its seconds and memory."""
    path, run = open_checkpoints(folder, form), PROGRAMS[program]
    run(path[:4] * (len(path) // 4))  # compiles, and opens files, once
    size = 4 * trees.size(path[0])
    before, peak = _resident_bytes(), [0]

    def watch() -> None:
        while True:
            peak[0] = max(peak[0], _resident_bytes())
            time.sleep(0.002)

    threading.Thread(target=watch, daemon=True).start()
    begin = time.perf_counter()
    directions, ratio = run(path)
    spent = time.perf_counter() - begin
    np.savez(folder / f"{program}.npz", directions=directions, ratio=ratio)
    print(spent, (peak[0] - before) / size)


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def measure(folder: Path, form: str, turns: int) -> dict[str, Any]:
    """Measure one row of the table."""
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in PROGRAMS}
    for _ in range(turns):
        for name in PROGRAMS:
            code = f"from benchmarks.trajectory import *; once(Path({str(folder)!r}), {form!r}, {name!r})"
            out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
            seconds, memory = map(float, out.split())
            spent[name].append((seconds, memory))
    a, b = (np.load(folder / f"{name}.npz") for name in PROGRAMS)
    for x, y in zip(a["directions"], b["directions"], strict=True):
        assert abs(abs(float(x @ y)) - 1) < 1e-3
    np.testing.assert_allclose(a["ratio"], b["ratio"], atol=1e-4)
    row: dict[str, Any] = {"form": form}
    for name, pairs in spent.items():
        row |= {f"{name} s": f"{median(s for s, _ in pairs):.1f}", "weights": f"{max(m for _, m in pairs):.1f}"}
        row[f"{name} memory, times the weights"] = row.pop("weights")
    ratios = [b[0] / a[0] for a, b in zip(*spent.values(), strict=True)]
    return row | {"ratio": f"{median(ratios):.2f}"}


def main() -> None:
    """Write the checkpoints, measure both forms, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoints", type=int, default=300)
    parser.add_argument("--turns", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        write(Path(name), args.checkpoints)
        rows = []
        for form in ("epochs", "steps"):
            rows.append(measure(Path(name), form, args.turns))
            print(rows[-1], flush=True)
    print("\n| " + " | ".join(rows[0]) + " |\n|" + "---|" * len(rows[0]))
    for row in rows:
        print("| " + " | ".join(map(str, row.values())) + " |")


if __name__ == "__main__":
    main()
