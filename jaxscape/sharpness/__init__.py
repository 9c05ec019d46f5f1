"""Measures of flatness: of a point, `sharpness`, and of a sampled plane, `plane_measures`."""

from jaxscape.sharpness._plane import plane_measures
from jaxscape.sharpness._sharpness import sharpness

__all__ = ["plane_measures", "sharpness"]
