"""Products with the Hessian, or with the Gauss-Newton matrix, of the mean loss over all of the data.

The Hessian's is the derivative of the gradient along a vector (forward over reverse, Pearlmutter 1994). At one point
the gradient is linearized once and the linear function kept, where memory allows: then a product takes 6 convolutions
for each of the network instead of 8. On a CPU the batches are driven from the host, since gradients of convolutions are
slow in loops there; on other devices, and inside a transform, by a loop on the device.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxscape.convolution import compiler_options, fast_convolutions
from jaxscape.curvature._batches import Stack, bytes_of, choose_batch_size, stacks_of
from jaxscape.curvature._forms import Form, Source, advised
from jaxscape.curvature._streamed import Streamed
from jaxscape.curvature._totals import BY_EXAMPLES, EVERYWHERE, Total, ends, joined, shares_of, zeros
from jaxscape.linalg import Matvec
from jaxscape.memory import free_bytes
from jaxscape.objective import (
    Objective,
    Placement,
    is_inside_transform,
    is_traced,
    num_lanes,
    place,
    start,
)
from jaxscape.shards import put, within
from jaxscape.subspace import Subspace
from jaxscape.types import Params, Vector

_MEMORY = 0.25  # of the free memory, that linear functions may take


class Programs(NamedTuple):
    """The compiled parts of a product."""

    prepare: jax.stages.Wrapped  # (params, constants, stack) -> linear function
    apply: jax.stages.Wrapped  # (linear function, vector, total) -> total
    direct: jax.stages.Wrapped  # (params, constants, stack, vector, total) -> total
    inside: Callable[[Params, Any, Stack, Vector, Total], Total]  # direct, as part of a larger computation


@functools.lru_cache(maxsize=32)
def programs(form: Form, subspace: Subspace, mesh: Mesh) -> Programs:
    """The compiled parts of a product with a form, on the devices of a mesh."""

    def prepare(params: Params, constants: Any, stack: Stack) -> Any:
        # The weights beside it say how many batches there are, where a linear loss leaves nothing to keep.
        prepared = _each(lambda batch: (form.prepare(subspace, constants, params, *batch), batch[1]), _local(stack))
        return jax.tree.map(lambda x: x[None], prepared)

    def add(prepared: Any, vector: Vector, total: Total) -> Total:
        image = fast_convolutions(form.apply)(prepared, subspace.leaves(vector))
        return [t + x.astype(t.dtype)[None] for t, x in zip(total, image, strict=True)]

    def apply(prepared: Any, vector: Vector, total: Total) -> Total:
        return _sum(lambda total, batch: add(batch[0], vector, total), _local(prepared), total)

    def direct(params: Params, constants: Any, stack: Stack, vector: Vector, total: Total) -> Total:
        def add_batch(total: Total, batch: Any) -> Total:
            return add(form.prepare(subspace, constants, params, *batch), vector, total)

        return _sum(add_batch, _local(stack), total)

    def on_devices(function: Callable[..., Any], specs: tuple[PartitionSpec, ...]) -> Any:
        if subspace.mesh is not None:  # XLA deals out the work
            return function
        return jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=BY_EXAMPLES, check_vma=False)

    every, by = EVERYWHERE, BY_EXAMPLES
    jit = functools.partial(jax.jit, compiler_options=compiler_options())
    jit_linear = functools.partial(jax.jit, compiler_options=compiler_options(linear=True))
    inside = on_devices(direct, (every, every, by, every, by))
    return Programs(
        jit(on_devices(prepare, (every, every, by))),
        jit_linear(on_devices(apply, (by, every, by)), donate_argnums=2),
        jit(inside, donate_argnums=4),
        inside,
    )


def _local(stack: Any) -> Any:
    """The part of one device, without the axis of devices."""
    return jax.tree.map(lambda x: x[0], stack)


def _each(function: Callable[[Any], Any], stack: Any) -> Any:
    """The function of each batch; outside of a loop when there is one."""
    if len(jax.tree.leaves(stack)[0]) == 1:
        return jax.tree.map(lambda x: x[None], function(jax.tree.map(lambda x: x[0], stack)))
    return lax.map(function, stack)


def _sum(add: Callable[[Total, Any], Total], stack: Any, total: Total) -> Total:
    """The total with what each batch adds."""
    if len(jax.tree.leaves(stack)[0]) == 1:
        return add(total, jax.tree.map(lambda x: x[0], stack))
    return lax.scan(lambda total, batch: (add(total, batch), None), total, stack)[0]


class _Part(NamedTuple):
    """Batches of one size of one term.

    Attributes:
        form: The quadratic form of a batch.
        constants: The arrays that the loss closes over.
        stack: The batches.
    """

    form: Form
    constants: Any
    stack: Stack


class Product:
    """Products at any point of a function, its data in place on the devices.

    Attributes:
        objective: The loss over its data.
        subspace: The leaves that it is taken in.
    """

    def __init__(
        self,
        objective: Objective,
        sources: Sequence[Source],
        subspace: Subspace,
        batch_size: int | None,
        mesh: Mesh,
        *,
        linearize: bool | None = None,
        advise: bool = False,
    ) -> None:
        """Put the data in place; nothing is compiled yet.

        Args:
            objective: The loss over its data.
            sources: Its terms, whose forms add up.
            subspace: The leaves that it is taken in.
            batch_size: Examples of each device at a time, at most; None: as `choose_batch_size` says.
            mesh: The devices, along an axis ``"data"``; those that params are cut over, where they are.
            linearize: Whether linear functions are kept; None: where memory allows.
            advise: Whether an error of differentiation tells of the other methods of `hvp`.

        Raises:
            ValueError: They are to be kept of a stream.
        """
        self.objective, self.subspace, self._mesh, self._linearize = objective, subspace.on(mesh), mesh, linearize
        self._advised = advise
        self._parts: list[_Part] = []
        streams = [source for source in sources if source.term.passes]
        if streams and linearize:
            raise ValueError(
                "linearize is True, which keeps functions of all data in memory; expected None with a js.Stream."
            )
        self._streamed = Streamed(streams, subspace, batch_size, mesh, self._direct_of)
        for source in [source for source in sources if not source.term.passes]:
            lanes = 1 if self._placement.is_cut else num_lanes(mesh, subspace.params_like)
            size = min(batch_size or choose_batch_size(source, subspace, lanes), source.term.examples)
            shares, parts = shares_of(subspace, mesh), self._placement.parts_of_batch
            with jax.ensure_compile_time_eval():  # within a transform too, data is data
                stacks = stacks_of(source.term, size, shares, subspace.dtype, parts=parts)
            for stack in stacks:
                form, constants = source.form(jax.tree.leaves(stack)[0].shape[2])
                self._parts.append(_Part(form, constants, stack))

    def on(self, mesh: Mesh) -> "Product":
        """The same product on other devices, as many; the data on the host are shared."""
        other = object.__new__(Product)
        other.objective, other.subspace, other._mesh = self.objective, self.subspace.on(mesh), mesh
        other._linearize, other._parts = self._linearize, self._parts
        other._streamed, other._advised = self._streamed.on(mesh), self._advised
        return other

    @property
    def _placement(self) -> Placement:
        return Placement(self._mesh, self.subspace.specs)

    def at(self, params: Params) -> Matvec:
        """The product at a point, with vectors of the subspace; from the host or inside a transform.

        Args:
            params: The point.

        Returns:
            ``v -> H v``, on the first device of the mesh; or cut as params are.
        """
        make = advised(self._at) if self._advised else self._at
        with within(self._placement.context):
            product = make(params)
        product = advised(product) if self._advised else product

        def within_mesh(vector: Vector) -> Vector:
            with within(self._placement.context):
                return product(vector)

        return within_mesh if self._placement.is_cut else product

    def _at(self, params: Params) -> Matvec:
        inside, point = is_inside_transform(params), params
        if not inside:
            params = self._placement.params(params)
            steps = self._prepared(params) if self._keeps(params) else self._direct(params)
        for term in self.objective.terms:
            term.check.verdict()  # after the call that compiles, since the check compiles beside it
        if inside:
            return functools.partial(self._inside, params)
        compiled: list[Callable[[Vector, Total], Total]] = []

        def add(lane: slice, vector: Vector, total: Total) -> Total:
            for step in compiled[lane]:
                total = step(vector, total)
            return total

        def product(vector: Vector) -> Vector:
            if is_traced(vector):
                return self._inside(params, vector)
            streamed = self._streamed(point, vector) if self._streamed.sources else None
            if streamed is not None and not steps:
                return streamed
            vector = self._placed_vector(vector)
            new, whole = ends(self.subspace, self._mesh)
            lanes = [(lane, new()) for lane in self._lanes]
            if not compiled:
                compiled.extend(self._compiled(step, vector, lanes[0][1]) for step in steps)
            totals = start([functools.partial(add, lane, vector, total) for lane, total in lanes])()
            result = whole(*totals)
            if not self._placement.is_cut:
                result = jax.tree.map(lambda x: x.addressable_data(0), result)
            return result if streamed is None else jax.tree.map(jnp.add, result, streamed)

        return product

    def _inside(self, params: Params, vector: Vector) -> Vector:
        """The product as part of a larger computation."""
        if self._streamed.sources:
            raise TypeError("a js.Stream is read from the host; call the product outside of JAX transforms.")
        total = zeros(self.subspace, self._mesh)
        for form, constants, stack in self._on_device:
            total = self._run(form).inside(params, constants, stack, vector, total)
        return joined(self.subspace, total)

    def _prepared(self, params: Params) -> list[functools.partial[Total]]:
        """What each part adds to a total, ``(vector, total) -> total``; its linear function is kept."""
        form, *operands = self._placed[0]
        for term in self.objective.terms:
            term.check.begin_beside(self._run(form).prepare, params, *operands)
        prepare = [
            self._compiled(functools.partial(self._run(form).prepare, params, constants, stack))
            for form, constants, stack in self._placed
        ]
        linear = start([functools.partial(_call_each, prepare[lane]) for lane in self._lanes])()
        steps: list[Any] = [None] * len(prepare)
        for lane, functions in zip(self._lanes, linear, strict=True):
            steps[lane] = functions
        return [
            functools.partial(self._run(part.form).apply, step) for part, step in zip(self._placed, steps, strict=True)
        ]

    def _direct(self, params: Params) -> list[functools.partial[Total]]:
        """The same, with nothing kept."""
        return [
            functools.partial(self._run(form).direct, params, constants, stack)
            for form, constants, stack in self._placed
        ]

    @functools.cached_property
    def _lanes(self) -> list[slice]:
        """The parts that each thread adds up."""
        count = (
            1 if self._placement.is_cut else min(num_lanes(self._mesh, self.subspace.params_like), len(self._placed))
        )
        return [slice(lane, None, count) for lane in range(count)]

    def _compiled(self, call: functools.partial[Any], *args: Any) -> Callable[..., Any]:
        """A call of a jitted function with more arguments to come, compiled where it is for several threads."""
        if len(self._lanes) == 1:
            return call
        function: Any = call.func
        return functools.partial(function.lower(*call.args, *args).compile(), *call.args)

    def _run(self, form: Form) -> Programs:
        return programs(form, self.subspace, self._mesh)

    def _direct_of(self, form: Form, mesh: Mesh) -> Any:
        return programs(form, self.subspace, mesh).direct

    def _keeps(self, params: Params) -> bool:
        """Whether the linear functions of all batches are kept."""
        if self._linearize is not None:
            return self._linearize
        if not self._parts:
            return False
        sizes: dict[Any, int] = {}
        kept = 0
        for form, constants, stack in self._placed:
            key = form, stack[1].shape
            if key not in sizes:
                sizes[key] = bytes_of(jax.eval_shape(self._run(form).prepare, params, constants, stack))
            kept += sizes[key]
        copies = len(self._placed) * shares_of(self.subspace, self._mesh)
        weights = copies * self.subspace.size * self.subspace.dtype.itemsize
        # Each linear function holds the weights once more: where they are most of it, it takes much and saves little.
        return 4 * weights <= kept <= _MEMORY * free_bytes(self._mesh.local_devices)

    def _placed_vector(self, vector: Vector) -> Vector:
        """A vector on every device, or cut as params are."""
        specs = self.subspace.free_specs
        if specs is None:
            return place(vector, NamedSharding(self._mesh, EVERYWHERE))
        return [put(x, NamedSharding(self._mesh, spec)) for x, spec in zip(vector, specs, strict=True)]

    def _placed_stack(self, stack: Stack) -> Stack:
        """Batches in place."""
        if self._placement.is_cut:
            return self._placement.batches(stack, axis=2)
        return place(stack, NamedSharding(self._mesh, BY_EXAMPLES))

    @functools.cached_property
    def _on_device(self) -> list[_Part]:
        with jax.ensure_compile_time_eval():
            return [self._place(part) for part in self._parts]

    @functools.cached_property
    def _placed(self) -> list[_Part]:
        """Parts that are driven from the host: of one batch each on a CPU."""
        if self._mesh.devices.flat[0].platform != "cpu":
            return self._on_device
        parts = []
        for form, constants, stack in self._parts:
            placed = self._placement.constants(constants)
            for i in range(stack[1].shape[1]):
                batch = jax.tree.map(lambda x, i=i: x[:, i : i + 1], stack)
                parts.append(_Part(form, placed, self._placed_stack(batch)))
        return parts

    def _place(self, part: _Part) -> _Part:
        constants = part.constants if is_traced(part.constants) else self._placement.constants(part.constants)
        return _Part(part.form, constants, self._placed_stack(part.stack))


def _call_each(calls: Sequence[Callable[[], Any]]) -> list[Any]:
    return [call() for call in calls]
