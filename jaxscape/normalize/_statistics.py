"""Which leaves are running statistics of batch norm, by their names in the libraries."""

from typing import Literal

from jaxscape.normalize._names import Leaf, describe
from jaxscape.types import Params

_PAIRS = (("mean", "var"), ("running_mean", "running_var"), ("moving_mean", "moving_variance"))
_HAIKU = {"mean_ema": "mean", "var_ema": "variance"}  # modules; each holds a hidden value, an average and a counter


def running_statistics(params: Params) -> list[Literal["mean", "variance"] | None]:
    """Which leaves are running statistics: a mean and a variance beside each other in one module.

    >>> import jax.numpy as jnp
    >>> running_statistics({"bn": {"mean": jnp.zeros(2), "scale": jnp.ones(2), "var": jnp.ones(2)}})
    ['mean', None, 'variance']

    Args:
        params: Any pytree of arrays.

    Returns:
        For each leaf, in order, ``"mean"``, ``"variance"`` or None.
    """
    return [_kind(leaf) for leaf in describe(params)]


def _kind(leaf: Leaf) -> Literal["mean", "variance"] | None:
    if leaf.module in _HAIKU and {leaf.module, *_HAIKU} <= leaf.neighbours:
        return "mean" if leaf.module == "mean_ema" else "variance"
    for mean, variance in _PAIRS:
        if leaf.name in (mean, variance) and leaf.siblings.get(mean) == leaf.siblings.get(variance) is not None:
            return "mean" if leaf.name == mean else "variance"
    return None
