"""The registry of networks by name."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from models.densenet import DenseNet121
from models.resnet import Block, Bottleneck, ResNet
from models.vgg import VGG9

Builder = Callable[..., nnx.Module]


def _cifar(depth: int, widen: int = 1) -> Builder:
    """A CIFAR ResNet of depth 6n+2 with widths 16, 32, 64, times ``widen`` (He et al. 2016, section 4.2)."""
    return functools.partial(_resnet, ((depth - 2) // 6,) * 3, (16, 32, 64), Block, widen)


def _imagenet(blocks: tuple[int, ...], block: type[Block]) -> Builder:
    """A ResNet with the widths for ImageNet and the stem for CIFAR."""
    return functools.partial(_resnet, blocks, (64, 128, 256, 512), block, 1)


def _resnet(
    blocks: tuple[int, ...],
    widths: tuple[int, ...],
    block: type[Block],
    widen: int,
    *,
    width: int,
    **options: Any,
) -> nnx.Module:
    return ResNet(blocks, [widen * width * w for w in widths], block, **options)


_RESNETS: dict[str, Builder] = {
    **{f"resnet{depth}": _cifar(depth) for depth in (20, 32, 44, 56, 110)},
    "resnet50_16": _cifar(50),
    **{f"wrn{depth}_{k}": _cifar(depth, k) for depth, k in ((56, 2), (56, 4), (56, 8), (110, 2), (110, 4))},
    "resnet18": _imagenet((2, 2, 2, 2), Block),
    "resnet34": _imagenet((3, 4, 6, 3), Block),
    "resnet50": _imagenet((3, 4, 6, 3), Bottleneck),
    "resnet101": _imagenet((3, 4, 23, 3), Bottleneck),
    "resnet152": _imagenet((3, 8, 36, 3), Bottleneck),
}
_OTHERS: dict[str, Builder] = {"vgg9": VGG9, "densenet121": DenseNet121}


def names() -> tuple[str, ...]:
    """The names that `create` knows."""
    return (*_RESNETS, *_OTHERS)


def create(
    name: str,
    *,
    shortcuts: bool = True,
    width: int = 1,
    num_classes: int = 10,
    image_shape: tuple[int, int, int] = (32, 32, 3),
    seed: int = 0,
) -> nnx.Module:
    """Build and initialize a network.

    >>> import jax.numpy as jnp
    >>> model = create("resnet20", num_classes=3, image_shape=(8, 8, 1))
    >>> jax.eval_shape(model, jnp.zeros((2, 8, 8, 1))).shape
    (2, 3)

    Args:
        name: One of `names`.
        shortcuts: Whether a residual network has shortcuts; without them, their convolutions are removed too.
        width: The factor of all widths of a residual network: ``resnet56`` with 2 is ``wrn56_2``.
        num_classes: The number of outputs (logits).
        image_shape: Height, width and channels of one image.
        seed: The seed of the initialization.

    Returns:
        A module: ``model(images, train=False)`` -> logits of shape ``(batch, num_classes)``; images have the shape
        ``(batch, height, width, channels)``. With ``train=True`` batch norm uses the batch and updates its statistics.

    Raises:
        ValueError: The name is unknown, the network has no shortcuts or no width that can be changed, the image has no
            positive size, ``num_classes`` is below 2, or ``width`` is not positive.
    """
    if name not in names():
        raise ValueError(f"arch is {name!r}, expected one of {', '.join(names())}.")
    if len(image_shape) != 3 or min(image_shape) < 1:
        raise ValueError(f"image_shape is {image_shape}, expected (height, width, channels), each at least 1.")
    if num_classes < 2:
        raise ValueError(f"num_classes is {num_classes}, expected at least 2.")
    if width < 1:
        raise ValueError(f"width is {width}, expected at least 1.")
    options = {"num_classes": num_classes, "image_shape": image_shape, "rngs": nnx.Rngs(seed)}
    if name in _RESNETS:
        return _RESNETS[name](shortcuts=shortcuts, width=width, **options)
    if not shortcuts:
        raise ValueError(f"shortcuts is False, but {name} has none to leave out; only residual networks have.")
    if width != 1:
        raise ValueError(f"width is {width}, but only residual networks can be widened, not {name}.")
    return _OTHERS[name](**options)


def num_params(model: nnx.Module) -> int:
    """The number of trainable parameters, without the batch statistics."""
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
