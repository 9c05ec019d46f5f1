"""Products with the Hessian against PyTorch's double backward, and an eigenvalue map against SciPy's `eigsh`, in turns.

    python -m benchmarks.hessian [CASE ...] [--turns 5] [--seconds 4]

Products: ResNet-20 in evaluation mode, 256 images of 32x32 pixels or 1024 digits in memory; PyTorch's best of
contiguous and channels-last memory and batch sizes 32, 128 and 256. Both must give the same product to 1e-3.

Map (`map`): 11x11 points of a filter-normalized plane around a trained ResNet-20, 512 digits, both ends to a residual
of 1 %; SciPy calls ARPACK twice at each point, once for each end, on the same compiled product. One turn takes minutes.

Risk (`risk`): what it costs to know that no end is missing: products at 3x3 points of that plane, by the probability of
a miss, and how many ends of diagonal matrices are missed where an eigenvalue lies 1.2 % beyond that of the start.

Pilot (`pilot`, `pilot-noshort`): a map of 3x3 points of that plane, all digits, with and without a pilot of an eighth
of them. Pilot errors (`pilot-errors`): ends of 72 dense Hessians of a small MLP against those of maps with pilots.
"""

import functools
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse.linalg
import torch
import xarray as xr
from jax.flatten_util import ravel_pytree
from torch.nn import functional as F  # noqa: N812

import jaxscape as js
from benchmarks import cases, problems, torch_loop
from benchmarks.timing import seconds
from jaxscape import trees
from jaxscape.curvature import Options, hessian_product
from jaxscape.curvature._operators import one_mesh
from jaxscape.linalg import Goal, krylov
from jaxscape.linalg._krylov import Pairs

CASES = ("resnet20-8", "resnet20-32", "map", "risk", "pilot", "pilot-noshort", "pilot-errors")
RISKS = (math.inf, 0.1, 0.03, 0.01)


def theirs(
    net: torch.nn.Module,
    data: js.datasets.Split,
    v: dict[str, torch.Tensor],
    layout: torch.memory_format,
    batch: int,
    device: str = "cpu",
) -> Callable[[], dict[str, torch.Tensor]]:
    """One product over all of the data by double backward."""
    images = torch.from_numpy(data.images.transpose(0, 3, 1, 2).copy()).contiguous(memory_format=layout).to(device)
    labels = torch.from_numpy(np.asarray(data.labels)).long().to(device)
    net = net.to(device, memory_format=layout).eval()
    names, weights = zip(*net.named_parameters(), strict=True)
    v = {name: direction.to(device) for name, direction in v.items()}
    along = [v[name].contiguous(memory_format=layout) if v[name].ndim == 4 else v[name] for name in names]

    def product() -> dict[str, torch.Tensor]:
        total = [torch.zeros_like(w) for w in weights]
        for i in range(0, len(labels), batch):
            loss = F.cross_entropy(net(images[i : i + batch]), labels[i : i + batch], reduction="sum")
            grads = torch.autograd.grad(loss, weights, create_graph=True)
            for t, h in zip(total, torch.autograd.grad(grads, weights, grad_outputs=along), strict=True):
                t += h / len(labels)
        return dict(zip(names, total, strict=True))

    return product


def products(size: str, turns: int, budget: float) -> dict[str, Any]:
    """One row of the table of products."""
    data = js.datasets.load("digits")[0] if size == "8" else problems.random_images(256)
    data = js.datasets.Split(*(x[:1024] for x in data))
    params, stats, loss_fn = problems.initialized("resnet20", data)
    flat, unravel = ravel_pytree(params)
    v = jax.random.normal(jax.random.key(0), flat.shape)
    programs: dict[str, Callable[[], Any]] = {}
    for name, keep in (("ours", None), ("not linearized", False)):
        product = hessian_product(loss_fn, params, data, Options(), one_mesh(None), linearize=keep)[1]
        matvec = product.at(params)
        programs[name] = lambda m=matvec: jax.block_until_ready(m(v))
    first = seconds(programs["ours"])[0]
    expected = torch_loop.tensors(unravel(programs["ours"]()))
    along = torch_loop.tensors(unravel(v))
    torch_programs = {}
    for layout in ("contiguous_format", "channels_last"):
        for batch in (32, 128, 256):
            net = torch_loop.ResNet(20, data.images.shape[-1])
            net.load_state_dict(torch_loop.tensors(params) | torch_loop.tensors(stats), strict=False)
            torch_programs[f"{layout} {batch}"] = theirs(net, data, along, getattr(torch, layout), batch)
    for product in torch_programs.values():
        found = product()
        apart = sum(float((found[name] - expected[name]).norm()) ** 2 for name in expected) ** 0.5
        assert apart < 1e-3 * sum(float(x.norm()) ** 2 for x in expected.values()) ** 0.5, apart
    tried = {name: min(seconds(product)[0] for _ in range(2)) for name, product in torch_programs.items()}
    best = min(tried, key=lambda name: tried[name])
    programs |= {"PyTorch": torch_programs[best]}
    times: dict[str, list[float]] = {name: [] for name in programs}
    for run in programs.values():
        run()
    for _ in range(turns):
        for name, run in programs.items():
            repeats = max(1, round(budget / seconds(run)[0]))
            times[name].append(seconds(lambda run=run, repeats=repeats: [run() for _ in range(repeats)])[0] / repeats)
    rate = {name: len(data.labels) / statistics.median(spent) for name, spent in times.items()}

    def ratio(name: str) -> str:
        return f"{statistics.median(b / a for a, b in zip(times['ours'], times[name], strict=True)):.2f}"

    return {
        "case": f"resnet20-{size}",
        "images/s": round(rate["ours"]),
        "not linearized": f"{rate['not linearized']:.0f} (ratio {ratio('not linearized')})",
        "PyTorch best": f"{rate['PyTorch']:.0f} ({best})",
        "ratio": ratio("PyTorch"),
        "first call s": f"{first:.1f}",
    }


