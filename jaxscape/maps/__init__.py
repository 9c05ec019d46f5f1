"""Curvature at every point of a grid: the ends of the spectrum (paper figure 7), and what the plane shows of it."""

from jaxscape.maps._ends import eigenvalue_map
from jaxscape.maps._plane import plane_hessian

__all__ = ["eigenvalue_map", "plane_hessian"]
