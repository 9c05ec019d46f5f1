"""Residual networks for CIFAR: depth 6n+2, widths 16, 32, 64 (He et al. 2016, section 4.2; paper section 6 and A.5)."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

WIDTHS = (16, 32, 64)

# The paper's networks start from a plain He normal (fan-in) in convolutions and N(0, 1e-3) in the last layer.
# `nnx.initializers.he_normal` would cut the normal at two standard deviations.
_conv_init = nnx.initializers.variance_scaling(2.0, "fan_in", "normal")
_head_init = nnx.initializers.normal(1e-3)


def _conv(channels: int, width: int, size: int, stride: int, rngs: nnx.Rngs) -> nnx.Conv:
    # Padding like PyTorch's, symmetric: "SAME" with stride 2 would pad on the far side only.
    padding = size // 2
    return nnx.Conv(
        channels,
        width,
        (size, size),
        strides=stride,
        padding=((padding, padding), (padding, padding)),
        use_bias=False,
        kernel_init=_conv_init,
        rngs=rngs,
    )


_norm = functools.partial(nnx.BatchNorm, momentum=0.9, epsilon=1e-5)  # PyTorch's defaults (its momentum is 1 - ours)


class Shortcut(nnx.Module):
    """The projection around a block that changes width: 1x1 convolution and batch norm (option B)."""

    def __init__(self, channels: int, width: int, stride: int, rngs: nnx.Rngs) -> None:
        self.conv = _conv(channels, width, 1, stride, rngs)
        self.norm = _norm(width, rngs=rngs)

    def __call__(self, x: Array, train: bool) -> Array:
        """Shape ``(batch, h, w, channels)`` to ``(batch, h / stride, w / stride, width)``."""
        return self.norm(self.conv(x), use_running_average=not train)


class BasicBlock(nnx.Module):
    """Two 3x3 convolutions with batch norm; what goes around them is added before the last ReLU.

    Without shortcuts nothing goes around them.
    """

    def __init__(self, channels: int, width: int, stride: int, shortcuts: bool, rngs: nnx.Rngs) -> None:
        self.shortcuts = shortcuts
        self.conv1 = _conv(channels, width, 3, stride, rngs)
        self.norm1 = _norm(width, rngs=rngs)
        self.conv2 = _conv(width, width, 3, 1, rngs)
        self.norm2 = _norm(width, rngs=rngs)
        if shortcuts and (stride != 1 or channels != width):
            self.shortcut = Shortcut(channels, width, stride, rngs)

    def __call__(self, x: Array, train: bool) -> Array:
        """Shape ``(batch, h, w, channels)`` to ``(batch, h / stride, w / stride, width)``."""
        y = nnx.relu(self.norm1(self.conv1(x), use_running_average=not train))
        y = self.norm2(self.conv2(y), use_running_average=not train)
        if self.shortcuts:
            y = y + (self.shortcut(x, train) if hasattr(self, "shortcut") else x)
        return nnx.relu(y)


class CifarResNet(nnx.Module):
    """A 3x3 stem, three stages of n basic blocks, global average pooling, a linear layer.

    Any input size of at least 1x1: the second and third stage halve it (rounded up).
    """

    def __init__(self, depth: int, *, shortcuts: bool, num_classes: int, channels: int, rngs: nnx.Rngs) -> None:
        blocks_per_stage = (depth - 2) // 6
        self.conv = _conv(channels, WIDTHS[0], 3, 1, rngs)
        self.norm = _norm(WIDTHS[0], rngs=rngs)
        self.block_names: tuple[str, ...] = ()
        width_in = WIDTHS[0]
        for stage, width in enumerate(WIDTHS, 1):
            for block in range(1, blocks_per_stage + 1):
                stride = 2 if stage > 1 and block == 1 else 1
                name = f"stage{stage}_block{block}"  # a name, not an index: checkpoints keep their keys as text
                setattr(self, name, BasicBlock(width_in, width, stride, shortcuts, rngs))
                self.block_names += (name,)
                width_in = width
        self.head = nnx.Linear(WIDTHS[-1], num_classes, kernel_init=_head_init, rngs=rngs)

    def __call__(self, images: Float[Array, "batch h w c"], train: bool = False) -> Float[Array, "batch classes"]:
        """Logits; with ``train`` batch norm uses the batch and updates its running statistics."""
        x = nnx.relu(self.norm(self.conv(images), use_running_average=not train))
        for name in self.block_names:
            x = getattr(self, name)(x, train)
        return self.head(jnp.mean(x, axis=(1, 2)))


def num_params(model: nnx.Module) -> int:
    """Number of trainable numbers, batch statistics left out."""
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
