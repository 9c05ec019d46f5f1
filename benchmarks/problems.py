"""The problems of the benchmarks: networks trained on digits, digits with small shifts and noise, random images."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

import jaxscape as js
import train
from jaxscape import runs

RUNS = Path("runs/benchmarks")


def trained(arch: str, *, noshort: bool = False, epochs: int = 20) -> runs.Run:
    """A network trained on digits; a second call reads the first one's run."""
    config = train.Config(arch=arch, noshort=noshort, lr=0.03 if noshort else 0.05, epochs=epochs)
    return train.train(config, RUNS / f"{arch}{'_noshort' if noshort else ''}", resume=True)


def extended_digits(examples: int, seed: int = 0) -> js.datasets.Split:
    """The train split of digits, then copies of it, shifted by at most a pixel, with noise of scale 0.1."""
    split = js.datasets.load("digits")[0]
    rng = np.random.default_rng(seed)
    rows = np.arange(examples) % len(split.labels)
    images = split.images[rows]
    copies = np.arange(len(split.labels), examples)  # the originals come first, unchanged
    shifts = rng.integers(-1, 2, (examples, 2))
    for i in copies:
        images[i] = np.roll(images[i], shifts[i], (0, 1))
    noise = rng.normal(0, 0.1, images.shape).astype(np.float32)
    images[copies] += noise[copies]
    return js.datasets.Split(images, split.labels[rows])


def random_images(examples: int, seed: int = 0) -> js.datasets.Split:
    """Random images with the shape of CIFAR images, for timing only."""
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(examples, 32, 32, 3)).astype(np.float32)
    return js.datasets.Split(images, rng.integers(0, 10, examples).astype(np.int32))


def initialized(arch: str, data: js.datasets.Split) -> tuple[Any, Any, Any]:
    """The params, batch statistics and loss of a network at its initialization."""
    model = runs.build_model({"arch": arch, "noshort": False, "seed": 0}, data)
    graphdef, *parts = nnx.split(model, nnx.Param, nnx.BatchStat)
    params, stats = map(nnx.to_pure_dict, parts)
    return params, stats, _loss(graphdef, stats)


def loss_of(arch: str, data: js.datasets.Split, stats: Any) -> Any:
    """The loss of a network with these batch statistics."""
    model = runs.build_model({"arch": arch, "noshort": False, "seed": 0}, data)
    return _loss(nnx.split(model, nnx.Param, nnx.BatchStat)[0], stats)


def _loss(graphdef: Any, stats: Any) -> Any:
    loss = runs.classification_loss(graphdef, stats)

    def loss_fn(params: Any, batch: Any) -> jax.Array:
        return loss(params, batch)["loss"]

    return loss_fn
