"""Products over streams: each product is a pass, and nothing is kept between two."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from jaxscape.curvature._batches import Stack, choose_batch_size, stacks_of
from jaxscape.curvature._forms import Form, Source
from jaxscape.curvature._totals import BY_EXAMPLES, Total, ends, shares_of
from jaxscape.objective import DATA_AXIS, Placement, num_examples, num_lanes, own_mesh, place, start
from jaxscape.shards import gather
from jaxscape.subspace import Subspace
from jaxscape.types import Params, Vector

Direct = Callable[[Params, Any, Stack, Vector, Total], Total]
"""``(params, constants, stack, vector, total) -> total``, jitted; the total is used up."""


class Streamed:
    """The sum of ``H v`` over the batches of streams, at any point; over those of all processes.

    Attributes:
        sources: Terms over streams, whose forms add up.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        subspace: Subspace,
        batch_size: int | None,
        mesh: Mesh,
        direct: Callable[[Form, Mesh], Direct],
    ) -> None:
        """Nothing is read yet.

        Args:
            sources: Terms over streams.
            subspace: The leaves that it is taken in.
            batch_size: Examples of each device at a time, at most; None: as `choose_batch_size` says.
            mesh: The devices, along an axis ``"data"``; with several processes each has its own.
            direct: The compiled product of a form with the batches of a stack.
        """
        self.sources, self._batch_size, self._direct = sources, batch_size, direct
        self._subspace = subspace.on(mesh)
        self._mesh = mesh if subspace.mesh is not None else own_mesh(mesh, DATA_AXIS) or mesh
        self._compiled: dict[Any, Callable[..., Total]] = {}
        self._sizes: dict[Source, int] = {}

    def on(self, mesh: Mesh) -> "Streamed":
        """The same on other devices."""
        return Streamed(self.sources, self._subspace, self._batch_size, mesh, self._direct)

    def __call__(self, params: Params, vector: Vector) -> Vector:
        """The product, a pass over each stream.

        Args:
            params: The point.
            vector: A vector of the subspace.

        Returns:
            A vector; a flat one is on the first device.
        """
        zeros, joined = ends(self._subspace, self._mesh)
        totals = [zeros() for _ in range(self._lanes)]
        params = self._placement.params(params)
        vector = vector if self._placement.is_cut else self._placement.everywhere(vector)
        for source in self.sources:
            constants: dict[Form, Any] = {}
            for stacks in self._stacks(source):
                calls = []
                for stack in stacks:
                    form, closed_over = source.form(jax.tree.leaves(stack)[0].shape[2])
                    if form not in constants:
                        constants[form] = self._placement.constants(closed_over)
                    operands = (params, constants[form], stack, vector)
                    calls.append(functools.partial(self._ready(form, operands, totals[0]), *operands))
                lanes = [calls[lane :: len(totals)] for lane in range(len(totals))]
                pairs = zip(lanes, totals, strict=True)
                totals = start([functools.partial(_add, lane, total) for lane, total in pairs])()
        if self._placement.is_cut:
            return joined(*totals)
        total = jax.tree.map(lambda x: x.addressable_data(0), joined(*totals))
        if jax.process_count() == 1:
            return total
        return jax.tree.map(lambda x: jnp.asarray(gather(np.asarray(x)).sum(0)), total)

    @property
    def _placement(self) -> Placement:
        return Placement(self._mesh, self._subspace.specs)

    @property
    def _lanes(self) -> int:
        return 1 if self._placement.is_cut else num_lanes(self._mesh, self._subspace.params_like)

    def _ready(self, form: Form, operands: tuple[Any, ...], total: Total) -> Callable[..., Total]:
        """The product compiled, where it is for several threads: they must not trace."""
        direct: Any = self._direct(form, self._mesh)
        if self._lanes == 1:
            return direct
        key = form, tuple((x.shape, x.dtype) for x in jax.tree.leaves(operands[2]))
        if key not in self._compiled:
            self._compiled[key] = direct.lower(*operands, total).compile()
        return self._compiled[key]

    def _size(self, source: Source) -> int:
        """Examples of each device at a time."""
        if source not in self._sizes:
            size = self._batch_size or choose_batch_size(source, self._subspace)
            assert source.term.passes is not None
            self._sizes[source] = min(size, source.term.passes.expected_examples)
        return self._sizes[source]

    def _stacks(self, source: Source) -> Iterator[list[Stack]]:
        """The batches of a pass in place: on a CPU stacks of one batch each, so that the host drives them."""
        term, mesh = source.term, self._mesh
        total_weight, size = term.total_weight, self._size(source)
        shares, parts = shares_of(self._subspace, mesh), self._placement.parts_of_batch
        lanes = self._lanes * shares
        rows = -(-num_examples(term.data) // (size * lanes)) * size * lanes if term.per_example["loss"] else None
        for part in term.parts(rows):
            options: dict[str, Any] = {"total_weight": total_weight, "rows": rows, "parts": parts}
            stacks = stacks_of(part, size, shares, self._subspace.dtype, **options)
            if mesh.devices.flat[0].platform == "cpu":
                stacks = [one for stack in stacks for one in _single(stack)]
            yield [self._placed(stack) for stack in stacks]

    def _placed(self, stack: Stack) -> Stack:
        if self._placement.is_cut:
            return self._placement.batches(stack, axis=2)
        return place(stack, NamedSharding(self._mesh, BY_EXAMPLES))


def _single(stack: Stack) -> Iterator[Stack]:
    """The batches of a stack one by one, without those that have no weight."""
    for i in range(stack[1].shape[1]):
        one = jax.tree.map(lambda x, i=i: x[:, i : i + 1], stack)
        if one[1].any():
            yield one


def _add(calls: Sequence[Callable[[Total], Total]], total: Total) -> Total:
    for call in calls:
        total = call(total)
    return total
