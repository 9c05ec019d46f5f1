"""The proof that a loss is a mean over its examples: it holds for losses that are, and for no other one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxscape.objective import trace
from jaxscape.objective._proof import is_mean
from tests.problems import classification_data, cross_entropy, mlp_apply, mlp_loss, mlp_params
from tests.programs import program

SIZES = (24, 8)
PARAMS, DATA = mlp_params(), classification_data(examples=32)
X = DATA[0]


def proven(loss, params=PARAMS, data=DATA):
    def metrics(params, batch):
        value = loss(params, batch)
        return value if isinstance(value, dict) else {"loss": value}

    def batch(size):
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype), data)

    of_batch = [False] * len(jax.tree.leaves(params)) + [True] * len(jax.tree.leaves(data))
    one, other = (trace(metrics, params, batch(size)) for size in SIZES)
    return is_mean(one, other, SIZES, of_batch)


def each(params, batch):
    return mlp_loss(params, batch)["loss"]


def attention(x):
    """Heads of two numbers over a sequence of four, with a mask of what is to come."""
    q = x[..., None] * jnp.array([1.0, 2.0])
    scores = jnp.einsum("bqd,bkd->bqk", q, q)
    mask = jnp.tril(jnp.ones((x.shape[1], x.shape[1]), bool))
    return jnp.einsum("bqk,bkd->bqd", jax.nn.softmax(jnp.where(mask, scores, -jnp.inf)), q)


MEANS = {
    "each example": each,
    "mean": lambda p, b: each(p, b).mean(),
    "mean by a factor": lambda p, b: each(p, b).sum() * (1 / len(b[0])),
    "sum over the number": lambda p, b: 2 * jnp.sum(each(p, b)) / (3 * len(b[1])) - 1,
    "with a penalty": lambda p, b: each(p, b).mean() + 0.1 * sum(jnp.sum(x**2) for x in jax.tree.leaves(p)),
    "of several means": lambda p, b: each(p, b).mean() - 0.5 * jnp.mean(b[0] ** 2),
    "weights": lambda p, b: {"loss": each(p, b), "weight": b[0][:, 0] ** 2},
    "flat": lambda p, b: jnp.mean(jnp.reshape(b[0], -1) ** 2 * p["layer0"]["bias"][0]),
    "rows merged and parted": lambda p, b: (b[0].reshape(-1, 1) @ jnp.ones((1, 3))).reshape(len(b[0]), -1).max(1),
    "axes moved": lambda p, b: jnp.moveaxis(b[0].T[None] * jnp.arange(3.0)[:, None, None], 2, 0).sum((1, 2)),
    "one-hot": lambda p, b: -(jax.nn.one_hot(b[1], 4) * jax.nn.log_softmax(mlp_apply(p, b[0]))).sum(1),
    "embedding": lambda p, b: jnp.take(p["layer0"]["kernel"], b[1], axis=0).sum(1),
    "sorted within": lambda p, b: (
        jnp.sort(b[0], axis=1)[:, 0] + jax.lax.top_k(b[0], 2)[0].sum(1) + jnp.cumsum(b[0], 1)[:, 2]
    ),
    "attention": lambda p, b: attention(b[0]).sum((1, 2)),
    "recurrent": lambda p, b: jax.lax.scan(
        lambda h, x: (jnp.tanh(h + x), h), jnp.zeros(len(b[0])), jnp.moveaxis(b[0], 1, 0)
    )[0],
    "branches": lambda p, b: jax.lax.cond(p["layer0"]["bias"][0] > 0, lambda x: x.sum(1), lambda x: x[:, 0], b[0]),
    "convolution": lambda p, b: jnp.mean(
        jax.lax.conv(b[0][:, None, None], jnp.ones((2, 1, 1, 3)), (1, 1), "SAME"), (1, 2, 3)
    ),
    "padded": lambda p, b: jnp.pad(b[0], ((0, 0), (1, 2)))[:, 1:4].sum(1),
    "no params": lambda p, b: jnp.zeros(len(b[0])),
    "no data": lambda p, b: p["layer0"]["bias"].sum(),
}


@pytest.mark.parametrize("name", MEANS)
def test_a_mean_is_proven(name):
    assert proven(MEANS[name])


NO_MEANS = {
    "sum": lambda p, b: each(p, b).sum(),
    "divided by the number": lambda p, b: each(p, b) / len(b[0]),
    "mean divided by the number": lambda p, b: each(p, b).mean() / len(b[0]),
    "mean of squares, squared": lambda p, b: each(p, b).mean() ** 2,
    "largest": lambda p, b: each(p, b).max(),
    "another mean": lambda p, b: each(p, b).sum() / (len(b[0]) - 1),
    "sum over the weights": lambda p, b: (each(p, b) * b[0][:, 0]).sum() / b[0][:, 0].sum(),
    "batch statistics": lambda p, b: each(p, ((b[0] - b[0].mean(0)) / b[0].std(0), b[1])),
    "dropout": lambda p, b: each(p, (b[0] * jax.random.bernoulli(jax.random.key(0), 0.5, b[0].shape), b[1])),
    "place in the batch": lambda p, b: each(p, b) * jnp.arange(len(b[0])),
    "neighbour": lambda p, b: each(p, (jnp.roll(b[0], 1, 0), b[1])),
    "reversed": lambda p, b: each(p, (b[0][::-1], b[1])),
    "first example": lambda p, b: each(p, (b[0] - b[0][:1], b[1])),
    "sorted over the batch": lambda p, b: jnp.sort(each(p, b)),
    "running sum": lambda p, b: jnp.cumsum(each(p, b)),
    "contrastive": lambda p, b: jnp.diagonal(jax.nn.log_softmax(b[0] @ b[0].T)),
    "transposed twice": lambda p, b: (b[0].T.reshape(len(b[0]), -1)).sum(1),
    "as many labels as classes": lambda p, b: jnp.take(each(p, b), b[1] % len(b[0])),
    "weights of the batch": lambda p, b: {"loss": each(p, b), "weight": b[0][:, 0] / b[0][:, 0].sum()},
    "other for large batches": lambda p, b: each(p, b) * (2 if len(b[0]) > 10 else 1),
    "window over the batch": lambda p, b: jax.lax.reduce_window(each(p, b), -jnp.inf, jax.lax.max, (3,), (1,), "SAME"),
    "recurrent over the batch": lambda p, b: jax.lax.scan(lambda h, x: (h + x, h), jnp.zeros(5), b[0])[1].sum(1),
    "convolution over the batch": lambda p, b: jax.lax.conv(b[0].T[None], jnp.ones((1, 5, 3)), (1,), "SAME")[0, 0],
    "constant of this size": lambda p, b: each(p, b) * np.linspace(0, 1, len(b[0])),
    "gathered by place": lambda p, b: cross_entropy(mlp_apply(p, b[0])[jnp.arange(len(b[0]))[::-1]], b[1]),
}


@pytest.mark.parametrize("name", NO_MEANS)
def test_nothing_else_is_proven(name):
    assert not proven(NO_MEANS[name])


MIXERS = {
    "mean": lambda x: x - x.mean(0, keepdims=True),
    "neighbour": lambda x: x + jnp.roll(x, 1, 0),
    "order": lambda x: x[::-1],
    "place": lambda x: x * jnp.linspace(0.5, 1, len(x), dtype=x.dtype).reshape(-1, *[1] * (x.ndim - 1)),
    "size": lambda x: x / len(x),
    "softmax": lambda x: jax.nn.softmax(x, 0),
    "products": lambda x: jnp.tensordot(x.reshape(len(x), -1) @ x.reshape(len(x), -1).T, x, 1),
    "sort": lambda x: jnp.sort(x, 0),
}


@pytest.mark.parametrize("seed", range(12))
def test_random_programs_are_proven_unless_examples_are_mixed(seed):
    params, loss, data, *_ = program(seed)
    assert proven(loss, params, data)
    mixer = list(MIXERS.values())[seed % len(MIXERS)]
    assert not proven(lambda p, b: loss(p, (mixer(b[0]), *b[1:])), params, data)
    assert not proven(lambda p, b: mixer(loss(p, b)), params, data)
