"""A proof that a loss is the mean over its examples, from two of its jaxprs.

The loss is traced for batches of two sizes, and the two jaxprs are read side by side. Each value in them is put into
one of a few kinds (`Kind`, `Rows`), by a rule for each operation (`_proof_rules`). A loss is proven where it has one
row for each example, or is a mean of such rows. An operation without a rule, or one that the rule cannot follow, ends
the attempt: then nothing is known, and the loss has to be evaluated to find out.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core

from jaxscape.convolution import inside
from jaxscape.objective._jaxpr import identify
from jaxscape.objective._proof_rules import INSIDE, RULES, linear
from jaxscape.objective._proof_states import Kind, Pair, Rows, State, UnprovenError
from jaxscape.objective._trace import Traced

FEW = 1024  # numbers in an array that is compared entry by entry


def is_mean(first: Traced, second: Traced, sizes: tuple[int, int], arguments: Sequence[bool]) -> bool:
    """Whether a loss is proven to be the mean over its examples, or to have a value for each of them.

    Args:
        first: The loss, traced for a batch of the first size.
        second: The same function, traced for a batch of the second size.
        sizes: Two different numbers of examples.
        arguments: Of each leaf of the arguments, whether it is one of the batch.

    Returns:
        True: each example's loss and weight depend on nothing but this example and params, or the loss is a mean of
        such values. False: nothing is known.
    """
    jaxprs = first.computation.jaxpr, second.computation.jaxpr
    if len(first.constants) != len(second.constants) or first.computation.out_tree != second.computation.out_tree:
        return False
    if not all(map(_equal_arrays, first.constants, second.constants)):
        return False
    states = [*(Kind.SAME for _ in first.constants), *(Rows(0, 1) if rows else Kind.SAME for rows in arguments)]
    try:
        results = jax.tree.unflatten(first.computation.out_tree, _follow(*jaxprs, states, sizes))
    except UnprovenError:
        return False
    weight = results.get("weight", Rows(0, 1))
    return results["loss"] in (Rows(0, 1), Kind.MEAN, Kind.SAME) and weight == Rows(0, 1)


def _follow(one: core.Jaxpr, other: core.Jaxpr, inputs: Sequence[State], sizes: tuple[int, int]) -> list[State]:
    """Follow two jaxprs from their inputs to their results.

    Args:
        one: The jaxpr of the loss of a batch of the first size.
        other: That of the second size.
        inputs: The states of the inputs.
        sizes: Examples in the batches.

    Returns:
        The states of the results.

    Raises:
        UnprovenError: The state of a value is not known.
    """
    known: dict[Any, tuple[Any, State]] = {}  # by the variable of the one jaxpr: that of the other, and its state

    def define(here: Sequence[Any], there: Sequence[Any], states: Sequence[State]) -> None:
        if not len(here) == len(there) == len(states):
            raise UnprovenError("other numbers of values")
        for a, b, state in zip(here, there, states, strict=True):
            _check_shapes(a.aval, b.aval, state, sizes)
            known[a] = b, state

    def state_of(a: Any, b: Any) -> State:
        if isinstance(a, core.Literal) or isinstance(b, core.Literal):
            return _literal(a, b, sizes)
        partner, state = known[a]
        if partner is not b:
            raise UnprovenError("other operands")
        return state

    if one.constvars or other.constvars or len(one.eqns) != len(other.eqns):
        raise UnprovenError("other operations")
    define(one.invars, other.invars, inputs)
    for eqns in zip(one.eqns, other.eqns, strict=True):
        if eqns[0].primitive is not eqns[1].primitive or len(eqns[0].invars) != len(eqns[1].invars):
            raise UnprovenError("other operations")
        states = [state_of(a, b) for a, b in zip(eqns[0].invars, eqns[1].invars, strict=True)]
        define(eqns[0].outvars, eqns[1].outvars, _results(Pair(eqns, states, sizes)))
    return [state_of(a, b) for a, b in zip(one.outvars, other.outvars, strict=True)]


def _results(pair: Pair) -> list[State]:
    """The states of the results of two equations."""
    name, shapes = pair.name, [[v.aval.shape for v in eqn.outvars] for eqn in pair.eqns]
    if all(state is Kind.SAME for state in pair.states) and shapes[0] == shapes[1]:
        if not _equal_params(*pair.eqns):
            raise UnprovenError("a constant that depends on the size of the batch")
        return [Kind.SAME] * len(shapes[0])
    if name in INSIDE:
        return INSIDE[name](pair, lambda one, other, inputs: _follow(one, other, inputs, pair.sizes))
    if any(state in (Kind.TOTAL, Kind.MEAN) for state in pair.states):
        return [linear(pair)]
    if name not in RULES:
        raise UnprovenError(f"no rule for {name}")
    return [RULES[name](pair)] * len(shapes[0])


def _check_shapes(a: Any, b: Any, state: State, sizes: tuple[int, int]) -> None:
    """The two values differ in nothing but the length of the axis of rows.

    Raises:
        UnprovenError: They do.
    """
    expected = list(a.shape)
    if isinstance(state, Rows):
        if a.shape[state.axis] != state.each * sizes[0]:
            raise UnprovenError("rows of other lengths")
        expected[state.axis] = state.each * sizes[1]
    if expected != list(b.shape) or a.dtype != b.dtype:
        raise UnprovenError("other shapes")


def _literal(a: Any, b: Any, sizes: tuple[int, int]) -> State:
    if not (isinstance(a, core.Literal) and isinstance(b, core.Literal)):
        raise UnprovenError("other operands")
    x, y = np.asarray(a.val), np.asarray(b.val)
    if x.dtype != y.dtype or x.shape != y.shape:
        raise UnprovenError("other literals")
    if x.tobytes() == y.tobytes():
        return Kind.SAME
    if not x.shape and x.dtype.kind in "iuf":
        if np.isclose(float(x) * sizes[1], float(y) * sizes[0], rtol=1e-6, atol=0):
            return Kind.COUNT
        if np.isclose(float(x) * sizes[0], float(y) * sizes[1], rtol=1e-6, atol=0):
            return Kind.INVERSE
    raise UnprovenError("other literals")


def _equal_arrays(a: Any, b: Any) -> bool:
    if a is b:
        return True
    if jax.typeof(a) != jax.typeof(b) or np.size(a) > FEW or jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
        return False
    return np.asarray(a).tobytes() == np.asarray(b).tobytes()


def _equal_params(one: Any, other: Any) -> bool:
    """Whether two operations on constants do the same: then a constant is the same for both batches."""
    if not any(any(inside(eqn)) for eqn in (one, other)):
        return repr(one.params) == repr(other.params)  # their literals are equal, or they would be no constants
    return identify(_alone(one)) == identify(_alone(other))


def _alone(eqn: Any) -> core.Jaxpr:
    """The jaxpr of one operation."""
    variables = list(dict.fromkeys(a for a in eqn.invars if not isinstance(a, core.Literal)))
    return _empty().replace(invars=variables, outvars=eqn.outvars, eqns=[eqn], effects=eqn.effects)


@functools.cache
def _empty() -> core.Jaxpr:
    return jax.make_jaxpr(lambda: ())().jaxpr
