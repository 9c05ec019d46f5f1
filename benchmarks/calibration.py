"""How often the true mean is within 1, 2 and 3 standard errors of the estimate of the tolerance mode, over many seeds.

    python -m benchmarks.calibration [--seeds 100] [--rtol 0.02]

The network is an MLP trained on 20,000 examples, digits with noise: near its minimum few examples carry the
loss, and hardly any the error. The grids have 9x9 points, over [-0.1, 0.1], [-0.5, 0.5] and [-1, 1]. For a
normal estimate the shares are 68.3 %, 95.4 % and 99.7 %. The points of one seed share their examples, so they are not
independent.
"""

import argparse
import os
from typing import Any

import jax
import numpy as np
import optax

import jaxscape as js
from benchmarks.exact import mlp_loss, mlp_params

RANGES = (0.1, 0.5, 1.0)


def noisy_digits(examples: int = 20_000, scale: float = 0.3) -> js.datasets.Split:
    """Digits of the train split, drawn with replacement, with normal noise."""
    train = js.datasets.load("digits")[0]
    rng = np.random.default_rng(0)
    rows = rng.integers(0, len(train.labels), examples)
    noise = scale * rng.normal(size=(examples, *train.images.shape[1:]))
    return js.datasets.Split(train.images[rows] + noise.astype(np.float32), train.labels[rows])


def loss_and_error(params: Any, batch: Any) -> dict[str, jax.Array]:
    """The loss and the error of each example; an example is wrong if a wrong label has a smaller loss."""
    losses = jax.numpy.stack([mlp_loss(params, (batch[0], jax.numpy.full_like(batch[1], c))) for c in range(10)], 1)
    label_loss = jax.numpy.take_along_axis(losses, batch[1][:, None], 1)[:, 0]
    return {"loss": label_loss, "error": label_loss > losses.min(1)}


def trained_mlp(data: js.datasets.Split, steps: int = 3000) -> Any:
    """Train the MLP with Adam on batches of 128."""
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
        params, state = step(params, state, rng.integers(0, len(data.labels), 128))
    return params


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--rtol", type=float, default=0.02)
    args = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", os.cpu_count())
    data = noisy_digits()
    params = trained_mlp(data)
    options: dict[str, Any] = {"batch_size": 128, "points_per_step": 1, "check": False, "progress": False}
    options["directions"] = js.random_directions(1, params)
    print("| plane, metric | mean | sampled points | evaluations | < 1 | < 2 | < 3 stderr | wrong, stderr 0 |")
    print("|---" * 8 + "|")
    for limit in RANGES:
        options["grid"] = js.Grid.plane((-limit, limit, 9), (-limit, limit, 9))
        exact = js.surface(params, loss_and_error, data, **options)
        deviations: dict[str, list[np.ndarray]] = {"loss": [], "error": []}
        zeros = dict.fromkeys(deviations, 0)
        work = 0
        for seed in range(args.seeds):
            estimate = js.surface(params, loss_and_error, data, rtol=args.rtol, seed=seed, **options)
            work += int(estimate.num_examples.sum())
            part = estimate.num_examples.values < len(data.labels)
            for name, values in deviations.items():
                error, stderr = (
                    np.abs(estimate[name] - exact[name]).values[part],
                    estimate[f"{name}_stderr"].values[part],
                )
                zeros[name] += int(((stderr == 0) & (error > 1e-6 * exact[name].values[part])).sum())
                values.append(error[stderr > 0] / stderr[stderr > 0])
        for name, values in deviations.items():
            z = np.concatenate(values)
            shares = " | ".join(f"{(z < k).mean():.1%}" for k in (1, 2, 3))
            saved = args.seeds * int(exact.num_examples.sum()) / work
            means = f"{float(exact[name].min()):.2g} to {float(exact[name].max()):.2g}"
            print(
                f"| {limit}, {name} | {means} | {len(z)} | {saved:.1f} times fewer | {shares} | {zeros[name]} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
