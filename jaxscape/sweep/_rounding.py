"""What 16 bits make of a fine grid."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxscape.grid import Grid
from jaxscape.objective import fetch
from jaxscape.shards import Drawn, is_drawn, mesh_of_shards, within
from jaxscape.types import Params

MOST = 0.5  # of the weights that may stay where they are from one point to the next, without a warning


def unresolved_share(params: Params, basis: Params, grid: Grid, compute_dtype: str | None) -> float | None:
    """The share of the perturbed weights that 16 bits do not let move from params to a neighbouring point.

    A displaced point is computed in float32 and rounded to the dtype of each leaf. A bfloat16 weight moves in steps of
    0.4 to 0.8 % of itself, a float16 weight in steps of 0.05 to 0.1 %.

    Args:
        params: The origin.
        basis: The directions, stacked or drawn.
        grid: The neighbours are those at the least distance along each axis.
        compute_dtype: ``"bfloat16"`` rounds all leaves.

    Returns:
        The largest share over the axes; None where no leaf has 16 bits, or no axis has two points.

    Warns:
        UserWarning: The share is above a half: the surface has steps where there are none.
    """
    spacings = [np.diff(np.sort(axis)).min() if len(axis) > 1 else 0.0 for axis in grid.axes]
    dtypes = [jnp.bfloat16 if compute_dtype == "bfloat16" else leaf.dtype for leaf in jax.tree.leaves(params)]
    leaves = [
        (leaf, d, dtype)
        for leaf, d, dtype in zip(
            jax.tree.leaves(params), jax.tree.leaves(basis, is_leaf=is_drawn), dtypes, strict=True
        )
        if jnp.finfo(dtype).bits <= 16
    ]
    if not leaves or not any(spacings):
        return None
    shares, mesh = [], mesh_of_shards(params)
    for k, spacing in enumerate(spacings):
        with within(mesh):
            counts = [fetch(_counts(leaf, d, k, spacing, dtype)) for leaf, d, dtype in leaves]
        still, moved = np.sum(counts, axis=0)
        shares.append(still / moved if spacing and moved else 0.0)
    share, worst = max(shares), int(np.argmax(shares))
    if share > MOST:
        warnings.warn(
            f"params have 16 bits in {len(leaves)} leaves: from one point to the next along {grid.names[worst]} "
            f"({spacings[worst]:.2g} apart) {share:.0%} of the weights there do not change, so the surface has "
            "steps of rounding. Cast params to float32, leave out compute_dtype='bfloat16', or take a coarser grid.",
            stacklevel=4,  # the caller of surface, which is decorated
        )
    return float(share)


@functools.partial(jax.jit, static_argnames="dtype")
def _counts(leaf: Array, basis: Array | Drawn, k: int, spacing: Array, dtype: jnp.dtype) -> Array:
    """How many weights stay as they are, and how many direction k moves."""
    direction = basis.entries(k) if isinstance(basis, Drawn) else basis[k]
    point = leaf.astype(jnp.float32) + spacing * direction
    moves = direction != 0
    return jnp.stack([jnp.sum(moves & (point.astype(dtype) == leaf.astype(dtype))), jnp.sum(moves)])
