"""Directions in parameter space: random and normalized, or towards another minimizer."""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Array, Float, Key, PRNGKeyArray

from jaxscape import checks, trees
from jaxscape.arguments import checked
from jaxscape.checks import as_key
from jaxscape.meshes import outside_meshes
from jaxscape.normalize import (
    check_norm,
    described,
    explanation,
    filters_of_leaves,
    reasons_to_ignore,
    rescale,
    warn_of_doubts,
)
from jaxscape.types import FilterAxis, Ignore, Norm, Params


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

    def __len__(self) -> int:
        return jax.tree.leaves(self.basis)[0].shape[0]

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
        here, there = trees.leaf_names(self.basis), trees.leaf_names(params)
        if not self.rules or here == there:
            return self.rules
        by_path = dict(zip(here, self.rules, strict=True))
        return tuple(by_path[path] for path in there)

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
        basis = checks.like(checks.as_params(params), self.basis, "directions", (len(self),))
        names, leaves = trees.leaf_names(params), jax.tree.leaves(params)
        table = {
            "leaf": names,
            "shape": [leaf.shape for leaf in leaves],
            "rule": self.rules_of(params) or ("as given",) * len(names),
        }
        for i in range(len(self)):
            with np.errstate(divide="ignore", invalid="ignore"):
                table[f"ratio_{i}"] = [
                    np.float64(trees.norm(d[i])) / np.float64(trees.norm(w))
                    for d, w in zip(jax.tree.leaves(basis), leaves, strict=True)
                ]
        return pd.DataFrame(table)


def _kind(recipe: tuple[tuple[str, str], ...]) -> str:
    """A recipe as text."""
    return ", ".join(f"{name}={value}" for name, value in recipe) or "given"


@checked
def random_directions(
    key: PRNGKeyArray | int,
    params: Params,
    *,
    num: int = 2,
    norm: Norm | None = "filter",
    ignore: Ignore = "bias_norm",
    filter_axis: FilterAxis = None,
) -> Directions:
    """Gaussian directions, normalized to the weights (paper section 4).

    Each entry is drawn from N(0, 1), then each leaf is scaled. ``norm="filter"`` scales every filter f to
    ``d_f * ||w_f|| / ||d_f||``. A step of length 1 then changes each filter by as much as the norm of the filter, and
    the scale invariance of ReLU networks has no effect on the picture. `jaxscape.normalize.rescale` describes the other
    norms.

    Every leaf has a separate key, direction i does not depend on ``num``, and the same key gives the same directions
    on any number of devices.

    >>> params = {"kernel": jnp.ones((3, 3, 1, 8)), "bias": jnp.ones(8)}
    >>> directions = random_directions(0, params)
    >>> [bool(jnp.any(d["bias"])) for d in directions]
    [False, False]

    Args:
        key: A JAX random key, or an integer seed.
        params: Any pytree of floating arrays.
        num: The number of directions.
        norm: The norm that is matched to that of the weights: ``"filter"``, ``"layer"``, ``"weight"``, ``"dfilter"``
            or ``"dlayer"``; None: the entries are not scaled.
        ignore: Which leaves get a zero direction:

            - ``"bias_norm"``: biases and normalization parameters (the paper's footnote 2). These are the leaves of
              rank at most 1, and the leaves that `jaxscape.normalize` recognizes by name and shape, such as Equinox's
              ``Conv.bias`` (C, 1, 1), Haiku's ``scale`` (1, 1, 1, C), biases of attention (heads, dim), and both in
              layers that are stacked by a scan or a vmap.
            - None: no leaf.
            - A predicate on (path, leaf): the leaves for which it is true.
        filter_axis: Which axis or axes index the filters of a leaf; a filter belongs to one output neuron.

            - None: the last axis (HWIO convolutions, (in, out) Dense kernels), except where names and shapes say
              more, as `jaxscape.normalize` lists. Each head and each layer has separate filters where the bias of the
              module has an axis for it, in rank-3 kernels of ``query``, ``key`` and ``value`` in the same module, in
              rank-3 kernels of ``Dense`` or ``linear`` modules, and where all leaves around a stacked normalization
              have the axis of the layers. The filters of a leaf ``embedding`` are its rows.
            - ``"flax"``, ``"equinox"``, ``"haiku"``, ``"keras"``, ``"huggingface"``: the layouts of this library.
              ``"equinox"`` is (out, in, ...); ``"huggingface"`` is flax's layout for ``kernel`` and PyTorch's layout
              for ``weight``.
            - An int: this axis of every leaf.
            - A function of (path, leaf) that returns the axis or axes; None: the whole leaf is one filter.
              ``jax.tree_util.keystr(path)`` gives the path as text.

    Returns:
        Directions of length ``num``; leaves have the dtype of params, but at least float32. `Directions.explain` lists
        the rule of each leaf, and the rule that was assumed where neither names nor shapes decide.

    Warns:
        UserWarning: A leaf is perturbed although its name is that of a bias or a normalization parameter; or more than
            half of the kernels look like (out, in) and the last axis is used. The warning names the leaves and the
            cure.

    Raises:
        ValueError: ``num`` is not positive, ``norm``, ``ignore`` or ``filter_axis`` is unknown, an axis is out of the
            range of its leaf, or params is empty.
        TypeError: A leaf of params is not floating, or ``key`` is neither a key nor an integer.
    """
    params = checks.as_params(params)
    check_norm(norm)
    checks.check_count(num, "num")
    keys = jax.vmap(functools.partial(jax.random.fold_in, as_key(key)))(jnp.arange(num))
    leaves, treedef = jax.tree.flatten(params)
    ranks = trees.ranks(params)
    reasons, filters = reasons_to_ignore(params, ignore), filters_of_leaves(params, filter_axis)
    warn_of_doubts(params, norm, ignore, filter_axis, reasons, filters)
    basis = [
        _draw(keys, rank, leaf, norm, part.axes)
        if reason is None
        else jnp.zeros((num, *leaf.shape), trees.working_dtype(leaf))
        for rank, leaf, reason, part in zip(ranks, leaves, reasons, filters, strict=True)
    ]
    rules = [
        explanation(norm, leaf.shape, reason, part) for leaf, reason, part in zip(leaves, reasons, filters, strict=True)
    ]
    recipe = {
        "directions": "random",
        "norm": norm,
        "ignore": described(ignore),
        "filter_axis": described(filter_axis),
    }
    recipe["direction_key"] = ",".join(map(str, jax.random.key_data(as_key(key)).ravel().tolist()))
    return Directions(jax.tree.unflatten(treedef, basis), tuple(rules), tuple((k, str(v)) for k, v in recipe.items()))


