"""What is rewritten on a backend, and how to find it in a jaxpr."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from jax.extend import core


class Rules(NamedTuple):
    """What is rewritten on a backend.

    Attributes:
        form: From an equation, and whether it is in a loop, to a function of the same operands that computes it faster;
            None: it stays as it is.
        summand: From a convolution that takes in the factors and summands that follow it to a function of its result
            and a number for each feature, which adds them, or None; None: no convolution does.
        barriers: Whether an image that a convolution reads is computed once for all its uses.
    """

    form: Callable[[Any, bool], Callable[..., Any] | None]
    summand: Callable[[Any], Callable[[Any, Any], Any] | None] | None = None
    barriers: bool = False


def inside(eqn: Any) -> Iterator[core.Jaxpr]:
    """The jaxprs in the parameters of an equation."""
    for value in itertools.chain(*((v if isinstance(v, tuple) else (v,)) for v in eqn.params.values())):
        inner = value.jaxpr if isinstance(value, core.ClosedJaxpr) else value
        if isinstance(inner, core.Jaxpr):
            yield inner


def convolutions(jaxpr: core.Jaxpr) -> Iterator[Any]:
    """The convolutions of a jaxpr, and of those inside it."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "conv_general_dilated":
            yield eqn
        for inner in inside(eqn):
            yield from convolutions(inner)
