"""Loss landscapes of any JAX model: ``L(theta + alpha * delta + beta * eta)``, with error bars."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxscape import datasets, export, plot, runs
    from jaxscape.alignment import Spec, align, permutation_spec
    from jaxscape.budgets import estimate
    from jaxscape.comparison import normalizations
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
    from jaxscape.flatness import plane_measures, sharpness
    from jaxscape.grid import Grid
    from jaxscape.interpolation import Curve, connect, interpolate, loss_barrier
    from jaxscape.linalg import Operator, lanczos
    from jaxscape.maps import eigenvalue_map, plane_hessian
    from jaxscape.objective import Stream
    from jaxscape.report_page import report
    from jaxscape.runs import load_run
    from jaxscape.surfaces import surface
    from jaxscape.sweep import load
    from jaxscape.trajectories import Recorder, checkpoints, pca_directions, project, trajectory
    from jaxscape.weights import weight_histogram, weight_norms

__all__ = [
    "Curve",
    "Directions",
    "Grid",
    "Operator",
    "Recorder",
    "Spec",
    "Stream",
    "align",
    "checkpoints",
    "connect",
    "datasets",
    "direction_between",
    "eigenvalue_map",
    "estimate",
    "export",
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
    "report",
    "runs",
    "sharpness",
    "spectral_density",
    "surface",
    "top_eigenpairs",
    "trajectory",
    "weight_histogram",
    "weight_norms",
]


_NAMES = {
    "alignment": ("Spec", "align", "permutation_spec"),
    "budgets": ("estimate",),
    "comparison": ("normalizations",),
    "convolution": ("fast_convolutions",),
    "curvature": ("extreme_eigenvalues", "ggn_product", "hessian_trace", "hvp", "spectral_density", "top_eigenpairs"),
    "directions": ("Directions", "direction_between", "random_directions"),
    "flatness": ("plane_measures", "sharpness"),
    "grid": ("Grid",),
    "interpolation": ("Curve", "connect", "interpolate", "loss_barrier"),
    "linalg": ("Operator", "lanczos"),
    "maps": ("eigenvalue_map", "plane_hessian"),
    "objective": ("Stream",),
    "report_page": ("report",),
    "runs": ("load_run",),
    "surfaces": ("surface",),
    "sweep": ("load",),
    "trajectories": ("Recorder", "checkpoints", "pca_directions", "project", "trajectory"),
    "weights": ("weight_histogram", "weight_norms"),
}
_MODULE = {name: module for module, names in _NAMES.items() for name in names}
_PUBLIC_MODULES = ("datasets", "export", "plot", "runs")


def __getattr__(name: str) -> Any:
    """Import what a name stands for when it is first used: all at once takes 1 s, for pandas, xarray, zarr..."""
    # No module of the package has the name of a public function: an import of the module would replace the function.
    if name in _MODULE:
        return getattr(importlib.import_module(f"jaxscape.{_MODULE[name]}"), name)
    if name in _PUBLIC_MODULES:
        return importlib.import_module(f"jaxscape.{name}")
    raise AttributeError(f"module 'jaxscape' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
