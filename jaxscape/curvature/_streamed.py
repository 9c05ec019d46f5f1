"""Products over streams: each product is a pass, and nothing is kept between two."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array

from jaxscape.curvature._batches import Stack, choose_batch_size, stacks_of
from jaxscape.curvature._forms import Form, Source
from jaxscape.curvature._totals import BY_EXAMPLES, EVERYWHERE, Total, ends
from jaxscape.objective import DATA_AXIS, gather, num_examples, num_lanes, own_mesh, place, start
from jaxscape.subspace import Subspace
from jaxscape.types import Params

Direct = Callable[[Params, Any, Stack, Array, Total], Total]
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
        self.sources, self._subspace, self._batch_size, self._direct = sources, subspace, batch_size, direct
        self._mesh = own_mesh(mesh, DATA_AXIS) or mesh
        self._compiled: dict[Any, Callable[..., Total]] = {}
        self._sizes: dict[Source, int] = {}

    def on(self, mesh: Mesh) -> "Streamed":
        """The same on other devices."""
        return Streamed(self.sources, self._subspace, self._batch_size, mesh, self._direct)

    def __call__(self, params: Params, vector: Array) -> Array:
        """The product, a pass over each stream.

        Args:
            params: The point.
            vector: A flat vector.

        Returns:
            A flat vector, on the first device.
        """
        zeros, joined = ends(self._subspace, self._mesh)
        totals = [zeros() for _ in range(num_lanes(self._mesh))]
        params, vector = self._everywhere((params, vector))
        for source in self.sources:
            constants: dict[Form, Any] = {}
            for stacks in self._stacks(source):
                calls = []
                for stack in stacks:
                    form, closed_over = source.form(jax.tree.leaves(stack)[0].shape[2])
                    if form not in constants:
                        constants[form] = self._everywhere(closed_over)
                    operands = (params, constants[form], stack, vector)
                    calls.append(functools.partial(self._ready(form, operands, totals[0]), *operands))
                lanes = [calls[lane :: len(totals)] for lane in range(len(totals))]
                pairs = zip(lanes, totals, strict=True)
                totals = start([functools.partial(_add, lane, total) for lane, total in pairs])()
        total = joined(*totals).addressable_data(0)
        return total if jax.process_count() == 1 else jnp.asarray(gather(np.asarray(total)).sum(0))

    def _everywhere(self, tree: Any) -> Any:
        return place(tree, NamedSharding(self._mesh, EVERYWHERE))

    def _ready(self, form: Form, operands: tuple[Any, ...], total: Total) -> Callable[..., Total]:
        """The product compiled, where it is for several threads: they must not trace."""
        direct: Any = self._direct(form, self._mesh)
        if num_lanes(self._mesh) == 1:
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
        lanes = num_lanes(mesh) * mesh.size
        rows = -(-num_examples(term.data) // (size * lanes)) * size * lanes if term.per_example["loss"] else None
        for part in term.parts(rows):
            stacks = stacks_of(part, size, mesh.size, self._subspace.dtype, total_weight=total_weight, rows=rows)
            if mesh.devices.flat[0].platform == "cpu":
                stacks = [one for stack in stacks for one in _single(stack)]
            yield [place(stack, NamedSharding(mesh, BY_EXAMPLES)) for stack in stacks]


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
