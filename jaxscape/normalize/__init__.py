"""Which leaves are perturbed, what a filter is in each, and how a direction is scaled to the weights (paper section 4).

`_names` reads a leaf's path, `_bias_norm` knows biases and normalization parameters, `_layouts` the axes of filters in
each library, `_scales` the normalizations.
"""

from jaxscape.normalize._layouts import Filters
from jaxscape.normalize._rules import (
    check_norm,
    described,
    explanation,
    filters_of_leaves,
    reasons_to_ignore,
    warn_of_doubts,
)
from jaxscape.normalize._scales import rescale, scales_of
from jaxscape.normalize._statistics import running_statistics

__all__ = [
    "Filters",
    "check_norm",
    "described",
    "explanation",
    "filters_of_leaves",
    "reasons_to_ignore",
    "rescale",
    "running_statistics",
    "scales_of",
    "warn_of_doubts",
]
