"""A function transform that rewrites convolutions, and the elementwise operations between them, in their fastest form.

`fast_convolutions` transforms any function, whichever library wrote it. It leaves an operation unchanged unless
another form is known to be faster. `rewrite` does the same to a jaxpr. `compiler_options` gives the options for the
`jax.jit` around the transformed function.
"""

from jaxscape.convolution._rules import inside
from jaxscape.convolution._transform import compiler_options, fast_convolutions, has_convolution, rewrite

__all__ = ["compiler_options", "fast_convolutions", "has_convolution", "inside", "rewrite"]
