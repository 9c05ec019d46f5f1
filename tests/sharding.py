"""Meshes, ways to cut params over them, and a small network, for the tests of params that are cut over devices."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxscape.shards import put

MESHES = {
    "fsdp": {"fsdp": 4},
    "tensor": {"rows": 2, "columns": 2},
    "points, fsdp": {"points": 2, "fsdp": 2},
    "points, data, tensor": {"points": 1, "data": 2, "tensor": 2},
}
if jax.device_count() >= 8:  # `make test-all`
    MESHES |= {
        "fsdp of 8": {"fsdp": 8},
        "tensor of 8": {"rows": 2, "columns": 4},
        "points, rows, columns": {"points": 2, "rows": 2, "columns": 2},
        "points, data, tensor of 8": {"points": 2, "data": 2, "tensor": 2},
    }


def mesh(name, kind=AxisType.Auto):
    """A mesh of as many devices as it needs."""
    shape = MESHES[name]
    devices = np.array(jax.devices()[: math.prod(shape.values())]).reshape(tuple(shape.values()))
    return Mesh(devices, tuple(shape), axis_types=(kind,) * len(shape))


def specs(params, mesh):
    """Each leaf cut along its largest axes, by one mesh axis each; those for points and data cut none."""

    def spec(leaf):
        entries = [None] * leaf.ndim
        for name in mesh.axis_names:
            if name in ("points", "data"):
                continue
            free = [a for a in range(leaf.ndim) if entries[a] is None and leaf.shape[a] % mesh.shape[name] == 0]
            if free:
                entries[max(free, key=lambda a: leaf.shape[a])] = name
        return P(*entries)

    return jax.tree.map(spec, params)


def cut(params, mesh):
    """Params in parts on the devices of a mesh."""
    return jax.tree.map(lambda x, s: put(x, NamedSharding(mesh, s)), params, specs(params, mesh))


def problem(dtype=jnp.float64):
    """Params, loss_fn and data of a small network with a convolution, an attention-like product and a bias."""
    keys = jax.random.split(jax.random.key(0), 8)
    draw = lambda key, *shape: jax.random.normal(key, shape, dtype) / math.sqrt(math.prod(shape[:-1]))  # noqa: E731
    params = {
        "conv": {"kernel": draw(keys[0], 3, 3, 2, 8), "bias": jnp.zeros(8, dtype)},
        "in": {"kernel": draw(keys[1], 8, 16), "bias": 0.1 * draw(keys[2], 1, 16)[0]},
        "query": {"kernel": draw(keys[3], 16, 2, 8)},
        "out": {"kernel": draw(keys[4], 16, 4)},
        "temperature": jnp.asarray(1.5, dtype),
    }
    data = (
        np.asarray(jax.random.normal(keys[5], (20, 4, 4, 2), dtype)),
        np.asarray(jax.random.randint(keys[6], (20,), 0, 4)),
    )
    return params, loss_fn, data


def logits_of(params, batch):
    """The outputs of the network."""
    images, _ = batch
    x = jax.lax.conv_general_dilated(
        images, params["conv"]["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    x = jnp.tanh(x + params["conv"]["bias"]).reshape(len(images), 16, 8)
    x = jnp.tanh(x @ params["in"]["kernel"] + params["in"]["bias"])
    heads = jnp.einsum("nti,ihd->nthd", x, params["query"]["kernel"])
    weights = jax.nn.softmax(params["temperature"] * jnp.einsum("nthd,nshd->nhts", heads, heads))
    x = jnp.einsum("nhts,nshd->nthd", weights, heads).reshape(len(images), 16, 16).mean(1)
    return x @ params["out"]["kernel"]


def loss_fn(params, batch):
    """The cross-entropy of each example and whether it is classified right."""
    logits, labels = logits_of(params, batch), batch[1]
    loss = -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1)[:, 0]
    return {"loss": loss, "accuracy": (logits.argmax(-1) == labels) * 1.0}


def tiny(dtype=jnp.float64):
    """Params, loss_fn and data of two layers, which compile in no time."""
    keys = jax.random.split(jax.random.key(1), 3)
    params = {
        "conv": {"kernel": jax.random.normal(keys[0], (8, 16), dtype) / 3, "bias": jnp.full(16, 0.1, dtype)},
        "out": {"kernel": jax.random.normal(keys[1], (16, 4), dtype) / 4},
    }
    data = np.asarray(jax.random.normal(keys[2], (20, 8), dtype)), np.arange(20) % 4
    return params, tiny_loss, data


def tiny_logits(params, batch):
    """The outputs of the two layers."""
    return jnp.tanh(batch[0] @ params["conv"]["kernel"] + params["conv"]["bias"]) @ params["out"]["kernel"]


def tiny_loss(params, batch):
    """The cross-entropy of each example."""
    return -jnp.take_along_axis(jax.nn.log_softmax(tiny_logits(params, batch)), batch[1][:, None], 1)[:, 0]
