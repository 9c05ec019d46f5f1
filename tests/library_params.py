"""Parameters of small modules of every library, as its users get them; entries are normal, so no bias is zero.

Shapes are traced, not computed: nothing is compiled.
"""

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx

KEY = jax.random.PRNGKey(0)


def normal(tree, seed=0):
    """The same pytree with normal entries."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jax.device_put(rng.normal(size=leaf.shape)), tree)


class EquinoxBlock(eqx.Module):
    """Every layer of Equinox that has weights; ``layers`` names none of those in it."""

    attention: eqx.nn.MultiheadAttention
    layers: list
    norm: eqx.nn.LayerNorm
    conv: eqx.nn.Conv2d
    conv_1d: eqx.nn.Conv1d
    depthwise: eqx.nn.Conv2d
    up: eqx.nn.ConvTranspose2d
    embedding: eqx.nn.Embedding
    cell: eqx.nn.GRUCell

    def __init__(self, key):
        self.attention = eqx.nn.MultiheadAttention(2, 8, key=key)
        self.layers = [
            eqx.nn.Linear(8, 6, use_bias=False, key=key),
            eqx.nn.RMSNorm(8, use_bias=False),
            eqx.nn.GroupNorm(2, 8),
            eqx.nn.Linear(3, 5, key=key),
        ]
        self.norm = eqx.nn.LayerNorm((3, 4))
        self.conv = eqx.nn.Conv2d(3, 4, 3, key=key)
        self.conv_1d = eqx.nn.Conv1d(3, 4, 3, use_bias=False, key=key)
        self.depthwise = eqx.nn.Conv2d(6, 6, 3, groups=6, key=key)
        self.up = eqx.nn.ConvTranspose2d(3, 5, 2, key=key)
        self.embedding = eqx.nn.Embedding(7, 4, key=key)
        self.cell = eqx.nn.GRUCell(3, 4, key=key)


def equinox_params(make):
    """The trainable part of the module that ``make`` gives for a key."""
    module = eqx.filter_eval_shape(make, KEY)
    return normal(eqx.filter(module, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct)))


def equinox_block():
    return equinox_params(EquinoxBlock)


def equinox_stack(layers):
    return equinox_params(lambda key: eqx.filter_vmap(EquinoxBlock)(jax.random.split(key, layers)))


class LinenBlock(nn.Module):
    """A transformer's block with a convolution; ``first`` and ``up`` are names that say nothing."""

    use_bias: bool = True

    @nn.compact
    def __call__(self, x, _=None):
        x = nn.RMSNorm(name="first")(nn.LayerNorm()(x))
        x = nn.MultiHeadDotProductAttention(num_heads=2, use_bias=self.use_bias)(x)
        x = nn.Conv(8, (3,), use_bias=self.use_bias)(x)
        x = nn.Dense(8, use_bias=self.use_bias, name="up")(nn.Dense(6, use_bias=self.use_bias)(x))
        return x, None


def linen_block(use_bias=True):
    return normal(jax.eval_shape(LinenBlock(use_bias).init, KEY, jnp.ones((1, 4, 8)))["params"])


def linen_stack(layers, use_bias=True):
    stack = nn.scan(LinenBlock, variable_axes={"params": 0}, split_rngs={"params": True}, length=layers)(use_bias)
    return normal(jax.eval_shape(stack.init, KEY, jnp.ones((1, 4, 8)), None)["params"])


class NnxBlock(nnx.Module):
    def __init__(self, rngs):
        self.attend = nnx.MultiHeadAttention(2, 8, decode=False, normalize_qk=True, rngs=rngs)
        self.ln = nnx.LayerNorm(8, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(8, 6, rngs=rngs), nnx.Linear(6, 8, use_bias=False, rngs=rngs)])


def nnx_block():
    return normal(nnx.state(nnx.eval_shape(lambda: NnxBlock(nnx.Rngs(0))), nnx.Param))


def nnx_stack(layers):
    @nnx.split_rngs(splits=layers)
    @nnx.vmap(in_axes=(0,), out_axes=0)
    def stack(rngs):
        return NnxBlock(rngs)

    return normal(nnx.state(nnx.eval_shape(lambda: stack(nnx.Rngs(0))), nnx.Param))


