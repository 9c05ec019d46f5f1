"""The compiled training step: augmentation, gradient and update, on all devices."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.flatten_util import ravel_pytree
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


def make_step(
    graphdef: Any, optimizer: optax.GradientTransformation, config: Config, mesh: Mesh
) -> Callable[..., TrainState]:
    """The compiled training step ``(state, data, rows, key) -> state`` on the examples ``rows`` of the data.

    Where ``rows`` is shared by several devices, each takes its part of the batch, and batch norm takes the statistics
    of the whole batch: the same training on one device and on many.

    Args:
        graphdef: Of the network.
        optimizer: What `make_optimizer` made.
        config: The options.
        mesh: The devices, along an axis ``"data"``.

    Returns:
        The jitted step; it takes the buffers of the state.
    """
    augmented = config.dataset != "digits" if config.augment is None else config.augment

    @functools.partial(jax.jit, donate_argnums=0, compiler_options=compiler_options())
    def step(state: TrainState, data: datasets.Split, rows: Int[Array, " batch"], key: PRNGKeyArray) -> TrainState:
        images, labels = data.images[rows], data.labels[rows]
        images = augment(key, images) if augmented else images
        images = datasets.normalize(images, config.dataset, jax.tree.leaves(state.params)[0].dtype)
        gradient = _gradient(graphdef, config, mesh if len(rows) % mesh.size == 0 else None)
        grads, batch_stats = gradient(state.params, state.batch_stats, images, labels)
        updates, optimizer_state = optimizer.update(grads, state.optimizer, state.params)
        return TrainState(optax.apply_updates(state.params, updates), batch_stats, optimizer_state)

    return step


def _gradient(graphdef: Any, config: Config, mesh: Mesh | None) -> Callable[..., tuple[Params, Params]]:
    """The gradient of the mean loss of a batch, and the batch statistics after it; of a batch shared over a mesh."""
    example_losses = runs.LOSSES[config.loss]

    def mean_loss(params: Params, batch_stats: Params, images: Array, labels: Array) -> tuple[Array, Params]:
        if config.precision == "bfloat16":  # in which the statistics stay float32
            params, images = jax.tree.map(lambda x: x.astype(jnp.bfloat16), (params, images))
        model = nnx.merge(graphdef, params, batch_stats)
        if mesh:
            model.set_attributes(nnx.BatchNorm, axis_name="data", raise_if_not_found=False)
        losses = example_losses(model(images, train=True).astype(jnp.promote_types(images.dtype, jnp.float32)), labels)
        return losses.mean(), nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))

    def own(params: Params, batch_stats: Params, images: Array, labels: Array) -> tuple[Params, Params]:
        gradient = fast_convolutions(jax.grad(fast_convolutions(mean_loss), has_aux=True))
        grads = jax.tree.map(jnp.zeros_like, params)
        parts = np.array_split(np.arange(len(images)), min(config.accumulate, len(images)))
        for part in parts:  # unrolled: gradients of convolutions are slow in loops on a CPU
            chosen = slice(part[0], part[-1] + 1)
            of_part, batch_stats = gradient(params, batch_stats, images[chosen], labels[chosen])
            grads = jax.tree.map(functools.partial(_add_share, len(part) / len(images)), grads, of_part)
        return (_mean_over_devices(grads) if mesh else grads), batch_stats

    if not mesh:
        return own
    everywhere, part = PartitionSpec(), PartitionSpec("data")
    specs = (everywhere, everywhere, part, part)
    return jax.shard_map(own, mesh=mesh, in_specs=specs, out_specs=everywhere, check_vma=False)


def _mean_over_devices(grads: Params) -> Params:
    """As one vector: leaf by leaf it takes a fifth of a ResNet-20's step on a CPU."""
    vector, unravel = ravel_pytree(grads)
    return unravel(jax.lax.pmean(vector, "data"))


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


def shared(mesh: Mesh, rows: np.ndarray) -> Array:
    """The rows of a batch on the devices: in even parts, or all of them on each where they cannot be shared evenly."""
    sharding = NamedSharding(mesh, PartitionSpec("data" if len(rows) % mesh.size == 0 else None))
    return jax.make_array_from_callback(rows.shape, sharding, lambda part: rows[part])
