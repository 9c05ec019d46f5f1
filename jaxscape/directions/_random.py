"""Random directions, drawn and scaled leaf by leaf."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Key, PRNGKeyArray

from jaxscape import checks, trees
from jaxscape.arguments import checked
from jaxscape.checks import as_key
from jaxscape.directions._directions import Directions
from jaxscape.directions._lazy import LazyDirections
from jaxscape.memory import free_bytes
from jaxscape.normalize import (
    Filters,
    check_norm,
    described,
    explanation,
    filters_of_leaves,
    reasons_to_ignore,
    rescale,
    scales_of,
    warn_of_doubts,
)
from jaxscape.shards import (
    Drawn,
    Part,
    is_cut,
    is_threefry,
    key_words,
    mesh_and_spec,
    mesh_of_shards,
    normal,
    on_mesh,
    put,
    within,
)
from jaxscape.types import FilterAxis, Ignore, Norm, Params

_SMALL = 2**16  # entries of leaves that share one program
_ROOM = 0.5  # of the free memory, that stored directions may take


@checked
def random_directions(
    key: PRNGKeyArray | int,
    params: Params,
    *,
    num: int = 2,
    norm: Norm | None = "filter",
    ignore: Ignore = "bias_norm",
    filter_axis: FilterAxis = None,
    lazy: bool | None = None,
) -> Directions:
    """Gaussian directions, normalized to the weights (paper section 4).

    Each entry is drawn from N(0, 1), then each leaf is scaled. ``norm="filter"`` scales every filter f to
    ``d_f * ||w_f|| / ||d_f||``. A step of length 1 then changes each filter by as much as the norm of the filter, and
    the scale invariance of ReLU networks has no effect on the picture. `jaxscape.normalize.rescale` describes the other
    norms.

    Every leaf has a separate key, direction i does not depend on ``num``, and the same key gives the same directions,
    to the bit, on any number of devices, however the leaves of params are cut over them: each entry is drawn by its
    place in the leaf, and the sums in the norms are exact. Directions are cut as params are.

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
        lazy: True: the directions are a key and one scale for each filter, and take no memory; their entries are drawn
            where they are used, at each point of a surface anew. False: they are stored. None: stored, unless they
            would take more than half of the memory that is free.

    Returns:
        Directions of length ``num``; leaves have the dtype of params, but at least float32. `Directions.explain` lists
        the rule of each leaf, and the rule that was assumed where neither names nor shapes decide.

    Warns:
        UserWarning: A leaf is perturbed although its name is that of a bias or a normalization parameter; or more than
            half of the kernels look like (out, in) and the last axis is used. The warning names the leaves and the
            cure.

    Raises:
        ValueError: ``num`` is not positive, ``norm``, ``ignore`` or ``filter_axis`` is unknown, an axis is out of the
            range of its leaf, or params is empty; or ``norm="weight"``, which has a scale for each entry, or a key of
            another generator than threefry, with ``lazy=True`` or leaves that are cut over devices.
        TypeError: A leaf of params is not floating, or ``key`` is neither a key nor an integer.
    """
    params = checks.as_params(params)
    check_norm(norm)
    checks.check_count(num, "num")
    if lazy and norm == "weight":
        raise ValueError("norm is 'weight', which has a scale for each entry; expected another norm with lazy=True.")
    mesh = mesh_of_shards(params)
    params = params if mesh is None else on_mesh(params, mesh)
    keys = jax.vmap(functools.partial(jax.random.fold_in, as_key(key)))(jnp.arange(num))
    leaves, treedef = jax.tree.flatten(params)
    reasons, filters = reasons_to_ignore(params, ignore), filters_of_leaves(params, filter_axis)
    warn_of_doubts(params, norm, ignore, filter_axis, reasons, filters)
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
    static = tuple(rules), tuple((name, str(value)) for name, value in recipe.items())
    rows = list(zip(_leaf_keys(keys, trees.ranks(params)), leaves, reasons, filters, strict=True))
    if lazy is None:
        lazy = norm != "weight" and is_threefry(keys) and not fit(leaves, num, mesh)
    with within(mesh):
        if lazy:
            drawn = [_drawn(own, leaf, norm, reason, part) for own, leaf, reason, part in rows]
            return LazyDirections(jax.tree.unflatten(treedef, drawn), mesh, *static)
        basis = [_stored(own, leaf, norm, reason, part) for own, leaf, reason, part in rows]
    return Directions(jax.tree.unflatten(treedef, basis), *static)


def fit(leaves: Sequence[Any], num: int, mesh: Mesh | None) -> bool:
    """Whether stored directions leave enough memory free, on each device of this process.

    Args:
        leaves: Those of params, or their shapes and shardings.
        num: How many directions.
        mesh: The one that the leaves are cut over; None: they are whole.

    Returns:
        Whether they take at most half of what is free.
    """
    devices = jax.local_devices()[:1] if mesh is None else mesh.local_devices
    shapes = [x.sharding.shard_shape(x.shape) if is_cut(x) else x.shape for x in leaves]
    entries = sum(math.prod(shape) for shape in shapes)
    return entries < _SMALL or 4 * num * entries * len(devices) <= _ROOM * free_bytes(devices)


def _leaf_keys(keys: Key[Array, " num"], ranks: list[int]) -> Key[Array, "leaves num"]:
    """A key of each leaf for each direction."""
    return _folded(keys, jnp.array(ranks))


@jax.jit
def _folded(keys: Key[Array, " num"], ranks: Array) -> Key[Array, "leaves num"]:
    def fold(rank: Array, key: PRNGKeyArray) -> PRNGKeyArray:
        return jax.random.fold_in(jax.random.fold_in(key, rank), 0)

    return jax.vmap(lambda rank: jax.vmap(functools.partial(fold, rank))(keys))(ranks)


def _drawn(keys: Key[Array, " num"], leaf: Array, norm: Norm | None, reason: str | None, filters: Filters) -> Drawn:
    """One leaf of every direction, by keys and scales."""
    words, dtype = key_words(keys), trees.working_dtype(leaf)
    part = Part(leaf.shape, mesh_and_spec(leaf)[1] if is_cut(leaf) else None)
    if reason is not None:
        return Drawn(words, jnp.zeros((len(keys), *(1,) * leaf.ndim), dtype), part, dtype, ignored=True)
    if is_cut(leaf):
        words = put(words, NamedSharding(mesh_and_spec(leaf)[0], PartitionSpec()))
    return Drawn(words, _scales(words, leaf, part, norm, filters.axes), part, dtype)


def _stored(keys: Key[Array, " num"], leaf: Array, norm: Norm | None, reason: str | None, filters: Filters) -> Array:
    """One leaf of every direction, with a leading axis of directions.

    Compiling the generator takes three times as long as the rest, so small leaves share one program.

    Returns:
        The leaf.
    """
    dtype = trees.working_dtype(leaf)
    if reason is not None:
        return _zeros(leaf, len(keys), dtype)
    if not is_threefry(keys) and not is_cut(leaf):
        return _rescaled(_noise(keys, leaf.size, dtype), leaf, norm, filters.axes)
    if not is_cut(leaf) and leaf.size <= _SMALL:
        return _rescaled(_first_numbers(key_words(keys), _SMALL, dtype), leaf, norm, filters.axes)
    if norm == "weight":
        return _product(_unscaled(keys, leaf), leaf)
    return _all_entries(_drawn(keys, leaf, norm, None, filters))


def _zeros(leaf: Array, num: int, dtype: Any) -> Array:
    if not is_cut(leaf):
        return jnp.zeros((num, *leaf.shape), dtype)
    mesh, spec = mesh_and_spec(leaf)
    return jnp.zeros((num, *leaf.shape), dtype, device=NamedSharding(mesh, PartitionSpec(None, *spec)))


def _unscaled(keys: Key[Array, " num"], leaf: Array) -> Array:
    return _all_entries(_drawn(keys, leaf, None, None, Filters(())))


_all_entries = jax.jit(lambda drawn: drawn.stored())


@functools.partial(jax.jit, static_argnames=("count", "dtype"))
def _first_numbers(words: Array, count: int, dtype: Any) -> Float[Array, "num count"]:
    """By their place, as those of a leaf that is cut: `jax.random` goes by ``jax_threefry_partitionable``."""
    return jax.lax.map(lambda own: normal(own, jnp.arange(count, dtype=jnp.uint32), dtype), words)


@functools.partial(jax.jit, static_argnames=("count", "dtype"))
def _noise(keys: Key[Array, " num"], count: int, dtype: Any) -> Float[Array, "num count"]:
    return jax.lax.map(lambda key: jax.random.normal(key, (count,), dtype), keys)


@functools.partial(trees.in_float64, static_argnames=("norm", "axes"))
def _rescaled(noise: Float[Array, "num count"], leaf: Array, norm: Norm | None, axes: tuple[int, ...]) -> Array:
    return jax.vmap(lambda entries: rescale(entries[: leaf.size].reshape(leaf.shape), leaf, norm, axes))(noise)


@functools.partial(trees.in_float64, static_argnames=("part", "norm", "axes"))
def _scales(words: Array, leaf: Array, part: Part, norm: Norm | None, axes: tuple[int, ...]) -> Array:
    return jax.lax.map(lambda own: scales_of(own, leaf, part, norm, axes), words)


@jax.jit
def _product(basis: Array, leaf: Array) -> Array:
    return basis * leaf.astype(basis.dtype)
