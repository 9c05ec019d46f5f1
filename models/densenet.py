"""DenseNet-121 for small images (Huang et al. 2017; paper section 5)."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from models._layers import conv, linear, norm

GROWTH = 32
BLOCKS = (6, 12, 24, 16)


class DenseLayer(nnx.Module):
    """Batch norm, ReLU and convolution, first 1x1, then 3x3; the new features are placed before the input features."""

    def __init__(self, channels: int, rngs: nnx.Rngs) -> None:
        self.norm1 = norm(channels, rngs=rngs)
        self.conv1 = conv(channels, 4 * GROWTH, 1, rngs=rngs)
        self.norm2 = norm(4 * GROWTH, rngs=rngs)
        self.conv2 = conv(4 * GROWTH, GROWTH, 3, rngs=rngs)

    def __call__(self, x: Array, train: bool) -> Array:
        """Map shape ``(batch, h, w, channels)`` to ``(batch, h, w, GROWTH + channels)``."""
        y = self.conv1(nnx.relu(self.norm1(x, use_running_average=not train)))
        y = self.conv2(nnx.relu(self.norm2(y, use_running_average=not train)))
        return jnp.concatenate([y, x], axis=-1)


class Transition(nnx.Module):
    """Batch norm, ReLU, a 1x1 convolution to half the number of channels, and average pooling with a window of 2."""

    def __init__(self, channels: int, rngs: nnx.Rngs) -> None:
        self.norm = norm(channels, rngs=rngs)
        self.conv = conv(channels, channels // 2, 1, rngs=rngs)

    def __call__(self, x: Array, train: bool) -> Array:
        """Map shape ``(batch, h, w, channels)`` to ``(batch, h // 2, w // 2, channels // 2)``, at least one pixel."""
        y = self.conv(nnx.relu(self.norm(x, use_running_average=not train)))
        window = tuple(min(n, 2) for n in y.shape[1:3])
        return nnx.avg_pool(y, window, strides=window)


class DenseNet121(nnx.Module):
    """A 3x3 stem, four blocks of dense layers with transitions between them, global average pooling, a linear layer."""

    def __init__(self, *, num_classes: int, image_shape: tuple[int, int, int], rngs: nnx.Rngs) -> None:
        channels = 2 * GROWTH
        self.conv = conv(image_shape[-1], channels, 3, rngs=rngs)
        self.layer_names: tuple[str, ...] = ()
        for block, layers in enumerate(BLOCKS, 1):
            for i in range(1, layers + 1):
                self._add(f"block{block}_layer{i}", DenseLayer(channels, rngs))
                channels += GROWTH
            if block < len(BLOCKS):
                self._add(f"transition{block}", Transition(channels, rngs))
                channels //= 2
        self.norm = norm(channels, rngs=rngs)
        self.head = linear(channels, num_classes, rngs=rngs)

    def _add(self, name: str, layer: nnx.Module) -> None:
        setattr(self, name, layer)
        self.layer_names += (name,)

    def __call__(self, images: Float[Array, "batch h w c"], train: bool = False) -> Float[Array, "batch classes"]:
        """Compute the logits; if ``train``, batch norm uses the batch and updates its running statistics."""
        x = self.conv(images)
        for name in self.layer_names:
            x = getattr(self, name)(x, train)
        x = nnx.relu(self.norm(x, use_running_average=not train))
        return self.head(jnp.mean(x, axis=(1, 2)))
