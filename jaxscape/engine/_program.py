"""One compiled program, with params, directions and data in place on the devices.

Points are shared by the devices of a mesh. A mesh axis named ``"data"`` shares the examples instead: for data too large
for one device. Where params are cut over the mesh, all devices evaluate a point together.
"""

import copy
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from jaxscape.engine._compile import CAPACITY, compiled
from jaxscape.objective import (
    Placement,
    Term,
    batch_sizes,
    even_size,
    fetch,
    num_examples,
    num_lanes,
    stack_batches,
    start,
)
from jaxscape.shards import within
from jaxscape.types import Data, Params

REMEMBERED = 128  # arrays of points that stay in place; 64 points each, they are small

Pending = Callable[[], dict[str, np.ndarray]]
"""Waits for a call that is under way."""


class Load(NamedTuple):
    """How much goes side by side.

    Attributes:
        batch_size: Examples in one call of the loss, at most.
        points_per_step: Points that a device evaluates at once, by `jax.vmap`; a power of two up to CAPACITY.
    """

    batch_size: int
    points_per_step: int = 1


class Layout(NamedTuple):
    """Which examples the batches hold, share of the data by share.

    Attributes:
        sizes: How many examples each batch holds, shape ``(batches,)``; some may be padded and some empty.
        width: Rows of a batch.
        shares: Shares of the data, each with as many batches.
    """

    sizes: np.ndarray
    width: int
    shares: int

    @classmethod
    def of(cls, term: Term, batch_size: int, placement: Placement) -> "Layout":
        """That of `stack_batches`; a batch that is cut has a multiple of its parts, where its loss can be padded."""
        parts = placement.parts_of_batch if all(term.per_example.values()) else 1
        width = -(-even_size(term.examples, batch_size) // parts) * parts
        if parts == 1:
            return cls(batch_sizes(term.examples, batch_size, placement.shares), width, placement.shares)
        starts = np.arange(0, term.examples, width)
        return cls(np.minimum(term.examples - starts, width), width, 1)

    def with_fewer(self, examples: int) -> "Layout":
        """The same batches, with fewer examples in them; the last ones may be empty."""
        return self._replace(sizes=np.clip(examples - self.width * np.arange(len(self.sizes)), 0, self.width))

    @property
    def local_batches(self) -> int:
        """Batches on each share of the data."""
        return len(self.sizes) // self.shares

    @property
    def used_batches(self) -> int:
        """Batches on each share of the data until all that follow are empty."""
        return int((self.sizes.reshape(self.shares, -1) > 0).sum(1).max())

    def rows(self, first: int, last: int) -> np.ndarray:
        """A mask over all padded rows: those of examples, within these batches of each share."""
        batch = np.arange(len(self.sizes)) % self.local_batches
        inside = (first <= batch) & (batch < last)
        return (inside[:, None] & (np.arange(self.width) < self.sizes[:, None])).ravel()

    def examples(self, first: int, last: int) -> np.ndarray:
        """Which examples are in batches first to last of each share of the data, as rows of the data."""
        return np.cumsum(self.rows(0, self.local_batches))[self.rows(first, last)] - 1


class Program:
    """A term of an objective at points ``params + sum_k coords[k] * basis[k]``, batch by batch.

    Attributes:
        term: The loss and its data.
        load: How much goes side by side.
        layout: The batches.
        placement: Where the operands lie.
        capacity: Points that one call can take.
    """

    def __init__(self, term: Term, params: Params, basis: Params, load: Load, *, mesh: Mesh | None = None) -> None:
        """Put the operands in place; nothing is compiled or computed yet.

        Args:
            term: The loss and its data. Where the loss is the mean of a batch, the number of examples must be a
                multiple of the batch size.
            params: The origin.
            basis: A pytree like params with a leading axis of length ``axes`` on each leaf.
            load: How much goes side by side.
            mesh: The devices; by default those that params are cut over, else all of all processes.

        Raises:
            ValueError: The mesh is not one for these params, or they are cut and several points are to go side by side
                by `jax.vmap`.
        """
        self.term, self.load = term, load
        self.placement = placement = Placement.of(params, mesh)
        if placement.is_cut and load.points_per_step > 1:
            raise ValueError(
                f"points_per_step is {load.points_per_step}, but params are cut over devices, which evaluate a point "
                "together; expected 1 or 'auto'. A mesh axis named 'points' has several points side by side."
            )
        self._lanes = 1 if placement.is_cut else num_lanes(placement.mesh, params)
        self.capacity = CAPACITY * placement.groups * self._lanes
        self.layout = Layout.of(term, load.batch_size, placement)
        self._loss, constants = term.traced(self.layout.width)
        in_place = placement.params(params), placement.basis(basis), placement.constants(constants)
        self._operands = (*in_place, *self._batches(term.data, self.layout))
        self._run = functools.partial(compiled, self._loss, placement, load.points_per_step)
        self._executables: dict[bool, jax.stages.Compiled] = {}
        self._in_place: dict[Any, Any] = {}  # points, which come again with each batch of a stream

    def fed(self, data: Data) -> "Program":
        """The same program with other examples in place.

        Args:
            data: At most as many examples as the program has; as many where the loss is the mean of a batch.

        Returns:
            The program; nothing is compiled anew.
        """
        other = copy.copy(self)
        other.layout = self.layout.with_fewer(num_examples(data))
        other._operands = (*self._operands[:3], *self._batches(data, other.layout))
        return other

    @property
    def num_axes(self) -> int:
        """Directions."""
        return jax.tree.leaves(self._operands[1])[0].shape[0]  # of keys, too

    def count(self, last: int) -> int:
        """How many examples there are before batch ``last`` of each share of the data."""
        return int(self.layout.rows(0, last).sum())

    def summaries(self, coords: np.ndarray, last: int | None = None) -> Pending:
        """The sums of `summarize` for each batch, shape ``(points, batches, 7)``.

        Args:
            coords: At most ``capacity`` points.
            last: The batch of each share of the data after the last one to evaluate; None: all.

        Returns:
            A call that waits for the result: an array for each metric, zero in batches that were not evaluated.
        """
        return self._send(coords, (0, self.layout.used_batches if last is None else last), keep=False)

    def values(self, coords: np.ndarray, first: int, last: int) -> Pending:
        """Every example's own value, of batches first to last of each share of the data.

        Args:
            coords: At most ``capacity`` points.
            first: The first batch.
            last: The batch after the last one.

        Returns:
            A call that waits for the result: for each metric an array ``(points, examples)``, in the order of
            `Layout.examples`.
        """
        chosen = self.layout.rows(first, last)
        wait = self._send(coords, (first, last), keep=True)
        return lambda: {name: values.reshape(len(coords), -1)[:, chosen] for name, values in wait().items()}

    def _batches(self, data: Data, layout: Layout) -> tuple[Any, Any]:
        return self.placement.batches(
            (stack_batches(data, len(layout.sizes), layout.width), layout.sizes.astype(np.int32))
        )

    def _send(self, coords: np.ndarray, window: tuple[int, int], *, keep: bool) -> Pending:
        """Calls of the compiled program on at most ``capacity`` points, dealt out evenly."""
        limits = self._remembered(np.array(window, np.int32), self.placement.everywhere)
        parts = np.array_split(coords, min(self._lanes, len(coords)))
        calls, slots = [], []
        for part in parts:
            slots.append(self._slots(len(part)))
            operands = (*self._operands, *self._remembered(part, self._points), limits)
            calls.append(functools.partial(self._compiled(keep, operands), *operands))
        outs = start(calls)
        self.term.check.verdict()
        if self.placement.is_cut:  # a second call under way would hold a second displaced copy
            jax.block_until_ready(outs())

        def wait() -> dict[str, np.ndarray]:
            parts = [fetch(out) for out in outs()]
            return {
                name: np.concatenate([part[name][rows] for part, rows in zip(parts, slots, strict=True)])
                for name in parts[0]
            }

        return wait

    def _compiled(self, keep: bool, operands: tuple[Any, ...]) -> jax.stages.Compiled:
        """The executable, which needs no context of the caller's in a thread; JAX remembers it for the next Program."""
        if keep not in self._executables:
            program = self._run(keep)
            with within(self.placement.context):
                self.term.check.begin_beside(program, *operands)
                self._executables[keep] = program.lower(*operands).compile()
        return self._executables[keep]

    def _remembered(self, array: np.ndarray, put: Callable[[np.ndarray], Any]) -> Any:
        """What ``put(array)`` gave for an array with these contents, or gives."""
        key = array.dtype, array.shape, array.tobytes()
        if key not in self._in_place:
            if len(self._in_place) >= REMEMBERED:
                self._in_place.clear()
            self._in_place[key] = put(array)
        return self._in_place[key]

    def _slots(self, points: int) -> np.ndarray:
        """Where the points of a call stand among the rows of all devices."""
        shares = np.array_split(np.arange(points), self.placement.groups)
        return np.concatenate([d * CAPACITY + np.arange(len(share)) for d, share in enumerate(shares)])

    def _points(self, coords: np.ndarray) -> tuple[Any, Any]:
        """The points of a call in place, and how many of them each group of devices has."""
        groups = self.placement.groups
        padded = np.zeros((CAPACITY * groups, coords.shape[1]))
        padded[self._slots(len(coords))] = coords
        counts = np.array([len(share) for share in np.array_split(coords, groups)], np.int32)
        return self.placement.points((padded, counts))


def ahead(calls: Iterator[tuple[Any, Pending]]) -> Iterator[tuple[Any, dict[str, np.ndarray]]]:
    """Wait for each call only when the next one is under way, so that no device idles between two."""
    before = next(calls, None)
    while before is not None:
        after = next(calls, None)
        yield before[0], before[1]()
        before = after
