"""The choice of the fastest form of a convolution for its shape on a CPU.

XLA's convolution is slow on small images on a CPU (2x2 pixels, 64 channels: 17 GFLOP/s, where a matrix product reaches
146 to 230 on the same two cores). Its gradient is 8 to 15 times slower inside a loop than outside (jax-ml/jax issue
12868). A matrix product has neither flaw.
"""

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax.extend import core
from jaxtyping import Array

from jaxscape.convolution._forms import (
    Form,
    Spec,
    as_matrix,
    as_pairs,
    as_parts,
    as_patches,
    has_blocks,
    parts_of,
    sums_over_batch,
)
from jaxscape.convolution._rows import in_rows
from jaxscape.convolution._rules import Rules


def cpu_rules(jaxpr: core.Jaxpr) -> Rules:
    def form(eqn: Any, in_loop: bool) -> Callable[..., Any] | None:
        return _form_of(eqn, in_loop) if eqn.primitive.name == "conv_general_dilated" else in_rows(eqn)

    return Rules(form, barriers=True)


def _form_of(eqn: Any, in_loop: bool) -> Callable[[Array, Array], Array] | None:
    """Choose the fastest form of a convolution on a CPU.

    Args:
        eqn: The equation of the convolution.
        in_loop: Whether the equation is inside a loop.

    Returns:
        A function of the same operands; None: XLA's native convolution is the fastest.
    """
    spec = Spec.of(eqn)
    form = _fastest(eqn, spec, in_loop)
    return (lambda x, kernel: form(x, kernel, spec)) if form else None


def _fastest(eqn: Any, spec: Spec, in_loop: bool) -> Form | None:
    """Choose a form by the shapes of the operands; None: XLA's native convolution."""
    x, kernel = (v.aval for v in eqn.invars)
    floating = jnp.issubdtype(x.dtype, jnp.floating) and x.dtype == kernel.dtype
    if not floating or eqn.params["batch_group_count"] != 1 or 0 in (*x.shape, *kernel.shape, *spec.out_space):
        return None
    if sums_over_batch(spec) and not in_loop:
        return as_parts if len(parts_of(x)) > 1 else None
    space = math.prod(x.shape[a] for a in spec.dimension_numbers.lhs_spec[2:])
    taps = math.prod(kernel.shape[a] for a in spec.dimension_numbers.rhs_spec[2:])
    if space <= taps:  # the matrix product needs no more multiplications than the sum over the taps
        return as_matrix
    if in_loop:
        return as_patches if taps <= math.prod(spec.out_space) else as_matrix
    # Measured on two cores with 32x32 pixels: from 3 to 16 features with 3x3 taps, the native convolution reaches
    # 33 GFLOP/s and patches reach 77; from 16 to 32 features with one tap and stride 2, they reach 76 and 123.
    # With more than 9 taps, the patches would need too much memory compared with the image.
    few = kernel.shape[spec.dimension_numbers.rhs_spec[1]] <= 4 and taps <= 9
    if spec.groups == 1 and (few or taps == 1):
        return as_patches
    return as_pairs if _has_pairs(spec, kernel.shape) else None


def _has_pairs(spec: Spec, kernel: tuple[int, ...]) -> bool:
    """Whether pairs of pixels are faster (few output features), and the output pixels can be grouped in pairs."""
    return kernel[spec.dimension_numbers.rhs_spec[0]] <= 16 and has_blocks(spec, kernel, 2)
