"""Directions in parameter space: random and normalized, or towards another minimizer."""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Array, Key, PRNGKeyArray

from jaxscape import checks, trees
from jaxscape.checks import as_key
from jaxscape.normalize import check_norm, explanation, filters_of_leaves, reasons_to_ignore, rescale, warn_of_doubts
from jaxscape.types import FilterAxis, Ignore, Norm, Params


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Directions:
    """One or more directions, stacked.

    ``len(directions)`` of them; ``directions[i]`` and iteration give single directions, pytrees like params;
    a slice gives Directions.

    Attributes:
        basis: A pytree like params, each leaf with a leading axis of length ``len(directions)``.
        rules: What was done to each leaf, in the order of the leaves, as `explain` shows it; empty if unknown.
        recipe: (name, value) pairs that say how these directions were made; they go into a result's attrs.
    """

    basis: Params
    rules: tuple[str, ...] = field(default=(), metadata={"static": True})
    recipe: tuple[tuple[str, str], ...] = field(default=(), metadata={"static": True})

    @classmethod
    def stack(cls, directions: Sequence[Any]) -> "Directions":
        """Join single directions (pytrees like params) and Directions into one.

        Args:
            directions: At least one, all with the same leaves.

        Returns:
            All of them, in order.

        Raises:
            ValueError: There is none, or their leaves differ.
        """
        if not len(directions):
            raise ValueError("directions is empty; expected at least one direction to stack.")
        parts = [
            d if isinstance(d, cls) else cls(jax.tree.map(lambda x: x[None], checks.as_params(d, f"directions[{i}]")))
            for i, d in enumerate(directions)
        ]
        like = parts[0][0]
        bases = [checks.like(like, part.basis, f"directions[{i}]", (len(part),)) for i, part in enumerate(parts)]
        rules = parts[0].rules if len({part.rules for part in parts}) == 1 else ()
        recipes = list(dict.fromkeys(part.recipe for part in parts))
        recipe = recipes[0] if len(recipes) == 1 else (("directions", " + ".join(map(_kind, recipes))),)
        return cls(jax.tree.map(lambda *x: jnp.concatenate(x), *bases), rules, recipe)

    def __len__(self) -> int:
        return jax.tree.leaves(self.basis)[0].shape[0]

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return Directions(jax.tree.map(lambda x: x[index], self.basis), self.rules, self.recipe)
        if not -len(self) <= index < len(self):
            raise IndexError(f"direction {index} of {len(self)}")
        return jax.tree.map(lambda x: x[index], self.basis)

    def __iter__(self) -> Iterator[Params]:
        return (self[i] for i in range(len(self)))

    def orthogonalize(self) -> "Directions":
        """Gram-Schmidt: each direction keeps only what is orthogonal to those before it.

        The first one is unchanged, and no length is restored afterwards: a filter-normalized direction loses a
        part of about ``1/sqrt(n)`` of its length against another one, n the number of perturbed weights.

        Returns:
            As many directions, mutually orthogonal.

        Raises:
            ValueError: A direction lies in the span of those before it.
        """
        done: list[Params] = []
        for i, direction in enumerate(self):
            left = direction
            for _ in range(2):  # twice is enough: the second pass removes what rounding left (Kahan)
                for other in done:
                    left = trees.axpy(-trees.dot(other, left) / trees.dot(other, other), other, left)
            eps = max(float(jnp.finfo(leaf.dtype).eps) for leaf in jax.tree.leaves(direction))
            if not float(trees.norm(left)) > 10 * eps * float(trees.norm(direction)):
                raise ValueError(f"direction {i} lies in the span of the directions before it; leave it out.")
            done.append(left)
        basis = jax.tree.map(lambda *x: jnp.stack(x), *done)
        return Directions(basis, self.rules, (*self.recipe, ("orthogonalized", "Gram-Schmidt")))

    def explain(self, params: Params) -> pd.DataFrame:
        """Which leaf got which rule, and how long each direction is there against the weights.

        Args:
            params: What the directions were made for.

        Returns:
            One row per leaf: ``leaf`` (path), ``shape``, ``rule`` (such as ``filter: 24 over axes 1, 2`` or
            ``ignored: bias (by name)``, with what was ``assumed`` in parentheses), and for each direction i
            ``ratio_i``, the norm of its leaf over the norm of the leaf of params (NaN where both are zero).

        Raises:
            ValueError: The leaves of params are not those of the directions.
        """
        basis = checks.like(checks.as_params(params), self.basis, "directions", (len(self),))
        names, leaves = trees.leaf_names(params), jax.tree.leaves(params)
        table = {
            "leaf": names,
            "shape": [leaf.shape for leaf in leaves],
            "rule": self.rules or ("as given",) * len(names),
        }
        for i in range(len(self)):
            with np.errstate(divide="ignore", invalid="ignore"):
                table[f"ratio_{i}"] = [
                    np.float64(trees.norm(d[i])) / np.float64(trees.norm(w))
                    for d, w in zip(jax.tree.leaves(basis), leaves, strict=True)
                ]
        return pd.DataFrame(table)


