"""One accelerator: surfaces, products with the Hessian, an eigenvalue map, training and a GPT-2, against PyTorch.

    python -m benchmarks.gpu [PART ...] [--small]

The parts; by default all but ``whole``, which takes 6 to 8 minutes on an H200:

* ``surface``: the paper's ResNet-56 and 50,000 CIFAR-shaped images (random pixels) in bfloat16, TF32 and float32, a few
  seconds each, beside PyTorch's best loop (channels-last, `torch.compile`, CUDA graphs). The surface of the paper's
  appendix A.5 took about an hour on 4 GPUs; the limit on one H100 is about 92 s, the time to write and read all
  activations once in bfloat16.
* ``whole``: the paper's surface of 51x51 points, in bfloat16; some 4 minutes.
* ``hessian``: products with the Hessian of ResNet-20 against PyTorch's double backward.
* ``map``: an eigenvalue map of ResNet-20, and the time that PyTorch's products alone would take.
* ``training``: steps of `train.py` on batches of 128 against the same in PyTorch.
* ``less``: networks trained on digits, ResNet-20 at 8x8 pixels and ResNet-56 at 32x32 in bfloat16: the exact surface,
  the tolerance mode and the adaptive grid.
* ``gpt``: GPT-2 with 124 M parameters in bfloat16, a surface of its loss on random tokens.

``--small`` runs everything at a size for a CPU, to see that it works. Without PyTorch only jaxscape is measured.
"""

import argparse
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.flatten_util import ravel_pytree

import jaxscape as js
import train
from benchmarks import gpt, problems
from benchmarks.timing import seconds
from jaxscape.curvature import Options, hessian_product
from jaxscape.curvature._operators import one_mesh
from jaxscape.engine import Load, Program
from jaxscape.objective import Objective

try:
    import torch

    from benchmarks import hessian, torch_loop
    from benchmarks import training as step
except ImportError:
    torch = None


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The sizes of the problems."""

    arch: str = "resnet56"
    points: int = 51
    examples: int = 50_000
    loads: tuple[tuple[str, Load], ...] = (
        ("bfloat16", Load(10_000)),
        ("bfloat16", Load(4000)),
        ("tensorfloat32", Load(4000)),
        ("float32", Load(1000)),
    )
    hessian_arch: str = "resnet20"
    hessian_examples: int = 10_000
    map_examples: int = 2000
    hessian_batches: tuple[int, ...] = (500, 2000)
    map_points: int = 3
    training_archs: tuple[str, ...] = ("resnet20", "resnet56")
    steps: int = 100
    less: tuple[tuple[str, int, str, int], ...] = (("resnet20", 1, "float32", 51), ("resnet56", 4, "bfloat16", 31))
    less_examples: int = 20_000
    steps_before: int = 1000
    transformer: gpt.Size = gpt.Size()
    gpt_points: int = 5
    sequences: int = 32
    sequences_of_batch: int = 8


SMALL = Sizes(
    arch="resnet20",
    points=2,
    examples=64,
    loads=(("bfloat16", Load(32)), ("float32", Load(32))),
    hessian_arch="resnet20",
    hessian_examples=64,
    map_examples=64,
    hessian_batches=(32,),
    map_points=2,
    training_archs=("resnet20",),
    steps=1,
    less=(("resnet20", 1, "float32", 5),),
    less_examples=64,
    steps_before=2,
    transformer=gpt.Size(layers=1, width=8, heads=2, vocabulary=11, context=4),
    gpt_points=2,
    sequences=4,
    sequences_of_batch=2,
)


def report(name: str, count: float, unit: str, run: Callable[[], Any]) -> float | None:
    """Call twice to compile, then measure the faster of three calls; an error is printed and gives None."""
    try:
        first = seconds(run)[0]
        run()
        spent = min(seconds(run)[0] for _ in range(3))
    except Exception as error:  # noqa: BLE001 -- one form that fails must not end the others
        print(f"{name}: {type(error).__name__}: {str(error).strip().splitlines()[0][:150]}", flush=True)
        return None
    print(f"{name}: {count / spent:,.0f} {unit}/s, {spent:.3f} s a call, the first {first:.1f} s", flush=True)
    return spent


def surface(sizes: Sizes) -> None:
    """Images/s of one point in each precision, and of PyTorch's loops."""
    data = problems.random_images(min(sizes.examples, 20_000))
    params, stats, loss = problems.initialized(sizes.arch, data)
    basis = js.random_directions(0, params).basis
    for dtype, load in sizes.loads:
        objective = Objective.of(loss, params, tuple(data), compute_dtype=dtype, check=False)
        program = Program(objective.terms[0], params, basis, load)
        point = np.zeros((jax.device_count(), 2))
        count = len(point) * len(data.labels)
        report(f"{sizes.arch} {dtype} {load.batch_size}", count, "images", lambda p=program, x=point: p.summaries(x)())
        del program
    if torch is None:
        return
    for name, run in torch_points(sizes, params, stats, data):
        report(f"PyTorch {name}", len(data.labels), "images", run)


