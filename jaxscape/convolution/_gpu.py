"""The choice of the fastest form of a convolution for its shape on a GPU.

A convolution with few features leaves the tensor cores idle, and batch norm in evaluation mode, residual sums and ReLU
are passes over memory of their own. Blocks of pixels have more features, and what follows the convolution becomes part
of it: a ResNet-56 in bfloat16 goes from 249,000 to 551,000 images/s on an H100 (batches of 4,000).
"""

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.extend import core
from jaxtyping import Array

from jaxscape.convolution._forms import Spec, as_blocks, has_blocks, sums_over_batch
from jaxscape.convolution._rows import in_rows
from jaxscape.convolution._rules import Rules, convolutions


def gpu_rules(jaxpr: core.Jaxpr) -> Rules:
    """Blocks of pixels, also in the elementwise operations on their results: else cuDNN would not take those in."""
    merged = {}
    for eqn in convolutions(jaxpr):
        *lead, width, features = eqn.outvars[0].aval.shape
        if (size := _block(eqn)) > 1:
            merged[*lead, width, features] = (*lead, width // size, size * features)

    def form(eqn: Any, in_loop: bool) -> Callable[..., Any] | None:
        if eqn.primitive.name != "conv_general_dilated":
            return in_rows(eqn, merged.get, lambda x: x)
        return _form_of(eqn)

    def summand(eqn: Any) -> Callable[[Any, Any], Any] | None:
        return functools.partial(_add_in_blocks, _block(eqn)) if _takes_in(eqn) else None

    return Rules(form, summand)


def _add_in_blocks(size: int, y: Any, shift: Any) -> Any:
    """``y + shift`` with ``size`` neighbouring pixels in one: XLA then sees the shape that the convolution has."""
    *lead, width, features = y.shape
    if size == 1:
        return y + shift
    return (y.reshape(*lead, width // size, size * features) + jnp.tile(shift, size)).reshape(y.shape)


def _form_of(eqn: Any) -> Callable[[Array, Array], Array] | None:
    """Choose the fastest form of a convolution on a GPU; None: XLA's native convolution is the fastest."""
    spec, size = Spec.of(eqn), _block(eqn)
    if size == 1:
        return None
    x, kernel = (v.aval for v in eqn.invars)
    numbers = spec.dimension_numbers
    inner, taps = kernel.shape[numbers.rhs_spec[1]], kernel.shape[numbers.rhs_spec[-1]]
    same = taps <= size and spec.padding[-1] == (taps // 2, (taps - 1) // 2) and x.shape[-2] == spec.out_space[-1]
    read = same and size == 4 and 8 <= inner <= 16 and x.dtype.itemsize == 2
    return lambda x, kernel: as_blocks(x, kernel, spec, size, read=read)


def _block(eqn: Any) -> int:
    """How many neighbouring pixels a convolution computes at once on a GPU; 1: it stays as it is."""
    # Measured on an H100, 4,000 images, microseconds of a 3x3 convolution with bias and ReLU, for blocks of 1, 2 and 4
    # pixels: bfloat16, 32x32 pixels and 16 features 428, 260, 264 (206 where the image is read in blocks of 4 too);
    # 16x16 and 32: 123, 87, 85; 8x8 and 64: 62, 57. TF32: 633, 498, 400 (414); 195, 150, 151; 120, 96. In full float32
    # the arithmetic decides, and a block needs more of it.
    if not _takes_in(eqn):
        return 1
    spec, (x, kernel) = Spec.of(eqn), (v.aval for v in eqn.invars)
    numbers, rank = spec.dimension_numbers, len(x.shape)
    last = (numbers.lhs_spec[1], numbers.out_spec[1]) == (rank - 1, rank - 1)  # other layouts would be transposed
    features = kernel.shape[numbers.rhs_spec[0]]
    size = 4 if features <= 16 else 2 if features <= 64 else 1
    return size if last and has_blocks(spec, kernel.shape, size) else 1


def _takes_in(eqn: Any) -> bool:
    """Whether an equation is a convolution of examples, on the tensor cores of a GPU."""
    if eqn.primitive.name != "conv_general_dilated":
        return False
    spec, (x, kernel) = Spec.of(eqn), (v.aval for v in eqn.invars)
    precision = spec.precision if isinstance(spec.precision, tuple) else (spec.precision,)
    tensor_cores = x.dtype.itemsize == 2 or (x.dtype == jnp.float32 and lax.Precision.HIGHEST not in precision)
    floating = jnp.issubdtype(x.dtype, jnp.floating) and x.dtype == kernel.dtype
    empty = 0 in (*x.shape, *kernel.shape, *spec.out_space)
    ordinary = eqn.params["batch_group_count"] == 1 and not empty and not sums_over_batch(spec)
    return floating and tensor_cores and ordinary
