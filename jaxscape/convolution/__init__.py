"""A function transform that writes convolutions, and what is between them, in the form that is fastest.

`fast_convolutions` changes any function, whichever library wrote it, and leaves what it does not know to be faster as
it is; `compiler_options` are for the `jax.jit` around it.
"""

from jaxscape.convolution._transform import compiler_options, fast_convolutions

__all__ = ["compiler_options", "fast_convolutions"]
