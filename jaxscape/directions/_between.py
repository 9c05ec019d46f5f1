"""Directions that a caller brings: pytrees like params, and the difference of two minimizers."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array

from jaxscape import checks, trees
from jaxscape.arguments import checked
from jaxscape.directions._directions import Directions
from jaxscape.directions._lazy import LazyDirections
from jaxscape.shards import mesh_of_shards, on_mesh, put, specs_of
from jaxscape.types import Params


@checked
def direction_between(a: Params, b: Params) -> Params:
    """The direction from one minimizer to another, ``b - a``; a has coordinate 0 and b has coordinate 1.

    The direction is not normalized, and no leaf is ignored.

    >>> direction_between({"w": jnp.zeros(2)}, {"w": jnp.ones(2)})["w"].tolist()
    [1.0, 1.0]

    Args:
        a: The params at coordinate 0, any pytree of floating arrays.
        b: The params at coordinate 1, with the same leaves.

    Returns:
        A pytree like ``a``; the difference is computed in at least float32, and stays in that dtype.

    Raises:
        ValueError: The leaves of a and b differ; the message has the path of the leaf.
        TypeError: A leaf is not floating.
    """
    a = checks.as_params(a, "a")
    b = cut_like(a, checks.like(a, b, "b"))

    def difference(x: Array, y: Array) -> Array:  # in 16 bits it would be rounded, and beyond 65504 infinite
        dtype = jnp.promote_types(trees.working_dtype(x), trees.working_dtype(y))
        return y.astype(dtype) - x.astype(dtype)

    return jax.tree.map(difference, a, b)


def as_directions(directions: Any, params: Params) -> Directions:
    """Convert Directions, one pytree like params, or a sequence of such pytrees to Directions; check their leaves.

    Args:
        directions: The value that the caller passed.
        params: The params whose leaves the directions must have.

    Returns:
        Directions with the structure of params, cut over devices as params are.

    Raises:
        ValueError: A leaf is missing, is not in params, or has another shape; the message has its path.
    """
    if isinstance(directions, LazyDirections):
        return directions.like(params)
    if not isinstance(directions, Directions):
        is_tree = sorted(trees.leaf_names(directions)) == sorted(trees.leaf_names(params))
        is_list = isinstance(directions, list | tuple) and not is_tree
        directions = Directions.stack(directions if is_list else [directions])
    basis = checks.like(params, directions.basis, "directions", (len(directions),))
    return Directions(cut_like(params, basis, 1), directions.rules_of(params), directions.recipe)


def cut_like(params: Params, tree: Params, leading: int = 0) -> Params:
    """A pytree with each leaf cut over devices as its counterpart in params; as it is where params are not cut.

    Args:
        params: The reference.
        tree: A pytree with the same leaves.
        leading: Axes that each leaf of ``tree`` has in front of the shape of its counterpart.

    Returns:
        The pytree.
    """
    mesh = mesh_of_shards(params)
    if mesh is None:
        return tree
    specs = [PartitionSpec(*(None,) * leading, *spec) for spec in specs_of(on_mesh(params, mesh))]
    leaves = [put(x, NamedSharding(mesh, spec)) for x, spec in zip(jax.tree.leaves(tree), specs, strict=True)]
    return jax.tree.unflatten(jax.tree.structure(params), leaves)
