"""A decoder like GPT-2 in flax NNX (Radford et al. 2019), from 1 M to 1.3 B parameters, on bytes or on tokens."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

Positions = Literal["learned", "rotary"]


class Size(NamedTuple):
    """The size of a decoder."""

    layers: int
    width: int
    heads: int


SIZES = {
    "gpt_1m": Size(4, 128, 4),
    "gpt_10m": Size(6, 384, 6),
    "gpt_124m": Size(12, 768, 12),
    "gpt_350m": Size(24, 1024, 16),
    "gpt_760m": Size(24, 1536, 16),
    "gpt_1.3b": Size(24, 2048, 32),
}
"""By name; with the 50,257 tokens of GPT-2 those from 124 M on are the models of Brown et al. (2020), table 2.1."""


class Block(nnx.Module):
    """Attention to the tokens before, then a hidden layer four times as wide; each after a norm, beside a shortcut."""

    def __init__(self, width: int, heads: int, positions: Positions, rngs: nnx.Rngs, **options: Any) -> None:
        self.heads, self.positions = heads, positions
        start = nnx.initializers.normal(0.02)
        self.norm1, self.norm2 = (nnx.LayerNorm(width, epsilon=1e-5, rngs=rngs, **options) for _ in range(2))
        self.qkv = nnx.Linear(width, 3 * width, kernel_init=start, rngs=rngs, **options)
        self.out = nnx.Linear(width, width, kernel_init=start, rngs=rngs, **options)
        self.up = nnx.Linear(width, 4 * width, kernel_init=start, rngs=rngs, **options)
        self.down = nnx.Linear(4 * width, width, kernel_init=start, rngs=rngs, **options)

    def __call__(self, x: Float[Array, "batch time width"]) -> Float[Array, "batch time width"]:
        """The next hidden states."""
        parts = self.qkv(self.norm1(x)).reshape(*x.shape[:2], 3, self.heads, -1)
        query, key, value = (parts[:, :, i] for i in range(3))
        if self.positions == "rotary":
            query, key = rotated(query), rotated(key)
        x = x + self.out(jax.nn.dot_product_attention(query, key, value, is_causal=True).reshape(x.shape))
        return x + self.down(jax.nn.gelu(self.up(self.norm2(x))))


class GPT(nnx.Module):
    """A decoder whose embedding of the tokens also reads them out (tied weights)."""

    def __init__(
        self,
        size: Size,
        *,
        vocabulary: int = 256,
        context: int = 128,
        positions: Positions = "learned",
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        """Initialize the weights.

        Args:
            size: Layers, width and heads.
            vocabulary: Tokens; 256 for bytes.
            context: Tokens in a sequence, at most, for learned positions.
            positions: ``"learned"``, or ``"rotary"`` (Su et al. 2021).
            dtype: Of the weights and of the computation.
            rngs: Random numbers.
        """
        options = {"dtype": dtype, "param_dtype": dtype}
        start = nnx.initializers.normal(0.02)
        self.tokens = nnx.Embed(vocabulary, size.width, embedding_init=start, rngs=rngs, **options)
        if positions == "learned":
            self.positions = nnx.Embed(context, size.width, embedding_init=start, rngs=rngs, **options)
        self.num_layers, self.kind = size.layers, positions
        for i in range(size.layers):
            setattr(self, f"block{i}", Block(size.width, size.heads, positions, rngs, **options))
        self.norm = nnx.LayerNorm(size.width, epsilon=1e-5, rngs=rngs, **options)

    def __call__(self, tokens: Int[Array, "batch time"]) -> Float[Array, "batch time vocabulary"]:
        """The logits of the token after each."""
        x = self.tokens(tokens)
        if self.kind == "learned":
            x = x + self.positions(jnp.arange(tokens.shape[1]))
        for i in range(self.num_layers):
            x = getattr(self, f"block{i}")(x)
        return self.tokens.attend(self.norm(x))


def create(name: str, *, seed: int = 0, **options: Any) -> GPT:
    """Build and initialize a decoder.

    >>> model = create("gpt_1m", context=16)
    >>> model(jnp.zeros((2, 16), int)).shape
    (2, 16, 256)

    Args:
        name: One of `SIZES`.
        seed: The seed of the initialization.
        **options: ``vocabulary``, ``context``, ``positions`` and ``dtype``, as in `GPT`.

    Returns:
        A module: ``model(tokens)`` -> logits of shape ``(batch, time, vocabulary)``.

    Raises:
        ValueError: The name or the kind of positions is unknown.
    """
    if name not in SIZES:
        raise ValueError(f"name is {name!r}, expected one of {', '.join(SIZES)}.")
    if options.get("positions", "learned") not in ("learned", "rotary"):
        raise ValueError(f"positions is {options['positions']!r}, expected 'learned' or 'rotary'.")
    return GPT(SIZES[name], rngs=nnx.Rngs(seed), **options)


def next_token_loss(graphdef: Any) -> Callable[[Any, Int[Array, "batch time"]], dict[str, Array]]:
    """The loss of the next token, weighted by tokens.

    Args:
        graphdef: The first result of ``nnx.split(model)``.

    Returns:
        ``loss_fn(params, tokens)`` for sequences ``(batch, time + 1)``; -1 is padding. ``"loss"``: the mean
        cross-entropy in nats over the tokens of each sequence; ``"weight"``: how many tokens these are, so that every
        mean over data is over tokens; ``"accuracy"``: the share of tokens that are the likeliest.
    """

    def loss_fn(params: Any, tokens: Int[Array, "batch time"]) -> dict[str, Array]:
        inputs, targets = jnp.maximum(tokens[:, :-1], 0), tokens[:, 1:]
        logits = nnx.merge(graphdef, params)(inputs).astype(jnp.float32)
        counted = targets >= 0
        picked = jnp.take_along_axis(logits, jnp.maximum(targets, 0)[..., None], axis=-1)[..., 0]
        loss = jax.nn.logsumexp(logits, axis=-1) - picked
        weight = counted.sum(-1).astype(jnp.float32)
        mean = lambda x: jnp.sum(jnp.where(counted, x, 0), -1) / jnp.maximum(weight, 1)  # noqa: E731
        return {"loss": mean(loss), "accuracy": mean(logits.argmax(-1) == targets), "weight": weight}

    return loss_fn


def rotated(x: Float[Array, "batch time heads dim"]) -> Float[Array, "batch time heads dim"]:
    """Rotary positions: pairs of entries are turned by an angle proportional to the time (Su et al. 2021)."""
    half = x.shape[-1] // 2
    angles = jnp.arange(x.shape[1])[:, None] / 10_000 ** (jnp.arange(half) / half)
    cos, sin = jnp.cos(angles)[:, None].astype(x.dtype), jnp.sin(angles)[:, None].astype(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], -1)
