"""A function transform that writes convolutions, and what is between them, in the form that is fastest.

`fast_convolutions` changes any function, whichever library wrote it, and leaves what it does not know to be faster as
it is; `evaluate` does the same to a jaxpr; `compiler_options` are for the `jax.jit` around them.
"""

from jaxscape.convolution._transform import compiler_options, evaluate, fast_convolutions, has_native_convolution

__all__ = ["compiler_options", "evaluate", "fast_convolutions", "has_native_convolution"]
