"""The forms of a convolution, and which of them is fastest for its shape on a CPU.

XLA's convolution there collapses on small images (2x2 pixels, 64 channels: 17 GFLOP/s, where a matrix product reaches
146 to 230 on the same two cores), and its gradient is 8 to 15 times slower inside a loop than alone (jax-ml/jax issue
12868). A matrix product has neither flaw.
"""

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
    """A convolution, and the shapes of its operands in the order batch, space..., features / space..., in, out."""

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
        """Transposed to batch, space..., features and space..., in, out."""
        (batch, feature, *space), (out, inner, *taps) = self.dimension_numbers[:2]
        return x.transpose(batch, *space, feature), kernel.transpose(*taps, inner, out)

    def result(self, y: Array) -> Array:
        """From batch, space..., features to the order that was asked for."""
        batch, feature, *space = self.dimension_numbers.out_spec
        order = (batch, *space, feature)
        return y.transpose(*(order.index(a) for a in range(len(order))))


Form = Callable[[Array, Array, Spec], Array]
PART = 2**18  # numbers of a batch, a MB in float32, for which the gradient of a kernel is fastest


def _native(x: Array, kernel: Array, spec: Spec) -> Array:
    """XLA's own convolution."""
    return lax.conv_general_dilated(
        x,
        kernel,
        spec.strides,
        spec.padding,
        spec.lhs_dilation,
        spec.rhs_dilation,
        spec.dimension_numbers,
        precision=spec.precision,
        preferred_element_type=spec.dtype,
    )


def form_of(eqn: Any, in_loop: bool) -> Callable[[Array, Array], Array] | None:
    """The fastest form of a convolution on a CPU, of the same operands; None for the native one."""
    spec = Spec.of(eqn)
    form = _fastest(eqn, spec, in_loop)
    return (lambda x, kernel: form(x, kernel, spec)) if form else None


def _fastest(eqn: Any, spec: Spec, in_loop: bool) -> Form | None:
    x, kernel = (v.aval for v in eqn.invars)
    floating = jnp.issubdtype(x.dtype, jnp.floating) and x.dtype == kernel.dtype
    if not floating or eqn.params["batch_group_count"] != 1 or 0 in (*x.shape, *kernel.shape, *spec.out_space):
        return None
    if _sums_over_batch(spec) and not in_loop:
        return as_parts if len(_parts(x)) > 1 else None
    space = math.prod(x.shape[a] for a in spec.dimension_numbers.lhs_spec[2:])
    taps = math.prod(kernel.shape[a] for a in spec.dimension_numbers.rhs_spec[2:])
    if space <= taps:  # the matrix has no more entries to multiply than the sum over the taps has
        return as_matrix
    if in_loop:
        return as_patches if taps <= math.prod(spec.out_space) else as_matrix
    # Two cores, 32x32 pixels: 3 features to 16 by 3x3 taps 33 GFLOP/s natively, 77 as patches; 16 to 32 by one tap
    # and stride 2, 76 and 123. Beyond 9 taps the patches would take more memory than the image is worth.
    few = kernel.shape[spec.dimension_numbers.rhs_spec[1]] <= 4 and taps <= 9
    if spec.groups == 1 and (few or taps == 1):
        return as_patches
    return as_pairs if _has_pairs(spec, kernel.shape) else None


def _has_pairs(spec: Spec, kernel: tuple[int, ...]) -> bool:
    """Whether a convolution has so few output features that two pixels at once are faster, and pixels that pair up."""
    width, features = kernel[spec.dimension_numbers.rhs_spec[-1]], kernel[spec.dimension_numbers.rhs_spec[0]]
    adjacent = spec.strides[-1] == spec.lhs_dilation[-1] == spec.rhs_dilation[-1] == spec.groups == 1
    return adjacent and features <= 16 and width >= 3 and spec.out_space[-1] % 2 == 0