def haiku_net():
    def forward(x):
        x = hk.Conv2D(4, 3)(x)
        x = hk.BatchNorm(create_scale=True, create_offset=True, decay_rate=0.9)(x, is_training=True)
        x = hk.DepthwiseConv2D(2, 3)(hk.Conv2DTranspose(6, 3)(x))
        x = hk.Linear(7)(hk.LayerNorm(-1, create_scale=True, create_offset=True)(hk.Bias()(x).mean((1, 2))))
        x = hk.MultiHeadAttention(2, 4, w_init=hk.initializers.Constant(1.0))(x[None], x[None], x[None])
        return x + hk.Embed(5, 8)(jnp.array([0]))

    return normal(jax.eval_shape(hk.transform_with_state(forward).init, KEY, jnp.ones((2, 6, 6, 3)))[0])


def haiku_block(layers=None):
    def block(x):
        return hk.Linear(8)(hk.LayerNorm(-1, create_scale=True, create_offset=True)(x))

    forward = block if layers is None else hk.experimental.layer_stack(layers)(block)
    return normal(jax.eval_shape(hk.transform(forward).init, KEY, jnp.ones((2, 8))))


def zeros(shapes):
    """Arrays of shapes that stand in a nested dict."""
    return jax.tree.map(jnp.zeros, shapes, is_leaf=lambda x: isinstance(x, tuple))


def keras_net():
    """Names and layouts of Keras 3: ``{variable.path: variable.value}`` of a model."""
    return normal(
        zeros(
            {
                "conv2d/kernel": (3, 3, 2, 4),
                "conv2d/bias": (4,),
                "batch_normalization/gamma": (4,),
                "batch_normalization/beta": (4,),
                "batch_normalization/moving_mean": (4,),
                "conv2d_transpose/kernel": (3, 3, 5, 4),
                "conv2d_transpose/bias": (5,),
                "depthwise_conv2d/kernel": (3, 3, 5, 2),
                "depthwise_conv2d/bias": (10,),
                "separable_conv2d/depthwise_kernel": (3, 3, 6, 2),
                "separable_conv2d/pointwise_kernel": (1, 1, 12, 6),
                "separable_conv2d/bias": (6,),
                "embedding/embeddings": (7, 6),
                "multi_head_attention/query/kernel": (6, 2, 3),
                "multi_head_attention/query/bias": (2, 3),
                "multi_head_attention/key/kernel": (6, 2, 3),
                "multi_head_attention/key/bias": (2, 3),
                "multi_head_attention/value/kernel": (6, 2, 3),
                "multi_head_attention/value/bias": (2, 3),
                "multi_head_attention/attention_output/kernel": (2, 3, 6),
                "multi_head_attention/attention_output/bias": (6,),
                "layer_normalization/gamma": (4, 6),
                "layer_normalization/beta": (4, 6),
                "gru/gru_cell/kernel": (6, 12),
                "gru/gru_cell/recurrent_kernel": (4, 12),
                "gru/gru_cell/bias": (2, 12),
                "dense_1/kernel": (4, 3),
                "dense_1/bias": (3,),
            }
        )
    )


def huggingface_flax():
    """GPT-2 (its kernels are (out, in)) beside a BERT layer and a patch embedding, as transformers has them in flax."""
    return normal(
        zeros(
            {
                "transformer": {
                    "wte": {"embedding": (7, 4)},
                    "h": {
                        "0": {
                            "ln_1": {"scale": (4,), "bias": (4,)},
                            "attn": {"c_attn": {"kernel": (12, 4), "bias": (12,)}},
                        }
                    },
                },
                "encoder": {
                    "attention": {
                        "self": {name: {"kernel": (4, 4), "bias": (4,)} for name in ("query", "key", "value")}
                    },
                    "LayerNorm": {"scale": (4,), "bias": (4,)},
                    "output": {"dense": {"kernel": (8, 4), "bias": (4,)}},
                },
                "patch_embeddings": {"projection": {"kernel": (2, 2, 3, 4), "bias": (4,)}},
            }
        )
    )


def huggingface_torch():
    """The same in PyTorch: a state dict as arrays."""
    return normal(
        zeros(
            {
                "transformer.wte.weight": (7, 4),
                "transformer.h.0.ln_1.weight": (4,),
                "transformer.h.0.attn.c_attn.weight": (4, 12),
                "transformer.h.0.attn.c_attn.bias": (12,),
                "encoder.attention.self.query.weight": (4, 4),
                "encoder.attention.self.query.bias": (4,),
                "encoder.output.dense.weight": (4, 8),
                "patch_embeddings.projection.weight": (4, 3, 2, 2),
            }
        )
    )
