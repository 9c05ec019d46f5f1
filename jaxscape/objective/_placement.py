"""Where params, points and examples lie on the devices.

Params that are whole on a device: each device evaluates whole points, and may share the examples with others. Params
that are cut over a mesh stay so: all devices evaluate a point together, XLA deals out the work (`jax.jit` with
`NamedSharding`), and a mesh axis named ``"points"`` has several points side by side.
"""

import math
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxscape.objective._devices import DATA_AXIS, default_mesh, place
from jaxscape.shards import Drawn, auto, is_cut, is_drawn, mesh_of_shards, on_mesh, put, specs_of
from jaxscape.types import Params

POINTS_AXIS = "points"
"""The mesh axis along which devices have points side by side, where params are cut along others."""

EXAMPLE_AXES = (DATA_AXIS, "fsdp", "batch")
"""The mesh axes along which the examples of a batch are cut, where params are cut."""


class Placement(NamedTuple):
    """Where arrays lie on the devices of a mesh. It is hashable.

    Attributes:
        mesh: The devices.
        specs: How each leaf of params is cut; None: all are whole on each device.
    """

    mesh: Mesh
    specs: tuple[PartitionSpec, ...] | None

    @classmethod
    def of(cls, params: Params, mesh: Mesh | None = None) -> "Placement":
        """The placement for params as they are.

        Args:
            params: A pytree of arrays.
            mesh: The devices; None: those that params are cut over, else all of all processes.

        Returns:
            The placement.

        Raises:
            ValueError: The mesh lacks an axis that params are cut along, or it has another size.
        """
        own = mesh_of_shards(params)
        if own is None:
            return cls(mesh or default_mesh(), None)
        mesh = own if mesh is None else auto(mesh)
        specs = specs_of(on_mesh(params, own) if own != mesh else params)
        for name in {name for spec in specs for entry in spec for name in _names(entry)}:
            if mesh.shape.get(name) != own.shape[name]:
                raise ValueError(
                    f"mesh has the axes {dict(mesh.shape)}, but params are cut along {name!r} of {own.shape[name]}; "
                    "expected a mesh with that axis, or None for the mesh of params."
                )
        return cls(mesh, specs)

    @property
    def is_cut(self) -> bool:
        """Whether params are cut."""
        return self.specs is not None

    @property
    def points_axes(self) -> tuple[str, ...]:
        """The mesh axes along which devices have points of their own."""
        if self.specs is not None:
            used = {name for spec in self.specs for entry in spec for name in _names(entry)}
            return tuple(name for name in self.mesh.axis_names if name == POINTS_AXIS and name not in used)
        return tuple(name for name in self.mesh.axis_names if name != DATA_AXIS)

    @property
    def groups(self) -> int:
        """How many groups of devices have points of their own."""
        return math.prod(self.mesh.shape[name] for name in self.points_axes)

    @property
    def shares(self) -> int:
        """Shares of the data, each on devices of its own."""
        return 1 if self.is_cut else self.mesh.shape.get(DATA_AXIS, 1)

    @property
    def example_axes(self) -> tuple[str, ...]:
        """The mesh axes along which the examples of a batch are cut."""
        return example_axes(self.mesh) if self.is_cut else ()

    @property
    def parts_of_batch(self) -> int:
        """How many parts a batch is cut in: its size should be a multiple."""
        return math.prod(self.mesh.shape[name] for name in self.example_axes)

    @property
    def context(self) -> Mesh | None:
        """The mesh within which programs are traced; None: none."""
        return self.mesh if self.is_cut else None

    def params(self, params: Params) -> Params:
        """Params in place."""
        return self._leaves(params, ()) if self.is_cut else self.everywhere(params)

    def basis(self, basis: Params) -> Params:
        """Directions in place: each leaf is cut as that of params, behind the axis of directions."""

        def drawn(x: Any, spec: PartitionSpec | None) -> Any:
            return x.placed(self.context, spec) if is_drawn(x) else x

        leaves, treedef = jax.tree.flatten(basis, is_leaf=is_drawn)
        basis = jax.tree.unflatten(treedef, map(drawn, leaves, self.specs or [None] * len(leaves)))
        return self._leaves(basis, (None,)) if self.is_cut else self.everywhere(basis)

    def constants(self, tree: Any) -> Any:
        """Arrays that a loss closes over in place: what is cut over the same devices stays so."""
        if not self.is_cut:
            return self.everywhere(tree)
        own = {device.id for device in self.mesh.devices.flat}

        def leaf(x: Any) -> Any:
            stays = is_cut(x) and {device.id for device in x.sharding.mesh.devices.flat} == own
            return x if stays else self.everywhere(x)

        return jax.tree.map(leaf, tree)

    def batches(self, tree: Any, axis: int = 1) -> Any:
        """Stacked batches in place.

        Args:
            tree: Arrays ``(batches, batch, ...)``.
            axis: The axis of the examples in a batch, for params that are cut.

        Returns:
            The arrays.
        """
        if not self.is_cut:
            return place(tree, NamedSharding(self.mesh, PartitionSpec(DATA_AXIS if self.shares > 1 else None)))
        names, parts = self.example_axes or None, self.parts_of_batch

        def leaf(x: Any) -> Any:
            cut = x.ndim > axis and x.shape[axis] % parts == 0
            return put(x, NamedSharding(self.mesh, PartitionSpec(*(None,) * axis, names) if cut else PartitionSpec()))

        return jax.tree.map(leaf, tree)

    def points(self, tree: Any) -> Any:
        """Coordinates of points in place."""
        return place(tree, NamedSharding(self.mesh, PartitionSpec(self.points_axes or None)))

    def everywhere(self, tree: Any) -> Any:
        """A pytree in full on each device."""
        return place(tree, NamedSharding(self.mesh, PartitionSpec()))

    def constrained(self, params: Params) -> Params:
        """A point that is cut as params are, inside a program."""
        if self.specs is None:
            return params
        leaves = map(jax.lax.with_sharding_constraint, jax.tree.leaves(params), self.specs)
        return jax.tree.unflatten(jax.tree.structure(params), leaves)

    def _leaves(self, tree: Params, leading: tuple[None, ...]) -> Params:
        assert self.specs is not None

        def leaf(x: Any, spec: PartitionSpec) -> Any:
            return x if isinstance(x, Drawn) else put(x, NamedSharding(self.mesh, PartitionSpec(*leading, *spec)))

        leaves, treedef = jax.tree.flatten(tree, is_leaf=is_drawn)
        return jax.tree.unflatten(treedef, map(leaf, leaves, self.specs))


def example_axes(mesh: Mesh | None) -> tuple[str, ...]:
    """The axes of a mesh along which the examples of a batch are cut, where params are cut over the mesh."""
    return () if mesh is None else tuple(name for name in mesh.axis_names if name in EXAMPLE_AXES)


def _names(entry: Any) -> tuple[str, ...]:
    return () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)
