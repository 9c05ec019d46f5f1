"""How the axes of the results of an operation follow from those of its operands.

An entry None stands for an axis along which an array is constant: it has any units. What no rule covers keeps the order
of all its axes, which is always right.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

from jax.extend import core

from jaxscape.alignment._units import Units, compound, unify

Axes = list[Units | None]

_ELEMENTWISE = frozenset(
    "abs acos acosh add and asin asinh atan atan2 atanh cbrt ceil clamp convert_element_type copy copy_p cos cosh "  # noqa: SIM905
    "digamma div eq erf erf_inv erfc exp exp2 expm1 floor ge gt integer_pow is_finite le lgamma log log1p logistic lt "
    "max min mul ne neg nextafter not or pow reduce_precision rem round rsqrt select_n sign sin sinh sqrt square "
    "stop_gradient sub tan tanh xor".split()
)
_REDUCTIONS = frozenset("reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or reduce_xor".split())  # noqa: SIM905
_CALLS = {  # and the parameter with the jaxpr
    **dict.fromkeys(("jit", "pjit", "closed_call", "remat", "remat2", "checkpoint"), "jaxpr"),
    **dict.fromkeys(("core_call", "custom_jvp_call", "custom_vjp_call"), "call_jaxpr"),
    "custom_vjp_call_jaxpr": "fun_jaxpr",
}


def follow(jaxpr: Any, inputs: Sequence[Sequence[Units | None]]) -> list[Axes]:
    """Follow axes through a computation.

    Args:
        jaxpr: The computation, with or without constants.
        inputs: The axes of each input.

    Returns:
        The axes of each output.
    """
    if isinstance(jaxpr, core.ClosedJaxpr):
        jaxpr = jaxpr.jaxpr
    known: dict[Any, Axes] = {var: _fixed(_shape(var)) for var in jaxpr.constvars}
    known |= {var: list(axes) for var, axes in zip(jaxpr.invars, inputs, strict=True)}

    def read(atom: Any) -> Axes:
        return _fixed(_shape(atom)) if isinstance(atom, core.Literal) else known[atom]

    for eqn in jaxpr.eqns:
        operands = [read(atom) for atom in eqn.invars]
        name = eqn.primitive.name
        if name in _CALLS and _CALLS[name] in eqn.params:
            results = follow(eqn.params[_CALLS[name]], operands)
        elif name == "optimization_barrier":
            results = operands
        elif name in _ELEMENTWISE:
            results = [_elementwise(eqn, *operands)]
        elif name in _REDUCTIONS:
            results = [[axis for i, axis in enumerate(operands[0]) if i not in eqn.params["axes"]]]
        elif name in _RULES and len(eqn.outvars) == 1:
            results = [_RULES[name](eqn, *operands)]
        else:
            _fix(*operands)
            results = [_fixed(var.aval.shape) for var in eqn.outvars]
        known |= dict(zip(eqn.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _shape(atom: Any) -> tuple[int, ...]:
    return atom.aval.shape


def _fixed(shape: Sequence[int]) -> Axes:
    return [Units(size, fixed=True) for size in shape]


def _fix(*operands: Axes) -> None:
    for axes in operands:
        for axis in axes:
            if axis is not None:
                axis.fix()


def _same(*axes: Units | None) -> Units | None:
    """One of several axes that meet; those that are constant have nothing to say."""
    known = [axis for axis in axes if axis is not None]
    for first, second in itertools.pairwise(known):
        unify(first, second)
    return known[0] if known else None


def _elementwise(eqn: Any, *operands: Axes) -> Axes:
    rank = len(eqn.outvars[0].aval.shape)
    arrays = [axes for axes in operands if len(axes) == rank]  # the others are scalars
    return [_same(*column) for column in zip(*arrays, strict=True)]


def _dot_general(eqn: Any, lhs: Axes, rhs: Axes) -> Axes:
    (lhs_contracted, rhs_contracted), (lhs_batch, rhs_batch) = eqn.params["dimension_numbers"]
    for i, j in zip(lhs_contracted, rhs_contracted, strict=True):
        _same(lhs[i], rhs[j])
    batch = [_same(lhs[i], rhs[j]) for i, j in zip(lhs_batch, rhs_batch, strict=True)]
    free = [axis for i, axis in enumerate(lhs) if i not in (*lhs_contracted, *lhs_batch)]
    return [*batch, *free, *(axis for j, axis in enumerate(rhs) if j not in (*rhs_contracted, *rhs_batch))]


def _convolution(eqn: Any, lhs: Axes, rhs: Axes) -> Axes:
    numbers, groups = eqn.params["dimension_numbers"], eqn.params["feature_group_count"]
    shape = eqn.outvars[0].aval.shape
    batch, features, *space = numbers.lhs_spec
    features_out, features_in, *taps = numbers.rhs_spec
    _fix([lhs[i] for i in space], [rhs[i] for i in taps])
    out = _fixed(shape)
    if eqn.params["batch_group_count"] != 1:
        _fix(lhs, rhs)
        return out
    width_in, width_out = eqn.invars[0].aval.shape[features], shape[numbers.out_spec[1]]
    results = rhs[features_out]
    if groups == 1:
        _same(lhs[features], rhs[features_in])
    else:  # the results follow the features of the input, also where the kernel is the same for all
        results = Units(width_out) if results is None else results
        if groups == width_in:  # each feature is a group: depthwise
            each = results.split("product", [groups, width_out // groups])[0] if width_out > groups else results
            _same(lhs[features], each)
        else:
            _fix([lhs[features], rhs[features_in], results])
    out[numbers.out_spec[0]], out[numbers.out_spec[1]] = lhs[batch], results
    return out


def _broadcast(eqn: Any, operand: Axes, *_: Axes) -> Axes:
    shape, places = eqn.params["shape"], eqn.params["broadcast_dimensions"]
    out: Axes = [None] * len(shape)
    for axis, size, place in zip(operand, eqn.invars[0].aval.shape, places, strict=True):
        if size == shape[place]:
            out[place] = axis
    return out


def _transpose(eqn: Any, operand: Axes) -> Axes:
    return [operand[i] for i in eqn.params["permutation"]]


def _squeeze(eqn: Any, operand: Axes) -> Axes:
    return [axis for i, axis in enumerate(operand) if i not in eqn.params["dimensions"]]


def _reshape(eqn: Any, operand: Axes, *_: Axes) -> Axes:
    old, new = eqn.invars[0].aval.shape, eqn.params["new_sizes"]
    if eqn.params.get("dimensions") is not None or 0 in old:
        _fix(operand)
        return _fixed(new)
    out: Axes = [None] * len(new)
    for before, after in _blocks(old, new):
        axes = [operand[i] for i in before]
        if all(axis is None for axis in axes) or not after:
            continue
        parts = [Units(old[i]) if axis is None else axis for i, axis in zip(before, axes, strict=True)]
        joined = compound("product", parts)
        sizes = [new[i] for i in after]
        results = [joined] if len(after) == 1 else joined.split("product", sizes)
        for i, units in zip(after, results, strict=True):
            out[i] = units
    return out


def _blocks(old: Sequence[int], new: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """The smallest runs of axes, without those of size 1, that have as many entries before as after."""
    before, after = ([i for i, size in enumerate(shape) if size > 1] for shape in (old, new))
    blocks = []
    while before:
        left, right = [before.pop(0)], [after.pop(0)]
        while (a := math.prod(old[i] for i in left)) != (b := math.prod(new[i] for i in right)):
            left, right = (left + [before.pop(0)], right) if a < b else (left, right + [after.pop(0)])
        blocks.append((left, right))
    return blocks


def _concatenate(eqn: Any, *operands: Axes) -> Axes:
    along = eqn.params["dimension"]
    columns = list(zip(*operands, strict=True))
    out = [None if i == along else _same(*column) for i, column in enumerate(columns)]
    sizes = [atom.aval.shape[along] for atom in eqn.invars]
    parts = [Units(size) if axis is None else axis for axis, size in zip(columns[along], sizes, strict=True)]
    out[along] = compound("sum", parts)
    return out


def _window(eqn: Any, operand: Axes, *_: Axes) -> Axes:
    """Pooling: axes with a window of 1 stay as they are."""
    window, strides = eqn.params["window_dimensions"], eqn.params["window_strides"]
    padding = eqn.params["padding"]
    whole = [w == 1 and s == 1 and tuple(p) == (0, 0) for w, s, p in zip(window, strides, padding, strict=True)]
    return _kept(eqn, operand, whole)


def _slice(eqn: Any, operand: Axes) -> Axes:
    shape, out = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    return _kept(eqn, operand, [a == b for a, b in zip(shape, out, strict=True)])


def _pad(eqn: Any, operand: Axes, *_: Axes) -> Axes:
    return _kept(eqn, operand, [tuple(config) == (0, 0, 0) for config in eqn.params["padding_config"]])


def _index(eqn: Any, operand: Axes) -> Axes:
    """``argmax``: the number of a unit is known afterwards."""
    _fix([operand[i] for i in eqn.params["axes"]])
    return [axis for i, axis in enumerate(operand) if i not in eqn.params["axes"]]


def _kept(eqn: Any, operand: Axes, whole: Sequence[bool]) -> Axes:
    """Some axes as they are, the others in their order."""
    _fix([axis for axis, same in zip(operand, whole, strict=True) if not same])
    new = _fixed(eqn.outvars[0].aval.shape)
    return [axis if same else other for axis, same, other in zip(operand, whole, new, strict=True)]


_RULES: dict[str, Callable[..., Axes]] = {
    "argmax": _index,
    "argmin": _index,
    "broadcast_in_dim": _broadcast,
    "concatenate": _concatenate,
    "conv_general_dilated": _convolution,
    "dot_general": _dot_general,
    "pad": _pad,
    "reduce_window": _window,
    "reduce_window_max": _window,
    "reduce_window_min": _window,
    "reduce_window_sum": _window,
    "reshape": _reshape,
    "slice": _slice,
    "squeeze": _squeeze,
    "transpose": _transpose,
}
