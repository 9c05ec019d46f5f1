"""The compiled training step: augmentation, gradient and update, on all devices."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int, PRNGKeyArray

from jaxscape import datasets, runs
from jaxscape.convolution import compiler_options, fast_convolutions
from jaxscape.types import Params
from training.config import Config

PAD = 4  # pixels around an image, before it is cropped at random


class TrainState(NamedTuple):
    """What a training step maps to the next."""

    params: Params
    batch_stats: Params
    optimizer: optax.OptState


def make_step(graphdef: Any, optimizer: optax.GradientTransformation, config: Config) -> Callable[..., TrainState]:
    """The compiled training step ``(state, data, rows, key) -> state`` on the examples ``rows`` of the data.

    Where ``rows`` is shared by several devices, each takes its part of the batch, and batch norm takes the statistics
    of the whole batch: the same training on one device and on many.

    Args:
        graphdef: Of the network.
        optimizer: What `make_optimizer` made.
        config: The options.

    Returns:
        The jitted step; it takes the buffers of the state.
    """
    example_losses = runs.LOSSES[config.loss]
    augmented = config.dataset != "digits" if config.augment is None else config.augment

    def mean_loss(params: Params, batch_stats: Params, images: Array, labels: Array) -> tuple[Array, Params]:
        if config.precision == "bfloat16":  # in which the statistics stay float32
            params, images = jax.tree.map(lambda x: x.astype(jnp.bfloat16), (params, images))
        model = nnx.merge(graphdef, params, batch_stats)
        losses = example_losses(model(images, train=True).astype(jnp.promote_types(images.dtype, jnp.float32)), labels)
        return losses.mean(), nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))

    @functools.partial(jax.jit, donate_argnums=0, compiler_options=compiler_options())
    def step(state: TrainState, data: datasets.Split, rows: Int[Array, " batch"], key: PRNGKeyArray) -> TrainState:
        images, labels = data.images[rows], data.labels[rows]
        images = augment(key, images) if augmented else images
        images = datasets.normalize(images, config.dataset, jax.tree.leaves(state.params)[0].dtype)
        gradient = jax.grad(fast_convolutions(mean_loss), has_aux=True)
        batch_stats = state.batch_stats
        grads = jax.tree.map(jnp.zeros_like, state.params)
        parts = np.array_split(np.arange(len(rows)), min(config.accumulate, len(rows)))
        for part in parts:  # unrolled: gradients of convolutions are slow in loops on a CPU
            chosen = slice(part[0], part[-1] + 1)
            own, batch_stats = gradient(state.params, batch_stats, images[chosen], labels[chosen])
            grads = jax.tree.map(functools.partial(_add_share, len(part) / len(rows)), grads, own)
        updates, optimizer_state = optimizer.update(grads, state.optimizer, state.params)
        return TrainState(optax.apply_updates(state.params, updates), batch_stats, optimizer_state)

    return step


def _add_share(share: float, total: Array, part: Array) -> Array:
    return total + share * part


def augment(key: PRNGKeyArray, images: Array) -> Array:
    """Crop each image at random from itself with PAD black pixels around, and mirror half of them."""

    def one(key: PRNGKeyArray, image: Array) -> Array:
        where, side = jax.random.split(key)
        height, width, channels = image.shape
        padded = jnp.pad(image, ((PAD, PAD), (PAD, PAD), (0, 0)))
        top, left = jax.random.randint(where, (2,), 0, 2 * PAD + 1)
        cropped = jax.lax.dynamic_slice(padded, (top, left, 0), (height, width, channels))
        return jnp.where(jax.random.bernoulli(side), cropped[:, ::-1], cropped)

    return jax.vmap(one)(jax.random.split(key, len(images)), images)


def shared(mesh: Mesh, rows: np.ndarray) -> NamedSharding:
    """How the rows of a batch go to the devices: evenly, or to each all of them where they cannot be shared evenly."""
    return NamedSharding(mesh, PartitionSpec("data" if len(rows) % mesh.size == 0 else None))
