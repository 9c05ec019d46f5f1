"""The permutation of hidden units that brings one network near to another (Ainsworth et al. 2023)."""

from jaxscape.alignment._align import align
from jaxscape.alignment._spec import Spec, permutation_spec

__all__ = ["Spec", "align", "permutation_spec"]