def _kind(recipe: tuple[tuple[str, str], ...]) -> str:
    return ", ".join(f"{name}={value}" for name, value in recipe) or "given"


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

    ``d ~ N(0, 1)`` entry by entry, then scaled leaf by leaf; with ``norm="filter"`` to ``d_f * ||w_f|| / ||d_f||``
    for every filter f, so that a step of length 1 changes each filter by as much as its own norm, and the scale
    invariance of ReLU networks does not show in the picture. See `jaxscape.normalize.rescale` for the others.

    Every leaf has its own key, direction i does not depend on ``num``, and the same key gives the same directions
    on any number of devices.

    >>> params = {"kernel": jnp.ones((3, 3, 1, 8)), "bias": jnp.ones(8)}
    >>> directions = random_directions(0, params)
    >>> [bool(jnp.any(d["bias"])) for d in directions]
    [False, False]

    Args:
        key: A JAX random key, or an integer seed.
        params: Any pytree of floating arrays.
        num: How many directions.
        norm: ``"filter"``, ``"layer"``, ``"weight"``, ``"dfilter"``, ``"dlayer"`` or None.
        ignore: Which leaves get a zero direction: ``"bias_norm"``, biases and normalization parameters (the paper's
            footnote 2), which are the leaves of rank at most 1 and those that `jaxscape.normalize` knows by name and
            shape, such as Equinox's ``Conv.bias`` (C, 1, 1), Haiku's ``scale`` (1, 1, 1, C), biases of attention
            (heads, dim), and both in layers stacked by a scan or a vmap; None, no leaf; or a predicate on
            (path, leaf).
        filter_axis: Which axis or axes index the filters of a leaf; a filter is one output neuron.

            - None: the last axis (HWIO convolutions, (in, out) Dense kernels), except where names and shapes tell
              more, as `jaxscape.normalize` lists: each head and layer apart where the bias of the module has an
              axis for it, in rank-3 kernels of ``query``, ``key`` and ``value`` beside each other, in rank-3 kernels
              of ``Dense`` or ``linear`` modules, and where all leaves around a stacked normalization have the layers'
              axis; the rows of leaves ``embedding``.
            - ``"flax"``, ``"equinox"``, ``"haiku"``, ``"keras"``, ``"huggingface"``: that library's layouts.
              ``"equinox"`` is (out, in, ...); ``"huggingface"`` is flax's for ``kernel``, PyTorch's for ``weight``.
            - An int: that axis of every leaf.
            - A function of (path, leaf): the axis or axes it gives; None from it makes the whole leaf one filter.
              ``jax.tree_util.keystr(path)`` reads a path.

    Returns:
        Directions of length ``num``; leaves in the dtype of params, but at least float32. `Directions.explain` lists
        the rule of each leaf, and what was assumed where neither names nor shapes settle it.

    Warns:
        UserWarning: A leaf is perturbed though it is named like a bias or a normalization parameter; or more than
            half of the kernels look like (out, in) while the last axis is taken. Both name the leaves and the cure.

    Raises:
        ValueError: ``num`` is not positive, ``norm``, ``ignore`` or ``filter_axis`` is unknown, an axis is outside
            its leaf, or params is empty.
        TypeError: A leaf of params is not floating, or ``key`` is no key.
    """
    params = checks.as_params(params)
    check_norm(norm)
    if num < 1:
        raise ValueError(f"num is {num}, expected at least 1 direction.")
    keys = jax.vmap(functools.partial(jax.random.fold_in, as_key(key)))(jnp.arange(num))
    leaves, treedef = jax.tree.flatten(params)
    reasons, filters = reasons_to_ignore(params, ignore), filters_of_leaves(params, filter_axis)
    warn_of_doubts(params, norm, ignore, filter_axis, reasons, filters)
    basis = [
        _draw(keys, j, leaf, norm, part.axes)
        if reason is None
        else jnp.zeros((num, *leaf.shape), trees.working_dtype(leaf))
        for j, (leaf, reason, part) in enumerate(zip(leaves, reasons, filters, strict=True))
    ]
    rules = [
        explanation(norm, leaf.shape, reason, part) for leaf, reason, part in zip(leaves, reasons, filters, strict=True)
    ]
    recipe = {"directions": "random", "norm": norm, "ignore": _told(ignore), "filter_axis": _told(filter_axis)}
    recipe["direction_key"] = ",".join(map(str, jax.random.key_data(as_key(key)).ravel().tolist()))
    return Directions(jax.tree.unflatten(treedef, basis), tuple(rules), tuple((k, str(v)) for k, v in recipe.items()))


CHUNK = 2**20  # entries drawn at a time: the generator needs 12 bytes more for each, 3 times a whole large leaf


@functools.partial(jax.jit, static_argnames=("norm", "axes"))
def _draw(keys: Key[Array, " num"], index: int, leaf: Array, norm: Norm | None, axes: tuple[int, ...]) -> Array:
    """One leaf of every direction; compiled once per shape, not once per model."""

    def one(key: PRNGKeyArray) -> Array:
        noise = _normal(jax.random.fold_in(key, index), leaf.size, trees.working_dtype(leaf))
        return rescale(noise.reshape(leaf.shape), leaf, norm, axes)

    return jax.lax.map(one, keys)


def _normal(key: PRNGKeyArray, size: int, dtype: Any) -> Array:
    """``size`` normal numbers, a chunk at a time, each chunk from its own key."""
    if size <= CHUNK:
        return jax.random.normal(key, (size,), dtype)

    def chunk(i: Array, noise: Array) -> Array:
        drawn = jax.random.normal(jax.random.fold_in(key, i), (CHUNK,), dtype)
        return jax.lax.dynamic_update_slice(noise, drawn, (i * CHUNK,))  # the last start is moved to fit

    return jax.lax.fori_loop(0, -(-size // CHUNK), chunk, jnp.zeros(size, dtype))


def _told(option: Any) -> str:
    return getattr(option, "__name__", "function") if callable(option) else str(option)


def direction_between(a: Params, b: Params) -> Params:
    """The direction from one minimizer to another, ``b - a``; coordinate 0 is a and 1 is b.

    It is neither masked nor normalized: every leaf takes part.

    >>> direction_between({"w": jnp.zeros(2)}, {"w": jnp.ones(2)})["w"].tolist()
    [1.0, 1.0]

    Args:
        a: Params at coordinate 0.
        b: Params at coordinate 1, with the same leaves.

    Returns:
        A pytree like ``a``.

    Raises:
        ValueError: The leaves of a and b differ; the message has the path.
        TypeError: A leaf is not floating.
    """
    a = checks.as_params(a, "a")
    return jax.tree.map(jnp.subtract, checks.like(a, b, "b"), a)


def as_directions(directions: Any, params: Params) -> Directions:
    """Take Directions, one pytree like params, or a sequence of these; check them against params.

    Args:
        directions: What the caller passed.
        params: What they must be like.

    Returns:
        Directions in the structure of params.

    Raises:
        ValueError: A leaf is missing, is one too many, or has another shape; the message has its path.
    """
    if not isinstance(directions, Directions):
        is_list = isinstance(directions, list | tuple) and trees.leaf_names(directions) != trees.leaf_names(params)
        directions = Directions.stack(directions if is_list else [directions])
    basis = checks.like(params, directions.basis, "directions", (len(directions),))
    return Directions(basis, directions.rules, directions.recipe)
