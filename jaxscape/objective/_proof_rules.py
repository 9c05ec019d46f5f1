"""How the operations of a loss carry on what is known of its values: the rules of `_proof`."""

import math
from collections.abc import Callable, Sequence

import jax.numpy as jnp
from jax.extend import core

from jaxscape.objective._proof_states import Kind, Pair, Rows, State, UnprovenError, as_rows, need

# ---- operations on sums and means


def linear(pair: Pair) -> State:
    """The state of the result of an operation on sums or means over the examples.

    Args:
        pair: The operation.

    Returns:
        TOTAL or MEAN.

    Raises:
        UnprovenError: It is not linear, as far as is known.
    """
    pair.params()
    kinds, name = pair.states, pair.name
    floats = all(jnp.issubdtype(v.aval.dtype, jnp.floating) for v in pair.eqns[0].outvars)
    need(floats and len(pair.eqns[0].outvars) == 1, pair)
    if name in _LINEAR:
        return kinds[0]
    if name in ("add", "sub", "add_any"):
        if kinds[0] is kinds[1]:
            return kinds[0]
        need(set(kinds) == {Kind.MEAN, Kind.SAME}, pair)
        return Kind.MEAN
    if name in ("mul", "div"):
        a, b = kinds if name == "div" or kinds[0] in (Kind.TOTAL, Kind.MEAN) else reversed(kinds)
        if b is Kind.SAME and a in (Kind.TOTAL, Kind.MEAN):
            return a
        if (a, b) == (Kind.TOTAL, Kind.COUNT if name == "div" else Kind.INVERSE):
            return Kind.MEAN
    raise UnprovenError(f"{name} of {kinds}")


_LINEAR = (
    *("neg", "convert_element_type", "reshape", "squeeze", "broadcast_in_dim", "transpose", "copy", "reduce_sum"),
    "stop_gradient",
)


# ---- operations on rows


def _elementwise(pair: Pair) -> State:
    pair.params("sharding")
    return pair.rows


def _reduce(pair: Pair) -> State:
    axes, rows = pair.params()["axes"], pair.rows
    if rows.axis in axes:
        need(pair.name == "reduce_sum", pair)
        return Kind.TOTAL
    return rows._replace(axis=rows.axis - sum(axis < rows.axis for axis in axes))


def _along(name: str) -> Callable[[Pair], State]:
    """An operation along an axis that is not that of the rows."""

    def rule(pair: Pair) -> State:
        axes, rows = pair.params("sizes")[name], pair.rows
        need(rows.axis not in (axes if isinstance(axes, tuple) else (axes,)), pair)
        return rows

    return rule


