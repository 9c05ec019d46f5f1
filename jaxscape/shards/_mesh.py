"""The mesh that the leaves of a pytree are cut over."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def is_cut(array: Any) -> bool:
    """Whether no device has the whole of an array."""
    sharding = getattr(array, "sharding", None)
    return isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh) and not sharding.is_fully_replicated


def mesh_of_shards(tree: Any, name: str = "params") -> Mesh | None:
    """The mesh over which leaves of a pytree are cut.

    Args:
        tree: Any pytree.
        name: What the caller's argument is called, for the message.

    Returns:
        The mesh, its axes Auto; None where each leaf is whole on a device.

    Raises:
        ValueError: Leaves are cut over different meshes; the message has the paths of two.
    """
    first, where = None, ""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not is_cut(leaf):
            continue
        mesh = auto(leaf.sharding.mesh)
        if first is None:
            first, where = mesh, jax.tree_util.keystr(path)
        elif mesh != first:
            raise ValueError(
                f"{name}{where} is cut over {_words(first)} and {name}{jax.tree_util.keystr(path)} over "
                f"{_words(mesh)}; expected one mesh. Put all leaves on it with jax.device_put."
            )
    return first


def auto(mesh: Mesh) -> Mesh:
    """The mesh with Auto axes: jaxscape has no answer to how each result of a user's model is to be sharded."""
    if all(kind == AxisType.Auto for kind in mesh.axis_types):
        return mesh
    return Mesh(mesh.devices, mesh.axis_names)


def mesh_and_spec(array: Any) -> tuple[Mesh, PartitionSpec]:
    """The mesh that an array is cut over, its axes Auto, and how it is cut."""
    return auto(array.sharding.mesh), array.sharding.spec


def specs_of(tree: Any) -> tuple[PartitionSpec, ...]:
    """How each leaf of a pytree is cut."""
    return tuple(leaf.sharding.spec if is_cut(leaf) else PartitionSpec() for leaf in jax.tree.leaves(tree))


def on_mesh(tree: Any, mesh: Mesh) -> Any:
    """The pytree on a mesh: each leaf cut along the axes of the names it is cut along now, the others whole."""

    def leaf(x: Any) -> Any:
        return put(x, NamedSharding(mesh, x.sharding.spec if is_cut(x) else PartitionSpec()))

    return jax.tree.map(leaf, tree)


def put(x: Any, sharding: NamedSharding) -> jax.Array:
    """An array where a sharding says; one that no process has in full stays in parts.

    Args:
        x: An array that is cut, or one that every process has in full.
        sharding: Where it goes.

    Returns:
        The array.
    """
    if isinstance(x, jax.core.Tracer):
        return jax.lax.with_sharding_constraint(x, sharding)
    if isinstance(x, jax.Array) and x.sharding == sharding:
        return x
    if sharding.is_fully_addressable or (isinstance(x, jax.Array) and not x.is_fully_addressable):
        return jax.device_put(x, sharding)
    whole = np.asarray(x)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])


@contextlib.contextmanager
def within(mesh: Mesh | None) -> Iterator[None]:
    """With the mesh as the ambient one; None: with none."""
    if mesh is None:
        yield
        return
    context: Any
    try:
        context = jax.set_mesh(mesh)
    except ValueError:  # inside jax.jit, where only the abstract mesh can be set
        context = jax.sharding.use_abstract_mesh(mesh.abstract_mesh)
    with context:
        yield


def _words(mesh: Mesh) -> str:
    axes = ", ".join(f"{name!r}: {size}" for name, size in mesh.shape.items())
    return f"a mesh ({axes}) of the devices {', '.join(str(d.id) for d in mesh.devices.flat[:8])}"