@jax.jit
def _at(basis: Params, index: int) -> Params:
    return jax.tree.map(lambda x: x[index], basis)


BLOCK = 2**16  # entries with one key; a large leaf needs little more memory than itself


def _draw(
    keys: Key[Array, " num"], rank: int, leaf: Array, norm: Norm | None, axes: tuple[int, ...]
) -> Float[Array, "num ..."]:
    """Draw one leaf of every direction.

    Compiling the generator takes three times as long as the rest, so the leaves of up to a block share one program.

    Returns:
        The leaf with a leading axis of directions.
    """
    if leaf.size > BLOCK:
        return _large(keys, rank, leaf, norm, axes)
    return _rescaled(_first_block(keys, rank, trees.working_dtype(leaf)), leaf, norm, axes)


@functools.partial(jax.jit, static_argnames="dtype")
def _first_block(keys: Key[Array, " num"], rank: int, dtype: Any) -> Float[Array, "num block"]:
    return jax.lax.map(lambda key: _block(jax.random.fold_in(key, rank), 0, dtype), keys)


@functools.partial(jax.jit, static_argnames=("norm", "axes"))
def _rescaled(noise: Float[Array, "num block"], leaf: Array, norm: Norm | None, axes: tuple[int, ...]) -> Array:
    return jax.vmap(lambda entries: rescale(entries[: leaf.size].reshape(leaf.shape), leaf, norm, axes))(noise)


@functools.partial(jax.jit, static_argnames=("norm", "axes"))
def _large(keys: Key[Array, " num"], rank: int, leaf: Array, norm: Norm | None, axes: tuple[int, ...]) -> Array:
    """One direction after another, block by block."""
    dtype = trees.working_dtype(leaf)

    def draw(key: PRNGKeyArray) -> Array:
        own = jax.random.fold_in(key, rank)

        def fill(i: Array, noise: Array) -> Array:
            return jax.lax.dynamic_update_slice(noise, _block(own, i, dtype), (i * BLOCK,))

        blocks = -(-leaf.size // BLOCK)
        noise = jax.lax.fori_loop(0, blocks, fill, jnp.zeros(blocks * BLOCK, dtype))
        return rescale(noise[: leaf.size].reshape(leaf.shape), leaf, norm, axes)

    return jax.lax.map(draw, keys)


def _block(key: PRNGKeyArray, index: int | Array, dtype: Any) -> Float[Array, " block"]:
    """Standard normal entries of a leaf, from ``index * BLOCK`` on."""
    return jax.random.normal(jax.random.fold_in(key, index), (BLOCK,), dtype)


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

    def difference(x: Array, y: Array) -> Array:  # in 16 bits it would be rounded, and beyond 65504 infinite
        dtype = jnp.promote_types(trees.working_dtype(x), trees.working_dtype(y))
        return y.astype(dtype) - x.astype(dtype)

    return jax.tree.map(difference, a, checks.like(a, b, "b"))


def as_directions(directions: Any, params: Params) -> Directions:
    """Convert Directions, one pytree like params, or a sequence of such pytrees to Directions; check their leaves.

    Args:
        directions: The value that the caller passed.
        params: The params whose leaves the directions must have.

    Returns:
        Directions with the structure of params.

    Raises:
        ValueError: A leaf is missing, is not in params, or has another shape; the message has its path.
    """
    if not isinstance(directions, Directions):
        is_tree = sorted(trees.leaf_names(directions)) == sorted(trees.leaf_names(params))
        is_list = isinstance(directions, list | tuple) and not is_tree
        directions = Directions.stack(directions if is_list else [directions])
    basis = checks.like(params, directions.basis, "directions", (len(directions),))
    return Directions(basis, directions.rules_of(params), directions.recipe)
