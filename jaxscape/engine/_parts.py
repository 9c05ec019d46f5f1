"""The examples of a term, in parts that one program takes each."""

from collections.abc import Iterator

import jax
import numpy as np
from jax.sharding import Mesh

from jaxscape.engine._program import Load
from jaxscape.engine._strategy import first_batch
from jaxscape.objective import Term, own_mesh, rows_of

# A call takes 6 ms beside its work: parts are 8 batches where that leaves 32 of them, so that reading and computing go
# on side by side. ResNet-20 at 8x8, 6 points, a stream of 157 batches: 0.79 of the speed of arrays with parts of one.
BATCHES, PARTS = 8, 32
LARGE = 2**28  # bytes of a part that several batches of a stream make up, at most


def mesh_of(term: Term, mesh: Mesh | None) -> Mesh | None:
    """The devices that evaluate a term: for a stream, with several processes, those of this process."""
    return own_mesh(mesh, "points") if term.passes else mesh


def template_of(term: Term) -> Term:
    """A term with as many examples as a part has, for trials and compilation.

    Returns:
        The term of arrays itself. Of a stream its first examples, repeated where a larger part is faster.
    """
    if term.passes is None:
        return term
    first = term.sample
    if not all(term.per_example.values()):
        return some(first, 0, term.passes.largest)
    bytes_of_first = sum(x.nbytes for x in jax.tree.leaves(first.data))
    expected, fast = term.passes.expected_examples, first_batch(first)
    rows = max(min(fast, expected), min(BATCHES * fast, expected // PARTS))
    rows = max(min(rows, LARGE * first.examples // max(bytes_of_first, 1)), first.examples)
    return first.with_data(rows_of(first.data, np.arange(rows) % first.examples))


def work_of(term: Term, template: Term, num_points: int) -> int:
    """How many points of the template are as much work as these points of a stream; of arrays as many.

    Returns:
        0 for a stream with several processes: their batches may differ in size, and trials would, too.
    """
    if term.passes is None:
        return num_points
    return num_points * term.passes.expected_examples // template.examples if jax.process_count() == 1 else 0


def parts_of(term: Term, template: Term, load: Load) -> Iterator[tuple[Term, Load]]:
    """All examples of a term, part by part, and the load of each.

    Where the loss is the mean of a batch, a padded batch would spoil it: a ragged last one is a part of its own.
    Elsewhere batches of a stream are joined and cut to the size of the template.

    Args:
        term: The loss and its examples.
        template: That of `template_of`.
        load: How much goes side by side.

    Yields:
        Terms with examples in memory, and their loads.
    """
    if all(term.per_example.values()):
        for part in term.parts(template.examples):
            yield part, load
        return
    for part in term.parts():
        whole = part.examples - part.examples % load.batch_size
        for start, stop, size in ((0, whole, load.batch_size), (whole, part.examples, part.examples - whole)):
            if stop > start:
                yield some(part, start, stop), load._replace(batch_size=size)


def some(term: Term, start: int, stop: int) -> Term:
    """The same loss of some of the examples."""
    if (start, stop) == (0, term.examples):
        return term
    return term.with_data(rows_of(term.data, slice(start, stop)))
