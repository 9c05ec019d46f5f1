"""The decoder against a plain implementation with the same weights, and what must hold of a language model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxscape as js
from benchmarks import gpt as plain
from models import gpt

SIZE = gpt.Size(2, 16, 2)


def split(**options):
    model = gpt.GPT(SIZE, vocabulary=11, context=8, dtype=jnp.float64, rngs=nnx.Rngs(0), **options)
    graphdef, params = nnx.split(model, nnx.Param)
    noise = iter(jax.random.split(jax.random.key(1), 100))
    return graphdef, jax.tree.map(lambda x: x + 0.1 * jax.random.normal(next(noise), x.shape, x.dtype), params)


def as_plain(params):
    """The weights in the structure of `benchmarks.gpt`."""
    layers = []
    for i in range(SIZE.layers):
        block = params[f"block{i}"]
        parts = {name: {k: v[...] for k, v in block[name].items()} for name in ("norm1", "qkv", "out", "norm2", "up")}
        layers.append(parts | {"down": {k: v[...] for k, v in block["down"].items()}})
    embedding = {"tokens": params["tokens"]["embedding"][...], "positions": params["positions"]["embedding"][...]}
    return {"embedding": embedding, "layers": layers, "norm": {k: v[...] for k, v in params["norm"].items()}}


@pytest.mark.slow  # 9 seconds: both positions of a decoder by hand
def test_it_is_gpt2():
    graphdef, params = split()
    tokens = np.random.default_rng(0).integers(0, 11, (3, 9))
    size = plain.Size(layers=2, width=16, heads=2, vocabulary=11, context=8)
    expected = plain.loss(size)(as_plain(params), (tokens,))
    np.testing.assert_allclose(gpt.next_token_loss(graphdef)(params, tokens)["loss"], expected, rtol=1e-6)


@pytest.mark.slow  # 7 seconds
@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_the_future_has_no_part(positions):
    graphdef, params = split(positions=positions)
    model = nnx.merge(graphdef, params)
    tokens = jnp.array(np.random.default_rng(0).integers(0, 11, (1, 8)))
    before, after = model(tokens), model(tokens.at[0, 5].add(1) % 11)
    np.testing.assert_array_equal(before[0, :5], after[0, :5])
    assert np.abs(before[0, 5:] - after[0, 5:]).max() > 1e-3


def test_rotary_positions_are_relative():
    q, k = (jax.random.normal(jax.random.key(i), (8,)) for i in range(2))
    along = lambda x: gpt.rotated(jnp.broadcast_to(x, (1, 12, 1, 8)))[0, :, 0]  # noqa: E731
    products = along(q) @ along(k).T
    for shift in range(4):
        np.testing.assert_allclose(np.diag(products, shift), products[0, shift], rtol=1e-10)
    np.testing.assert_allclose(np.linalg.norm(along(q), axis=1), np.linalg.norm(q), rtol=1e-12)


@pytest.mark.slow  # 4 seconds
def test_means_are_over_tokens():
    graphdef, params = split()
    tokens = np.random.default_rng(0).integers(0, 11, (4, 9))
    tokens[0, 3:], tokens[1, 6:], tokens[3, :] = -1, -1, -1  # the last one has no token at all
    loss_fn = gpt.next_token_loss(graphdef)
    losses = []
    for row in tokens:
        logits = np.asarray(nnx.merge(graphdef, params)(jnp.array(np.maximum(row[None, :-1], 0))))[0].astype(np.float64)
        for at, target in enumerate(row[1:]):
            if target >= 0:
                losses.append(np.log(np.exp(logits[at]).sum()) - logits[at, target])
    ds = js.surface(params, loss_fn, tokens, grid=js.Grid((np.zeros(1),)), batch_size=3, progress=False)
    np.testing.assert_allclose(ds.loss[0], np.mean(losses), rtol=1e-6)


@pytest.mark.slow  # 4 seconds
def test_biases_and_norms_are_left_alone_and_the_embedding_has_a_filter_for_each_token():
    _, params = split()
    table = dict(js.random_directions(0, params).explain(params)[["leaf", "rule"]].to_numpy())
    (rule,) = [rule for leaf, rule in table.items() if "tokens" in leaf]
    assert rule == "filter: 11 over axis 0"
    assert all(rule.startswith("ignored") for leaf, rule in table.items() if "bias" in leaf or "norm" in leaf)


def test_what_is_unknown():
    with pytest.raises(ValueError, match="name is 'gpt_2m', expected one of gpt_1m"):
        gpt.create("gpt_2m")
    with pytest.raises(ValueError, match="positions is 'sine', expected 'learned' or 'rotary'"):
        gpt.create("gpt_1m", positions="sine")
