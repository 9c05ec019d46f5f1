"""Sharding constraints in a traced loss: kept for params that are cut over devices, dropped for all others.

A constraint changes no value. Where each device evaluates whole points, there is nothing to shard. Where params are
cut, a constraint is bound to the mesh that a program runs on, whatever mesh it was traced on: only the names of its
axes count, and those of the axes that the program has for points are left out.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import lax
from jax.extend import core
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec, Sharding

from jaxscape.convolution import inside

NAMES = ("sharding_constraint", "reshard")
NO_MESH = AbstractMesh((), ())


def spec_of(eqn: core.JaxprEqn) -> PartitionSpec | None:
    """How a constraint has an array cut; None where that cannot be told by names."""
    sharding = eqn.params.get("sharding", eqn.params.get("dst_sharding"))
    return sharding.spec if isinstance(sharding, NamedSharding) else None


def specs_in(jaxpr: core.Jaxpr) -> tuple[str, ...]:
    """All constraints in a jaxpr and the jaxprs inside it, in order."""
    found: list[str] = []
    for eqn in jaxpr.eqns:
        if eqn.primitive.name in NAMES:
            found.append(str(spec_of(eqn)))
        for inner in inside(eqn):
            found += specs_in(inner)
    return tuple(found)


def bound(jaxpr: core.Jaxpr, mesh: AbstractMesh) -> core.Jaxpr:
    """The jaxpr within a mesh, with its constraints on it, also in the bodies of loops and branches.

    Args:
        jaxpr: As `jaxscape.objective._jaxpr.hoist` gives it.
        mesh: That of the program; without Auto axes the constraints are dropped.

    Returns:
        The jaxpr.
    """
    auto = {name for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind == AxisType.Auto}
    sources: dict[Any, Any] = {}  # what stands for the result of a constraint that is dropped

    def atom(a: Any) -> Any:
        return a if isinstance(a, core.Literal) else sources.get(a, a)

    equations = []
    for eqn in jaxpr.eqns:
        operands = [atom(a) for a in eqn.invars]
        eqn = _in_mesh(eqn, mesh) if auto else eqn
        if eqn.primitive.name not in NAMES:
            params = map_jaxprs(eqn.params, lambda inner: bound(inner, mesh)) if any(inside(eqn)) else eqn.params
            equations.append(eqn.replace(invars=operands, params=params))
        elif auto and isinstance(operands[0], core.Var) and (spec := spec_of(eqn)) is not None:
            equations.append(_constraint(eqn, operands[0], _only(spec, auto), mesh))
        else:
            sources[eqn.outvars[0]] = operands[0]
    return jaxpr.replace(eqns=equations, outvars=[atom(a) for a in jaxpr.outvars])


def _constraint(eqn: core.JaxprEqn, operand: core.Var, spec: PartitionSpec, mesh: AbstractMesh) -> core.JaxprEqn:
    free = frozenset(i for i, entry in enumerate(spec) if entry is PartitionSpec.UNCONSTRAINED)
    params = {
        "sharding": NamedSharding(mesh, PartitionSpec(*(None if i in free else e for i, e in enumerate(spec)))),
        "context_mesh": mesh,
        "layout": None,
        "unconstrained_dims": free | eqn.params.get("unconstrained_dims", frozenset()),
    }
    return eqn.replace(primitive=lax.sharding_constraint_p, invars=[operand], params=params)


def _in_mesh(eqn: core.JaxprEqn, mesh: AbstractMesh) -> core.JaxprEqn:
    """The equation as if it were traced in a mesh: what it makes of a constant must lie on the mesh of the others."""
    with eqn.ctx.manager, jax.sharding.use_abstract_mesh(mesh):
        return eqn.replace(ctx=type(eqn.ctx)())


def _only(spec: PartitionSpec, names: set[str]) -> PartitionSpec:
    """The spec without axes of other names."""

    def entry(axes: Any) -> Any:
        if axes is None or axes is PartitionSpec.UNCONSTRAINED:
            return axes
        known = tuple(name for name in ((axes,) if isinstance(axes, str) else axes) if name in names)
        return known or None

    return PartitionSpec(*map(entry, spec))


def outside_mesh(jaxpr: core.Jaxpr) -> core.Jaxpr:
    """The jaxpr outside of the mesh that it was traced in, its constraints kept."""
    variables: dict[Any, Any] = {}

    def atom(a: Any) -> Any:
        if isinstance(a, core.Literal):
            return core.Literal(a.val, plain(a.aval))
        return a if isinstance(a, core.DropVar) else variables.setdefault(a, core.Var(plain(a.aval)))

    def atoms(old: Sequence[Any]) -> list[Any]:
        return [atom(a) for a in old]

    equations = [without_mesh(eqn).replace(invars=atoms(eqn.invars), outvars=atoms(eqn.outvars)) for eqn in jaxpr.eqns]
    equations = [eqn.replace(params=map_jaxprs(eqn.params, outside_mesh)) for eqn in equations]
    ends = (atoms(jaxpr.constvars), atoms(jaxpr.invars), atoms(jaxpr.outvars))
    return core.Jaxpr(*ends, equations, jaxpr.effects, jaxpr.debug_info)


def without_mesh(eqn: core.JaxprEqn) -> core.JaxprEqn:
    """The equation outside of the mesh that it was traced in."""
    if eqn.primitive.name not in NAMES and any(isinstance(value, Sharding) for value in eqn.params.values()):
        # With Explicit axes an operation says how its result is cut.
        eqn = eqn.replace(params={k: None if isinstance(v, Sharding) else v for k, v in eqn.params.items()})
    if eqn.ctx.cur_abstract_mesh.empty:
        return eqn
    with eqn.ctx.manager, jax.sharding.use_abstract_mesh(NO_MESH):
        return eqn.replace(ctx=type(eqn.ctx)())


def map_jaxprs(value: Any, function: Callable[[core.Jaxpr], core.Jaxpr]) -> Any:
    """The parameters of an equation with the jaxprs among them changed."""
    if isinstance(value, dict):
        return {name: map_jaxprs(item, function) for name, item in value.items()}
    if type(value) is tuple:
        return tuple(map_jaxprs(item, function) for item in value)
    if isinstance(value, core.ClosedJaxpr):
        return core.ClosedJaxpr(function(value.jaxpr), value.consts)
    return function(value) if isinstance(value, core.Jaxpr) else value


def plain(aval: Any) -> Any:
    """The abstract value without a sharding."""
    if not isinstance(aval, jax.core.ShapedArray):
        return aval
    return jax.core.ShapedArray(aval.shape, aval.dtype, weak_type=aval.weak_type)


def on_a_mesh(eqn: core.JaxprEqn) -> bool:
    """Whether an equation was traced in a mesh, holds constraints, or gives a value that lies on a mesh."""
    return has_constraints(eqn) or not eqn.ctx.cur_abstract_mesh.empty or any(map(_lies_on_mesh, eqn.outvars))


def has_constraints(eqn: core.JaxprEqn) -> bool:
    """Whether a constraint is in the jaxprs inside an equation."""
    return any(e.primitive.name in NAMES or has_constraints(e) for j in inside(eqn) for e in j.eqns)


def _lies_on_mesh(variable: Any) -> bool:
    """Whether the value is on a mesh: it depends on an array that was there when the function closed over it."""
    sharding = getattr(variable.aval, "sharding", None)
    return sharding is not None and not sharding.mesh.empty
