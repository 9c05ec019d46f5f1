"""One or more directions in parameter space, stacked."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jax.sharding import Mesh

from jaxscape import checks, trees
from jaxscape.meshes import outside_meshes
from jaxscape.types import Params


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Directions:
    """One or more directions, stacked.

    ``len(directions)`` is the number of directions. ``directions[i]`` and iteration give single directions, which are
    pytrees like params. A slice gives Directions.

    Attributes:
        basis: A pytree like params, each leaf with a leading axis of length ``len(directions)``.
        rules: The rule of each leaf, in the order of the leaves, as `explain` shows it; empty if unknown.
        recipe: (name, value) pairs that describe how the directions were created; results have them in their attrs.
    """

    basis: Params
    rules: tuple[str, ...] = field(default=(), metadata={"static": True})
    recipe: tuple[tuple[str, str], ...] = field(default=(), metadata={"static": True})

    @classmethod
    @outside_meshes
    def stack(cls, directions: Sequence[Any]) -> "Directions":
        """Join single directions (pytrees like params) and Directions into one.

        Args:
            directions: A sequence of at least one direction; all have the same leaves.

        Returns:
            All directions, in the order of the argument.

        Raises:
            ValueError: There is no direction, or the leaves of the directions differ.
        """
        if not len(directions):
            raise ValueError("directions is empty; expected at least one direction to stack.")
        parts = [
            d if isinstance(d, cls) else cls(jax.tree.map(lambda x: x[None], checks.as_params(d, f"directions[{i}]")))
            for i, d in enumerate(directions)
        ]
        like = parts[0][0]
        bases = [checks.like(like, part.basis, f"directions[{i}]", (len(part),)) for i, part in enumerate(parts)]
        rules = parts[0].rules if len({part.rules_of(like) for part in parts}) == 1 else ()
        recipes = list(dict.fromkeys(part.recipe for part in parts))
        recipe = recipes[0] if len(recipes) == 1 else (("directions", " + ".join(map(_kind, recipes))),)
        return cls(jax.tree.map(lambda *x: jnp.concatenate(x), *bases), rules, recipe)

    @property
    def operand(self) -> Params:
        """What a compiled program takes for the directions: the basis, or what it is drawn from."""
        return self.basis

    def with_operand(self, operand: Params, mesh: Mesh | None) -> "Directions":
        """The same directions with their operand elsewhere, cut over another mesh."""
        del mesh  # the arrays say it
        return Directions(operand, self.rules, self.recipe)

    def __len__(self) -> int:
        return jax.tree.leaves(self.operand)[0].shape[0]

    @outside_meshes
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return Directions(jax.tree.map(lambda x: x[index], self.basis), self.rules, self.recipe)
        if not -len(self) <= index < len(self):
            raise IndexError(f"direction {index} of {len(self)}")
        return _at(self.basis, index)

    def __iter__(self) -> Iterator[Params]:
        return (self[i] for i in range(len(self)))

    def rules_of(self, params: Params) -> tuple[str, ...]:
        """The rule of each leaf, in the order that ``params`` has its leaves in."""
        here, there = self._leaf_names(), trees.leaf_names(params)
        if not self.rules or here == there:
            return self.rules
        by_path = dict(zip(here, self.rules, strict=True))
        return tuple(by_path[path] for path in there)

    def _leaf_names(self) -> list[str]:
        return trees.leaf_names(self.basis)

    @outside_meshes
    def orthogonalize(self) -> "Directions":
        """Gram-Schmidt: subtract from each direction its components along the directions before it.

        The first direction does not change. The lengths are not restored: the component of a filter-normalized
        direction along another one is about ``1/sqrt(n)`` of its length, where n is the number of perturbed weights.

        Returns:
            The same number of directions, orthogonal to each other.

        Raises:
            ValueError: A direction lies in the span of the directions before it.
        """
        orthogonal: list[Params] = []
        units: list[Params] = []
        for i, direction in enumerate(self):
            rest = direction
            for _ in range(2):  # twice is enough: the second pass removes the rounding error of the first (Kahan)
                for unit in units:
                    rest = trees.axpy(-trees.dot(unit, rest), unit, rest)
            eps = max(float(jnp.finfo(leaf.dtype).eps) for leaf in jax.tree.leaves(direction))
            length = trees.norm(rest)
            if not float(length) > 10 * eps * float(trees.norm(direction)):
                raise ValueError(f"direction {i} lies in the span of the directions before it; leave it out.")
            orthogonal.append(rest)
            units.append(jax.tree.map(lambda x, length=length: x / length, rest))
        basis = jax.tree.map(lambda *x: jnp.stack(x), *orthogonal)
        return Directions(basis, self.rules, (*self.recipe, ("orthogonalized", "Gram-Schmidt")))

    @outside_meshes
    def explain(self, params: Params) -> pd.DataFrame:
        """A table of the rule of each leaf, and of the norm of each direction relative to the weights.

        Args:
            params: The params that the directions belong to.

        Returns:
            One row per leaf: ``leaf`` (path), ``shape``, ``rule`` (such as ``filter: 24 over axes 1, 2`` or
            ``ignored: bias (by name)``, with an ``assumed`` rule in parentheses), and for each direction i
            ``ratio_i``, the norm of its leaf over the norm of the leaf of params (NaN where both are zero).

        Raises:
            ValueError: The leaves of params are not those of the directions.
        """
        params = checks.as_params(params)
        names, leaves = trees.leaf_names(params), jax.tree.leaves(params)
        table = {
            "leaf": names,
            "shape": [leaf.shape for leaf in leaves],
            "rule": self.rules_of(params) or ("as given",) * len(names),
        }
        pairs = zip(self._leaves_like(params), leaves, strict=True)
        norms = [
            ([np.float64(trees.norm(d[i])) for i in range(len(self))], np.float64(trees.norm(w))) for d, w in pairs
        ]
        for i in range(len(self)):
            with np.errstate(divide="ignore", invalid="ignore"):
                table[f"ratio_{i}"] = [own[i] / whole for own, whole in norms]
        return pd.DataFrame(table)

    def _leaves_like(self, params: Params) -> Iterator[Any]:
        """The leaves of the basis in the order of params, one by one."""
        yield from jax.tree.leaves(checks.like(params, self.basis, "directions", (len(self),)))


def _kind(recipe: tuple[tuple[str, str], ...]) -> str:
    """A recipe as text."""
    return ", ".join(f"{name}={value}" for name, value in recipe) or "given"


@jax.jit
def _at(basis: Params, index: int) -> Params:
    return jax.tree.map(lambda x: x[index], basis)
