"""The transform: it evaluates the jaxpr of a function, with some of the operations in another form."""

import collections
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from typing import Any

import jax
import numpy as np
from jax.extend import core
from jax.sharding import AbstractMesh

from jaxscape.convolution._cpu import cpu_rules
from jaxscape.convolution._fold import Folded
from jaxscape.convolution._forms import Spec, native
from jaxscape.convolution._gpu import gpu_rules
from jaxscape.convolution._rows import computed_once
from jaxscape.convolution._rules import Rules, convolutions, inside

# Primitives that run the jaxprs in their parameters without further changes, so that a rewritten jaxpr can replace the
# original. Other primitives with jaxprs (for example a Pallas kernel) are not rewritten. The value says whether the
# primitive is a loop.
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


_NO_MESH = AbstractMesh((), ())
_WITHOUT_CONSTANTS = ("checkpoint", "core_call", "remat2")  # calls whose jaxprs may not hold any


def fast_convolutions(fun: Callable[..., Any], *, backend: str | None = None) -> Callable[..., Any]:
    """Return a function that computes the same as ``fun``, up to rounding, with convolutions in their fastest form.

    This is a transform like `jax.grad`. It traces ``fun`` and replaces ``conv_general_dilated``, and elementwise
    operations on images with few features, also inside `jax.jit`, `jax.lax.scan`, ``while_loop``, ``cond``,
    `jax.custom_jvp`, `jax.custom_vjp` and `jax.checkpoint`. It can be applied before or after `jax.grad` and
    `jax.vmap`. It keeps the rules that a user gave to ``custom_jvp`` or ``custom_vjp``. It traces ``fun`` again at
    each call, so use it under `jax.jit`, with ``compiler_options=jaxscape.convolution.compiler_options()``.

    >>> def fun(images, kernel):
    ...     return jax.lax.conv(images, kernel, (1, 1), "SAME")
    >>> images, kernel = jax.numpy.ones((4, 3, 2, 2)), jax.numpy.ones((5, 3, 3, 3))
    >>> bool(jax.numpy.allclose(fast_convolutions(fun, backend="cpu")(images, kernel), fun(images, kernel)))
    True

    Args:
        fun: Any function of pytrees of arrays that JAX can trace.
        backend: The backend that runs the function, ``"cpu"``, ``"gpu"`` or another one; None: the default backend.
            On a GPU only convolutions in TF32 or 16 bits are rewritten, and what follows them; on other backends
            nothing, because no measurement shows a gain there.

    Returns:
        A function with the signature of ``fun``.
    """

    @functools.wraps(fun)
    def rewritten(*args: Any, **kwargs: Any) -> Any:
        if (backend or jax.default_backend()) not in _RULES:
            return fun(*args, **kwargs)
        jaxpr, shapes = jax.make_jaxpr(lambda *a, **k: fun(*a, **k), return_shape=True)(*args, **kwargs)
        rules = _rules(jaxpr.jaxpr, backend)
        outs = _run(jaxpr.jaxpr, jaxpr.consts, jax.tree.leaves((args, kwargs)), rules, False)
        return jax.tree.unflatten(jax.tree.structure(shapes), outs)

    return rewritten


def rewrite(jaxpr: core.Jaxpr, *, backend: str | None = None, mesh: AbstractMesh = _NO_MESH) -> core.ClosedJaxpr:
    """A jaxpr that computes the same, with convolutions in their fastest form, as `fast_convolutions` has them.

    Args:
        jaxpr: The jaxpr of any function, without constants.
        backend: The backend that runs the operations, as in `fast_convolutions`.
        mesh: That of the sharding constraints in the jaxpr.

    Returns:
        The jaxpr, within the mesh.
    """
    if (backend or jax.default_backend()) not in _RULES:
        return core.ClosedJaxpr(jaxpr, ())
    rules = _rules(jaxpr, backend)
    with jax.sharding.use_abstract_mesh(mesh):  # it is kept, and may be wanted inside `jax.shard_map`
        return jax.make_jaxpr(lambda *args: _run(jaxpr, (), args, rules, False))(*_types(jaxpr))


