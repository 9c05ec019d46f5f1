"""Tracing: a user's function becomes a computation and the arrays that it closes over.

Each public call traces anew, so what a function reads from outside is always read as it is now; a computation that is
equal to an earlier one finds the program that was compiled for that. What a user put under `jax.jit` is traced by JAX's
own rules: it stays as it was at its first call.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from jaxscape.convolution import rewrite
from jaxscape.meshes import users_mesh
from jaxscape.objective._constraints import NO_MESH, bound
from jaxscape.objective._jaxpr import Identity, array_digest, depends_on, hoist, identify, without_stops

PRECISIONS = {"float32": "highest", "tensorfloat32": "tensorfloat32", "bfloat16": None}
"""The values of ``compute_dtype``, and the precision of matrix products that JAX has for each."""


@dataclass(frozen=True, eq=False)
class Computation:
    """A traced function of (constants, *args); equal to another one that computes the same. Holds no array.

    Attributes:
        jaxpr: Its inputs are the constants, then the leaves of the arguments.
        out_tree: The structure of the result.
        identity: What it is compared by.
    """

    jaxpr: core.Jaxpr = field(repr=False)
    out_tree: Any
    identity: Identity
    _rewritten: dict[Any, core.ClosedJaxpr] = field(default_factory=dict, init=False, repr=False)

    def rewritten(self) -> core.ClosedJaxpr:
        """The jaxpr with convolutions in their fastest form on the default backend, constrained to the ambient mesh."""
        backend = jax.default_backend()
        mesh = jax.sharding.get_abstract_mesh()
        if AxisType.Auto not in mesh.axis_types:  # each device computes by itself
            mesh = NO_MESH
        if (backend, mesh) not in self._rewritten:  # it takes as long as tracing: 1.2 s for a ResNet-110
            jaxpr = self.jaxpr if mesh.empty and not self.identity.constraints else bound(self.jaxpr, mesh)
            self._rewritten[backend, mesh] = rewrite(jaxpr, backend=backend, mesh=mesh)
        return self._rewritten[backend, mesh]

    def __call__(self, constants: tuple[Any, ...], *args: Any) -> Any:
        """Evaluate it, convolutions in their fastest form."""
        values = core.jaxpr_as_fun(self.rewritten())(*constants, *jax.tree.leaves(args))
        dtypes = [aval.dtype for aval in self._results]
        # asarray: a result that does not depend on the arguments is a Python number in the jaxpr
        return jax.tree.unflatten(self.out_tree, map(jnp.asarray, values, dtypes))

    def unconstrained(self) -> "Computation":
        """The same without sharding constraints."""
        if not self.identity.constraints:
            return self
        return Computation(bound(self.jaxpr, NO_MESH), self.out_tree, self.identity._replace(constraints=()))

    def without_stops(self) -> "Computation":
        """The same values; derivatives go through what `jax.lax.stop_gradient` stops."""
        jaxpr = without_stops(self.jaxpr)
        return Computation(jaxpr, self.out_tree, identify(jaxpr))

    def __hash__(self) -> int:
        return hash((self.identity, self.out_tree))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Computation):
            return False
        return self.identity == other.identity and self.out_tree == other.out_tree

    @property
    def _results(self) -> list[Any]:
        return [v.aval for v in self.jaxpr.outvars]

    @property
    def shapes(self) -> Any:
        """Shapes and dtypes of the result."""
        shapes = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in self._results]
        return jax.tree.unflatten(self.out_tree, shapes)


class Traced(NamedTuple):
    """A computation, and the arrays that the function closes over now."""

    computation: Computation
    constants: tuple[Any, ...]

    def fingerprint(self) -> str:
        """A hash of what is computed, the contents of the closed-over arrays included; the same in every process."""
        return " ".join([self.computation.identity.digest, *map(array_digest, self.constants)])

    def fingerprint_of(self, names: Collection[str]) -> str:
        """The same of a part of the result, a dict; equal for functions that give this part alone.

        Args:
            names: Keys of the result.

        Returns:
            A hash of their computation, of the arguments and of the closed-over arrays that it needs.
        """
        keys = sorted(self.computation.shapes)
        jaxpr, used = depends_on(self.computation.jaxpr, [keys.index(name) for name in names])
        constants = [x for x, use in zip(self.constants, used, strict=False) if use]
        arguments = [i for i, use in enumerate(used[len(self.constants) :]) if use]
        return " ".join([identify(jaxpr).digest, str(arguments), *map(array_digest, constants)])


def trace(
    function: Callable[..., Any],
    *args: Any,
    compute_dtype: str | None = None,
    mesh: Mesh | None = None,
    specs: Sequence[PartitionSpec | Sequence[PartitionSpec]] = (),
) -> Traced:
    """Trace a function, abstractly: nothing is computed.

    Args:
        function: Of pytrees of arrays.
        *args: Arrays, or their shapes and dtypes.
        compute_dtype: What it computes in, one of `PRECISIONS`; None: as JAX is configured.
        mesh: The one that params are cut over: sharding constraints are kept; None: they are dropped.
        specs: How each argument is cut, or each of its leaves, for a function that asks for their shardings.

    Returns:
        The computation and the arrays that the function closes over.
    """
    in_precision, shapes = with_precision(function, compute_dtype), [abstract(arg) for arg in args]
    closed, out = _first_that_works(in_precision, _ways(shapes, mesh, specs))
    jaxpr, constants = hoist(closed, constrained=mesh is not None)
    return Traced(Computation(jaxpr, jax.tree.structure(out), identify(jaxpr)), constants)


def _ways(
    shapes: Sequence[Any], mesh: Mesh | None, specs: Sequence[PartitionSpec | Sequence[PartitionSpec]]
) -> list[tuple[AbstractMesh, Sequence[Any]]]:
    """Meshes to trace in, the likeliest first, and the arguments there.

    A constraint by axis names needs a mesh. Explicit axes come last: there every array must have a sharding.

    Returns:
        Pairs of a mesh and arguments.
    """
    ambient = users_mesh()
    ways = [(NO_MESH, shapes)] if mesh is None else [(mesh.abstract_mesh, shapes), (NO_MESH, shapes)]
    if ambient.empty:
        return ways
    auto = ambient.update_axis_types(dict.fromkeys(ambient.axis_names, AxisType.Auto))
    if auto != ambient:
        arguments = zip(shapes, specs or [PartitionSpec()] * len(shapes), strict=True)
        ways.append((ambient, [_on_explicit_axes(arg, own, ambient) for arg, own in arguments]))
    return [*ways[:-1], (auto, shapes), ways[-1]] if auto != ambient else [*ways, (auto, shapes)]


def _on_explicit_axes(shapes: Any, specs: PartitionSpec | Sequence[PartitionSpec], mesh: AbstractMesh) -> Any:
    """Shapes and dtypes with shardings on a mesh; of leaves that cannot be cut so, with whole ones."""
    leaves, treedef = jax.tree.flatten(shapes)
    own = [specs] * len(leaves) if isinstance(specs, PartitionSpec) else specs

    def leaf(x: jax.ShapeDtypeStruct, spec: PartitionSpec) -> jax.ShapeDtypeStruct:
        try:
            sharding = NamedSharding(mesh, spec)
            sharding.shard_shape(x.shape)
        except ValueError:
            sharding = NamedSharding(mesh, PartitionSpec())
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.unflatten(treedef, map(leaf, leaves, own))


def _first_that_works(
    function: Callable[..., Any], ways: Sequence[tuple[AbstractMesh, Sequence[Any]]]
) -> tuple[core.ClosedJaxpr, Any]:
    """The jaxpr from the first way to trace that raises no error; else the first error."""
    errors: list[Exception] = []
    for mesh, shapes in ways:
        try:
            with jax.sharding.use_abstract_mesh(mesh):
                return _make_jaxpr(function, shapes)
        except Exception as error:  # noqa: BLE001  # of whatever kind: the function may need another mesh
            errors.append(error)
    raise errors[0]


def _make_jaxpr(function: Callable[..., Any], shapes: Sequence[Any]) -> tuple[core.ClosedJaxpr, Any]:
    """The jaxpr of a function, and the shapes of its result."""
    # A new function each time: JAX would answer from its cache of an old one, whatever that closed over.
    return jax.make_jaxpr(lambda *args: function(*args), return_shape=True)(*shapes)


def abstract(tree: Any) -> Any:
    """Shapes and dtypes of a pytree of arrays."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype), tree)