def torch_points(sizes: Sizes, params: Any, stats: Any, data: Any) -> Iterator[tuple[str, Callable[[], float]]]:
    """Programs in PyTorch for the mean loss at one point: channels-last, with CUDA graphs where there is CUDA."""
    device = torch_device()
    torch.backends.cudnn.benchmark = True
    layout = torch.channels_last
    images = torch.from_numpy(data.images.transpose(0, 3, 1, 2).copy()).to(device).contiguous(memory_format=layout)
    labels = torch.from_numpy(data.labels).long().to(device)
    for dtype, load in dict(sizes.loads).items():  # the last load of each
        batch_size = min(load.batch_size, len(labels))
        allow_tf32(dtype == "tensorfloat32")
        precision = torch.bfloat16 if dtype == "bfloat16" else torch.float32
        net = torch_loop.ResNet(int(sizes.arch[6:]), images.shape[1])
        net.load_state_dict(torch_loop.tensors(params) | torch_loop.tensors(stats), strict=False)
        net = net.eval().to(device, precision, memory_format=layout)
        forms = {"eager": net} if device == "cpu" else {"eager": net, "compiled": torch.compile(net)}
        for kind, forward in forms.items():
            yield f"{dtype} {kind} {batch_size}", point_in_torch(forward, images.to(precision), labels, batch_size)


def point_in_torch(forward: Any, images: Any, labels: Any, batch_size: int) -> Callable[[], float]:
    """The mean loss of all examples, captured as one CUDA graph at the first call."""
    total = torch.zeros((), device=images.device)
    graph: Any = None

    def evaluate() -> None:
        total.zero_()
        for start in range(0, len(labels), batch_size):
            rows = slice(start, start + batch_size)
            logits = forward(images[rows]).float()
            total.add_(torch.nn.functional.cross_entropy(logits, labels[rows], reduction="sum"))

    @torch.inference_mode()
    def run() -> float:
        nonlocal graph
        if images.device.type == "cpu":
            evaluate()
        elif graph is None:
            evaluate()
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                evaluate()
        else:
            graph.replay()
        return total.item() / len(labels)

    return run


def whole(sizes: Sizes) -> None:
    """The paper's surface."""
    data = problems.random_images(sizes.examples)
    params, _, loss = problems.initialized(sizes.arch, data)
    axis = (-1.0, 1.0, sizes.points)
    dtype, load = sizes.loads[0]
    spent, result = seconds(
        lambda: js.surface(
            params,
            loss,
            tuple(data),
            directions=js.random_directions(0, params),
            grid=js.Grid.plane(axis, axis),
            batch_size=load.batch_size,
            points_per_step=load.points_per_step,
            compute_dtype=dtype,
            progress=False,
        )
    )
    rate = sizes.points**2 * sizes.examples / spent
    missing = result.attrs["nonfinite_points"]
    print(
        f"{sizes.arch} {sizes.points}x{sizes.points} {dtype}: {spent:.0f} s, {rate:,.0f} images/s, {missing} not finite"
    )


