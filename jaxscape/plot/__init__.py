"""Pictures of results: each function takes a result and returns matplotlib axes.

>>> ax = contour(result)  # doctest: +SKIP
>>> save(ax, "surface.pdf")  # doctest: +SKIP

Nothing here computes a loss or changes global settings. Points that are not finite are hatched or crossed, and their
number is written on the axes. The number of points above ``loss_max`` is written there too.
"""

from jaxscape.plot._curvature import eigenvalue_map, spectrum
from jaxscape.plot._curves import band, interpolation, line, training_curves
from jaxscape.plot._live import live
from jaxscape.plot._normalizations import normalizations
from jaxscape.plot._scale import levels
from jaxscape.plot._style import check_format, save
from jaxscape.plot._surfaces import compare, contour, contourf, heatmap, surface3d
from jaxscape.plot._trajectory import trajectories, trajectory, trajectory3d, trajectory_animation
from jaxscape.plot._weights import weight_histogram, weight_norms

__all__ = [
    "band",
    "check_format",
    "compare",
    "contour",
    "contourf",
    "eigenvalue_map",
    "heatmap",
    "interpolation",
    "levels",
    "line",
    "live",
    "normalizations",
    "save",
    "spectrum",
    "surface3d",
    "training_curves",
    "trajectories",
    "trajectory",
    "trajectory3d",
    "trajectory_animation",
    "weight_histogram",
    "weight_norms",
]
