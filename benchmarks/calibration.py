"""How often the true loss is within 1, 2 and 3 standard errors of the estimate of the tolerance mode, over many seeds.

    python -m benchmarks.calibration [--seeds 40]

The network is an MLP trained on digits for 300 steps. The data are 10,000 examples: digits with small shifts and noise.
The grid has 15x15 points over [-1, 1]. For a normal estimate the shares are 68.3 %, 95.4 % and 99.7 %. The points of
one seed share their examples, so they are not independent.
"""

import argparse
import os
from typing import Any

import jax
import numpy as np
import optax

import jaxscape as js
from benchmarks import problems
from benchmarks.exact import mlp_loss, mlp_params


def loss_and_accuracy(params: Any, batch: Any) -> dict[str, jax.Array]:
    """The loss and the accuracy of each example; an example is correct if no wrong label has a smaller loss."""
    losses = jax.numpy.stack([mlp_loss(params, (batch[0], jax.numpy.full_like(batch[1], c))) for c in range(10)], 1)
    label_loss = jax.numpy.take_along_axis(losses, batch[1][:, None], 1)[:, 0]
    return {"loss": label_loss, "accuracy": label_loss <= losses.min(1)}


def trained_mlp(data: js.datasets.Split, steps: int = 300) -> Any:
    """Train the MLP with Adam on batches of 256."""
    optimizer = optax.adam(1e-3)

    @jax.jit
    def step(params: Any, state: Any, rows: Any) -> Any:
        batch = data.images[rows], data.labels[rows]
        grads = jax.grad(lambda p: mlp_loss(p, batch).mean())(params)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state

    params = mlp_params()
    state = optimizer.init(params)
    rng = np.random.default_rng(0)
    data = jax.tree.map(jax.numpy.asarray, data)
    for _ in range(steps):
        params, state = step(params, state, rng.integers(0, len(data.labels), 256))
    return params


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=40)
    args = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", os.cpu_count())
    data = problems.extended_digits(10_000)
    params = trained_mlp(data)
    options: dict[str, Any] = {"grid": js.Grid.plane((-1, 1, 15), (-1, 1, 15)), "batch_size": 128, "progress": False}
    options["directions"] = js.random_directions(0, params)
    exact = js.surface(params, loss_and_accuracy, data, **options)
    print("| metric | rtol | sampled points | evaluations | < 1 | < 2 | < 3 stderr |\n" + "|---" * 7 + "|")
    for rtol in (0.005, 0.01, 0.02, 0.05):
        deviations: dict[str, list[np.ndarray]] = {"loss": [], "accuracy": []}
        work = 0
        for seed in range(args.seeds):
            estimate = js.surface(params, loss_and_accuracy, data, rtol=rtol, **options | {"seed": seed})
            work += int(estimate.num_examples.sum())
            for name, values in deviations.items():
                stderr = estimate[f"{name}_stderr"].values
                values.append((np.abs(estimate[name] - exact[name]).values[stderr > 0]) / stderr[stderr > 0])
        for name, values in deviations.items():
            z = np.concatenate(values)
            shares = " | ".join(f"{(z < k).mean():.1%}" for k in (1, 2, 3))
            saved = args.seeds * int(exact.num_examples.sum()) / work
            print(f"| {name} | {rtol} | {len(z)} | {saved:.1f} times fewer | {shares} |", flush=True)


if __name__ == "__main__":
    main()
