"""What the loss is: a function over data, traced; its weights, terms, precision and identity; batches and devices."""

from jaxscape.objective._batches import (
    as_batch_size,
    batch_sizes,
    cached_examples,
    even_size,
    num_examples,
    rows_of,
    stack_batches,
)
from jaxscape.objective._cores import are_large, cores, num_lanes, start
from jaxscape.objective._devices import DATA_AXIS, agree, default_mesh, fetch, own_mesh, place, use_all_cores
from jaxscape.objective._jaxpr import results_of_products
from jaxscape.objective._objective import WEIGHT, Objective, Term
from jaxscape.objective._placement import POINTS_AXIS, Placement
from jaxscape.objective._stream import Stream, has_stream, refuse_stream
from jaxscape.objective._terms import split_terms
from jaxscape.objective._trace import (
    PRECISIONS,
    Computation,
    Traced,
    abstract,
    is_inside_transform,
    is_traced,
    refuse_inside_transform,
    trace,
)

__all__ = [
    "DATA_AXIS",
    "POINTS_AXIS",
    "PRECISIONS",
    "WEIGHT",
    "Computation",
    "Objective",
    "Placement",
    "Stream",
    "Term",
    "Traced",
    "abstract",
    "agree",
    "as_batch_size",
    "batch_sizes",
    "cached_examples",
    "cores",
    "default_mesh",
    "even_size",
    "fetch",
    "has_stream",
    "is_inside_transform",
    "is_traced",
    "num_examples",
    "are_large",
    "num_lanes",
    "own_mesh",
    "place",
    "refuse_inside_transform",
    "refuse_stream",
    "results_of_products",
    "rows_of",
    "split_terms",
    "stack_batches",
    "start",
    "trace",
    "use_all_cores",
]
