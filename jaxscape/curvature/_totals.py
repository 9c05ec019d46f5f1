"""Sums of products over batches, and the vector that they become."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from jaxscape.objective import DATA_AXIS
from jaxscape.subspace import Subspace
from jaxscape.types import Vector

EVERYWHERE, BY_EXAMPLES = PartitionSpec(), PartitionSpec(DATA_AXIS)

Total = list[Array]
"""A sum over batches: the free leaves, each with an axis of devices; XLA adds to them in place, not so to a vector.

Where params are cut, the axis has length 1, and each leaf is cut as that of params.
"""


def shares_of(subspace: Subspace, mesh: Mesh) -> int:
    """How many devices have examples of their own: where params are cut, all work together."""
    return mesh.size if subspace.mesh is None else 1


def zeros(subspace: Subspace, mesh: Mesh) -> Total:
    """A sum of no batch."""
    shapes = zip(subspace.shapes, subspace.free, strict=True)
    return [jnp.zeros((shares_of(subspace, mesh), *shape), subspace.dtype) for shape, free in shapes if free]


def joined(subspace: Subspace, *totals: Total) -> Vector:
    """The sum of totals and over devices, as a vector."""
    return subspace.vector([sum(x.sum(0) for x in leaf) for leaf in zip(*totals, strict=True)])


@functools.lru_cache(maxsize=32)
def ends(subspace: Subspace, mesh: Mesh) -> tuple[Callable[[], Total], Callable[..., Vector]]:
    """The compiled first and last step of a product: `zeros` and `joined`."""
    before: NamedSharding | list[NamedSharding]
    after: NamedSharding | list[NamedSharding]
    if (specs := subspace.free_specs) is None:
        before, after = NamedSharding(mesh, BY_EXAMPLES), NamedSharding(mesh, EVERYWHERE)
    else:
        before = [NamedSharding(mesh, PartitionSpec(None, *spec)) for spec in specs]
        after = [NamedSharding(mesh, spec) for spec in specs]
    return (
        jax.jit(functools.partial(zeros, subspace, mesh), out_shardings=before),
        jax.jit(functools.partial(joined, subspace), out_shardings=after),
    )