def as_pairs(x: Array, kernel: Array, spec: Spec) -> Array:
    """A native convolution that makes two neighbouring pixels at once, as twice the output features.

    On a CPU with 16 floats in a register, 16 features leave the matrix product that Eigen makes of a convolution too
    narrow: at 32x32 pixels, 16 features, pairs reach 100 GFLOP/s where single pixels reach 54, though the kernel,
    one pixel wider, multiplies a third more. From 32 features on it does not pay.

    Its derivative is that of the single pixels: the gradient of a convolution with strides is slow.

    Returns:
        What the convolution gives, to rounding.
    """
    return _pairs(spec)(x, kernel)


@functools.lru_cache(maxsize=256)
def _pairs(spec: Spec) -> Callable[[Array, Array], Array]:
    @jax.custom_jvp
    def pairs(x: Array, kernel: Array) -> Array:
        x, kernel = spec.operands(x, kernel)
        space, last = range(1, x.ndim - 1), kernel.ndim - 3
        zero = jnp.zeros((), kernel.dtype)
        none = [(0, 0, 0)] * kernel.ndim
        sides = [lax.pad(kernel, zero, [*none[:last], (i, 1 - i, 0), *none[last + 1 :]]) for i in (0, 1)]
        layout = lax.ConvDimensionNumbers(
            (0, x.ndim - 1, *space), (last + 2, last + 1, *range(last + 1)), (0, x.ndim - 1, *space)
        )
        y = lax.conv_general_dilated(
            x,
            jnp.concatenate(sides, axis=-1),
            (*spec.strides[:-1], 2),
            spec.padding,
            spec.lhs_dilation,
            spec.rhs_dilation,
            layout,
            precision=spec.precision,
            preferred_element_type=spec.dtype,
        )
        return spec.result(y.reshape(len(x), *spec.out_space, kernel.shape[-1]))

    @pairs.defjvp
    def _(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
        (x, kernel), (dx, dkernel) = primals, tangents
        return pairs(x, kernel), _native(dx, kernel, spec) + _native(x, dkernel, spec)

    return pairs


def _sums_over_batch(spec: Spec) -> bool:
    """Whether it is the gradient of a kernel: the features it sums over are the examples, the first axis."""
    return spec.dimension_numbers.lhs_spec[1] == 0 and spec.groups == 1


def _parts(x: Any) -> list[tuple[int, int]]:
    """Where the parts of a batch, of at most PART numbers each, start and end."""
    examples = x.shape[0]
    size = max(1, PART * examples // math.prod(x.shape))
    return [(i, min(i + size, examples)) for i in range(0, examples, size)]


def as_parts(x: Array, kernel: Array, spec: Spec) -> Array:
    """The gradient of a kernel, summed over parts of the batch that a core's cache holds.

    64 images of 32x32 pixels, 16 features: 45 GFLOP/s at once and 80 to 104 in parts; of 16x16 pixels, 32 features:
    65 to 80 and 125 to 136. In other forms (patches, whole rows, blocks of pixels) it was slower.

    Returns:
        What the convolution gives, to rounding.
    """
    examples = spec.dimension_numbers.rhs_spec[1]
    parts = [
        _native(lax.slice_in_dim(x, *part), lax.slice_in_dim(kernel, *part, axis=examples), spec) for part in _parts(x)
    ]
    return functools.reduce(jnp.add, parts)


def as_matrix(x: Array, kernel: Array, spec: Spec) -> Array:
    """One matrix product over all pixels and features; the matrix holds the kernel, shifted for each output pixel.

    Output pixel ``o`` sees input pixel ``i`` through tap ``t`` where ``t * rhs_dilation = i * lhs_dilation - o *
    stride + padding``: for a fixed o the taps are a strided window of the zero-padded kernel.

    Returns:
        What the convolution gives, to rounding.
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
    """One matrix product of the patch around each output pixel with the kernel."""
    x, kernel = spec.operands(x, kernel)
    taps, rank = kernel.shape[:-2], x.ndim - 2
    zero = jnp.zeros((), x.dtype)
    widths = [(max(lo, 0), max(hi, 0), d - 1) for (lo, hi), d in zip(spec.padding, spec.lhs_dilation, strict=True)]
    x = lax.pad(x, zero, [(0, 0, 0), *widths, (0, 0, 0)])
    cut = [max(-lo, 0) for lo, _ in spec.padding]  # negative padding, as gradients of strided convolutions have it
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
