"""The surface in PyTorch, written as efficiently as possible: data in memory, inference mode, weights set in place."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812


class Block(nn.Module):
    """The basic block of a CIFAR ResNet, with a 1x1 convolution as its shortcut where the width changes."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.shortcut = None
        if channels != width:
            self.shortcut = nn.ModuleDict(
                {"conv": nn.Conv2d(channels, width, 1, stride, bias=False), "norm": nn.BatchNorm2d(width)}
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute the output of the block."""
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)), inplace=True)))
        y += x if self.shortcut is None else self.shortcut["norm"](self.shortcut["conv"](x))
        return F.relu(y, inplace=True)


class ResNet(nn.Module):
    """The network of `models.resnet.ResNet` with depth 6n+2; its modules have the same names."""

    def __init__(self, depth: int, channels: int, classes: int = 10) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(channels, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.names, width_in = [], 16
        for stage, width in enumerate((16, 32, 64), 1):
            for block in range(1, (depth - 2) // 6 + 1):
                self.names.append(f"stage{stage}_block{block}")
                self.add_module(self.names[-1], Block(width_in, width, 2 if stage > 1 and block == 1 else 1))
                width_in = width
        self.head = nn.Linear(64, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        x = F.relu(self.norm(self.conv(x)), inplace=True)
        for name in self.names:
            x = getattr(self, name)(x)
        return self.head(x.mean((2, 3)))


class MLP(nn.Module):
    """Dense layers with ReLU; they have the names of `benchmarks.exact.mlp_params`."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        for i, (a, b) in enumerate(zip(widths, widths[1:], strict=False)):
            self.add_module(f"layer{i}", nn.Linear(a, b))
        self.depth = len(widths) - 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        x = x.flatten(1)
        for i in range(self.depth):
            x = getattr(self, f"layer{i}")(x)
            x = F.relu(x, inplace=True) if i + 1 < self.depth else x
        return x


_NAMES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


def tensors(tree: Any) -> dict[str, torch.Tensor]:
    """A flax pytree under PyTorch's names and in its layouts."""
    converted = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        *module, name = (key.key for key in path)
        order = {4: (3, 2, 0, 1), 2: (1, 0)}.get(leaf.ndim, tuple(range(leaf.ndim)))
        converted[".".join([*module, _NAMES[name]])] = torch.from_numpy(np.array(leaf).transpose(order).copy())
    return converted


def surface(
    net: nn.Module,
    weights: dict[str, torch.Tensor],
    directions: list[dict[str, torch.Tensor]],
    points: np.ndarray,
    data: tuple[torch.Tensor, torch.Tensor],
    batch_size: int,
) -> np.ndarray:
    """The mean loss at each point."""
    parameters = dict(net.named_parameters())
    images, labels = data
    losses = []
    with torch.inference_mode():
        for point in points:
            for name, weight in weights.items():
                parameters[name].copy_(weight)
                for coordinate, direction in zip(point, directions, strict=True):
                    parameters[name].add_(direction[name], alpha=float(coordinate))
            total = 0.0
            for start in range(0, len(labels), batch_size):
                rows = slice(start, start + batch_size)
                total += F.cross_entropy(net(images[rows]), labels[rows], reduction="sum").item()
            losses.append(total / len(labels))
    return np.array(losses)


def variants(net: nn.Module, data: Any) -> Iterator[tuple[str, nn.Module, tuple[torch.Tensor, torch.Tensor], int]]:
    """The variants of memory format and batch size; the first is the default of PyTorch."""
    images = torch.from_numpy(np.asarray(data[0]).transpose(0, 3, 1, 2).copy())
    labels = torch.from_numpy(np.asarray(data[1])).long()
    formats = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}
    for name, layout in formats.items():
        for batch_size in (128, 32, 512):
            if name == "NCHW" or isinstance(net, ResNet):
                yield (
                    f"{name} {batch_size}",
                    net,
                    (images.contiguous(memory_format=layout), labels),
                    batch_size,
                )
