"""The tolerance mode over a stream: its batches take the place of single examples."""

import weakref
from collections.abc import Iterator

import numpy as np

from jaxscape.engine._calls import blocks
from jaxscape.engine._draw import Draw
from jaxscape.engine._parts import some
from jaxscape.engine._program import Load, Program
from jaxscape.engine._record import Record
from jaxscape.engine._source import Blocks, Place
from jaxscape.engine._summary import from_device, join
from jaxscape.objective import Term
from jaxscape.shards import gather


class StreamSource:
    """The values of a stream's batches at points: their plain mean over all batches is the weighted mean over examples.

    The value of a batch is the weighted sum over its examples, over the mean weight of a batch. Each call of `values`
    is a pass.

    Attributes:
        coords: Coordinates of the points.
        counts: Ascending numbers of batches that a sample can have, from 0 to all.
    """

    def __init__(self, term: Term, place: Place, load: Load, record: Record) -> None:
        """The batches are in the order of the stream until `rearrange` is called.

        Args:
            term: The loss over a stream.
            place: The same loss of as many examples as a batch has, and the points.
            load: How much goes side by side.
            record: What is known of earlier calls, and keeps what is computed.
        """
        assert term.passes is not None
        self._term, self._place, self._load, self._record = term, place, load, record
        self._program = place.program(load)
        self.coords = place.coords
        self._sizes, self._first, _ = term.passes.totals  # a pass, where none was made
        self._mean_weight = term.total_weight / len(self._sizes)
        self.counts = np.arange(len(self._sizes) + 1)
        self._order = self.counts[:-1]

    def examples(self, counts: np.ndarray) -> np.ndarray:
        """How many examples are in the first batches of the order."""
        return np.concatenate([[0], np.cumsum(self._sizes[self._order])])[counts]

    def rearrange(self, draw: Draw) -> None:
        """Take the batches in another order from now on.

        Args:
            draw: It has the order.
        """
        self._order = draw.order

    def values(self, rows: np.ndarray, first: int, last: int) -> Blocks:
        """The values at points, as `Source.values` gives them, for batches ``first`` to ``last`` in their order."""
        batches, name = self._order[first:last], self._term.name
        known, left = self._record.split(name, rows, batches)
        for row, by_metric in known.items():
            yield np.array([row]), {metric: values[None] for metric, values in by_metric.items()}
        if len(left) and len(batches):
            values = self._evaluated(left, batches)
            self._record.keep(name, left, batches, values)
            yield left, values

    def _evaluated(self, rows: np.ndarray, batches: np.ndarray) -> dict[str, np.ndarray]:
        column = {int(batch): i for i, batch in enumerate(batches)}
        column_of: weakref.WeakKeyDictionary[Program, int] = weakref.WeakKeyDictionary()  # a program holds its batch
        most = self._place.term.examples

        def programs() -> Iterator[Program]:
            for number, part in enumerate(self._term.parts(), self._first):
                for start in range(0, part.examples, most) if number in column else ():
                    program = self._program.fed(some(part, start, min(start + most, part.examples)).data)
                    column_of[program] = column[number]
                    yield program

        values = {metric: np.zeros((len(rows), len(batches))) for metric in self._term.per_example}
        for (program, points), block in blocks(programs(), self.coords[rows], alone=True):
            for metric, summaries in block.items():
                sums = join(from_device(summaries[:, program.layout.sizes > 0]))
                values[metric][points, column_of[program]] += sums[1] / self._mean_weight
        return {metric: gather(own).sum(0) for metric, own in values.items()}