def scipy_map(
    run: Any, directions: js.Directions, grid: js.Grid, data: Any, tol: float
) -> tuple[np.ndarray, int, float]:
    """Both ends at every point; products made, and the largest relative residual."""
    params, product = hessian_product(run.loss_fn, run.params, data, Options(), one_mesh(None))
    displace, size = jax.jit(trees.displace), product.subspace.size
    values, count, worst = [], 0, 0.0
    rng = np.random.default_rng(0)
    for coords in grid.points():
        matvec = product.at(displace(params, directions.basis, coords))

        def counting(v: np.ndarray, matvec: Any = matvec) -> np.ndarray:
            nonlocal count
            count += 1
            return np.asarray(matvec(np.asarray(v, np.float32).ravel()))

        linear = scipy.sparse.linalg.LinearOperator((size, size), matvec=counting, dtype=np.float32)
        for which in ("SA", "LA"):
            v0 = rng.normal(size=size).astype(np.float32)
            (value,), vector = scipy.sparse.linalg.eigsh(linear, k=1, which=which, tol=tol, v0=v0)
            values.append(value)
            if len(values) <= 8:  # the first points only: it is not part of ARPACK's work
                image = np.asarray(matvec(vector[:, 0]))
                worst = max(worst, np.linalg.norm(image - value * vector[:, 0]) / abs(value))
    return np.reshape(values, (*grid.shape, 2)), count, worst


def maps(turns: int) -> dict[str, Any]:
    """The row of the map."""
    run = problems.trained("resnet20")
    data = js.datasets.Split(*(x[:512] for x in run.data))
    directions, grid = js.random_directions(0, run.params), js.Grid.plane((-1, 1, 11), (-1, 1, 11))

    def ours(grid: js.Grid = grid) -> Any:
        return js.eigenvalue_map(
            run.params, run.loss_fn, data, directions=directions, grid=grid, tol=1e-2, progress=False
        )

    small = js.Grid.plane((-1, 1, 2), (-1, 1, 2))
    ours(small), scipy_map(run, directions, small, data, 1e-2)  # compiles
    pairs = []
    for _ in range(turns):
        own, result = seconds(ours)
        begin = time.perf_counter()
        values, count, worst = scipy_map(run, directions, grid, data, 1e-2)
        pairs.append((own, time.perf_counter() - begin))
    both = np.stack([result.min_eigenvalue, result.max_eigenvalue], axis=-1)
    # A Rayleigh quotient never lies beyond an end of the spectrum: of the two, the outer one is nearer to it.
    outer = np.stack([np.minimum(both, values)[..., 0], np.maximum(both, values)[..., 1]], axis=-1)
    short, their_short = (np.max(np.abs(outer - found) / np.abs(outer)) for found in (both, values))
    residuals = np.stack([result.min_residual, result.max_residual], axis=-1) / np.abs(both)
    return {
        "case": "map",
        "seconds": " ".join(f"{a:.0f}" for a, _ in pairs),
        "SciPy seconds": " ".join(f"{b:.0f}" for _, b in pairs),
        "ratio": f"{statistics.median(a / b for a, b in pairs):.2f}",
        "products": int(result.num_matvecs.sum()),
        "SciPy products": count,
        "median, largest residual": f"{np.median(residuals):.1e}, {residuals.max():.1e}",
        "unconverged": result.attrs["unconverged_points"],
        "SciPy largest residual of 4 points": f"{worst:.1e}",
        "farthest inside of the other's end": f"{short:.1e}, SciPy {their_short:.1e}",
    }


def both_ends(matvec: Any, seed: int, size: int, risk: float, start: Any = None) -> Pairs:
    """Both ends from a seeded first vector."""
    noise = jax.random.normal(jax.random.key(seed), (size,))
    goal = Goal(2, "BE", 1e-2, risk)
    return krylov(matvec, noise, jax.random.key(seed), goal, max_matvecs=100, max_basis=40, start=start)


