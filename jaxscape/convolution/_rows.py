"""Elementwise operations on images of few features, a whole row of pixels at a time.

XLA unrolls the innermost loop of an elementwise operation on a CPU; where that runs over at most 32 features, what
comes out moves 23 GB/s of one core's 117 (8 images of 32x32 pixels, 16 features, ``relu(x * scale + bias)``: 45 us;
with the last two axes as one: 9 us). Left to itself XLA also computes a sum along residual blocks anew in every block,
from the first one on. Together this took 15 % of the time of a ResNet-56 on 8 images, and takes 4 % in this form.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

_ENOUGH = 64  # floats in the innermost loop, from which on it is fast
_SMALL = 2**12  # elements, below which it is not worth the trouble

# What it computes at a place depends on its operands at that place alone, and no parameter of it holds a shape.
_ELEMENTWISE = frozenset(
    "abs add and clamp convert_element_type copy cos div eq erf exp expm1 ge gt integer_pow is_finite le log log1p "  # noqa: SIM905
    "logistic lt max min mul ne neg not or pow rsqrt select_n sign sin sqrt square sub tanh xor".split()
)


def made_once(x: Array) -> Array:
    """What it is given, computed once for all who use it, and in rows: a fusion takes the shape of its result."""
    kept = lax.optimization_barrier(x.reshape(_merged(x.shape)) if _pays(x.shape) else x)
    return kept.reshape(x.shape)


def in_rows(eqn: Any) -> Callable[..., Array] | None:
    """The equation on whole rows; None where it is no elementwise operation or broadcast, or is fast as it is."""
    shapes = [getattr(v.aval, "shape", ()) for v in (*eqn.outvars, *eqn.invars)]  # a token has none
    if len(eqn.outvars) != 1 or not _pays(shapes[0]):
        return None
    shape, *operands = shapes
    if eqn.primitive.name in _ELEMENTWISE and all(not own or _fits(own, shape) for own in operands):
        return lambda *xs: eqn.primitive.bind(*(_rows(x, shape) for x in xs), **eqn.params).reshape(shape)
    if eqn.primitive.name == "broadcast_in_dim" and len(operands) == 1:
        sizes = dict(zip(eqn.params["broadcast_dimensions"], operands[0], strict=True))
        own = tuple(sizes.get(axis, 1) for axis in range(len(shape)))
        dtype = eqn.outvars[0].aval.dtype
        if _fits(own, shape):  # asarray: a literal may be a Python number
            return lambda x: jnp.broadcast_to(_rows(jnp.asarray(x, dtype).reshape(own), shape), _merged(shape)).reshape(
                shape
            )
    return None


def _pays(shape: tuple[int, ...]) -> bool:
    return len(shape) > 2 and shape[-1] < _ENOUGH <= shape[-2] * shape[-1] and math.prod(shape) >= _SMALL


def _merged(shape: Sequence[int]) -> tuple[int, ...]:
    return (*shape[:-2], shape[-2] * shape[-1])


def _fits(own: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether an operand of these sizes, 1 or those of the result, has whole rows or is the same along each."""
    return own[-2:] == shape[-2:] or own[-2] == 1


def _rows(x: Array, shape: tuple[int, ...]) -> Array:
    """An operand with its last two axes as one; what is the same for the pixels of a row is repeated for each."""
    own = jnp.shape(x)
    if not own:
        return x
    if own[-2] == shape[-2] or own[-1] == 1:
        return x.reshape(_merged(own))
    # Without the barrier XLA would repeat it anew at each pixel, which is slower than what is to be mended.
    repeated = jnp.broadcast_to(x, (*own[:-2], shape[-2], own[-1]))
    return lax.optimization_barrier(repeated.reshape(_merged(repeated.shape)))
