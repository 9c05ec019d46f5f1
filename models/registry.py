"""Networks by name."""

import re
from collections.abc import Callable

from flax import nnx

from models.resnet import CifarResNet

_RESNET_DEPTHS = (20, 32, 44, 56, 110)
_BUILDERS: dict[str, Callable[..., nnx.Module]] = {f"resnet{depth}": CifarResNet for depth in _RESNET_DEPTHS}


def names() -> tuple[str, ...]:
    """The names that `create` knows."""
    return tuple(_BUILDERS)


def create(
    name: str,
    *,
    shortcuts: bool = True,
    num_classes: int = 10,
    image_shape: tuple[int, int, int] = (32, 32, 3),
    seed: int = 0,
) -> nnx.Module:
    """Build and initialize a network.

    >>> import jax.numpy as jnp
    >>> model = create("resnet20", num_classes=3, image_shape=(8, 8, 1))
    >>> model(jnp.zeros((2, 8, 8, 1))).shape
    (2, 3)

    Args:
        name: One of `names`.
        shortcuts: Whether the residual connections are there; without them, their convolutions go as well.
        num_classes: Number of outputs (logits).
        image_shape: Height, width and channels of one image.
        seed: Of the initialization.

    Returns:
        A module: ``model(images, train=False)`` -> logits of shape ``(batch, num_classes)``; images are
        ``(batch, height, width, channels)``. With ``train=True`` batch norm uses the batch and updates its statistics.

    Raises:
        ValueError: The name is unknown, or the image or the number of classes has no positive size.
    """
    if name not in _BUILDERS:
        raise ValueError(f"arch is {name!r}, expected one of {', '.join(_BUILDERS)}.")
    if len(image_shape) != 3 or min(image_shape) < 1:
        raise ValueError(f"image_shape is {image_shape}, expected (height, width, channels), each at least 1.")
    if num_classes < 2:
        raise ValueError(f"num_classes is {num_classes}, expected at least 2.")
    depth = int(re.sub(r"\D", "", name))
    return _BUILDERS[name](
        depth, shortcuts=shortcuts, num_classes=num_classes, channels=image_shape[-1], rngs=nnx.Rngs(seed)
    )
