"""The Hessian and the Gauss-Newton matrix of a loss: products, eigenvalues, trace and spectral density at a point."""

from jaxscape.curvature._forms import weighted_sum
from jaxscape.curvature._gradient import LossAndGradient, loss_and_gradient
from jaxscape.curvature._hessian import extreme_eigenvalues, hessian_trace, spectral_density, top_eigenpairs
from jaxscape.curvature._memory import lowered_products
from jaxscape.curvature._operators import Options, ggn_product, hessian_product, hvp, one_mesh
from jaxscape.curvature._plane import PlaneAxes, plane_axes, plane_columns, plane_curvatures
from jaxscape.curvature._product import Product

__all__ = [
    "LossAndGradient",
    "Options",
    "PlaneAxes",
    "Product",
    "extreme_eigenvalues",
    "ggn_product",
    "hessian_product",
    "hessian_trace",
    "hvp",
    "loss_and_gradient",
    "lowered_products",
    "one_mesh",
    "plane_axes",
    "plane_columns",
    "plane_curvatures",
    "spectral_density",
    "top_eigenpairs",
    "weighted_sum",
]
