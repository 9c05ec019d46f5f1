"""Measures of flatness: of a point, `sharpness`, and of a sampled plane, `plane_measures`."""

from jaxscape.flatness._plane import plane_measures
from jaxscape.flatness._sharpness import sharpness

__all__ = ["plane_measures", "sharpness"]
