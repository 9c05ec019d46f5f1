"""Evaluate a loss function at many points ``params + sum_k coords[k] * basis[k]``, on all devices and hosts.

`Program` is one compiled program with its operands in place; `evaluate` takes the mean over all of the data at every
point; `estimate` takes as many examples at each point as a tolerance needs.
"""

from jaxscape.engine._compile import DATA_AXIS, PRECISIONS, WIDTHS, in_precision, probe
from jaxscape.engine._exact import evaluate, mean_metrics, progress_bar
from jaxscape.engine._program import Load, Program, fetch, place, stack_batches, use_all_cores
from jaxscape.engine._result import Estimate, Evaluation
from jaxscape.engine._stored import evaluate_stored
from jaxscape.engine._tolerance import anchor_stride, anchors, estimate

__all__ = [
    "DATA_AXIS",
    "PRECISIONS",
    "WIDTHS",
    "Estimate",
    "Evaluation",
    "Load",
    "Program",
    "anchor_stride",
    "anchors",
    "estimate",
    "evaluate",
    "evaluate_stored",
    "fetch",
    "in_precision",
    "mean_metrics",
    "place",
    "probe",
    "progress_bar",
    "stack_batches",
    "use_all_cores",
]