def hessian_products(sizes: Sizes) -> None:
    """Products with the Hessian, in full float32 and in TF32."""
    data = problems.random_images(sizes.hessian_examples)
    params, stats, loss = problems.initialized(sizes.hessian_arch, data)
    flat, unravel = ravel_pytree(params)
    v = jax.random.normal(jax.random.key(0), flat.shape)
    for batch_size in ("auto", *sizes.hessian_batches):
        product = hessian_product(loss, params, data, Options(batch_size), one_mesh(None))[1]
        matvec = product.at(params)
        report(f"products {batch_size}", len(data.labels), "images", lambda m=matvec: jax.block_until_ready(m(v)))
    if torch is None:
        return
    for tf32 in (False, True):
        allow_tf32(tf32)
        for batch_size in sizes.hessian_batches:
            net = torch_loop.ResNet(int(sizes.hessian_arch[6:]), data.images.shape[-1])
            net.load_state_dict(torch_loop.tensors(params) | torch_loop.tensors(stats), strict=False)
            along = torch_loop.tensors(unravel(v))
            product = hessian.theirs(net, data, along, torch.channels_last, batch_size, torch_device())
            name = f"PyTorch products {'TF32' if tf32 else 'float32'} {batch_size}"
            report(name, len(data.labels), "images", lambda p=product: synchronized(p))


def eigenvalue_map(sizes: Sizes) -> None:
    """Both ends of the Hessian's spectrum over a plane."""
    data = problems.random_images(sizes.map_examples)
    params, _, loss = problems.initialized(sizes.hessian_arch, data)
    axis = (-1.0, 1.0, sizes.map_points)
    run = lambda: js.eigenvalue_map(  # noqa: E731
        params,
        loss,
        data,
        directions=js.random_directions(0, params),
        grid=js.Grid.plane(axis, axis),
        tol=1e-2,
        progress=False,
    )
    first, _ = seconds(run)
    spent, result = seconds(run)
    products = int(result.num_matvecs.sum())
    rate = products * len(data.labels) / spent
    print(f"map: {spent:.1f} s, {products} products, {rate:,.0f} images/s, the first call {first:.1f} s", flush=True)


def steps(sizes: Sizes) -> None:
    """Steps of training on batches of 128; `benchmarks.training` needs PyTorch."""
    if torch is None:
        return
    data = problems.random_images(1024)
    for arch in sizes.training_archs:
        config = train.Config(arch=arch, lr=0.05, augment=False)
        run, params, stats = step.ours(config, data)
        count = sizes.steps * step.BATCH
        report(f"training {arch}", count, "images", lambda run=run: run(sizes.steps))
        allow_tf32(True)
        for layout in ("contiguous_format", "channels_last"):
            net = torch_loop.ResNet(int(arch[6:]), data.images.shape[-1])
            net.load_state_dict(torch_loop.tensors(params) | torch_loop.tensors(stats), strict=False)
            theirs = step.theirs(net, config, data, getattr(torch, layout), torch_device())
            report(f"PyTorch training {arch} {layout}", count, "images", lambda run=theirs: run(sizes.steps))


def less_work(sizes: Sizes) -> None:
    """The surface of a trained network: all evaluations, within a tolerance, on an adaptive grid."""
    if torch is None:
        return
    for arch, enlarged, dtype, points in sizes.less:
        data = problems.extended_digits(sizes.less_examples)
        images = data.images.repeat(enlarged, 1).repeat(enlarged, 2)
        data = js.datasets.Split(images, data.labels)
        config = train.Config(arch=arch, lr=0.05, augment=False)
        state = step.ours(config, data)[0](sizes.steps_before)
        loss = problems.loss_of(arch, data, state.batch_stats)
        measure = {"directions": js.random_directions(0, state.params), "compute_dtype": dtype, "progress": False}
        measure["grid"] = js.Grid.plane((-1.0, 1.0, points), (-1.0, 1.0, points))
        for name, options in {"exact": {}, "rtol": {"rtol": 0.01}, "refine": {"refine": "contours"}}.items():
            call = functools.partial(js.surface, state.params, loss, tuple(data), **measure, **options)
            first, _ = seconds(call)
            spent, result = seconds(call)
            if name == "exact":
                exact, whole = result, spent
            count = int(result.num_examples.values.sum())
            relative = np.abs(result.loss / exact.loss - 1).values
            print(
                f"{arch}, {images.shape[1]} pixels, {points}x{points} points, {name}: {spent:.2f} s, the first call "
                f"{first:.1f} s, {whole / spent:.1f} times faster, {points**2 * len(images) / count:.1f} times fewer "
                f"evaluations, {count / spent:,.0f} images/s, batches of {result.attrs.get('batch_size')}, error below "
                f"{np.quantile(relative, 0.95):.4f} at 95 % of the points, {relative.max():.4f} at most, "
                f"loss {float(exact.loss.min()):.3g} to {float(exact.loss.max()):.3g}",
                flush=True,
            )


