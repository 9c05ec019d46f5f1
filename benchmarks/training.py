"""Training: the images/s of the step of `train.py` against the same network in PyTorch, in turns.

    python -m benchmarks.training [CASE ...] [--turns 5] [--seconds 4]

Both train on batches of 128 in memory, with Nesterov SGD, weight decay and batch norm in training mode, without
augmentation. PyTorch uses the faster of contiguous and channels-last memory. Both must give the same weights after the
first step, to 1 % of that step.
"""

import dataclasses
import statistics
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import torch
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from torch.nn import functional as F  # noqa: N812

import jaxscape as js
import train
from benchmarks import cases, problems, torch_loop
from benchmarks.timing import seconds
from jaxscape import runs
from training.step import shared

CASES = ("resnet20-8", "resnet56-8", "resnet20-32", "resnet56-32")
BATCH = 128


def ours(config: train.Config, data: js.datasets.Split) -> tuple[Callable[[int], Any], Any, Any]:
    """A function that runs steps of `train.py`, and the initial params and batch statistics."""
    graphdef, *parts = nnx.split(runs.build_model(dataclasses.asdict(config), data), nnx.Param, nnx.BatchStat)
    params, stats = map(nnx.to_pure_dict, parts)
    optimizer = train.make_optimizer(config, 10**6)
    mesh = Mesh(np.array(jax.devices()), ("data",))
    step = train.make_step(graphdef, optimizer, config, mesh)
    initial = jax.device_get((params, stats))
    state = train.TrainState(params, stats, optimizer.init(params))
    state, data = jax.device_put((state, data), NamedSharding(mesh, PartitionSpec()))

    def run(steps: int) -> Any:
        nonlocal state
        for i in range(steps):
            rows = (i * BATCH + np.arange(BATCH)) % len(data.labels)
            state = step(state, data, shared(mesh, rows), jax.random.key(0))
        return jax.block_until_ready(state)

    return run, *initial


def theirs(
    net: torch.nn.Module,
    config: train.Config,
    data: js.datasets.Split,
    layout: torch.memory_format,
    device: str = "cpu",
) -> Callable[[int], None]:
    """A function that runs the same steps in PyTorch."""
    images = torch.from_numpy(data.images.transpose(0, 3, 1, 2).copy()).contiguous(memory_format=layout).to(device)
    labels = torch.from_numpy(data.labels).long().to(device)
    net = net.to(device, memory_format=layout).train()
    optimizer = torch.optim.SGD(
        net.parameters(), config.learning_rate, momentum=0.9, weight_decay=config.weight_decay, nesterov=True
    )

    def run(steps: int) -> None:
        for i in range(steps):
            rows = (i * BATCH + torch.arange(BATCH, device=device)) % len(labels)
            optimizer.zero_grad()
            F.cross_entropy(net(images[rows]), labels[rows]).backward()
            optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return run


def measure(case: str, turns: int, budget: float) -> dict[str, Any]:
    """Measure one row of the table."""
    arch, size = case.split("-")
    data = js.datasets.load("digits")[0] if size == "8" else problems.random_images(512)
    config = train.Config(arch=arch, lr=0.05, augment=False)
    run, params, stats = ours(config, data)

    def torch_run(layout: torch.memory_format) -> tuple[torch.nn.Module, Callable[[int], None]]:
        net = torch_loop.ResNet(int(arch[6:]), data.images.shape[-1])
        net.load_state_dict(torch_loop.tensors(params) | torch_loop.tensors(stats), strict=False)
        return net, theirs(net, config, data, layout)

    nets = {name: torch_run(getattr(torch, name)) for name in ("contiguous_format", "channels_last")}
    compiled, first = seconds(lambda: run(1))
    for net, torch_steps in nets.values():
        torch_steps(1)
        before, after = torch_loop.tensors(params), torch_loop.tensors(first.params)
        step_length, difference = (
            torch.stack([(other[name] - after[name]).norm() for name in after]).norm()
            for other in (before, {name: p.detach() for name, p in net.named_parameters()})
        )
        assert difference < 1e-2 * step_length, f"the first steps differ by {difference / step_length:.1e} of a step"

    run(2)
    steps = max(1, round(budget / (seconds(lambda: run(3))[0] / 3)))
    programs = {"ours": run, **{name: call for name, (_, call) in nets.items()}}
    times: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(turns):
        for name, call in programs.items():
            times[name].append(seconds(lambda c=call: c(steps))[0])
    best = min(nets, key=lambda name: statistics.median(times[name]))
    ratios = {name: statistics.median(b / a for a, b in zip(times["ours"], times[name], strict=True)) for name in nets}
    rate = {name: steps * BATCH / statistics.median(spent) for name, spent in times.items()}
    return {
        "case": case,
        "images/s": round(rate["ours"]),
        "PyTorch best": f"{rate[best]:.0f} ({best})",
        "ratio": f"{ratios[best]:.2f}",
        "to contiguous": f"{ratios['contiguous_format']:.2f}",
        "first call s": f"{compiled:.1f}",
    }


if __name__ == "__main__":
    cases.run(measure, CASES, __doc__)
