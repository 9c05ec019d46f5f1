"""GPT-2 on random tokens, in JAX and in PyTorch with the same weights: 124 M parameters in its default size."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Size:
    """The size of a GPT-2; the defaults are those of the smallest one that was published (Radford et al. 2019)."""

    layers: int = 12
    width: int = 768
    heads: int = 12
    vocabulary: int = 50257
    context: int = 1024


def params(size: Size, seed: int = 0) -> Any:
    """A plain dict of weights, at their initialization."""
    keys = iter(jax.random.split(jax.random.key(seed), 2 + 4 * size.layers))

    def kernel(*shape: int) -> jax.Array:
        return 0.02 * jax.random.normal(next(keys), shape)

    def dense(inputs: int, outputs: int) -> dict[str, jax.Array]:
        return {"kernel": kernel(inputs, outputs), "bias": jnp.zeros(outputs)}

    def norm() -> dict[str, jax.Array]:
        return {"scale": jnp.ones(size.width), "bias": jnp.zeros(size.width)}

    def layer() -> dict[str, Any]:
        w = size.width
        return {
            "norm1": norm(),
            "qkv": dense(w, 3 * w),
            "out": dense(w, w),
            "norm2": norm(),
            "up": dense(w, 4 * w),
            "down": dense(4 * w, w),
        }

    embedding = {"tokens": kernel(size.vocabulary, size.width), "positions": kernel(size.context, size.width)}
    return {"embedding": embedding, "layers": [layer() for _ in range(size.layers)], "norm": norm()}


def random_tokens(size: Size, examples: int, seed: int = 0) -> tuple[np.ndarray]:
    """Sequences of ``context + 1`` tokens."""
    shape = (examples, size.context + 1)
    return (np.random.default_rng(seed).integers(0, size.vocabulary, shape).astype(np.int32),)


def loss(size: Size, implementation: str | None = None) -> Callable[[Any, Any], jax.Array]:
    """The mean cross-entropy of the next token, one value for each sequence.

    Args:
        size: The size of the network.
        implementation: That of `jax.nn.dot_product_attention`: ``"xla"``, ``"cudnn"`` (flash attention) or None.
    """

    def norm(x: jax.Array, p: Any) -> jax.Array:
        x = x - x.mean(-1, keepdims=True)
        return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-5) * p["scale"] + p["bias"]

    def dense(x: jax.Array, p: Any) -> jax.Array:
        return x @ p["kernel"] + p["bias"]

    def attention(x: jax.Array, p: Any) -> jax.Array:
        q, k, v = jnp.split(dense(x, p["qkv"]).reshape(*x.shape[:2], 3 * size.heads, -1), 3, axis=2)
        y = jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation=implementation)
        return dense(y.reshape(x.shape), p["out"])

    def loss_fn(params: Any, batch: Any) -> jax.Array:
        inputs, targets = batch[0][:, :-1], batch[0][:, 1:]
        x = params["embedding"]["tokens"][inputs] + params["embedding"]["positions"]
        for p in params["layers"]:
            x = x + attention(norm(x, p["norm1"]), p)
            x = x + dense(jax.nn.gelu(dense(norm(x, p["norm2"]), p["up"])), p["down"])
        logits = norm(x, params["norm"]) @ params["embedding"]["tokens"].T
        picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0].astype(jnp.float32)
        return (jax.nn.logsumexp(logits.astype(jnp.float32), axis=-1) - picked).mean(-1)

    return loss_fn


def torch_loss(size: Size) -> Callable[[Any, Any], Any]:
    """The same loss in PyTorch, of a dict of tensors with the structure of `params`."""
    from torch.nn import functional as F  # noqa: N812

    def norm(x: Any, p: Any) -> Any:
        return F.layer_norm(x, (size.width,), p["scale"], p["bias"], 1e-5)

    def dense(x: Any, p: Any) -> Any:
        return x @ p["kernel"] + p["bias"]

    def attention(x: Any, p: Any) -> Any:
        q, k, v = (y.unflatten(-1, (size.heads, -1)).transpose(1, 2) for y in dense(x, p["qkv"]).chunk(3, dim=-1))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return dense(y.transpose(1, 2).flatten(2), p["out"])

    def loss_fn(params: Any, tokens: Any) -> Any:
        inputs, targets = tokens[:, :-1], tokens[:, 1:]
        x = params["embedding"]["tokens"][inputs] + params["embedding"]["positions"]
        for p in params["layers"]:
            x = x + attention(norm(x, p["norm1"]), p)
            x = x + dense(F.gelu(dense(norm(x, p["norm2"]), p["up"]), approximate="tanh"), p["down"])
        logits = norm(x, params["norm"]) @ params["embedding"]["tokens"].T
        losses = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none")
        return losses.unflatten(0, targets.shape).mean(-1)

    return loss_fn
