"""The values of single examples at points, in the order of a draw: from an earlier call's record or the devices."""

from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from jaxscape.engine._compile import CAPACITY
from jaxscape.engine._draw import Draw
from jaxscape.engine._program import Layout, Load, Program, ahead
from jaxscape.engine._record import Record
from jaxscape.objective import WEIGHT, Term, rows_of
from jaxscape.types import Params

IN_A_CALL = 2**16  # examples, over all points
SAMPLED = 512  # examples in a batch of a sample on accelerators, at most: no sample is smaller

Blocks = Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]
"""Points, and for each metric their values, shape ``(points, examples)``."""


class Place(NamedTuple):
    """Where a term is wanted.

    Attributes:
        term: The loss and its data.
        params: The origin.
        basis: A pytree like params with a leading axis of length ``axes`` on each leaf.
        coords: Coordinates of the points, shape ``(points, axes)``.
        mesh: The devices; None: all of all processes.
    """

    term: Term
    params: Params
    basis: Params
    coords: np.ndarray
    mesh: Mesh | None

    def program(self, load: Load) -> Program:
        """The program that evaluates the term.

        Args:
            load: How much goes side by side.

        Returns:
            The program; nothing is compiled yet.
        """
        return Program(self.term, self.params, self.basis, load, mesh=self.mesh)


class Source:
    """The values of a term's examples at points, each weighed: their plain mean over all examples is the weighted mean.

    Attributes:
        coords: Coordinates of the points, shape ``(points, axes)``.
        counts: Ascending numbers of examples that a sample can have, from 0 to all: whole batches.
    """

    def __init__(self, place: Place, load: Load, record: Record) -> None:
        """The examples are in the order of the data until `rearrange` is called.

        Args:
            place: The term and the points.
            load: How much goes side by side.
            record: What is known of earlier calls, and keeps what is computed.
        """
        self._place, self._load, self._record = place, load, record
        self.coords = place.coords
        self._program = place.program(load)
        self._lay_out(self._program.layout)
        self._examples = self._slots  # in their order

    def _lay_out(self, layout: Layout) -> None:
        batches = [layout.examples(i, i + 1) for i in range(layout.local_batches)]
        self.counts = np.cumsum([0, *map(len, batches)])
        self._slots = np.concatenate(batches)  # of the examples in their order: rows of the data, batch by batch

    def examples(self, counts: np.ndarray) -> np.ndarray:
        """How many examples a sample of so many has."""
        return counts

    def rearrange(self, draw: Draw) -> None:
        """Take the examples in another order from now on, and on accelerators in smaller batches.

        Args:
            draw: It has the order.
        """
        load, term = self._load, self._place.term
        if jax.default_backend() != "cpu":
            load = load._replace(batch_size=min(load.batch_size, SAMPLED))
        self._lay_out(Layout.of(term, load.batch_size, self._program.placement))
        at = np.empty(len(draw.order), int)
        at[self._slots] = draw.order
        place = self._place._replace(term=term.with_data(rows_of(term.data, at)))
        self._program, self._examples = place.program(load), draw.order

    def values(self, rows: np.ndarray, first: int, last: int) -> Blocks:
        """The values at points, for the examples of some batches, in their order.

        Args:
            rows: The points.
            first: The first batch.
            last: The batch after the last one.

        Yields:
            Points and their values; the points that are on record come first.
        """
        term, batch = self._place.term, slice(self.counts[first], self.counts[last])
        examples = self._examples[batch]
        known, left = self._record.split(term.name, rows, examples)
        for row, by_metric in known.items():
            yield np.array([row]), _weighted({name: values[None] for name, values in by_metric.items()}, term)
        columns = np.argsort(np.argsort(self._slots[batch]))  # the program gives them by rows of the data
        blocks = _blocks(left, self._program, len(examples))
        calls = ((block, self._program.values(self.coords[block], first, last)) for block in blocks)
        for block, by_row in ahead(calls):
            values = {name: x[:, columns] for name, x in by_row.items()}
            self._record.keep(term.name, block, examples, values)
            yield block, _weighted(values, term)


def _weighted(values: dict[str, np.ndarray], term: Term) -> dict[str, np.ndarray]:
    """Values whose plain mean over all examples is the weighted mean: ``w x`` over the mean weight, which is known."""
    if not term.weighted:
        return values
    weights = values[WEIGHT].astype(np.float64) * (term.examples / term.total_weight)
    with np.errstate(all="ignore"):  # a NaN or infinite loss is a result
        return {name: np.where(weights != 0, weights * value, 0.0) for name, value in values.items() if name != WEIGHT}


def _blocks(rows: np.ndarray, program: Program, examples: int) -> Iterator[np.ndarray]:
    """Cut rows into calls of about IN_A_CALL examples, whole steps of all devices; the same on every process."""
    step = program.load.points_per_step * program.capacity // CAPACITY
    size = int(np.clip(IN_A_CALL // max(examples, 1) // step * step, step, program.capacity))
    return (rows[i : i + size] for i in range(0, len(rows), size))