def misses(risk: float, num: int = 400, size: int = 4096) -> str:
    """Ends called converged at an eigenvector of the start, where another eigenvalue lies farther out than 1 %."""
    product = jax.jit(lambda spectrum, v: spectrum * v)
    start = jnp.zeros(size).at[:2].set(1)
    missed = 0
    for seed in range(num):
        spectrum = np.random.default_rng(seed).uniform(-0.5, 0.6, size)
        spectrum[:4] = -0.6, 1, -0.6 * 1.012, 1.012
        matvec = functools.partial(product, jnp.asarray(spectrum, jnp.float32))
        found = both_ends(matvec, seed, size, risk, jnp.array(start))
        apart = np.abs(np.asarray(found.values) / [-0.6 * 1.012, 1.012] - 1)
        missed += int((found.converged & (apart > 1e-2)).sum())
    return f"{missed} of {2 * num}"


def risks() -> dict[str, Any]:
    """The row of the risks."""
    run = problems.trained("resnet20")
    data = js.datasets.Split(*(x[:256] for x in run.data))
    directions, grid = js.random_directions(0, run.params), js.Grid.plane((-1, 1, 3), (-1, 1, 3))
    params, product = hessian_product(run.loss_fn, run.params, data, Options(), one_mesh(None))
    counts = dict.fromkeys(RISKS, 0)
    for i, coords in enumerate(grid.points()):
        matvec = product.at(jax.jit(trees.displace)(params, directions.basis, coords))
        for risk in RISKS:
            counts[risk] += int(both_ends(matvec, i, product.subspace.size, risk).num_matvecs)
    return {"case": "risk"} | {str(risk): f"{counts[risk]} products, missed {misses(risk)}" for risk in RISKS}


def pilots(case: str, turns: int) -> dict[str, Any]:
    """The row of a pilot: products in units of one on all examples, time, and differences from the map without."""
    run = problems.trained("resnet20", noshort=case.endswith("noshort"))
    examples = len(run.data.labels)
    grid, directions = js.Grid.plane((-1, 1, 3), (-1, 1, 3)), js.random_directions(0, run.params)

    def mapped(pilot: int | None) -> xr.Dataset:
        options = {"directions": directions, "grid": grid, "pilot": pilot, "progress": False}
        return js.eigenvalue_map(run.params, run.loss_fn, run.data, **options)

    mapped(examples // 8)  # compiles
    ratios = []
    for _ in range(turns):
        alone, whole = seconds(lambda: mapped(None))
        spent, result = seconds(lambda: mapped(examples // 8))
        ratios.append(alone / spent)
    count = float(result.num_matvecs.sum() + result.pilot_matvecs.sum() * (examples // 8) / examples)
    off = {end: np.abs(result[f"{end}_eigenvalue"] / whole[f"{end}_eigenvalue"] - 1).values for end in ("min", "max")}
    return {
        "case": case,
        "products": f"{count:.0f} instead of {int(whole.num_matvecs.sum())}",
        "faster": f"{statistics.median(ratios):.2f}",
        "not converged": int((~result.converged).sum()),
        "largest difference": f"{off['min'].max():.2%} and {off['max'].max():.2%}",
    }


def pilot_errors() -> dict[str, Any]:
    """The row of the errors of maps with a pilot, against dense Hessians."""
    jax.config.update("jax_enable_x64", True)  # noqa: FBT003
    rng = np.random.default_rng(1)
    data = rng.normal(size=(400, 6)), rng.integers(0, 4, 400)
    keys = jax.random.split(jax.random.key(0), 2)
    params = {"first": jax.random.normal(keys[0], (6, 12)), "second": jax.random.normal(keys[1], (12, 4))}
    flat, unravel = ravel_pytree(params)

    def loss(params: Any, batch: Any) -> Any:
        logits = jax.nn.relu(batch[0] @ params["first"] / 2.5) @ params["second"] / 3.5
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), batch[1][:, None], 1)[:, 0]

    dense = jax.jit(jax.hessian(lambda flat: loss(unravel(flat), data).mean()))
    grid, row = js.Grid.plane((-1, 1, 3), (-1, 1, 3)), {"case": "pilot-errors"}
    for pilot in (50, 100, 200):
        over = []
        for seed in range(8):
            directions = js.random_directions(seed, params)
            options = {"directions": directions, "grid": grid, "progress": False, "seed": seed}
            result = js.eigenvalue_map(params, loss, data, pilot=pilot, **options)
            for i, coords in enumerate(grid.points()):
                point = ravel_pytree(trees.displace(params, directions.basis, jnp.asarray(coords)))[0]
                ends = np.linalg.eigvalsh(dense(point))[[0, -1]]
                for end, value in zip(("min", "max"), ends, strict=True):
                    error = result[f"{end}_error"].values.ravel()[i]
                    over.append(abs(result[f"{end}_eigenvalue"].values.ravel()[i] - value) / error)
        row[str(pilot)] = f"beyond the error {np.mean(np.array(over) > 1):.1%}, twice {np.mean(np.array(over) > 2):.1%}"
    return row


def measure(case: str, turns: int, budget: float) -> dict[str, Any]:
    """One row."""
    if case == "risk":
        return risks()
    if case == "pilot-errors":
        return pilot_errors()
    if case.startswith("pilot"):
        return pilots(case, turns)
    return maps(turns) if case == "map" else products(case.partition("-")[2], turns, budget)


if __name__ == "__main__":
    cases.run(measure, CASES, __doc__)
