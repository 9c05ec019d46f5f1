"""Exact surfaces: jaxscape against a strong PyTorch loop, in turns, with the same weights and data.

    python -m benchmarks.exact [CASE ...] [--turns 5] [--seconds 4]

The table shows the images/s of both (medians over turns), the ratio to the best variant and to the default of PyTorch,
the share of the measured peak of a matrix product that jaxscape reaches, the compile time, and the ratio to jaxscape
without `fast_convolutions`. Both must give the same losses to 1e-4.
"""

import statistics
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax.extend import core

import jaxscape as js
from benchmarks import cases, problems, torch_loop
from benchmarks.timing import seconds
from jaxscape.objective import _trace

CASES = ("mlp", "resnet20-8", "resnet56-8", "resnet20-32", "resnet56-32")
WIDTHS = (64, 128, 128, 10)


def mlp_params(seed: int = 0) -> Any:
    """A plain dict of dense layers with He initialization."""
    keys = jax.random.split(jax.random.key(seed), len(WIDTHS))
    return {
        f"layer{i}": {"kernel": jax.random.normal(keys[i], (a, b)) * (2 / a) ** 0.5, "bias": jnp.zeros(b)}
        for i, (a, b) in enumerate(zip(WIDTHS, WIDTHS[1:], strict=False))
    }


def mlp_loss(params: Any, batch: Any) -> jax.Array:
    """The cross-entropy of each example."""
    x = batch[0].reshape(len(batch[0]), -1)
    for i in range(len(params)):
        x = x @ params[f"layer{i}"]["kernel"] + params[f"layer{i}"]["bias"]
        x = jax.nn.relu(x) if i + 1 < len(params) else x
    return -jnp.take_along_axis(jax.nn.log_softmax(x), batch[1][:, None], axis=1)[:, 0]


def problem(case: str) -> tuple[Any, Any, Callable[..., Any], Any, torch.nn.Module]:
    """The params, batch statistics, loss and data of a case, and the same network in PyTorch."""
    digits = js.datasets.load("digits")[0]
    if case == "mlp":
        return mlp_params(), {}, mlp_loss, digits, torch_loop.MLP(WIDTHS)
    arch, size = case.split("-")
    data = digits if size == "8" else problems.random_images(512)
    params, stats, loss = problems.initialized(arch, data)
    return params, stats, loss, data, torch_loop.ResNet(int(arch[6:]), data[0].shape[-1])


def matmul_peak() -> float:
    """The FLOP/s of a 2048 x 2048 float32 matrix product on one device with all threads."""
    a = jnp.ones((2048, 2048))
    run = jax.jit(lambda a: a @ a)
    run(a).block_until_ready()
    return 2 * 2048**3 / min(seconds(lambda: run(a).block_until_ready())[0] for _ in range(5))


def flops_per_image(loss: Callable[..., Any], params: Any, data: Any) -> float:
    """The floating-point operations of one forward pass, as XLA counts them without `fast_convolutions`."""
    example = jax.tree.map(lambda x: x[:1], tuple(data))
    return jax.jit(loss).lower(params, example).cost_analysis()["flops"]


def measure(case: str, turns: int, budget: float) -> dict[str, Any]:
    """Measure one row of the table."""
    params, stats, loss, data, net = problem(case)
    directions = js.random_directions(0, params, num=1)
    net.load_state_dict(torch_loop.tensors(params) | torch_loop.tensors(stats), strict=False)
    net.eval()
    weights, steps = torch_loop.tensors(params), [torch_loop.tensors(d) for d in directions]

    def ours(points: int, loss: Callable[..., Any] = loss) -> np.ndarray:
        grid = js.Grid.line(0, 0.3, points)
        return js.surface(params, loss, tuple(data), directions=directions, grid=grid, progress=False)

    def theirs(points: int, variant: Any) -> np.ndarray:
        grid = js.Grid.line(0, 0.3, points).points()
        return torch_loop.surface(variant[1], weights, steps, grid, *variant[2:])

    def even(seconds_per_point: float) -> int:
        """The number of points for the budget; it is even, so that two devices have equal shares."""
        return max(2, round(budget / seconds_per_point / 2) * 2)

    compile_seconds = seconds(lambda: ours(2))[0]
    points = even(seconds(lambda: ours(4))[0] / 4)
    ours(8 * points)  # chooses the load
    points = even(seconds(lambda: ours(points))[0] / points)
    variants = {variant[0]: variant for variant in torch_loop.variants(net, data)}
    few = max(1, points // 8)
    rates = {name: seconds(lambda v=v: theirs(few, v))[0] for name, v in variants.items()}
    best, default = min(rates, key=rates.get), next(iter(variants))

    def plain(points: int) -> np.ndarray:
        """The same call without the rewrite of `fast_convolutions`."""
        original, _trace.rewrite = _trace.rewrite, as_it_is
        try:
            return ours(points, unrewritten)
        finally:
            _trace.rewrite = original

    def as_it_is(jaxpr: core.Jaxpr, *, backend: str) -> core.ClosedJaxpr:
        return core.ClosedJaxpr(jaxpr, ())

    def unrewritten(params: Any, batch: Any) -> Any:
        """The loss by another computation, which finds no program in the cache."""
        return jax.tree.map(lambda x: 1.0 * x, loss(params, batch))

    plain(1)
    times: dict[str, list[float]] = {"ours": [], "best": [], "default": [], "plain": []}
    for _ in range(turns):
        spent, result = seconds(lambda: ours(points))
        times["ours"].append(spent)
        spent, expected = seconds(lambda: theirs(points, variants[best]))
        times["best"].append(spent)
        times["default"].append(seconds(lambda: theirs(points, variants[default]))[0])
        times["plain"].append(seconds(lambda: plain(points))[0])
    np.testing.assert_allclose(result.loss.values.ravel(), expected, rtol=1e-4)
    images = points * len(data[1])
    ratio = {
        name: statistics.median(b / a for a, b in zip(times["ours"], spent, strict=True))
        for name, spent in times.items()
    }
    ours_rate = images / statistics.median(times["ours"])
    return {
        "case": case,
        "images/s": round(ours_rate),
        "PyTorch best": f"{images / statistics.median(times['best']):.0f} ({best})",
        "ratio": f"{ratio['best']:.2f}",
        "PyTorch default": round(images / statistics.median(times["default"])),
        "to default": f"{ratio['default']:.2f}",
        "without rewrite": f"{ratio['plain']:.2f}",
        "of peak": f"{ours_rate * flops_per_image(loss, params, data) / matmul_peak():.0%}",
        "first call s": f"{compile_seconds:.1f}",
        "load": f"{result.attrs['batch_size']} x {result.attrs['points_per_step']}",
    }


if __name__ == "__main__":
    cases.run(measure, CASES, __doc__)
