"""The Hessian under the picture: products, eigenvalues, trace and spectral density, at a point and over a plane."""

from jaxscape.curvature._hvp import ggn_product, hvp

__all__ = ["ggn_product", "hvp"]