def _broadcast(pair: Pair) -> State:
    params, shapes = pair.params("shape", "sharding"), pair.results()
    need(len(pair.states) == 1, pair)
    if pair.states[0] is Kind.SAME:
        longer = [axis for axis, (a, b) in enumerate(zip(*shapes, strict=True)) if a != b]
        need(len(longer) == 1 and shapes[0][longer[0]] % pair.sizes[0] == 0, pair)
        return Rows(longer[0], shapes[0][longer[0]] // pair.sizes[0])
    rows = pair.rows
    return rows._replace(axis=params["broadcast_dimensions"][rows.axis])


def _reshape(pair: Pair) -> State:
    """Examples stay apart where as many numbers come before the axis of rows as before, in the order of memory."""
    need(pair.params("new_sizes", "sharding").get("dimensions") is None, pair)
    rows, before, after = pair.rows, pair.shapes(), pair.results()
    for axis, size in enumerate(after[0]):
        outer = all(math.prod(b[:axis]) == math.prod(a[: rows.axis]) for a, b in zip(before, after, strict=True))
        if outer and size != after[1][axis] and size % pair.sizes[0] == 0:
            return Rows(axis, size // pair.sizes[0])
    raise UnprovenError(f"{pair.name} of {pair.states}")


def _transpose(pair: Pair) -> State:
    rows = pair.rows
    return rows._replace(axis=pair.params()["permutation"].index(rows.axis))


def _squeeze(pair: Pair) -> State:
    dimensions, rows = pair.params()["dimensions"], pair.rows
    return rows._replace(axis=rows.axis - sum(axis < rows.axis for axis in dimensions))


def _pad(pair: Pair) -> State:
    rows = pair.rows
    need(pair.states[1] is Kind.SAME and tuple(pair.params()["padding_config"][rows.axis]) == (0, 0, 0), pair)
    return rows


def _slice(pair: Pair) -> State:
    params, rows = pair.params("limit_indices"), pair.rows
    whole = params["limit_indices"][rows.axis] - params["start_indices"][rows.axis] == pair.shapes()[0][rows.axis]
    need(whole and (params["strides"] is None or params["strides"][rows.axis] == 1), pair)
    return rows


def _dynamic_slice(pair: Pair) -> State:
    params, rows = pair.params("slice_sizes"), pair.rows
    need(pair.states[0] == rows and params["slice_sizes"][rows.axis] == pair.shapes()[0][rows.axis], pair)
    return rows


def _window(pair: Pair) -> State:
    params, rows = pair.params(), pair.rows
    need(pair.states[0] == rows and tuple(params["padding"][rows.axis]) == (0, 0), pair)
    ones = ("window_dimensions", "window_strides", "base_dilation", "window_dilation")
    need(all(params[name][rows.axis] == 1 for name in ones), pair)
    return rows


def _top_k(pair: Pair) -> State:
    params, rows = pair.params(), pair.rows
    last = len(pair.shapes()[0]) - 1
    need(rows.axis != params.get("axis", last) % (last + 1), pair)
    return rows


def _convolution(pair: Pair) -> State:
    params = pair.params()
    numbers, rows = params["dimension_numbers"], pair.rows
    image = pair.states == [rows, Kind.SAME] and rows.axis == numbers.lhs_spec[0]
    need(image and params["batch_group_count"] == 1, pair)
    return rows._replace(axis=numbers.out_spec[0])


def _product(pair: Pair) -> State:
    (contracting, batch), states = pair.params("out_sharding")["dimension_numbers"], pair.states
    ranks = [len(pair.shapes(i)[0]) for i in range(2)]
    free = [[d for d in range(ranks[i]) if d not in contracting[i] and d not in batch[i]] for i in range(2)]
    if Kind.SAME not in states:
        one, other = map(as_rows, states)
        at = list(batch[0]).index(one.axis) if one.axis in batch[0] else None
        need(at is not None and batch[1][at] == other.axis and one.each == other.each, pair)
        return Rows(at or 0, one.each)
    side = int(states[0] is Kind.SAME)
    rows = as_rows(states[side])
    need(rows.axis in free[side], pair)  # the other operand has no rows, so no batch axis can be theirs
    return rows._replace(axis=len(batch[0]) + side * len(free[0]) + free[side].index(rows.axis))


def _gather(pair: Pair) -> State:
    params, (operand, indices) = pair.params("slice_sizes"), pair.states
    numbers, rank = params["dimension_numbers"], len(pair.results()[0])
    if isinstance(operand, Rows) and indices is Kind.SAME:
        gone = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
        whole = params["slice_sizes"][operand.axis] == pair.shapes()[0][operand.axis]
        need(whole and operand.axis not in gone and operand.axis not in numbers.start_index_map, pair)
        offset = sorted(set(range(len(pair.shapes()[0]))) - gone).index(operand.axis)
        return operand._replace(axis=numbers.offset_dims[offset])
    rows = as_rows(indices)
    if operand is not Kind.SAME:
        own = as_rows(operand)
        need(own.axis in numbers.operand_batching_dims and own.each == rows.each, pair)
        partner = numbers.start_indices_batching_dims[numbers.operand_batching_dims.index(own.axis)]
        need(partner == rows.axis, pair)
    need(rows.axis < len(pair.shapes(1)[0]) - 1, pair)  # the last axis has the parts of an index
    return rows._replace(axis=[d for d in range(rank) if d not in numbers.offset_dims][rows.axis])


# fmt: off
_ELEMENTWISE = (
    "abs", "acos", "acosh", "add", "add_any", "and", "asin", "asinh", "atan", "atan2", "atanh", "bessel_i0e",
    "bessel_i1e", "cbrt", "ceil", "clamp", "clz", "conj", "convert_element_type", "copy", "cos", "cosh", "digamma",
    "div", "eq", "erf", "erf_inv", "erfc", "exp", "exp2", "expm1", "floor", "ge", "gt", "igamma", "igammac",
    "integer_pow", "is_finite", "le", "lgamma", "log", "log1p", "logistic", "lt", "max", "min", "mul", "ne", "neg",
    "nextafter", "not", "or", "polygamma", "population_count", "pow", "real", "imag", "reduce_precision", "rem",
    "round", "rsqrt", "select_n", "shift_left", "shift_right_arithmetic", "shift_right_logical", "sign", "sin",
    "sinh", "sqrt", "square", "stop_gradient", "sub", "tan", "tanh", "xor",
)
# fmt: on

RULES: dict[str, Callable[[Pair], State]] = {
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
    **dict.fromkeys(["reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or"], _reduce),
    **dict.fromkeys(["argmax", "argmin"], _reduce),
    **dict.fromkeys(["cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp", "split"], _along("axis")),
    **dict.fromkeys(["reduce_window_max", "reduce_window_min", "reduce_window_sum"], _window),
    "sort": _along("dimension"),
    "concatenate": _along("dimension"),
    "rev": _along("dimensions"),
    "top_k": _top_k,
    "broadcast_in_dim": _broadcast,
    "reshape": _reshape,
    "transpose": _transpose,
    "squeeze": _squeeze,
    "pad": _pad,
    "slice": _slice,
    "dynamic_slice": _dynamic_slice,
    "conv_general_dilated": _convolution,
    "dot_general": _product,
    "gather": _gather,
}
"""The state of each result, by the name of the primitive."""


# ---- operations with jaxprs inside

Follow = Callable[[core.Jaxpr, core.Jaxpr, Sequence[State]], list[State]]


def _inner(pair: Pair, name: str) -> tuple[core.Jaxpr, core.Jaxpr]:
    """A jaxpr without constants in the parameters of both equations."""
    one, other = (eqn.params.get(name) for eqn in pair.eqns)
    need(one is not None and other is not None, pair)
    need(not (getattr(one, "consts", ()) or getattr(other, "consts", ())), pair)
    return getattr(one, "jaxpr", one), getattr(other, "jaxpr", other)


def _call(name: str) -> Callable[[Pair, Follow], list[State]]:
    return lambda pair, follow: follow(*_inner(pair, name), pair.states)


def _cond(pair: Pair, follow: Follow) -> list[State]:
    branches = [eqn.params["branches"] for eqn in pair.eqns]
    need(pair.states[0] is Kind.SAME and len(branches[0]) == len(branches[1]), pair)
    need(not any(branch.consts for both in branches for branch in both), pair)
    results = [follow(one.jaxpr, other.jaxpr, pair.states[1:]) for one, other in zip(*branches, strict=True)]
    need(all(result == results[0] for result in results), pair)
    return results[0]


def _scan(pair: Pair, follow: Follow) -> list[State]:
    params = pair.params("jaxpr")
    first, last = params["num_consts"], params["num_consts"] + params["num_carry"]
    states = pair.states
    need(not any(isinstance(state, Rows) and state.axis == 0 for state in states[last:]), pair)
    each = [state._replace(axis=state.axis - 1) if isinstance(state, Rows) else state for state in states[last:]]
    results = follow(*_inner(pair, "jaxpr"), [*states[:last], *each])
    carried = last - first
    need(results[:carried] == states[first:last], pair)
    stacked = [state._replace(axis=state.axis + 1) if isinstance(state, Rows) else state for state in results[carried:]]
    return [*results[:carried], *stacked]


INSIDE: dict[str, Callable[[Pair, Follow], list[State]]] = {
    **dict.fromkeys(["jit", "pjit", "core_call", "checkpoint", "remat2"], _call("jaxpr")),
    **dict.fromkeys(["custom_jvp_call", "custom_vjp_call", "closed_call"], _call("call_jaxpr")),
    "cond": _cond,
    "scan": _scan,
}
"""The states of the results, by the name of the primitive, given a function that follows the jaxprs inside."""
