"""Loss landscapes of any JAX model: ``L(theta + alpha * delta + beta * eta)``, with error bars."""

import importlib
from typing import TYPE_CHECKING, Any

from jaxscape.convolution import fast_convolutions
from jaxscape.curvature import (
    extreme_eigenvalues,
    ggn_product,
    hessian_trace,
    hvp,
    spectral_density,
    top_eigenpairs,
)
from jaxscape.directions import Directions, direction_between, random_directions
from jaxscape.grid import Grid
from jaxscape.interpolation import Curve, connect, interpolate, loss_barrier
from jaxscape.linalg import Operator, lanczos
from jaxscape.maps import eigenvalue_map, plane_hessian
from jaxscape.normalizations import normalizations
from jaxscape.sharpness import plane_measures, sharpness
from jaxscape.surface import surface
from jaxscape.sweep import load
from jaxscape.trajectory import pca_directions, project, trajectory

if TYPE_CHECKING:
    from jaxscape import datasets, plot, runs
    from jaxscape.alignment import Spec, align, permutation_spec
    from jaxscape.runs import load_run
    from jaxscape.weights import weight_histogram, weight_norms

__all__ = [
    "Curve",
    "Directions",
    "Grid",
    "Operator",
    "Spec",
    "align",
    "connect",
    "datasets",
    "direction_between",
    "eigenvalue_map",
    "extreme_eigenvalues",
    "fast_convolutions",
    "ggn_product",
    "hessian_trace",
    "hvp",
    "interpolate",
    "lanczos",
    "load",
    "load_run",
    "loss_barrier",
    "normalizations",
    "pca_directions",
    "permutation_spec",
    "plane_hessian",
    "plane_measures",
    "plot",
    "project",
    "random_directions",
    "runs",
    "sharpness",
    "spectral_density",
    "surface",
    "top_eigenpairs",
    "trajectory",
    "weight_histogram",
    "weight_norms",
]


_LAZY = {
    **dict.fromkeys(("Spec", "align", "permutation_spec"), "alignment"),
    **dict.fromkeys(("weight_histogram", "weight_norms"), "weights"),
    "load_run": "runs",
}


def __getattr__(name: str) -> Any:
    """Import the top floor when it is first asked for: it needs optional or slow dependencies."""
    if name in _LAZY:
        return getattr(importlib.import_module(f"jaxscape.{_LAZY[name]}"), name)
    if name in ("plot", "datasets", "runs"):
        return importlib.import_module(f"jaxscape.{name}")
    raise AttributeError(f"module 'jaxscape' has no attribute {name!r}")
