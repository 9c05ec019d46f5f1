"""Memory of a surface and of Lanczos, over that of the params: a GPT-2 of 124 M parameters on one CPU device and on 8.

Each case runs twice in a process of its own: the first run compiles. The figure is what the second one adds to the
process at its peak, with the params, over the bytes of the params. ``loss`` is the loss itself, compiled by `jax.jit`,
at params: its activations are what a surface needs beside its displaced copy. ``product`` is the derivative of the
gradient along params, compiled by `jax.jit`, and ``lanczos`` finds both ends of the Hessian with a basis of 6 vectors,
both of one sequence of 16 tokens for each device.

    python -m benchmarks.memory                      # 15 minutes on 2 cores
    python -m benchmarks.memory --plane 5            # a surface of 5x5 points with lazy directions, timed
"""

import argparse
import ctypes
import gc
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

BATCH, CONTEXT, SHORT, SEQUENCES = 8, 128, 16, 64
CASES = ("loss", "lazy", "stored", "product", "lanczos")
BASIS = 6  # vectors that Lanczos may keep


def memory(name: str) -> int:
    """The resident memory of this process, now (``"VmRSS"``) or at its peak (``"VmHWM"``), in bytes."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)]
    return 1024 * int(line.split()[1])


def added(run: Callable[[], None]) -> tuple[int, float]:
    """What a second run of a function adds to this process at its peak, in bytes, and its seconds."""
    run()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, start = memory("VmRSS"), time.perf_counter()
    run()
    return memory("VmHWM") - before, time.perf_counter() - start


def measure(case: str, devices: int, points: int, layers: int) -> None:
    """Run one case in this process; print bytes of params, what it adds to them at its peak, and seconds."""
    import jax

    jax.config.update("jax_num_cpu_devices", devices)
    import numpy as np
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    import jaxscape as js
    from benchmarks import gpt

    size = gpt.Size(context=SHORT if case in ("product", "lanczos") else CONTEXT, layers=layers)
    loss, data = gpt.loss(size), gpt.random_tokens(size, SEQUENCES)
    mesh = Mesh(np.array(jax.devices()), ("fsdp",))

    def place(x: jax.Array) -> jax.Array:
        """Cut along the largest axis."""
        axes = [a for a in range(x.ndim) if x.shape[a] % devices == 0]
        cut = max(axes, key=lambda a: x.shape[a], default=None)
        spec = PartitionSpec(*("fsdp" if a == cut else None for a in range(x.ndim)))
        return jax.device_put(x, NamedSharding(mesh, spec)) if devices > 1 else x

    params = jax.tree.map(place, gpt.params(size))
    total = sum(x.nbytes for x in jax.tree.leaves(params))
    few, one, axis = (data[0][:BATCH],), (data[0][:devices],), (-1, 1, points)
    grid = js.Grid.plane(axis, axis) if points else js.Grid((np.array([0.0, 1.0]), np.zeros(1)))

    def loss_alone() -> None:
        with jax.set_mesh(mesh):
            batch = jax.device_put(data[0][:BATCH], NamedSharding(mesh, PartitionSpec("fsdp")))
            program(params, (batch,)).block_until_ready()

    def product_alone() -> None:
        with jax.set_mesh(mesh):
            batch = jax.device_put(one[0], NamedSharding(mesh, PartitionSpec("fsdp")))
            jax.block_until_ready(hessian(params, (batch,), params))

    def lanczos() -> None:
        options = {"max_matvecs": 8, "max_basis": BASIS, "batch_size": 1, "check": False, "progress": False}
        jax.block_until_ready(js.extreme_eigenvalues(params, loss, one, **options))

    def surface() -> None:
        directions = js.random_directions(0, params, num=2, lazy=case == "lazy")
        options = {"batch_size": BATCH, "points_per_step": 1, "progress": False}
        ds = js.surface(params, loss, data if points else few, directions=directions, grid=grid, **options)
        assert np.isfinite(ds.loss).all()

    program = jax.jit(lambda p, b: loss(p, b).mean())
    gradient = jax.grad(lambda p, b: loss(p, b).mean())
    hessian = jax.jit(lambda p, b, v: jax.jvp(lambda q: gradient(q, b), (p,), (v,))[1])
    run = {"loss": loss_alone, "product": product_alone, "lanczos": lanczos}.get(case, surface)
    if points:
        start = time.perf_counter()
        run()
        print(total, 0, time.perf_counter() - start)
    else:
        print(total, *added(run))


def run(case: str, devices: int, points: int = 0, layers: int = 12) -> tuple[float, float, float]:
    """One case in a process of its own: GB of params, memory with params over that of params, seconds."""
    command = [sys.executable, "-m", "benchmarks.memory", "--case", case, "--devices", str(devices)]
    command += ["--plane", str(points), "--layers", str(layers), "--here"]
    patience = "--xla_cpu_collective_call_terminate_timeout_seconds=3600"  # 8 devices share the cores
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "false", "XLA_FLAGS": patience}
    environment["MALLOC_MMAP_THRESHOLD_"] = "65536"  # else the process keeps arrays of up to 32 MB that were freed
    out = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    total, used, seconds = map(float, out.split()[-3:])
    return total / 2**30, 1 + used / total, seconds


def show(devices: int, case: str, gb: float, used: float, seconds: float) -> None:
    """Print the result of a case."""
    print(f"{devices} device(s)  {case:8} {used:5.2f} times the {gb:.2f} GB of params  {seconds:5.1f} s")


def main() -> None:
    """Run all cases, or one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plane", type=int, default=0, help="points along each axis of a timed surface")
    parser.add_argument("--layers", type=int, default=12, help="of the network; 12 are 124 M parameters")
    parser.add_argument("--case", choices=CASES, help="one case alone")
    parser.add_argument("--devices", type=int, default=1, help="of a CPU, for --case")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        measure(options.case, options.devices, options.plane, options.layers)
        return
    if options.case:
        gb, used, seconds = run(options.case, options.devices, layers=options.layers)
        show(options.devices, options.case, gb, used, seconds)
        return
    if options.plane:
        *_, seconds = run("lazy", 1, options.plane, options.layers)
        print(f"{options.plane}x{options.plane} points, {SEQUENCES} sequences of {CONTEXT} tokens: {seconds:.0f} s")
        return
    for devices in (1, 8):
        cases = {case: run(case, devices, layers=options.layers) for case in CASES}
        for case, (gb, used, seconds) in cases.items():
            show(devices, case, gb, used, seconds)
        activations = cases["loss"][1] - 1
        lazy, stored = (cases[case][1] - activations for case in ("lazy", "stored"))
        print(f"  beside activations of {activations:.2f}: {lazy:.2f} with lazy directions, {stored:.2f} stored")


if __name__ == "__main__":
    main()
