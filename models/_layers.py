"""The layers that the networks share: convolutions, batch norm and their initialization."""

import functools

from flax import nnx
from jax import lax
from jaxtyping import Array

# The paper's networks are initialized with an untruncated He normal (fan-in) in convolutions and N(0, 1e-3) in linear
# layers. `nnx.initializers.he_normal` would truncate the normal at two standard deviations.
_conv_init = nnx.initializers.variance_scaling(2.0, "fan_in", "normal")
_linear_init = nnx.initializers.normal(1e-3)


class BatchNorm(nnx.BatchNorm):
    """Batch norm as in PyTorch: the running variance has the denominator ``n - 1``, where flax has ``n``.

    It computes in float32 and gives the dtype of its input. With bfloat16 params and images flax would promote to the
    dtype of the statistics, and all that follows would be float32.
    """

    def __call__(self, x: Array, use_running_average: bool) -> Array:  # type: ignore[override]
        """Normalize each feature, the last axis, over all other axes."""
        previous = self.var[...]
        y = super().__call__(x, use_running_average=use_running_average)
        if not use_running_average:
            n = x.size // x.shape[-1] * (lax.axis_size(self.axis_name) if self.axis_name else 1)
            decayed = self.momentum * previous
            self.var[...] = decayed + (self.var[...] - decayed) * (n / max(n - 1, 1))
        return y.astype(x.dtype)


norm = functools.partial(BatchNorm, momentum=0.9, epsilon=1e-5)  # PyTorch's defaults (its momentum is 1 - ours)
linear = functools.partial(nnx.Linear, kernel_init=_linear_init)


def conv(channels: int, width: int, size: int, *, stride: int = 1, bias: bool = False, rngs: nnx.Rngs) -> nnx.Conv:
    """A convolution with symmetric padding, as in PyTorch: "SAME" with stride 2 would pad only at the end."""
    padding = (size // 2, size // 2)
    return nnx.Conv(
        channels,
        width,
        (size, size),
        strides=stride,
        padding=(padding, padding),
        use_bias=bias,
        kernel_init=_conv_init,
        rngs=rngs,
    )
