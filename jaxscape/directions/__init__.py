"""Directions in parameter space: random and normalized, stored or drawn where they are used; or between minimizers.

`_random` draws them, `_lazy` has those that take no memory, `_between` those that a caller brings.
"""

from jaxscape.directions._between import as_directions, direction_between
from jaxscape.directions._directions import Directions
from jaxscape.directions._lazy import LazyDirections
from jaxscape.directions._random import fit, random_directions

__all__ = ["Directions", "LazyDirections", "as_directions", "direction_between", "fit", "random_directions"]
