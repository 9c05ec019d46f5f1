"""A function as a jaxpr: what it computes, apart from the arrays that it closes over, and an identity of that.

Two functions with the same identity compute the same values from the same operands. The Python object says less (what a
function reads from outside may have changed since) and more (a new lambda may compute the same).
"""

import hashlib
import itertools
import math
import re
from collections.abc import Collection, Hashable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend import core
from jax.interpreters import partial_eval

from jaxscape.convolution import inside
from jaxscape.objective import _constraints
from jaxscape.objective._constraints import map_jaxprs, plain, without_mesh
from jaxscape.trees import array_digest

_CALLS = ("jit", "pjit")
_JAX_FOLDER = str(Path(jax.__file__).parent)


class Hoisted(NamedTuple):
    """A jaxpr without constants.

    Attributes:
        jaxpr: Its first ``len(constants)`` inputs stand for the constants.
        constants: The arrays that the function closes over, each once.
    """

    jaxpr: core.Jaxpr
    constants: tuple[Any, ...]


def hoist(closed: core.ClosedJaxpr, *, constrained: bool = False) -> Hoisted:
    """Make inputs of the constants of a jaxpr and of the `jax.jit` calls inside it, which are inlined.

    A constant would be compiled into the program: a large one takes long to compile and is held twice, and a changed
    one would need another program. Constants inside the bodies of loops and branches stay there, as part of the
    identity.

    Args:
        closed: As `jax.make_jaxpr` gives it.
        constrained: Whether sharding constraints are kept, for `jaxscape.objective._constraints.bound`.

    Returns:
        The jaxpr and its constants.
    """
    constants: dict[int, tuple[core.Var, Any]] = {}
    equations: list[core.JaxprEqn] = []

    def inner_jaxpr(jaxpr: core.Jaxpr) -> core.Jaxpr:
        jaxpr = _constraints.outside_mesh(jaxpr)
        return jaxpr if constrained else _constraints.bound(jaxpr, _constraints.NO_MESH)

    def variable(constant: Any) -> core.Var:
        return constants.setdefault(id(constant), (core.Var(plain(jax.typeof(constant))), constant))[0]

    def inline(jaxpr: core.Jaxpr, values: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
        """Append the equations of a jaxpr; the atoms of its results."""
        names = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*map(variable, values), *inputs], strict=True))

        def atom(a: Any) -> Any:
            return core.Literal(a.val, plain(a.aval)) if isinstance(a, core.Literal) else names[a]

        for eqn in jaxpr.eqns:
            operands = [atom(a) for a in eqn.invars]
            if eqn.primitive.name in _CALLS:
                inner = eqn.params["jaxpr"]
                results = inline(inner.jaxpr, inner.consts, operands)
            elif eqn.primitive.name in _constraints.NAMES and not constrained:
                results = operands
            else:
                results = [v if isinstance(v, core.DropVar) else core.Var(plain(v.aval)) for v in eqn.outvars]
                own = without_mesh(eqn)
                params = map_jaxprs(own.params, inner_jaxpr) if _constraints.on_a_mesh(eqn) else own.params
                equations.append(own.replace(invars=operands, outvars=results, params=params))
            names.update(zip(eqn.outvars, results, strict=True))
        return [atom(a) for a in jaxpr.outvars]

    inputs = [core.Var(plain(v.aval)) for v in closed.jaxpr.invars]
    outputs = inline(closed.jaxpr, closed.consts, inputs)
    variables = [v for v, _ in constants.values()]
    info = closed.jaxpr.debug_info.with_unknown_names()
    body = core.Jaxpr((), [*variables, *inputs], outputs, equations, closed.jaxpr.effects, info)
    return Hoisted(body, tuple(value for _, value in constants.values()))


class Identity(NamedTuple):
    """What two jaxprs that compute the same have in common; hashable.

    Attributes:
        digest: A hash of the operations, their parameters and the shapes and types of all values.
        opaque: Objects that have no contents to compare, such as the Python function of a callback: compared as
            objects.
        constraints: How arrays inside are to be cut over devices: it changes the program, not what it computes.
        has_rules: Whether a user's own derivative rule (`jax.custom_jvp`, `jax.custom_vjp`) is inside: the digest of
            the value does not see it, that of the derivative does.
    """

    digest: str
    opaque: tuple[Hashable, ...]
    has_rules: bool
    constraints: tuple[str, ...] = ()


