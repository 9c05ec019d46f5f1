"""A function transform that writes convolutions in the form which is fastest for their shape.

XLA's convolution on a CPU collapses on small images (2x2 pixels, 64 channels: 17 GFLOP/s, where a matrix product
reaches 146 to 230 on the same two cores), and its gradient is 8 to 15 times slower inside a loop than alone
(jax-ml/jax issue 12868). A matrix product has neither flaw. `fast_convolutions` changes the convolutions of any
function, whichever library wrote it, and leaves everything else as it is.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core
from jaxtyping import Array

# Primitives that run the jaxprs in their parameters as they stand, so that a rewritten one can take its place. Others
# with jaxprs (a Pallas kernel, say) are not understood and left alone. The value says whether they are loops.
_CALLS = {
    "jit": False,
    "pjit": False,
    "closed_call": False,
    "core_call": False,
    "checkpoint": False,
    "remat2": False,
    "cond": False,
    "custom_jvp_call": False,
    "custom_vjp_call": False,
    "scan": True,
    "while": True,
}


def fast_convolutions(fun: Callable[..., Any], *, backend: str | None = None) -> Callable[..., Any]:
    """Give a function that computes what ``fun`` does, to rounding, with convolutions in their fastest form.

    A transform like `jax.grad`: it traces ``fun`` and replaces ``conv_general_dilated`` within, through `jax.jit`,
    `jax.lax.scan`, ``while_loop``, ``cond``, `jax.custom_jvp`, `jax.custom_vjp` and `jax.checkpoint`. It goes before
    or after `jax.grad` and `jax.vmap`; rules that a user gave to ``custom_jvp`` or ``custom_vjp`` stay as they are. It
    traces anew at each call, so use it under `jax.jit`.

    >>> def fun(images, kernel):
    ...     return lax.conv(images, kernel, (1, 1), "SAME")
    >>> images, kernel = jnp.ones((4, 3, 2, 2)), jnp.ones((5, 3, 3, 3))
    >>> bool(jnp.allclose(fast_convolutions(fun, backend="cpu")(images, kernel), fun(images, kernel)))
    True

    Args:
        fun: Any function of pytrees of arrays that JAX can trace.
        backend: Whose fastest form; None: the default backend. On ``"cpu"`` small images and loops are rewritten; on
            others nothing is, for want of a measurement that would speak for it.

    Returns:
        A function with the signature of ``fun``.
    """

    @functools.wraps(fun)
    def rewritten(*args: Any, **kwargs: Any) -> Any:
        if (backend or jax.default_backend()) != "cpu":
            return fun(*args, **kwargs)
        jaxpr, shapes = jax.make_jaxpr(fun, return_shape=True)(*args, **kwargs)
        outs = _run(jaxpr.jaxpr, jaxpr.consts, jax.tree.leaves((args, kwargs)), False)
        return jax.tree.unflatten(jax.tree.structure(shapes), outs)

    return rewritten


def _run(jaxpr: core.Jaxpr, consts: Sequence[Any], args: Sequence[Any], in_loop: bool) -> list[Any]:
    """Evaluate a jaxpr, its convolutions in their fastest form."""
    variables: list[Any] = [*jaxpr.constvars, *jaxpr.invars]
    values: dict[Any, Any] = dict(zip(variables, (*consts, *args), strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, core.Literal) else values[atom]

    for eqn in jaxpr.eqns:
        inputs = [read(atom) for atom in eqn.invars]
        with eqn.ctx.manager:
            form = _form(eqn, in_loop) if eqn.primitive.name == "conv_general_dilated" else None
            if form:
                outputs: Any = form(inputs[0], inputs[1], _Spec.of(eqn))
            else:
                bound: Any = eqn.primitive.get_bind_params(_rewrite_inside(eqn, in_loop))
                subfuns, params = bound if isinstance(bound, tuple) else ((), bound)  # a tuple before JAX 0.10
                outputs = eqn.primitive.bind(*subfuns, *inputs, **params)
        outputs = outputs if eqn.primitive.multiple_results else [outputs]
        values.update(zip(eqn.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _rewrite_inside(eqn: Any, in_loop: bool) -> dict[str, Any]:
    """The parameters of an equation, the jaxprs among them rewritten where they hold a convolution to rewrite."""
    if eqn.primitive.name not in _CALLS:
        return eqn.params
    within = in_loop or _CALLS[eqn.primitive.name]

    def rewrite(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(rewrite, value))
        inner = value.jaxpr if isinstance(value, core.ClosedJaxpr) else value
        if not isinstance(inner, core.Jaxpr) or not _has_work(inner, within):
            return value
        consts = value.consts if isinstance(value, core.ClosedJaxpr) else ()
        avals: list[Any] = [v.aval for v in inner.invars]
        types = [jax.ShapeDtypeStruct(a.shape, a.dtype, weak_type=a.weak_type) for a in avals]
        new = jax.make_jaxpr(lambda *args: _run(inner, consts, args, within))(*types)
        if isinstance(value, core.ClosedJaxpr):
            return new
        return value if new.consts else new.jaxpr

    return {name: rewrite(value) for name, value in eqn.params.items()}


def _has_work(jaxpr: core.Jaxpr, in_loop: bool) -> bool:
    """Whether a convolution to rewrite is anywhere inside."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "conv_general_dilated" and _form(eqn, in_loop):
            return True
        within = in_loop or _CALLS.get(eqn.primitive.name, False)
        for value in itertools.chain(*((v if isinstance(v, tuple) else (v,)) for v in eqn.params.values())):
            inner = value.jaxpr if isinstance(value, core.ClosedJaxpr) else value
            if isinstance(inner, core.Jaxpr) and _has_work(inner, within):
                return True
    return False


class _Spec(NamedTuple):
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
    def of(cls, eqn: Any) -> "_Spec":
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


Form = Callable[[Array, Array, _Spec], Array]


def _form(eqn: Any, in_loop: bool) -> Form | None:
    """The fastest form of a convolution on a CPU; None for the native one."""
    spec = _Spec.of(eqn)
    x, kernel = (v.aval for v in eqn.invars)
    floating = jnp.issubdtype(x.dtype, jnp.floating) and x.dtype == kernel.dtype
    if not floating or eqn.params["batch_group_count"] != 1 or 0 in (*x.shape, *kernel.shape, *spec.out_space):
        return None
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


def _has_pairs(spec: _Spec, kernel: tuple[int, ...]) -> bool:
    """Whether a convolution has so few output features that two pixels at once are faster, and pixels that pair up."""
    width, features = kernel[spec.dimension_numbers.rhs_spec[-1]], kernel[spec.dimension_numbers.rhs_spec[0]]
    adjacent = spec.strides[-1] == spec.lhs_dilation[-1] == spec.rhs_dilation[-1] == spec.groups == 1
    return adjacent and features <= 16 and width >= 3 and spec.out_space[-1] % 2 == 0


def as_pairs(x: Array, kernel: Array, spec: _Spec) -> Array:
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
def _pairs(spec: _Spec) -> Callable[[Array, Array], Array]:
    def native(x: Array, kernel: Array) -> Array:
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
        return pairs(x, kernel), native(dx, kernel) + native(x, dkernel)

    return pairs


def as_matrix(x: Array, kernel: Array, spec: _Spec) -> Array:
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


def as_patches(x: Array, kernel: Array, spec: _Spec) -> Array:
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


def _product(x: Array, matrix: Array, spec: _Spec) -> Array:
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