def language_model(sizes: Sizes) -> None:
    """A line through GPT-2: tokens/s."""
    params, data = gpt.params(sizes.transformer), gpt.random_tokens(sizes.transformer, sizes.sequences)
    directions = js.random_directions(0, params, num=1)
    count = sizes.gpt_points * sizes.sequences * sizes.transformer.context
    dtypes = "bfloat16", "tensorfloat32"  # XLA takes a minute to compile float32
    grid, load = js.Grid.line(-0.5, 0.5, sizes.gpt_points), Load(sizes.sequences_of_batch)
    for dtype in dtypes:
        for kind in ("xla", "cudnn") if dtype == "bfloat16" and jax.default_backend() == "gpu" else ("xla",):
            loss = gpt.loss(sizes.transformer, kind)
            objective = Objective.of(loss, params, data, compute_dtype=dtype, check=False)
            program = Program(objective.terms[0], params, directions.basis, load)
            report(f"GPT {dtype} {kind}", count, "tokens", lambda p=program: p.summaries(grid.points())())
            del program
            call = functools.partial(js.surface, params, loss, data, directions=directions, grid=grid, progress=False)
            call = functools.partial(call, batch_size=load.batch_size, points_per_step=1, compute_dtype=dtype)
            report(f"GPT {dtype} {kind}, js.surface", count, "tokens", call)
    if torch is None:
        return
    weights = jax.tree.map(lambda x: torch.from_numpy(np.array(x)).to(torch_device()), params)
    along = jax.tree.map(lambda x: torch.from_numpy(np.array(x)).to(torch_device()), next(iter(directions)))
    tokens = torch.from_numpy(data[0]).long().to(torch_device())
    for dtype in dtypes:
        allow_tf32(dtype == "tensorfloat32")
        precision = torch.bfloat16 if dtype == "bfloat16" else torch.float32
        for kind in ("eager", "compiled")[: 1 if torch_device() == "cpu" else 2]:
            loss_fn = gpt.torch_loss(sizes.transformer)
            loss_fn = torch.compile(loss_fn) if kind == "compiled" else loss_fn
            run = lambda f=loss_fn, dtype=precision: line_in_torch(f, weights, along, tokens, sizes, dtype)  # noqa: E731
            report(f"PyTorch GPT {dtype} {kind}", count, "tokens", run)


def line_in_torch(loss_fn: Any, weights: Any, along: Any, tokens: Any, sizes: Sizes, dtype: Any) -> list[float]:
    """The mean loss at each point of the line."""
    losses = []
    with torch.inference_mode():
        for t in np.linspace(-0.5, 0.5, sizes.gpt_points):
            params = jax.tree.map(lambda w, d, t=t: (w + float(t) * d).to(dtype), weights, along)
            batches = tokens.split(sizes.sequences_of_batch)
            losses.append(torch.cat([loss_fn(params, batch) for batch in batches]).mean().item())
    return losses


def torch_device() -> str:
    """The device of PyTorch."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def allow_tf32(allow: bool) -> None:
    """Whether PyTorch may compute float32 products in TF32."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allow


def synchronized(run: Callable[[], Any]) -> Any:
    """The result of a call, once the device has computed it."""
    result = run()
    if torch_device() == "cuda":
        torch.cuda.synchronize()
    return result


PARTS = {
    "surface": surface,
    "hessian": hessian_products,
    "map": eigenvalue_map,
    "training": steps,
    "less": less_work,
    "gpt": language_model,
    "whole": whole,
}


def main(words: list[str] | None = None) -> None:
    """Measure the parts that the command line names, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", choices=[[], *PARTS], help=f"of {', '.join(PARTS)}")
    parser.add_argument("--small", action="store_true", help="a size for a CPU")
    args = parser.parse_args(words)
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", ".6")  # PyTorch takes its memory from the same card
    sizes = SMALL if args.small else Sizes()
    print(jax.devices()[0].device_kind, f"jax {jax.__version__}", f"torch {torch and torch.__version__}", flush=True)
    for name in args.parts or [name for name in PARTS if name != "whole"]:
        spent, _ = seconds(lambda part=PARTS[name]: part(sizes))
        print(f"{name}: {spent:.0f} s in all\n", flush=True)


if __name__ == "__main__":
    main()