def identify(jaxpr: core.Jaxpr) -> Identity:
    """The identity of a jaxpr.

    Args:
        jaxpr: Without constants, as `hoist` gives it.

    Returns:
        Equal for jaxprs that compute the same by the same operations.
    """
    digest, opaque, has_rules = hashlib.blake2b(digest_size=16), [], False

    def write(text: str) -> None:
        digest.update(text.encode())

    def describe(value: Any) -> None:
        if isinstance(value, core.ClosedJaxpr):
            walk(value.jaxpr)
            describe(list(value.consts))
        elif isinstance(value, core.Jaxpr):
            walk(value)
        elif isinstance(value, tuple | list):
            write(f"{type(value).__name__}[")
            for item in value:
                describe(item)
            write("]")
        elif isinstance(value, dict):
            for name, item in sorted(value.items(), key=lambda pair: str(pair[0])):
                write(f"{name}=")
                describe(item)
        elif isinstance(value, jax.Array) or (hasattr(value, "dtype") and hasattr(value, "__array__")):
            write(array_digest(value))
        else:
            text = repr(value)
            if re.search(r"\bat 0x[0-9a-f]+", text):
                opaque.append(value if isinstance(value, Hashable) else _ById(value))
                text = re.sub(r"\bat 0x[0-9a-f]+", "", text)
            write(text)

    def walk(jaxpr: core.Jaxpr) -> None:
        nonlocal has_rules
        numbers: dict[Any, int] = {}  # a value and what a constraint makes of it have one number
        new = itertools.count()

        def name(atoms: Sequence[Any]) -> None:
            for a in atoms:
                if isinstance(a, core.Literal):
                    write(f"({a.aval!s} {np.asarray(a.val).tobytes().hex()})")
                else:
                    if a not in numbers:
                        numbers[a] = next(new)
                    write(f"{numbers[a]}:{a.aval!s} ")

        name([*jaxpr.constvars, *jaxpr.invars])
        for eqn in jaxpr.eqns:
            params = eqn.params
            if eqn.primitive.name in _constraints.NAMES and isinstance(eqn.invars[0], core.Var):
                numbers[eqn.outvars[0]] = numbers[eqn.invars[0]]
                continue
            if eqn.primitive.name.startswith("custom_") and "call_jaxpr" in params:
                params = {"call_jaxpr": params["call_jaxpr"], "num_consts": params.get("num_consts")}
                has_rules |= _JAX_FOLDER not in str(_inner(params["call_jaxpr"]).debug_info.func_src_info)
            write(f"\n{eqn.primitive.name} ")
            describe(params)
            name(eqn.invars)
            name(eqn.outvars)
        write("\nreturn ")
        name(jaxpr.outvars)

    walk(jaxpr)
    return Identity(digest.hexdigest(), tuple(opaque), has_rules, _constraints.specs_in(jaxpr))


def depends_on(jaxpr: core.Jaxpr, outputs: Collection[int]) -> tuple[core.Jaxpr, list[bool]]:
    """The part of a jaxpr that some of its outputs need.

    Args:
        jaxpr: Without constants.
        outputs: Which ones.

    Returns:
        The jaxpr of these outputs and of the inputs that they need; and which of the inputs these are.
    """
    return partial_eval.dce_jaxpr(jaxpr, [i in outputs for i in range(len(jaxpr.outvars))], instantiate=False)


def results_of_products(jaxpr: core.Jaxpr) -> list[int]:
    """How many numbers each matrix product and each convolution gives, in the bodies of loops and branches too."""
    inner = [results_of_products(inner) for eqn in jaxpr.eqns for inner in inside(eqn)]
    results: list[Any] = [
        eqn.outvars[0].aval for eqn in jaxpr.eqns if eqn.primitive.name in ("dot_general", "conv_general_dilated")
    ]
    return [math.prod(aval.shape) for aval in results] + sum(inner, [])


class _ById:
    """An unhashable object, equal to itself alone."""

    def __init__(self, value: Any) -> None:
        self.value = value  # held, so that no other object gets its address

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ById) and self.value is other.value


def _inner(jaxpr: Any) -> core.Jaxpr:
    return jaxpr.jaxpr if isinstance(jaxpr, core.ClosedJaxpr) else jaxpr


def without_stops(jaxpr: core.Jaxpr) -> core.Jaxpr:
    """The jaxpr without `jax.lax.stop_gradient`, in the bodies of loops and branches too."""
    sources: dict[Any, Any] = {}  # what stands for the result of a stop

    def atom(a: Any) -> Any:
        return a if isinstance(a, core.Literal) else sources.get(a, a)

    equations = []
    for eqn in jaxpr.eqns:
        operands = [atom(a) for a in eqn.invars]
        if eqn.primitive.name == "stop_gradient":
            sources[eqn.outvars[0]] = operands[0]
        else:
            equations.append(eqn.replace(invars=operands, params=map_jaxprs(eqn.params, without_stops)))
    return jaxpr.replace(eqns=equations, outvars=[atom(a) for a in jaxpr.outvars])
