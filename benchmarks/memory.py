"""Memory of a surface and of Lanczos, over that of the params: a GPT-2 of 124 M parameters on one CPU device and on 8.

Each figure is the largest resident memory of a process of its own, less what the process had before it made the params,
over the bytes of the params. ``loss`` is the loss itself, compiled by `jax.jit`, at params: what a surface needs beside
its displaced copy.

    python -m benchmarks.memory                      # 4 minutes on 2 cores
    python -m benchmarks.memory --plane 5            # a surface of 5x5 points with lazy directions, timed
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

BATCH, CONTEXT, SEQUENCES = 2, 128, 64
CASES = ("loss", "lazy", "stored", "lanczos")
BASIS = 8  # vectors that Lanczos may keep


def peak() -> int:
    """The largest resident memory of this process so far, in bytes."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return 1024 * int(line.split()[1])


def measure(case: str, devices: int, points: int, layers: int) -> None:
    """Run one case in this process; print bytes of params, the largest memory beyond the start, and seconds."""
    import jax

    jax.config.update("jax_num_cpu_devices", devices)
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    import jaxscape as js
    from benchmarks import gpt

    size = gpt.Size(context=CONTEXT, layers=layers)
    loss, data = gpt.loss(size), gpt.random_tokens(size, SEQUENCES)
    jax.block_until_ready(jnp.ones(3) + 1)
    before = peak()
    mesh = Mesh(np.array(jax.devices()), ("fsdp",))

    def place(x: jax.Array) -> jax.Array:
        """Cut along the largest axis."""
        axes = [a for a in range(x.ndim) if x.shape[a] % devices == 0]
        cut = max(axes, key=lambda a: x.shape[a], default=None)
        spec = PartitionSpec(*("fsdp" if a == cut else None for a in range(x.ndim)))
        return jax.device_put(x, NamedSharding(mesh, spec)) if devices > 1 else x

    params = jax.tree.map(place, gpt.params(size))
    total = sum(x.nbytes for x in jax.tree.leaves(params))
    start = time.perf_counter()
    if case == "loss":
        with jax.set_mesh(mesh):
            program = jax.jit(lambda p, b: loss(p, b).mean())
            batch = jax.device_put(data[0][:BATCH], NamedSharding(mesh, PartitionSpec()))
            program(params, (batch,)).block_until_ready()
    elif case == "lanczos":
        few = (data[0][:BATCH],)
        ends = js.extreme_eigenvalues(params, loss, few, max_matvecs=12, max_basis=BASIS, check=False, progress=False)
        jax.block_until_ready(ends)
    else:
        lazy = case == "lazy"
        directions = js.random_directions(0, params, num=2, lazy=lazy)
        grid = (
            js.Grid.plane((-1, 1, points), (-1, 1, points)) if points else js.Grid((np.array([0.0, 1.0]), np.zeros(1)))
        )
        ds = js.surface(params, loss, data if points else (data[0][: 2 * BATCH],), directions=directions, grid=grid,
                        batch_size=BATCH, points_per_step="auto" if devices > 1 else 1, progress=False)  # fmt: skip
        assert np.isfinite(ds.loss).all()
    print(total, peak() - before, time.perf_counter() - start)


def run(case: str, devices: int, points: int = 0, layers: int = 12) -> tuple[float, float, float]:
    """One case in a process of its own: GB of params, its memory over that of params, seconds."""
    command = [sys.executable, "-m", "benchmarks.memory", "--case", case, "--devices", str(devices)]
    command += ["--plane", str(points), "--layers", str(layers)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "false"}
    out = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    total, used, seconds = map(float, out.split()[-3:])
    return total / 2**30, used / total, seconds


def main() -> None:
    """Run all cases, or one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plane", type=int, default=0, help="points along each axis of a timed surface")
    parser.add_argument("--layers", type=int, default=12, help="of the network; 12 are 124 M parameters")
    parser.add_argument("--case", choices=CASES, help="one case, in this process")
    parser.add_argument("--devices", type=int, default=1, help="of a CPU, for --case")
    options = parser.parse_args()
    if options.case:
        measure(options.case, options.devices, options.plane, options.layers)
        return
    if options.plane:
        gb, used, seconds = run("lazy", 1, options.plane, options.layers)
        print(f"{options.plane}x{options.plane} points, {SEQUENCES} sequences of {CONTEXT} tokens: {seconds:.0f} s, "
              f"{used:.2f} times the {gb:.2f} GB of params")  # fmt: skip
        return
    for devices in (1, 8):
        memory = {case: run(case, devices, layers=options.layers) for case in CASES}
        for case, (gb, used, seconds) in memory.items():
            print(f"{devices} device(s)  {case:8} {used:5.2f} times the {gb:.2f} GB of params  {seconds:5.1f} s")
        activations = memory["loss"][1] - 1
        lazy, stored = (memory[case][1] - activations for case in ("lazy", "stored"))
        print(f"  beside activations of {activations:.2f}: {lazy:.2f} with lazy directions, {stored:.2f} stored")


if __name__ == "__main__":
    main()
