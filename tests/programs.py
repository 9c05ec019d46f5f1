"""Random losses: convolutions, norms, pooling, loops, branches, masks and rules of their own, in any order.

``program(seed)`` gives params, a loss and data. The same seed gives the same program in any process.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

BATCH, SIZE, CLASSES = 64, 6, 3  # XLA fuses differently, and drops NaN on a CPU, from 16 examples or so
LAYOUTS = (("NHWC", "HWIO", "NHWC"), ("NCHW", "OIHW", "NCHW"), ("NHWC", "OHWI", "NCHW"))


class Program(NamedTuple):
    """A random loss.

    Attributes:
        params: A dict of arrays.
        loss: ``loss(params, batch)`` -> the loss of each example.
        data: Images, labels and indices.
        names: What it is made of.
        nan: Which examples have a loss of NaN, shape ``(examples,)``: it is known from how the program is made, since
            eager JAX on a CPU loses a NaN in the maximum of a window, too.
    """

    params: dict
    loss: object
    data: tuple
    names: list
    nan: np.ndarray


def program(seed, dtype=jnp.float32):
    """A loss of two to six random layers; every fifth one is NaN where a variance is negative."""
    rng = np.random.default_rng(seed)
    channels = int(rng.choice([1, 3, 4]))
    images = rng.normal(size=(BATCH, SIZE, SIZE, channels))
    nan = np.full(BATCH, seed % 5 == 2)
    if seed % 7 == 3:
        lost = int(rng.integers(BATCH))  # one example alone is NaN
        images[lost], nan[lost] = np.nan, True
    layers, params, names = [], {}, []
    shape = images.shape[1:]
    for i in range(int(rng.integers(2, 7))):
        name, make = list(LAYERS.items())[int(rng.integers(len(LAYERS)))]
        part, layer, shape = make(rng, shape)
        params |= {f"{i} {key}": jnp.asarray(value, dtype) for key, value in part.items()}
        layers.append((f"{i} ", layer))
        names.append(name)
    if seed % 5 == 2:
        part, layer, shape = batch_norm(rng, shape)
        part["var"][0] = -1.0
        params |= {f"last {key}": jnp.asarray(value, dtype) for key, value in part.items()}
        layers.append(("last ", layer))
        names.append("negative variance")
    params["head"] = jnp.asarray(rng.normal(size=(shape[-1], CLASSES)) / shape[-1] ** 0.5, dtype)
    squared, relu = rng.random() < 0.3, rng.random() < 0.5

    def loss(params, batch):
        x, labels, indices = batch
        for prefix, layer in layers:
            own = {key.removeprefix(prefix): p for key, p in params.items() if key.startswith(prefix)}
            x = layer(own, x, indices)
        x = jax.nn.relu(x + 0.1) if relu else x  # what XLA fuses with the mean on a CPU
        logits = x.mean((1, 2)) @ params["head"]
        if squared:
            return ((logits - jax.nn.one_hot(labels, CLASSES, dtype=logits.dtype)) ** 2).sum(-1)
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)[:, 0]

    data = images.astype(dtype), rng.integers(0, CLASSES, BATCH), rng.integers(0, 4, BATCH)
    return Program(params, loss, data, names, nan)


def convolution(rng, shape):
    """Any window, stride, padding, dilation, groups and layout."""
    window, features = int(rng.choice([1, 2, 3])), int(rng.choice([2, 4, 16]))
    groups = 2 if shape[-1] % 2 == 0 and rng.random() < 0.3 else 1
    stride = 2 if min(shape[:2]) > 3 and rng.random() < 0.3 else 1
    padding = ["SAME", "VALID", ((1, 0), (2, 1))][int(rng.integers(3))] if min(shape[:2]) > 3 else "SAME"
    dilation = 2 if min(shape[:2]) > 5 and rng.random() < 0.2 else 1
    layout = LAYOUTS[int(rng.integers(len(LAYOUTS)))]
    kernel = rng.normal(size=(window, window, shape[-1] // groups, features)) / (window * shape[-1] ** 0.5)
    turn = tuple("HWIO".index(letter) for letter in layout[1])

    def layer(p, x, _):
        x = x if layout[0] == "NHWC" else x.transpose(0, 3, 1, 2)
        y = jax.lax.conv_general_dilated(
            x,
            p["kernel"],
            (stride, stride),
            padding,
            rhs_dilation=(dilation, dilation),
            dimension_numbers=layout,
            feature_group_count=groups,
        )
        return (y if layout[2] == "NHWC" else y.transpose(0, 2, 3, 1)) + p["bias"]

    bias = rng.normal(size=features)
    out = jax.eval_shape(layer, {"kernel": kernel.transpose(turn), "bias": bias}, np.zeros((1, *shape)), None).shape[1:]
    return {"kernel": kernel.transpose(turn), "bias": bias}, layer, out


def batch_norm(rng, shape):
    """With running statistics."""
    c = shape[-1]
    part = {"scale": 1 + 0.1 * rng.normal(size=c), "bias": 0.1 * rng.normal(size=c), "mean": rng.normal(size=c)}
    part["var"] = 0.5 + rng.random(c)
    return part, lambda p, x, _: (x - p["mean"]) * jax.lax.rsqrt(p["var"] + 1e-5) * p["scale"] + p["bias"], shape


def layer_norm(rng, shape):
    """Over the features, with a learned scale; one feature alone would always give 0."""
    center = 1.0 if shape[-1] > 1 else 0.0

    def layer(p, x, _):
        x = x - center * x.mean(-1, keepdims=True)
        return x / jnp.sqrt((x**2).mean(-1, keepdims=True) + 1e-3) * p["scale"]

    return {"scale": 1 + 0.1 * rng.normal(size=shape[-1])}, layer, shape


def activation(rng, shape):
    """One of the usual ones."""
    function = [jax.nn.relu, jax.nn.gelu, jnp.tanh, jax.nn.softplus, jax.nn.silu, jnp.abs][int(rng.integers(6))]
    return {"shift": 0.1 * rng.normal(size=shape[-1])}, lambda p, x, _: function(x + p["shift"]), shape


def pool(rng, shape):
    """The largest or the mean of windows of 2x2; nothing where the images are too small."""
    if min(shape[:2]) < 4:
        return {}, lambda p, x, _: x, shape
    largest, window = rng.random() < 0.5, (1, 2, 2, 1)

    def layer(p, x, _):
        if largest:
            return jax.lax.reduce_window(x, np.array(-np.inf, x.dtype), jax.lax.max, window, window, "VALID")
        return jax.lax.reduce_window(x, np.array(0, x.dtype), jax.lax.add, window, window, "VALID") / 4

    return {}, layer, (shape[0] // 2, shape[1] // 2, shape[2])


def relu_and_pool(rng, shape):
    """What XLA fuses on a CPU: relu, and the mean over the image of each feature."""
    return {}, lambda p, x, _: jnp.broadcast_to(jax.nn.relu(x + 0.1).mean((1, 2), keepdims=True), x.shape), shape


def scanned(rng, shape):
    """The same kind of convolution three times, by `jax.lax.scan`, with a residual sum."""
    c = shape[-1]

    def layer(p, x, _):
        def step(x, kernel):
            numbers = ("NHWC", "HWIO", "NHWC")
            y = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)
            return x + jnp.tanh(y), None

        return jax.lax.scan(step, x, p["kernels"])[0]

    return {"kernels": rng.normal(size=(3, 3, 3, c, c)) / (3 * c**0.5)}, layer, shape


def branch(rng, shape):
    """`jax.lax.cond` on a parameter."""

    def layer(p, x, _):
        return jax.lax.cond(p["switch"] > 0, lambda x: x * p["factor"], lambda x: jnp.sin(x), x)

    return {"switch": rng.normal(), "factor": 1 + 0.1 * rng.normal(size=shape[-1])}, layer, shape


def gather(rng, shape):
    """Rows of an embedding by indices in the data."""
    return {"table": rng.normal(size=(4, shape[-1]))}, lambda p, x, i: x + p["table"][i][:, None, None], shape


def masked_attention(rng, shape):
    """Softmax over pixels under a mask of rank 3, with constants that are broadcast."""
    c, n = shape[-1], shape[0] * shape[1]

    def layer(p, x, _):
        rows = x.reshape(len(x), n, c)
        scores = jnp.einsum("bic,cd,bjd->bij", rows, p["product"], rows)
        mask = jnp.tril(jnp.ones((1, n, n), bool))
        scores = jnp.where(mask, scores, jnp.full((1, n, n), -1e9, scores.dtype))
        return (jnp.einsum("bij,bjc->bic", jax.nn.softmax(scores), rows) + jnp.zeros((1, n, c), x.dtype)).reshape(
            x.shape
        )

    return {"product": rng.normal(size=(c, c)) / c}, layer, shape


@jax.custom_jvp
def clipped(x):
    """The identity between -1 and 1; its own derivative lets a tenth through outside."""
    return jnp.clip(x, -1, 1)


@clipped.defjvp
def _clipped_jvp(primals, tangents):
    (x,), (t,) = primals, tangents
    return clipped(x), t * jnp.where(jnp.abs(x) < 1, 1.0, 0.1).astype(t.dtype)


@jax.custom_vjp
def doubled(x):
    """Twice x, with the gradient of x."""
    return 2 * x


doubled.defvjp(lambda x: (2 * x, None), lambda _, g: (g,))


def custom_rule(rng, shape):
    """The users' own derivatives, around a convolution of one pixel."""
    function = clipped if rng.random() < 0.5 else doubled

    def layer(p, x, _):
        numbers = ("NHWC", "HWIO", "NHWC")
        return function(
            jax.checkpoint(lambda k, x: jax.lax.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=numbers))(
                p["kernel"], x
            )
        )

    return {"kernel": rng.normal(size=(1, 1, shape[-1], shape[-1])) / shape[-1] ** 0.5}, layer, shape


def constants(rng, shape):
    """Constants of rank 0 to 4, closed over or made inside."""
    rank = int(rng.integers(5))
    array = rng.normal(size=(1, *shape)[4 - rank :] if rank else ())

    def layer(p, x, _):
        return (
            x * jnp.asarray(array, x.dtype)
            + jnp.full((1, *shape), 0.5, x.dtype)
            + p["scalar"] * jnp.ones(shape, x.dtype)
        )

    return {"scalar": rng.normal()}, layer, shape


LAYERS = {
    "convolution": convolution,
    "another convolution": convolution,
    "batch norm": batch_norm,
    "layer norm": layer_norm,
    "activation": activation,
    "pool": pool,
    "relu and pool": relu_and_pool,
    "scan": scanned,
    "cond": branch,
    "gather": gather,
    "attention": masked_attention,
    "custom rule": custom_rule,
    "constants": constants,
}
