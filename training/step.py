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

PAD = 4  # pixels of padding on each side of an image before the random crop


class TrainState(NamedTuple):
    """The state that a training step updates."""

    params: Params
    batch_stats: Params
    optimizer: optax.OptState


def make_step(
    graphdef: Any, optimizer: optax.GradientTransformation, config: Config, mesh: Mesh
) -> Callable[..., TrainState]:
    """Compile the training step ``(state, data, rows, key) -> state`` on the examples ``rows`` of the data.

    If ``rows`` is sharded over several devices, each device computes its part of the batch, and batch norm uses the
    statistics of the whole batch. Thus the training is the same on one device and on many.

    Args:
        graphdef: The graph definition of the network.
        optimizer: The optimizer of `make_optimizer`.
        config: The options of the run.
        mesh: The devices, along an axis ``"data"``.

    Returns:
        The jitted step. It donates the buffers of the state.
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
    """A function for the gradient of the mean loss of a batch, and the new batch statistics.

    Args:
        graphdef: The graph definition of the network.
        config: The options of the run.
        mesh: The devices that share the batch; None: every device computes the whole batch.

    Returns:
        A function ``(params, batch_stats, images, labels) -> (gradient, batch_stats)``.
    """
    example_losses = runs.LOSSES[config.loss]

    def mean_loss(params: Params, batch_stats: Params, images: Array, labels: Array) -> tuple[Array, Params]:
        if config.precision == "bfloat16":  # the statistics stay float32
            params, images = jax.tree.map(lambda x: x.astype(jnp.bfloat16), (params, images))
        model = nnx.merge(graphdef, params, batch_stats)
        if mesh:
            model.set_attributes(nnx.BatchNorm, axis_name="data", raise_if_not_found=False)
        losses = example_losses(model(images, train=True).astype(jnp.promote_types(images.dtype, jnp.float32)), labels)
        return losses.mean(), nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))

    def batch_gradient(params: Params, batch_stats: Params, images: Array, labels: Array) -> tuple[Params, Params]:
        gradient = fast_convolutions(jax.grad(fast_convolutions(mean_loss), has_aux=True))
        grads = jax.tree.map(jnp.zeros_like, params)
        parts = np.array_split(np.arange(len(images)), min(config.accumulate, len(images)))
        for part in parts:  # unrolled: gradients of convolutions are slow in loops on a CPU
            chosen = slice(part[0], part[-1] + 1)
            part_grads, batch_stats = gradient(params, batch_stats, images[chosen], labels[chosen])
            grads = jax.tree.map(functools.partial(_add_share, len(part) / len(images)), grads, part_grads)
        return (_mean_over_devices(grads) if mesh else grads), batch_stats

    if not mesh:
        return batch_gradient
    everywhere, part = PartitionSpec(), PartitionSpec("data")
    specs = (everywhere, everywhere, part, part)
    return jax.shard_map(batch_gradient, mesh=mesh, in_specs=specs, out_specs=everywhere, check_vma=False)


def _mean_over_devices(grads: Params) -> Params:
    """Average over the devices as one vector: leaf by leaf it takes a fifth of the step of a ResNet-20 on a CPU."""
    vector, unravel = ravel_pytree(grads)
    return unravel(jax.lax.pmean(vector, "data"))


def _add_share(share: float, total: Array, part: Array) -> Array:
    return total + share * part


def augment(key: PRNGKeyArray, images: Array) -> Array:
    """Pad each image with PAD black pixels, crop it at random to the same size, and mirror it with probability 1/2."""

    def crop(key: PRNGKeyArray, image: Array) -> Array:
        position, side = jax.random.split(key)
        height, width, channels = image.shape
        padded = jnp.pad(image, ((PAD, PAD), (PAD, PAD), (0, 0)))
        top, left = jax.random.randint(position, (2,), 0, 2 * PAD + 1)
        cropped = jax.lax.dynamic_slice(padded, (top, left, 0), (height, width, channels))
        return jnp.where(jax.random.bernoulli(side), cropped[:, ::-1], cropped)

    return jax.vmap(crop)(jax.random.split(key, len(images)), images)


def shared(mesh: Mesh, rows: np.ndarray) -> Array:
    """Put the rows of a batch on the devices: sharded if the parts are equal, otherwise replicated."""
    sharding = NamedSharding(mesh, PartitionSpec("data" if len(rows) % mesh.size == 0 else None))
    return jax.make_array_from_callback(rows.shape, sharding, lambda part: rows[part])
