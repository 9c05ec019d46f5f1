"""Directions that take no memory: a key, and one scale for each filter."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxscape import checks, trees
from jaxscape.directions._directions import Directions
from jaxscape.meshes import outside_meshes
from jaxscape.shards import is_drawn, mesh_of_shards, specs_of, within
from jaxscape.types import Params


class LazyDirections(Directions):
    """Random directions whose entries are drawn where they are used, equal to the bit to those that are stored.

    `random_directions` makes them. ``directions[i]``, `basis` and iteration store what they give.

    Attributes:
        operand: A pytree like params, each leaf a `jaxscape.shards.Drawn`.
        mesh: The mesh that the leaves of params are cut over; None: they are whole.
        rules: As in `Directions`.
        recipe: As in `Directions`.
    """

    mesh: Mesh | None

    def __init__(
        self, drawn: Params, mesh: Mesh | None, rules: tuple[str, ...], recipe: tuple[tuple[str, str], ...]
    ) -> None:
        """Directions of keys and scales.

        Args:
            drawn: A pytree like params, each leaf a `jaxscape.shards.Drawn`.
            mesh: The mesh that the leaves of params are cut over.
            rules: The rule of each leaf.
            recipe: (name, value) pairs that describe how the directions were created.
        """
        self.__dict__.update(_drawn=drawn, mesh=mesh, rules=rules, recipe=recipe)  # the base class is frozen

    def _check_precision(self) -> None:
        """Refuse to draw numbers of 64 bits where JAX has none: they would come out as infinite."""
        wide = any(drawn.dtype == np.float64 for drawn in jax.tree.leaves(self.operand, is_leaf=is_drawn))
        if wide and not jax.config.jax_enable_x64:  # type: ignore[attr-defined]
            raise ValueError(
                "directions are lazy and of float64, but JAX is configured to float32; use them where jax_enable_x64 "
                "is set, or draw them for float32 params."
            )

    @property
    def operand(self) -> Params:
        """Keys and scales."""
        return self.__dict__["_drawn"]

    def with_operand(self, operand: Params, mesh: Mesh | None) -> "LazyDirections":
        """The same directions with their operand elsewhere, cut over another mesh."""
        return LazyDirections(operand, mesh, self.rules, self.recipe)

    @property
    @outside_meshes
    def basis(self) -> Params:
        """The directions stored: a pytree like params, each leaf with a leading axis of length ``len(directions)``."""
        self._check_precision()
        with within(self.mesh):
            return jax.tree.map(_stored, self.operand, is_leaf=is_drawn)

    @outside_meshes
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            rows = np.arange(len(self))[index]
            part = jax.tree.map(lambda x: x[rows], self.operand)
            return LazyDirections(part, self.mesh, self.rules, self.recipe)
        if not -len(self) <= index < len(self):
            raise IndexError(f"direction {index} of {len(self)}")
        self._check_precision()
        with within(self.mesh):
            return jax.tree.map(lambda d: _entries(d, index), self.operand, is_leaf=is_drawn)

    def __repr__(self) -> str:
        return f"LazyDirections({len(self)} directions, {dict(self.recipe)})"

    def like(self, params: Params) -> "LazyDirections":
        """The same directions in the structure of params, cut as params are.

        Args:
            params: A pytree of floating arrays.

        Returns:
            Directions whose leaves are in the order of params.

        Raises:
            ValueError: The leaves of params are not those of the directions, the message has the path; or they are of
                float64, and JAX is configured to float32.
        """
        self._check_precision()
        shapes = jax.tree.map(lambda d: jax.ShapeDtypeStruct(d.part.shape, d.dtype), self.operand, is_leaf=is_drawn)
        names, wanted = trees.leaf_names(shapes), trees.leaf_names(params)
        if trees.named_shapes(shapes) != trees.named_shapes(params):
            checks.like(
                params, jax.tree.map(lambda s: np.broadcast_to(np.zeros((), s.dtype), s.shape), shapes), "directions"
            )
        by_name = dict(zip(names, jax.tree.leaves(self.operand, is_leaf=is_drawn), strict=True))
        mesh, specs = mesh_of_shards(params), specs_of(params)
        drawn = [by_name[name].placed(mesh, mesh and spec) for name, spec in zip(wanted, specs, strict=True)]
        own = jax.tree.unflatten(jax.tree.structure(params), drawn)
        return LazyDirections(own, mesh, self.rules_of(params), self.recipe)

    def _leaf_names(self) -> list[str]:
        return trees.leaf_names(jax.tree.map(lambda d: 0, self.operand, is_leaf=is_drawn))

    def _leaves_like(self, params: Params) -> Iterator[Any]:
        own = self.like(params)
        with within(own.mesh):
            yield from map(_stored, jax.tree.leaves(own.operand, is_leaf=is_drawn))


_stored = jax.jit(lambda drawn: drawn.stored())
_entries = jax.jit(lambda drawn, index: drawn.entries(index))

jax.tree_util.register_pytree_node(
    LazyDirections,
    lambda d: ((d.operand,), (d.mesh, d.rules, d.recipe)),
    lambda static, children: LazyDirections(children[0], *static),
)
