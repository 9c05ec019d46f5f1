"""Evaluate an objective at many points ``params + sum_k coords[k] * basis[k]``, on all devices and hosts.

`Program` is one compiled program with its operands in place; `evaluate` takes the mean over all of the data at every
point; `estimate` takes as many examples at each point as a tolerance needs.
"""

from jaxscape.engine._compile import WIDTHS
from jaxscape.engine._exact import Evaluator, Loads, evaluate, load_of, mean_metrics, progress_bar
from jaxscape.engine._levels import levels
from jaxscape.engine._program import Load, Program
from jaxscape.engine._record import Record
from jaxscape.engine._result import Estimate, Evaluation
from jaxscape.engine._strategy import first_batch
from jaxscape.engine._tolerance import Tolerance, estimate

__all__ = [
    "WIDTHS",
    "Estimate",
    "Evaluation",
    "Evaluator",
    "Load",
    "Loads",
    "Program",
    "Record",
    "Tolerance",
    "estimate",
    "evaluate",
    "first_batch",
    "levels",
    "load_of",
    "mean_metrics",
    "progress_bar",
]
