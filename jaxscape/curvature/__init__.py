"""The Hessian under the picture: products, eigenvalues, trace and spectral density, at a point and over a plane."""

from jaxscape.curvature._eigen import extreme_eigenvalues, top_eigenpairs
from jaxscape.curvature._estimates import hessian_trace, spectral_density
from jaxscape.curvature._hvp import ggn_product, hvp
from jaxscape.curvature._map import eigenvalue_map, plane_hessian

__all__ = [
    "eigenvalue_map",
    "extreme_eigenvalues",
    "ggn_product",
    "hessian_trace",
    "hvp",
    "plane_hessian",
    "spectral_density",
    "top_eigenpairs",
]
