"""Residual networks (He et al. 2016): for CIFAR, wide ones, and with the widths for ImageNet (paper section 6, A.5)."""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from models._layers import conv, linear, norm


class Shortcut(nnx.Module):
    """The shortcut of a block that changes width or size: a 1x1 convolution and batch norm (option B)."""

    def __init__(self, channels: int, width: int, stride: int, rngs: nnx.Rngs) -> None:
        self.conv = conv(channels, width, 1, stride=stride, rngs=rngs)
        self.norm = norm(width, rngs=rngs)

    def __call__(self, x: Array, train: bool) -> Array:
        """Map shape ``(batch, h, w, channels)`` to ``(batch, h / stride, w / stride, width)``."""
        return self.norm(self.conv(x), use_running_average=not train)


class Block(nnx.Module):
    """Convolutions, each with batch norm; with ``shortcuts`` the input is added before the last ReLU."""

    expansion = 1

    def __init__(self, channels: int, width: int, stride: int, shortcuts: bool, rngs: nnx.Rngs) -> None:
        self.shortcuts = shortcuts
        layers = self.layers(width, stride)
        width_in = channels
        for i, (size, width_out, step) in enumerate(layers, 1):
            setattr(self, f"conv{i}", conv(width_in, width_out, size, stride=step, rngs=rngs))
            setattr(self, f"norm{i}", norm(width_out, rngs=rngs))
            width_in = width_out
        self.depth = len(layers)
        if shortcuts and (stride != 1 or channels != width_in):
            self.shortcut = Shortcut(channels, width_in, stride, rngs)

    @staticmethod
    def layers(width: int, stride: int) -> tuple[tuple[int, int, int], ...]:
        """Kernel size, width and stride of each convolution."""
        return (3, width, stride), (3, width, 1)

    def __call__(self, x: Array, train: bool) -> Array:
        """Map shape ``(batch, h, w, channels)`` to ``(batch, h / stride, w / stride, expansion * width)``."""
        y = x
        for i in range(1, self.depth + 1):
            y = getattr(self, f"norm{i}")(getattr(self, f"conv{i}")(y), use_running_average=not train)
            y = nnx.relu(y) if i < self.depth else y
        if self.shortcuts:
            y = y + (self.shortcut(x, train) if hasattr(self, "shortcut") else x)
        return nnx.relu(y)


class Bottleneck(Block):
    """Three convolutions: a 1x1 convolution that reduces the width, a 3x3 one, and a 1x1 one that increases it."""

    expansion = 4

    @staticmethod
    def layers(width: int, stride: int) -> tuple[tuple[int, int, int], ...]:
        """Kernel size, width and stride of each convolution."""
        return (1, width, 1), (3, width, stride), (1, Bottleneck.expansion * width, 1)


class ResNet(nnx.Module):
    """A 3x3 stem as wide as the first stage, stages of blocks, global average pooling, a linear layer.

    The input may have any size of at least 1x1. Every stage except the first halves the size (rounded up).
    """

    def __init__(
        self,
        blocks: Sequence[int],
        widths: Sequence[int],
        block: type[Block] = Block,
        *,
        shortcuts: bool,
        num_classes: int,
        image_shape: tuple[int, int, int],
        rngs: nnx.Rngs,
    ) -> None:
        self.conv = conv(image_shape[-1], widths[0], 3, rngs=rngs)
        self.norm = norm(widths[0], rngs=rngs)
        self.block_names: tuple[str, ...] = ()
        width_in = widths[0]
        for stage, (count, width) in enumerate(zip(blocks, widths, strict=True), 1):
            for i in range(1, count + 1):
                stride = 2 if stage > 1 and i == 1 else 1
                name = f"stage{stage}_block{i}"  # a name, not an index: keys in checkpoints are text
                setattr(self, name, block(width_in, width, stride, shortcuts, rngs))
                self.block_names += (name,)
                width_in = block.expansion * width
        self.head = linear(width_in, num_classes, rngs=rngs)

    def __call__(self, images: Float[Array, "batch h w c"], train: bool = False) -> Float[Array, "batch classes"]:
        """Compute the logits; if ``train``, batch norm uses the batch and updates its running statistics."""
        x = nnx.relu(self.norm(self.conv(images), use_running_average=not train))
        for name in self.block_names:
            x = getattr(self, name)(x, train)
        return self.head(jnp.mean(x, axis=(1, 2)))