def is_traced(tree: Any) -> bool:
    """Whether a leaf belongs to a JAX transform that is under way."""
    return any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(tree))


def is_inside_transform(tree: Any = ()) -> bool:
    """Whether a JAX transform is under way, to which also new arrays belong, or a leaf of a pytree belongs to one."""
    return is_traced((tree, jnp.zeros(())))


def refuse_inside_transform(call: str) -> None:
    """Refuse a call whose result lives on the host, while a JAX transform is under way.

    Args:
        call: Its name, for the message.

    Raises:
        TypeError: It is inside `jax.jit`, `jax.vmap` or another transform.
    """
    if is_inside_transform():
        raise TypeError(
            f"{call} is called inside a JAX transform, such as jax.jit, but its result is on the host; call it outside."
        )


def with_precision(function: Callable[..., Any], compute_dtype: str | None) -> Callable[..., Any]:
    """The function in another precision: bfloat16 by casting its arguments, the others by how products are rounded."""
    if compute_dtype is None:
        return function

    def cast(x: Array) -> Array:
        return x.astype(jnp.bfloat16) if jnp.issubdtype(x.dtype, jnp.floating) else x

    def in_precision(*args: Any) -> Any:
        if compute_dtype == "bfloat16":
            args = jax.tree.map(cast, args)
        with jax.default_matmul_precision(PRECISIONS[compute_dtype] or "default"):
            return function(*args)

    return in_precision
