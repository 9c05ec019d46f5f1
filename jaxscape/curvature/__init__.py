"""The Hessian and the Gauss-Newton matrix of a loss: products, eigenvalues, trace and spectral density at a point."""

from jaxscape.curvature._hessian import extreme_eigenvalues, hessian_trace, spectral_density, top_eigenpairs
from jaxscape.curvature._operators import Options, ggn_product, hessian_product, hvp
from jaxscape.curvature._plane import PlaneAxes, plane_axes, plane_columns, plane_curvatures
from jaxscape.curvature._product import Product

__all__ = [
    "Options",
    "PlaneAxes",
    "Product",
    "extreme_eigenvalues",
    "ggn_product",
    "hessian_product",
    "hessian_trace",
    "hvp",
    "plane_axes",
    "plane_columns",
    "plane_curvatures",
    "spectral_density",
    "top_eigenpairs",
]
