"""The paper's VGG-9: seven convolutions, a hidden layer, an output layer (section 5 and A.5)."""

from flax import nnx
from jaxtyping import Array, Float

from models._layers import conv, linear, norm

STAGES = ((64, 64), (128, 128), (256, 256, 256))  # max pooling with a window of 2 ends each stage
HIDDEN = 256


class VGG9(nnx.Module):
    """Convolutions with bias, batch norm and ReLU; every stage halves the image.

    For 32x32 pixels the hidden layer has 4x4x256 inputs, for 8x8 pixels 1x1x256. A height or width of one pixel is not
    halved further.
    """

    def __init__(self, *, num_classes: int, image_shape: tuple[int, int, int], rngs: nnx.Rngs) -> None:
        height, width, channels = image_shape
        self.stages: tuple[tuple[int, ...], ...] = ()
        layer = 0
        for widths in STAGES:
            self.stages += (tuple(range(layer + 1, layer + len(widths) + 1)),)
            for out in widths:
                layer += 1
                setattr(self, f"conv{layer}", conv(channels, out, 3, bias=True, rngs=rngs))
                setattr(self, f"norm{layer}", norm(out, rngs=rngs))
                channels = out
            height, width = (max(n // 2, 1) for n in (height, width))
        self.hidden = linear(height * width * channels, HIDDEN, rngs=rngs)
        self.hidden_norm = norm(HIDDEN, rngs=rngs)
        self.head = linear(HIDDEN, num_classes, rngs=rngs)

    def __call__(self, images: Float[Array, "batch h w c"], train: bool = False) -> Float[Array, "batch classes"]:
        """Compute the logits; if ``train``, batch norm uses the batch and updates its running statistics."""
        x = images
        for layers in self.stages:
            for i in layers:
                y = getattr(self, f"conv{i}")(x)
                x = nnx.relu(getattr(self, f"norm{i}")(y, use_running_average=not train))
            window = tuple(min(n, 2) for n in x.shape[1:3])
            x = nnx.max_pool(x, window, strides=window)
        x = self.hidden(x.reshape(len(x), -1))
        return self.head(nnx.relu(self.hidden_norm(x, use_running_average=not train)))
