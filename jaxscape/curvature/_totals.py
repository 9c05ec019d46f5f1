"""Sums of products over batches, and the flat vector that they become."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from jaxscape.objective import DATA_AXIS
from jaxscape.subspace import Subspace

EVERYWHERE, BY_EXAMPLES = PartitionSpec(), PartitionSpec(DATA_AXIS)

Total = list[Array]
"""A sum over batches: the free leaves, each with an axis of devices; XLA adds to them in place, not so to a vector."""


def zeros(subspace: Subspace, mesh: Mesh) -> Total:
    """A sum of no batch."""
    shapes = zip(subspace.shapes, subspace.free, strict=True)
    return [jnp.zeros((mesh.size, *shape), subspace.dtype) for shape, free in shapes if free]


def joined(subspace: Subspace, *totals: Total) -> Array:
    """The sum of totals and over devices, as a flat vector."""
    return subspace.flatten([sum(x.sum(0) for x in leaf) for leaf in zip(*totals, strict=True)])


@functools.lru_cache(maxsize=32)
def ends(subspace: Subspace, mesh: Mesh) -> tuple[Callable[[], Total], Callable[..., Array]]:
    """The compiled first and last step of a product: `zeros` and `joined`."""
    by_examples, everywhere = NamedSharding(mesh, BY_EXAMPLES), NamedSharding(mesh, EVERYWHERE)
    return (
        jax.jit(functools.partial(zeros, subspace, mesh), out_shardings=by_examples),
        jax.jit(functools.partial(joined, subspace), out_shardings=everywhere),
    )