def has_convolution(jaxpr: core.Jaxpr) -> bool:
    """Whether a jaxpr, or one inside it, has a convolution in XLA's native form."""
    return next(convolutions(jaxpr), None) is not None


def compiler_options(backend: str | None = None, *, linear: bool = False) -> dict[str, str]:
    """The ``compiler_options`` for `jax.jit` of a function that `fast_convolutions` returned.

    On a CPU they turn two things off:

    - The pass that removes optimization barriers before XLA fuses operations. The function holds barriers, so that XLA
      computes nothing twice: a ResNet-56 at 32x32 pixels goes from 850 to 1030 images/s on two cores. The pass stays
      from jaxlib 0.11 on, since 0.12 cannot compile every barrier ("Unhandled opcode for elemental IR emission").
    - The fusion of elementwise operations and sums by YNNPACK, whose maximum of 0 and NaN is 0: the mean over pixels of
      relu(NaN) comes out as 0, and a network that has diverged gets a finite loss (jax 0.10). Matrix products stay with
      YNNPACK.

    Args:
        backend: The backend that runs the function, such as ``"cpu"`` or ``"gpu"``; None: the default backend.
        linear: Whether the function is linear, so that it has no maximum: then YNNPACK keeps its fusions. A product
            with the linearized gradient of a ResNet-20 at 32x32 pixels is 12 % slower without them.

    Returns:
        The ``compiler_options``; empty on backends other than ``"cpu"``.
    """
    if (backend or jax.default_backend()) != "cpu":
        return {}
    options = {name: value for name, value in _CPU_OPTIONS.items() if not (linear and name == _YNNPACK)}
    return {name: value for name, value in options.items() if _is_known(name, value)}


_KEEPS_BARRIERS = version("jaxlib").startswith(("0.8.", "0.9.", "0.10."))
_YNNPACK = "xla_cpu_experimental_ynn_fusion_type"
_CPU_OPTIONS = {
    **({"xla_disable_hlo_passes": "cse_barrier_expander"} if _KEEPS_BARRIERS else {}),
    _YNNPACK: "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION",
}


@functools.cache
def _is_known(name: str, value: str) -> bool:
    """Whether this version of XLA has the option: that of YNNPACK came with YNNPACK."""
    program = jax.jit(lambda: 0, compiler_options={name: value})
    try:
        program.lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


_RULES = {"cpu": cpu_rules, "gpu": gpu_rules}


def _rules(jaxpr: core.Jaxpr, backend: str | None) -> Rules:
    return _RULES[backend or jax.default_backend()](jaxpr)


