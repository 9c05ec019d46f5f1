"""Which axes of params can be permuted together, found by following the axes through the computation."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxscape import checks, trees
from jaxscape.alignment._rules import follow
from jaxscape.alignment._units import Units
from jaxscape.arguments import checked
from jaxscape.objective import trace
from jaxscape.types import Params

Axis = str | int | tuple[Any, ...] | None


class Spec(NamedTuple):
    """Which axes of the leaves of params can be permuted together.

    Attributes:
        axes: For each leaf, by its path, what each axis is: the name of a permutation; None, where it keeps its order;
            ``("product", ...)`` of such, where a reshape joined several axes, the slowest first, or ``("sum", ...)``,
            where arrays were concatenated. In these a number is so many entries that keep their order.
        sizes: How many units each permutation has.
    """

    axes: dict[str, tuple[Axis, ...]]
    sizes: dict[str, int]


@checked
def permutation_spec(function: Callable[..., Any], params: Params, *inputs: Any) -> Spec:
    """Which axes of the leaves of params can be permuted together without a change of the function.

    The axes are followed through the computation: two axes that meet in a sum, a matrix product or a convolution have
    the same units. The axes of inputs and outputs keep their order, and so does every axis that goes through an
    operation for which nothing is known (a gather, a sort, a loop): what is found leaves the function as it is, but a
    symmetry may be missed. Then pass `align` a specification by hand.

    >>> import jax.numpy as jnp
    >>> params = {"w1": jnp.ones((2, 5)), "b1": jnp.ones(5), "w2": jnp.ones((5, 3))}
    >>> def network(p, x):
    ...     return jax.nn.relu(x @ p["w1"] + p["b1"]) @ p["w2"]
    >>> permutation_spec(network, params, jnp.ones((4, 2)))
    Spec(axes={"['b1']": ('p0',), "['w1']": (None, 'p0'), "['w2']": ('p0', None)}, sizes={'p0': 5})

    Args:
        function: ``function(params, *inputs)`` -> arrays: the outputs of a network, or its loss.
        params: A pytree of floating arrays.
        *inputs: Pytrees of arrays, or of their shapes and dtypes.

    Returns:
        What each axis is, for `align`.

    Raises:
        ValueError: params is empty.
        TypeError: A leaf of params is not floating, or one of inputs is no array.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(inputs):
        if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
            raise TypeError(f"inputs{jax.tree_util.keystr(path)} is {type(leaf).__name__}, expected an array.")
    return derived(function, checks.as_params(params), *inputs)


def derived(function: Callable[..., Any], params: Params, *inputs: Any) -> Spec:
    """As `permutation_spec`; leaves of params may be shapes and dtypes."""
    computation, constants = trace(function, params, *inputs)
    leaves = jax.tree.leaves(params)
    axes = [[Units(size, fixed=size == 1) for size in leaf.shape] for leaf in leaves]
    before = [_of_constant(x) for x in constants]
    after = [_in_order(x) for x in jax.tree.leaves(inputs)]
    for out in follow(computation.jaxpr, [*before, *axes, *after]):
        for units in out:
            if units is not None:
                units.fix()
    names: dict[Units, str] = {}
    described = [tuple(_described(units, names) for units in own) for own in axes]
    paths = trees.leaf_names(params)
    return Spec(dict(zip(paths, described, strict=True)), {name: units.size for units, name in names.items()})


def _of_constant(constant: Any) -> Sequence[Units | None]:
    """Those of an array that the function closes over: along an axis where all is the same, any units."""
    if jax.dtypes.issubdtype(constant.dtype, jax.dtypes.prng_key):
        return _in_order(constant)
    array = np.asarray(constant)
    if not array.size:
        return _in_order(constant)
    return [
        None if np.array_equal(array, np.broadcast_to(array.take([0], axis), array.shape)) else Units(size, fixed=True)
        for axis, size in enumerate(array.shape)
    ]


def _in_order(array: Any) -> list[Units]:
    return [Units(size, fixed=True) for size in np.shape(array)]


def _described(units: Units, names: dict[Units, str]) -> Axis:
    units = units.root
    if units.kind is not None:
        parts = [_described(part, names) for part in units.parts]
        if all(part is None for part in parts):
            return None
        sizes = [part.size for part in units.parts]
        return (units.kind, *(size if part is None else part for part, size in zip(parts, sizes, strict=True)))
    return None if units.fixed else names.setdefault(units, f"p{len(names)}")
