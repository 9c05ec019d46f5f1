"""What a `jaxscape.Recorder` costs a training loop, and what a Krylov basis in 16 bits or on the host costs.

    python -m benchmarks.recorder [--turns 3] [--steps 40] [--every 10]

The loop trains the GPT of 0.8 M parameters (models.gpt, "gpt_1m") with Adam on batches of 16 sequences of 128 random
bytes; it runs without a recorder and with one of each kind, in turn. The last part finds both ends of the same model's
Hessian with a basis of each kind, in turn.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.flatten_util import ravel_pytree

import jaxscape as js
from benchmarks.timing import seconds
from models import gpt


def main() -> None:
    """Measure in turns, and print two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--every", type=int, default=10)
    args = parser.parse_args()
    graphdef, params = nnx.split(gpt.create("gpt_1m", context=128), nnx.Param)
    loss_fn = gpt.next_token_loss(graphdef)
    batches = np.random.default_rng(0).integers(0, 256, (args.steps, 16, 129)).astype(np.int32)
    recorders(loss_fn, params, batches, args.turns, args.every)
    bases(loss_fn, params, batches[0], args.turns)


def recorders(loss_fn: Any, params: Any, batches: np.ndarray, turns: int, every: int) -> None:
    """Seconds of a training loop with a recorder over those without one."""
    optimizer = optax.adam(1e-3)

    @jax.jit
    def step(params: Any, state: Any, batch: jax.Array) -> tuple[Any, Any]:
        def mean(params: Any) -> jax.Array:
            metrics = loss_fn(params, batch)
            return jnp.sum(metrics["weight"] * metrics["loss"]) / jnp.sum(metrics["weight"])

        updates, state = optimizer.update(jax.grad(mean)(params), state)
        return optax.apply_updates(params, updates), state

    def train(make: Callable[[], Any]) -> Any:
        recorder, point, state = make(), params, optimizer.init(params)
        for batch in batches:
            point, state = step(point, state, batch)
            if recorder is not None:
                recorder(point)
        return jax.block_until_ready(point)  # steps run behind the loop

    with tempfile.TemporaryDirectory() as folder:
        kinds: dict[str, Callable[[], Any]] = {
            "no recorder": lambda: None,
            "differences": lambda: js.Recorder(params, every=every),
            "differences in a folder": lambda: js.Recorder(params, every=every, folder=tempfile.mkdtemp(dir=folder)),
            "projections": lambda: js.Recorder(params, every=every, keep="projections"),
        }
        for make in kinds.values():
            train(make)  # compiles
        spent: dict[str, list[float]] = {name: [] for name in kinds}
        for _ in range(turns):
            for name, make in kinds.items():
                spent[name].append(seconds(lambda make=make: train(make))[0])
    for name, times in spent.items():
        ratios = [a / b for a, b in zip(times, spent["no recorder"], strict=True)]
        print(f"{name:24} {statistics.median(times):6.1f} s  {statistics.median(ratios):5.3f} of no recorder  {ratios}")


def bases(loss_fn: Any, params: Any, data: np.ndarray, turns: int) -> None:
    """Both ends of the Hessian with a basis of each kind: seconds, errors, residuals, orthogonality."""
    operator = js.hvp(loss_fn, params, data)
    found: dict[str, Any] = {}
    spent: dict[str, list[float]] = {}
    for _ in range(turns):
        for basis in ("device", "bfloat16", "host"):
            options: dict[str, Any] = {"tol": 1e-3, "max_matvecs": 60, "basis": basis, "progress": False}
            taken, found[basis] = seconds(lambda options=options: operator.top_eigenpairs(4, "LM", **options))
            spent.setdefault(basis, []).append(taken)
    for basis, pairs in found.items():
        vectors = np.stack([np.asarray(ravel_pytree(pairs.eigenvectors[i])[0], np.float64) for i in range(4)])
        largest = np.abs(found["device"].eigenvalues).max()
        off = np.abs(pairs.eigenvalues - found["device"].eigenvalues).max() / largest
        print(
            f"{basis:9} {statistics.median(spent[basis]):6.1f} s  {int(pairs.num_matvecs)} products  "
            f"eigenvalues off by {off:.1e} of the largest, residuals {pairs.residuals.max() / largest:.1e}, "
            f"inner products of vectors {np.abs(vectors @ vectors.T - np.eye(4)).max():.1e}"
        )


if __name__ == "__main__":
    main()
