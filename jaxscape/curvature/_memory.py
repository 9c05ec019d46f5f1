"""What a product with the Hessian takes, before it is computed."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxscape.curvature._batches import choose_batch_size
from jaxscape.curvature._forms import Source
from jaxscape.curvature._operators import mesh_of_products
from jaxscape.curvature._product import programs
from jaxscape.curvature._totals import BY_EXAMPLES, shares_of
from jaxscape.objective import Objective, Placement, Term, are_large, even_size, num_lanes
from jaxscape.shards import within
from jaxscape.subspace import Subspace
from jaxscape.types import Data, Params


def lowered_products(
    loss_fn: Any, shapes: Params, data: Data, batch_size: int | None, mesh: Mesh | None
) -> list[tuple[Any, int]]:
    """The program of a product with the Hessian for a batch of each term, lowered, and how many batches there are.

    Args:
        loss_fn: As in `jaxscape.hvp`.
        shapes: A pytree of shapes and dtypes, with shardings where leaves are cut.
        data: As in `jaxscape.hvp`.
        batch_size: Examples of each device at a time, at most; None: as `choose_batch_size` says.
        mesh: As in `jaxscape.hvp`.

    Returns:
        For each term the program, and how often each device runs it for one product.
    """
    mesh = mesh_of_products(shapes, mesh)
    objective = Objective.of(loss_fn, shapes, data, compute_dtype="float32", check=False, batch_size=batch_size)
    subspace = Subspace.of(shapes, None, in_leaves=are_large(shapes)).on(mesh)
    placement = Placement(mesh, subspace.specs)
    with within(placement.context):
        return [_lowered(term, shapes, subspace, placement, batch_size) for term in objective.terms]


def _lowered(
    term: Term, shapes: Params, subspace: Subspace, placement: Placement, batch_size: int | None
) -> tuple[Any, int]:
    source, mesh, shares = Source(term), placement.mesh, shares_of(subspace, placement.mesh)
    lanes = 1 if placement.is_cut else num_lanes(mesh, shapes)
    width = even_size(term.examples, min(batch_size or choose_batch_size(source, subspace, lanes), term.examples))
    form, constants = source.form(width)
    specs = subspace.specs or [PartitionSpec()] * len(subspace.shapes)
    leaves = [_like(x, mesh, spec) for x, spec in zip(jax.tree.leaves(shapes), specs, strict=True)]
    params = jax.tree.unflatten(subspace.treedef, leaves)
    parts = placement.example_axes if width % placement.parts_of_batch == 0 else ()
    examples = PartitionSpec(None, None, parts or None) if placement.is_cut else BY_EXAMPLES
    stacked: Callable[[Any], Any] = lambda x: _like(x, mesh, examples, (shares, 1, *x.shape))  # noqa: E731
    weights = jax.ShapeDtypeStruct((width,), subspace.dtype)
    stack = jax.tree.map(stacked, (term.batch_like(width), weights))
    total = [
        _like(jax.ShapeDtypeStruct((shares, *x.shape), subspace.dtype), mesh, PartitionSpec(None, *spec))
        if placement.is_cut
        else _like(jax.ShapeDtypeStruct((shares, *x.shape), subspace.dtype), mesh, BY_EXAMPLES)
        for x, spec in zip(leaves, specs, strict=True)
    ]
    vector: Any = [
        _like(jax.ShapeDtypeStruct(x.shape, subspace.dtype), mesh, s) for x, s in zip(leaves, specs, strict=True)
    ]
    if subspace.is_flat:
        vector = _like(jax.ShapeDtypeStruct((subspace.size,), subspace.dtype), mesh, PartitionSpec())
    constants = jax.tree.map(lambda x: _like(x, mesh, PartitionSpec()), constants)
    program = programs(form, subspace, mesh).direct.lower(params, constants, stack, vector, total)
    return program, -(-term.examples // (width * shares))


def _like(x: Any, mesh: Mesh, spec: PartitionSpec, shape: tuple[int, ...] | None = None) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape or x.shape, x.dtype, sharding=NamedSharding(mesh, spec))
