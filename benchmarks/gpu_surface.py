"""The paper's surface on one accelerator: ResNet-56, 51x51 points, 50,000 CIFAR-shaped images (random pixels).

    python -m benchmarks.gpu_surface [--minutes 8]

The benchmark times float32, TF32 and bfloat16 for several batch sizes and numbers of points side by side, a few seconds
each; batches that divide the data waste nothing. Then it runs the whole surface with the fastest choice if the
remaining time suffices; otherwise it prints the expected time. The surface of the paper's appendix A.5 took about an
hour on 4 GPUs. The limit on one H100 is about 92 s: the time to write and read all activations once in bfloat16.
"""

import argparse
import time

import jax
import numpy as np

import jaxscape as js
from benchmarks import problems
from benchmarks.exact import seconds
from jaxscape.engine import Load, Program
from jaxscape.objective import Objective

DTYPES = ("float32", "tensorfloat32", "bfloat16")


def main() -> None:
    """Measure, and print the times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="resnet56")
    parser.add_argument("--points", type=int, default=51)
    parser.add_argument("--examples", type=int, default=50_000)
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=(1000, 4000))
    parser.add_argument("--widths", type=int, nargs="+", default=(1, 8))
    args = parser.parse_args()
    deadline = time.perf_counter() + 60 * args.minutes
    data = problems.random_images(args.examples)
    params, _, loss = problems.initialized(args.arch, data)
    directions = js.random_directions(0, params)
    print(jax.devices()[0].device_kind, f"jax {jax.__version__}")
    work = args.points**2 * args.examples
    best: tuple[float, str, Load] | None = None
    for dtype in DTYPES:
        for load in (Load(size, width) for width in args.widths for size in args.batch_sizes):
            if time.perf_counter() > deadline - 60 * args.minutes / 3:  # a third of the time is for the surface
                print("no time left for further loads")
                break
            try:
                objective = Objective.of(loss, params, tuple(data), compute_dtype=dtype, check=False)
                program = Program(objective.terms[0], params, directions.basis, load)
                last = min(program.local_batches, max(1, 20_000 // load.batch_size))
                point = np.zeros((load.points_per_step * jax.device_count(), 2))
                compiled = seconds(lambda p=program, x=point, n=last: p.summaries(x, n)())[0]
                spent = min(seconds(lambda p=program, x=point, n=last: p.summaries(x, n)())[0] for _ in range(2))
            except jax.errors.JaxRuntimeError as error:
                print(f"{dtype} {tuple(load)}: {str(error).splitlines()[0][:80]}")
                continue
            rate = len(point) * program.count(last) / spent
            report = f"{rate:,.0f} images/s, {work / rate:,.0f} s in all, compiled in {compiled:.0f} s"
            print(f"{dtype} {tuple(load)}: {report}", flush=True)
            best = min(best or (np.inf, "", load), (work / rate, dtype, load))
    if best is None:
        return
    expected, dtype, load = best
    if time.perf_counter() + 1.1 * expected > deadline:
        print(f"the whole surface would take {expected:,.0f} s with {dtype}, {tuple(load)}")
        return
    axis = (-1.0, 1.0, args.points)
    spent, result = seconds(
        lambda: js.surface(
            params,
            loss,
            tuple(data),
            directions=directions,
            grid=js.Grid.plane(axis, axis),
            batch_size=load.batch_size,
            points_per_step=load.points_per_step,
            compute_dtype=dtype,
        )
    )
    print(
        f"the whole surface: {spent:.0f} s with {dtype}, {tuple(load)}; {result.attrs['nonfinite_points']} not finite"
    )


if __name__ == "__main__":
    main()
