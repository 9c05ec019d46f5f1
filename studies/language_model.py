"""The landscape of a small language model: its path of training, a plane, both ends of its spectrum and its density.

    python -m studies.language_model [--runs runs/language_model] [--out docs/studies]

A decoder of 0.8 M parameters (`models.gpt`, "gpt_1m") learns to predict the next byte of the documentation that comes
with Python (`pydoc_data.topics`, 0.46 MB, a tenth of it held out): Adam, 1,500 steps of 16 sequences of 128 bytes, the
rate falling to 0 along a cosine. It writes language_model.png: the path in its principal plane on the loss around it,
a plane of filter-normalized directions, and the density of the Hessian's eigenvalues at the minimizer. What is finished
is kept in ``--runs``.
"""

import argparse
from pathlib import Path
from pydoc_data import topics
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import orbax.checkpoint as ocp
import xarray as xr
from flax import nnx
from tqdm.auto import tqdm

import jaxscape as js
from jaxscape.compilation import keep_compiled_programs
from models import gpt

STEPS, BATCH, CONTEXT, SAVE_EVERY = 1500, 16, 128, 50
EXAMPLES = 64  # held-out sequences of the surfaces, 8,192 bytes
PLANE = js.Grid.plane((-1, 1, 21), (-1, 1, 21))


def text() -> tuple[np.ndarray, np.ndarray]:
    """Sequences of ``CONTEXT + 1`` bytes: those of training, and those held out, at the end of the text."""
    whole = np.frombuffer("\n".join(topics.topics.values()).encode(), np.uint8)
    cut = len(whole) * 9 // 10
    parts = (whole[:cut], whole[cut:])
    train, test = (
        x[: len(x) // (CONTEXT + 1) * (CONTEXT + 1)].reshape(-1, CONTEXT + 1).astype(np.int32) for x in parts
    )
    return train, test


def trained(folder: Path, loss_fn: Any, params: Any, data: np.ndarray) -> Any:
    """Train, with a checkpoint every few steps; the checkpoints of a folder that has all are read."""
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-3, STEPS))

    @jax.jit
    def step(params: Any, state: Any, batch: jax.Array) -> tuple[Any, Any, jax.Array]:
        def mean(params: Any) -> jax.Array:
            metrics = loss_fn(params, batch)
            return jnp.sum(metrics["weight"] * metrics["loss"]) / jnp.sum(metrics["weight"])

        loss, gradient = jax.value_and_grad(mean)(params)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, loss

    with ocp.CheckpointManager(folder.resolve()) as manager:
        if manager.latest_step() != STEPS:
            state, rng = optimizer.init(params), np.random.default_rng(0)
            bar = tqdm(range(STEPS), unit="step")
            for i in bar:
                if i % SAVE_EVERY == 0:
                    manager.save(i, args=ocp.args.StandardSave(nnx.to_pure_dict(params)))
                params, state, loss = step(params, state, data[rng.integers(0, len(data), BATCH)])
                if i % 10 == 0:
                    bar.set_postfix(loss=f"{float(loss):.3f}")
            manager.save(STEPS, args=ocp.args.StandardSave(nnx.to_pure_dict(params)))
            manager.wait_until_finished()
    return js.checkpoints(folder)


def measured(runs: Path) -> tuple[xr.Dataset, xr.Dataset, xr.Dataset]:
    """The path, the plane and the density."""
    graphdef, start = nnx.split(gpt.create("gpt_1m", context=CONTEXT), nnx.Param)
    loss_fn = gpt.next_token_loss(graphdef)
    train, test = text()
    path = trained(runs / "checkpoints", loss_fn, start, train)

    def loss_of_dict(params: Any, tokens: Any) -> Any:
        state = jax.tree.unflatten(jax.tree.structure(start), jax.tree.leaves(params))
        return loss_fn(state, tokens)

    held_out = test[:EXAMPLES]
    walk = js.trajectory(path, loss_of_dict, held_out, points=15, store=runs / "path.zarr")
    plane = js.surface(path[-1], loss_of_dict, held_out, grid=PLANE, store=runs / "plane.zarr")
    spectrum = runs / "spectrum.zarr"
    if not spectrum.exists():
        density = js.spectral_density(path[-1], loss_of_dict, held_out, num_probes=4, num_steps=40)
        density.to_zarr(spectrum, consolidated=False)
    density = js.load(spectrum)
    ends = js.extreme_eigenvalues(path[-1], loss_of_dict, held_out, max_matvecs=200)
    bits = float(plane.center_loss if "center_loss" in plane else plane.attrs["center_loss"]) / np.log(2)
    print(f"held out: {bits:.3f} bits a byte; path: {walk.attrs['variance_captured']:.1%} of its variance in the plane")
    print(f"eigenvalues from {float(ends.min_eigenvalue):.4g} to {float(ends.max_eigenvalue):.4g}, converged: "
          f"{bool(ends.converged)}")  # fmt: skip
    return walk, plane, density


def main() -> None:
    """Train and measure what is missing, then draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/language_model"))
    parser.add_argument("--out", type=Path, default=Path("docs/studies"))
    args = parser.parse_args()
    keep_compiled_programs()
    args.runs.mkdir(parents=True, exist_ok=True)
    walk, plane, density = measured(args.runs)
    figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    js.plot.trajectory(walk.assign_attrs(title="path of training, principal plane"), ax=axes[0], log=False)
    js.plot.contour(plane.assign_attrs(title="plane of random directions"), ax=axes[1], log=False)
    js.plot.spectrum(density.assign_attrs(title="eigenvalues of the Hessian"), ax=axes[2])
    args.out.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out / "language_model.png", dpi=110)


if __name__ == "__main__":
    main()
