"""Eigenpairs, trace and spectral density of any symmetric operator; it knows no loss and no data."""

from jaxscape.linalg._bases import Storage
from jaxscape.linalg._density import check_density_options
from jaxscape.linalg._eigen import Eigenpairs, Extremes, check_eigenpairs_options
from jaxscape.linalg._krylov import check_options, krylov
from jaxscape.linalg._lanczos import lanczos
from jaxscape.linalg._operator import Matvec, Operator
from jaxscape.linalg._ritz import Goal, Which
from jaxscape.linalg._trace import Trace, check_trace_options

__all__ = [
    "Eigenpairs",
    "Extremes",
    "Goal",
    "Matvec",
    "Operator",
    "Storage",
    "Trace",
    "Which",
    "check_density_options",
    "check_eigenpairs_options",
    "check_options",
    "check_trace_options",
    "krylov",
    "lanczos",
]
