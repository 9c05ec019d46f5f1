"""The line or a curve through two minimizers: the loss on it, running statistics, the barrier, and trained curves."""

from jaxscape.interpolation._barrier import Barrier, loss_barrier, place_of
from jaxscape.interpolation._connect import connect
from jaxscape.interpolation._curve import Curve
from jaxscape.interpolation._interpolate import interpolate
from jaxscape.interpolation._statistics import SMALL

__all__ = ["SMALL", "Barrier", "Curve", "connect", "interpolate", "loss_barrier", "place_of"]
