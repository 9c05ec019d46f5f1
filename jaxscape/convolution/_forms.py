"""The forms of a convolution: each is a function of the images, the kernel and a `Spec`."""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array


class Spec(NamedTuple):
    """The parameters of a convolution, as its equation in a jaxpr has them."""

    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    lhs_dilation: tuple[int, ...]
    rhs_dilation: tuple[int, ...]
    dimension_numbers: Any
    groups: int
    precision: Any
    dtype: Any
    out_space: tuple[int, ...]

    @classmethod
    def of(cls, eqn: Any) -> "Spec":
        """Read the parameters of an equation ``conv_general_dilated``."""
        p, out = eqn.params, eqn.outvars[0].aval.shape
        return cls(
            p["window_strides"],
            p["padding"],
            p["lhs_dilation"],
            p["rhs_dilation"],
            p["dimension_numbers"],
            p["feature_group_count"],
            p["precision"],
            p["preferred_element_type"],
            tuple(out[a] for a in p["dimension_numbers"].out_spec[2:]),
        )

    def operands(self, x: Array, kernel: Array) -> tuple[Array, Array]:
        """Transpose the images to (batch, space..., features) and the kernel to (space..., in, out)."""
        (batch, feature, *space), (out, inner, *taps) = self.dimension_numbers[:2]
        return x.transpose(batch, *space, feature), kernel.transpose(*taps, inner, out)

    def result(self, y: Array) -> Array:
        """Transpose the result from (batch, space..., features) to the order of the convolution's output."""
        batch, feature, *space = self.dimension_numbers.out_spec
        order = (batch, *space, feature)
        return y.transpose(*(order.index(a) for a in range(len(order))))


Form = Callable[[Array, Array, Spec], Array]
PART = 2**18  # numbers in one part of a batch (1 MB in float32); the gradient of a kernel is fastest at this size


def native(x: Array, kernel: Array, spec: Spec) -> Array:
    """Compute the convolution with XLA's operation, which is not rewritten."""
    return lax.conv_general_dilated(
        x,
        kernel,
        spec.strides,
        spec.padding,
        spec.lhs_dilation,
        spec.rhs_dilation,
        spec.dimension_numbers,
        spec.groups,
        precision=spec.precision,
        preferred_element_type=spec.dtype,
    )


def has_blocks(spec: Spec, kernel: tuple[int, ...], size: int) -> bool:
    """Whether the output pixels can be grouped in blocks of this size along the last axis of space."""
    adjacent = spec.strides[-1] == spec.lhs_dilation[-1] == spec.rhs_dilation[-1] == spec.groups == 1
    return adjacent and kernel[spec.dimension_numbers.rhs_spec[-1]] >= 3 and spec.out_space[-1] % size == 0


def sums_over_batch(spec: Spec) -> bool:
    """Whether the convolution is the gradient of a kernel: then it sums over the examples, which are the first axis."""
    return spec.dimension_numbers.lhs_spec[1] == 0 and spec.groups == 1


def as_pairs(x: Array, kernel: Array, spec: Spec) -> Array:
    """Compute two neighbouring pixels at once, as `as_blocks` does.

    Eigen computes a convolution as a matrix product. On a CPU with 16 floats in a register, 16 features make this
    matrix product too narrow: at 32x32 pixels and 16 features, pairs reach 100 GFLOP/s and single pixels reach 54,
    although the kernel is one pixel wider and needs a third more multiplications. With 32 or more features, pairs are
    not faster.

    Returns:
        The result of the convolution, up to rounding.
    """
    return as_blocks(x, kernel, spec, 2)


def as_blocks(x: Array, kernel: Array, spec: Spec, size: int, *, read: bool = False) -> Array:
    """Compute neighbouring pixels at once, with a native convolution that has ``size`` times the output features.

    The derivative uses the convolution of single pixels, because the gradient of a convolution with strides is slow.

    Args:
        x: The images.
        kernel: The kernel.
        spec: The parameters of the convolution.
        size: Pixels in a block.
        read: Whether the image too is seen in blocks, of which three make one: more multiplications by zero, no stride.

    Returns:
        The result of the convolution, up to rounding.
    """
    return _blocks(spec, size, read)(x, kernel)