def _run(jaxpr: core.Jaxpr, consts: Sequence[Any], args: Sequence[Any], rules: Rules, in_loop: bool) -> list[Any]:
    """Evaluate a jaxpr with each operation in its fastest form."""
    variables: list[Any] = [*jaxpr.constvars, *jaxpr.invars]
    values: dict[Any, Any] = dict(zip(variables, (*consts, *args), strict=True))
    uses = collections.Counter(a for a in _atoms(jaxpr) if not isinstance(a, core.Literal))

    def read(atom: Any) -> Any:
        value = _literal(atom) if isinstance(atom, core.Literal) else values[atom]
        return value.compute() if isinstance(value, Folded) else value

    for eqn in jaxpr.eqns:
        once = [uses[v] for v in eqn.outvars] == [1]
        folded = _folded(eqn, values, rules, in_loop) if once else None
        if folded is not None:
            values[eqn.outvars[0]] = folded  # computed where it is used, and only there
            continue
        if rules.barriers and eqn.primitive.name == "conv_general_dilated":  # later uses also read it from memory
            values[eqn.invars[0]] = computed_once(read(eqn.invars[0]))
        inputs = [read(atom) for atom in eqn.invars]
        with eqn.ctx.manager:
            form = rules.form(eqn, in_loop)
            if form:
                outputs: Any = form(*inputs)
            else:
                bound: Any = eqn.primitive.get_bind_params(_rewrite_inside(eqn, rules, in_loop))
                subfuns, params = bound if isinstance(bound, tuple) else ((), bound)  # a tuple before JAX 0.10
                outputs = eqn.primitive.bind(*subfuns, *inputs, **params)
        outputs = outputs if eqn.primitive.multiple_results else [outputs]
        values.update(zip(eqn.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _literal(literal: core.Literal) -> Any:
    """The value of a literal as an array, since JAX's classes for typed scalars lack the methods of arrays."""
    aval: Any = literal.aval
    return np.asarray(literal.val, aval.dtype) if hasattr(aval, "dtype") and not aval.weak_type else literal.val


def _rewrite_inside(eqn: Any, rules: Rules, in_loop: bool) -> dict[str, Any]:
    """The parameters of an equation; jaxprs among them are rewritten if they contain something to rewrite."""
    if eqn.primitive.name not in _CALLS:
        return eqn.params
    within = in_loop or _CALLS[eqn.primitive.name]

    def rewrite(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(rewrite, value))
        inner = value.jaxpr if isinstance(value, core.ClosedJaxpr) else value
        if not isinstance(inner, core.Jaxpr) or not _has_work(inner, rules, within):
            return value
        consts = value.consts if isinstance(value, core.ClosedJaxpr) else ()
        rewritten = jax.make_jaxpr(lambda *args: _run(inner, consts, args, rules, within))(*_types(inner))
        if rewritten.consts and eqn.primitive.name in _WITHOUT_CONSTANTS:
            return value
        return rewritten if isinstance(value, core.ClosedJaxpr) else rewritten.jaxpr  # one class from JAX 0.12 on

    return {name: rewrite(value) for name, value in eqn.params.items()}


def _types(jaxpr: core.Jaxpr) -> list[jax.ShapeDtypeStruct]:
    """Of its inputs."""
    avals: list[Any] = [v.aval for v in jaxpr.invars]
    return [jax.ShapeDtypeStruct(a.shape, a.dtype, weak_type=a.weak_type) for a in avals]


def _has_work(jaxpr: core.Jaxpr, rules: Rules, in_loop: bool) -> bool:
    """Whether the jaxpr, or a jaxpr inside it, contains an operation to rewrite."""
    for eqn in jaxpr.eqns:
        if rules.form(eqn, in_loop) or (rules.summand and rules.summand(eqn)):
            return True
        within = in_loop or _CALLS.get(eqn.primitive.name, False)
        if any(_has_work(inner, rules, within) for inner in inside(eqn)):
            return True
    return False


def _atoms(jaxpr: core.Jaxpr) -> Iterator[Any]:
    """What its equations and its results use, once for each use."""
    return itertools.chain(*(eqn.invars for eqn in jaxpr.eqns), jaxpr.outvars)


def _folded(eqn: Any, values: dict[Any, Any], rules: Rules, in_loop: bool) -> Folded | None:
    """A convolution that is not computed yet, or one with the factor or summand of this equation."""
    if not rules.summand:
        return None
    operands = [_literal(a) if isinstance(a, core.Literal) else values[a] for a in eqn.invars]
    if add := rules.summand(eqn):
        spec, form = Spec.of(eqn), rules.form(eqn, in_loop)
        x, kernel = (x.compute() if isinstance(x, Folded) else x for x in operands)
        convolution = form or functools.partial(native, spec=spec)
        result = eqn.outvars[0].aval
        features = result.shape[spec.dimension_numbers.out_spec[1]]
        return Folded(convolution, add, spec, x, kernel, features, result.dtype)
    positions = [i for i, x in enumerate(operands) if isinstance(x, Folded)]
    if len(positions) != 1 or len(operands) > 2:
        return None
    position = positions[0]
    others = [x for i, x in enumerate(operands) if i != position]
    return operands[position].then(eqn, position, others[0] if others else None)