@functools.lru_cache(maxsize=256)
def _blocks(spec: Spec, size: int, read: bool) -> Callable[[Array, Array], Array]:
    @jax.custom_jvp
    def blocks(x: Array, kernel: Array) -> Array:
        x, kernel = spec.operands(x, kernel)
        *taps, width, inner, features = kernel.shape
        space, last = range(1, x.ndim - 1), len(taps)
        first = size - spec.padding[-1][0] if read else 0
        window = 3 * size if read else width + size - 1
        zero, none = jnp.zeros((), kernel.dtype), [(0, 0, 0)] * kernel.ndim
        shifted = [
            lax.pad(kernel, zero, [*none[:last], (i, window - width - i, 0), *none[last + 1 :]])
            for i in range(first, first + size)
        ]
        wide = jnp.concatenate(shifted, axis=-1)
        padding, stride = spec.padding, size
        if read:
            x = x.reshape(*x.shape[:-2], x.shape[-2] // size, size * inner)
            wide = wide.reshape(*taps, 3, size * inner, size * features)
            padding, stride = (*padding[:-1], (1, 1)), 1
        layout = lax.ConvDimensionNumbers(
            (0, x.ndim - 1, *space), (last + 2, last + 1, *range(last + 1)), (0, x.ndim - 1, *space)
        )
        y = lax.conv_general_dilated(
            x,
            wide,
            (*spec.strides[:-1], stride),
            padding,
            spec.lhs_dilation,
            spec.rhs_dilation,
            layout,
            precision=spec.precision,
            preferred_element_type=spec.dtype,
        )
        return spec.result(y.reshape(len(x), *spec.out_space, features))

    @blocks.defjvp
    def _(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
        (x, kernel), (dx, dkernel) = primals, tangents
        return blocks(x, kernel), native(dx, kernel, spec) + native(x, dkernel, spec)

    return blocks


def parts_of(x: Any) -> list[tuple[int, int]]:
    """The start and the end of each part of a batch; a part has at most PART numbers."""
    examples = x.shape[0]
    size = max(1, PART * examples // math.prod(x.shape))
    return [(i, min(i + size, examples)) for i in range(0, examples, size)]


def as_parts(x: Array, kernel: Array, spec: Spec) -> Array:
    """Compute the gradient of a kernel as a sum over parts of the batch that fit into the cache of a core.

    Measured on 64 images: with 32x32 pixels and 16 features, 45 GFLOP/s as one convolution and 80 to 104 in parts;
    with 16x16 pixels and 32 features, 65 to 80 and 125 to 136. Other forms (patches, whole rows, blocks of pixels)
    were slower.

    Returns:
        The result of the convolution, up to rounding.
    """
    examples = spec.dimension_numbers.rhs_spec[1]
    parts = [
        native(lax.slice_in_dim(x, *part), lax.slice_in_dim(kernel, *part, axis=examples), spec) for part in parts_of(x)
    ]
    return functools.reduce(jnp.add, parts)


def as_matrix(x: Array, kernel: Array, spec: Spec) -> Array:
    """Compute the convolution as one matrix product over all pixels and features.

    The matrix holds a shifted copy of the kernel for each output pixel. Tap ``t`` connects output pixel ``o`` with
    input pixel ``i`` where ``t * rhs_dilation = i * lhs_dilation - o * stride + padding``. For a fixed o the taps are
    therefore a strided window of the zero-padded kernel.

    Returns:
        The result of the convolution, up to rounding.
    """
    x, kernel = spec.operands(x, kernel)
    space, rank = x.shape[1:-1], x.ndim - 2
    first = [lo - (o - 1) * s for (lo, _), o, s in zip(spec.padding, spec.out_space, spec.strides, strict=True)]
    ends = [(n - 1) * d + lo for n, d, (lo, _) in zip(space, spec.lhs_dilation, spec.padding, strict=True)]
    spans = [(t - 1) * d for t, d in zip(kernel.shape, spec.rhs_dilation, strict=False)]
    before = [max(0, -a) for a in first]
    widths = [(b, max(0, e - w), d - 1) for b, e, w, d in zip(before, ends, spans, spec.rhs_dilation, strict=True)]
    padded = lax.pad(kernel, jnp.zeros((), kernel.dtype), [*widths, (0, 0, 0), (0, 0, 0)])
    columns = []
    for out in itertools.product(*map(range, spec.out_space)):
        start = [b + lo - o * s for b, (lo, _), o, s in zip(before, spec.padding, out, spec.strides, strict=True)]
        stop = [a + (n - 1) * d + 1 for a, n, d in zip(start, space, spec.lhs_dilation, strict=True)]
        whole = padded.shape[rank:]
        columns.append(lax.slice(padded, [*start, 0, 0], [*stop, *whole], [*spec.lhs_dilation, 1, 1]))
    matrix = jnp.stack(columns, axis=-2)  # space..., in, outputs, out
    features, outputs, width = matrix.shape[rank:]
    matrix = matrix.reshape(math.prod(space), features, outputs, width)
    y = _product(x.reshape(len(x), math.prod(space), x.shape[-1]), matrix, spec)
    return spec.result(y.reshape(len(x), *spec.out_space, width))


def as_patches(x: Array, kernel: Array, spec: Spec) -> Array:
    """Compute the convolution as one matrix product of the kernel with the patch around each output pixel."""
    x, kernel = spec.operands(x, kernel)
    taps, rank = kernel.shape[:-2], x.ndim - 2
    zero = jnp.zeros((), x.dtype)
    widths = [(max(lo, 0), max(hi, 0), d - 1) for (lo, hi), d in zip(spec.padding, spec.lhs_dilation, strict=True)]
    x = lax.pad(x, zero, [(0, 0, 0), *widths, (0, 0, 0)])
    cut = [max(-lo, 0) for lo, _ in spec.padding]  # negative padding: gradients of strided convolutions have it
    patches = []
    for tap in itertools.product(*map(range, taps)):
        start = [c + t * d for c, t, d in zip(cut, tap, spec.rhs_dilation, strict=True)]
        stop = [a + (o - 1) * s + 1 for a, o, s in zip(start, spec.out_space, spec.strides, strict=True)]
        patches.append(lax.slice(x, [0, *start, 0], [len(x), *stop, x.shape[-1]], [1, *spec.strides, 1]))
    pixels = (len(x), *spec.out_space)
    stacked = jnp.stack(patches, axis=rank + 1).reshape(math.prod(pixels), math.prod(taps), x.shape[-1])
    matrix = kernel.reshape(math.prod(taps), kernel.shape[-2], 1, kernel.shape[-1])
    return spec.result(_product(stacked, matrix, spec).reshape(*pixels, kernel.shape[-1]))


def _product(x: Array, matrix: Array, spec: Spec) -> Array:
    """``(rows, s, groups * c) x (s, c, outputs, groups * d) -> (rows, outputs, groups * d)``."""
    options: dict[str, Any] = {"precision": spec.precision, "preferred_element_type": spec.dtype}
    rows, g = len(x), spec.groups
    c, outputs, d = matrix.shape[1:]
    if g == 1:
        x, matrix = x.reshape(rows, -1), matrix.reshape(-1, outputs * d)
        return lax.dot(x, matrix, **options).reshape(rows, outputs, d)
    x, matrix = x.reshape(rows, -1, g, c), matrix.reshape(-1, c, outputs, g, d // g)
    y = lax.dot_general(x, matrix, (((1, 3), (0, 1)), ((2,), (3,))), **options)  # groups, rows, outputs, d // g
    return y.transpose(1, 2, 0, 3).reshape(rows, outputs, d)
