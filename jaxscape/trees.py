"""Arithmetic on pytrees."""

import functools
import hashlib
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from jaxscape.shards import Drawn, digest_of_shards, is_cut
from jaxscape.types import Params


def working_dtype(x: Array) -> jnp.dtype:
    """The dtype for computations with a leaf: the dtype of the leaf, but at least float32."""
    return jnp.promote_types(x.dtype, jnp.float32)


@jax.jit
def dot(a: Params, b: Params) -> Float[Array, ""]:
    """Inner product of two pytrees, the sum over all leaves and entries of ``a * b``.

    Leaves are not flattened, since a reshape of a sharded leaf moves data between devices. Products have full
    precision: TF32 on a GPU would limit the accuracy of orthogonality to 1e-3.

    Args:
        a: Any pytree of floating arrays.
        b: A pytree with the same leaves.

    Returns:
        A scalar of at least float32.
    """

    def leaf(x: Array, y: Array) -> Array:
        dtype = working_dtype(x)
        return jnp.tensordot(x.astype(dtype), y.astype(dtype), axes=x.ndim, precision=jax.lax.Precision.HIGHEST)

    return sum(jax.tree.leaves(jax.tree.map(leaf, a, b)), start=jnp.float32(0))


@jax.jit
def norm(tree: Params) -> Float[Array, ""]:
    """Euclidean norm over all leaves, also where the squares would overflow or underflow."""
    leaves = [length(x.astype(working_dtype(x))).reshape(()) for x in jax.tree.leaves(tree)]
    return length(jnp.stack(leaves)).reshape(())


def length(x: Array, axes: Sequence[int] | None = None) -> Array:
    """Euclidean norm along axes (None: all), which the result keeps with length 1.

    Entries are divided by a power of two before they are squared, which is exact: in float32 the squares of entries
    below 1e-23 are 0, and those of entries above 1e19 are infinite.

    Args:
        x: An array of at least float32.
        axes: Which axes.

    Returns:
        The norms.
    """
    scale = power_of_two(x, axes)
    return scale * jnp.sqrt(jnp.sum((x / scale) ** 2, axis=None if axes is None else tuple(axes), keepdims=True))


def power_of_two(x: Array, axes: Sequence[int] | None = None) -> Array:
    """A power of two near the largest magnitude along axes, at most that; 1 where this is 0 or not finite.

    Args:
        x: A floating array.
        axes: Which axes (None: all); the result keeps them with length 1.

    Returns:
        Powers of two in the dtype of ``x``.
    """
    largest = jnp.max(jnp.abs(x), axis=None if axes is None else tuple(axes), keepdims=True, initial=0)
    info = jnp.finfo(x.dtype)
    as_int = jnp.dtype(f"int{info.bits}")
    exponent = (2 ** (info.bits - 1 - info.nmant) - 1) << info.nmant  # these bits alone are the power of two
    power = jax.lax.bitcast_convert_type(jax.lax.bitcast_convert_type(largest, as_int) & exponent, x.dtype)
    power = jnp.where((power > 0) & (power < jnp.inf), power, 1)  # subnormal numbers count as 0, as on most devices
    return jnp.minimum(power, 2.0 ** (info.maxexp - 3))  # XLA may divide by multiplying with the inverse


def in_float64(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Compile a function whose float64 stays float64, whatever JAX is configured to.

    Inner products of nearly parallel vectors need it: at an angle of 0.005, float32 leaves errors of 3 %.

    Args:
        function: Of pytrees of arrays; it says with `astype` what is to be float64.
        **options: Those of `jax.jit`.

    Returns:
        The function; not for use inside a JAX transform.
    """
    compiled = jax.jit(function, **options)

    @functools.wraps(function)
    def run(*args: Any) -> Any:
        with jax.enable_x64(True):
            return compiled(*args)

    return run


def dot64(a: Params, b: Params) -> Array:
    """Inner product in float64, inside a function of `in_float64`; products and sums are fused, without copies."""
    parts = jax.tree.map(lambda x, y: jnp.sum(x.astype(jnp.float64) * y.astype(jnp.float64)), a, b)
    return sum(jax.tree.leaves(parts), start=jnp.zeros((), jnp.float64))


def axpy(scale: Any, x: Params, y: Params) -> Params:
    """``scale * x + y``, leaf by leaf."""
    return jax.tree.map(lambda a, b: scale * a + b, x, y)


def displace(params: Params, basis: Params, coords: Float[Array, " axes"]) -> Params:
    """The point ``params + sum_k coords[k] * basis[k]``.

    Args:
        params: The origin.
        basis: A pytree like ``params`` whose leaves have a leading axis of length ``axes``, or are `Drawn`.
        coords: One coordinate for each direction.

    Returns:
        A pytree like ``params``; the sum is computed in at least float32, then cast to the dtype of each leaf.
    """
    steps = [(c, c == 0) for c in (coords[k] for k in range(coords.shape[0]))]

    def leaf(
        p: Array, d: Array | Drawn
    ) -> Array:  # by `lax`: `jnp` takes three times as long to trace, for each leaf anew
        if isinstance(d, Drawn):
            return d.displaced(p, coords)
        dtype = working_dtype(p)
        moved = lax.convert_element_type(p, dtype)
        for k, (c, is_zero) in enumerate(steps):  # unrolled: XLA fuses it into one pass, and no product rounds to TF32
            entries = lax.convert_element_type(lax.index_in_dim(d, k, keepdims=False), dtype)
            step = lax.mul(lax.broadcast(lax.convert_element_type(c, dtype), p.shape), entries)
            zeros = lax.full_like(step, 0)
            moved = lax.add(moved, lax.select_n(is_zero, step, zeros))  # 0 times an infinite entry would be NaN
        return lax.convert_element_type(moved, p.dtype)

    return jax.tree.map(leaf, params, basis)


def overlay(base: Any, top: Any) -> Any:
    """Merge nested dicts: all leaves of ``top``, and the leaves of ``base`` that are missing in ``top``.

    >>> overlay({"a": {"x": 1, "y": 2}}, {"a": {"y": 3}})
    {'a': {'x': 1, 'y': 3}}

    Returns:
        A new dict; neither argument is changed.
    """
    if not isinstance(base, Mapping) or not isinstance(top, Mapping):
        return top
    joined = {name: overlay(base[name], value) if name in base else value for name, value in top.items()}
    return {**base, **joined}


def restrict(tree: Any, like: Any) -> Any:
    """The part of nested dicts with the keys of ``like``.

    >>> restrict({"a": {"x": 1, "y": 2}, "b": 3}, {"a": {"y": 0}})
    {'a': {'y': 2}}

    Returns:
        A new dict.
    """
    if not isinstance(like, Mapping):
        return tree
    return {name: restrict(tree[name], value) for name, value in like.items()}


def size(tree: Params) -> int:
    """The number of entries in all leaves together."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def fingerprint(*trees: Any) -> str:
    """A hash of the paths, shapes, dtypes and contents of all leaves; equal trees have equal fingerprints."""
    paths_and_leaves = jax.tree_util.tree_leaves_with_path(trees)
    leaves = [leaf for _, leaf in paths_and_leaves]
    if sum(np.size(leaf) for leaf in leaves) > 1 << 22 and not any(map(is_cut, leaves)):
        with ThreadPoolExecutor() as pool:  # a thread hashes 0.7 GB/s: 2.1 s for a GPT-2 and a direction
            digests = list(pool.map(array_digest, leaves))
    else:  # what is cut has programs that all processes must send in one order
        digests = [array_digest(leaf) for leaf in leaves]
    digest = hashlib.blake2b(digest_size=8)
    for (path, _), leaf_digest in zip(paths_and_leaves, digests, strict=True):
        digest.update(f"{jax.tree_util.keystr(path)}{leaf_digest}".encode())
    return digest.hexdigest()


_DIGESTS: dict[int, tuple[weakref.ref[Any], str]] = {}  # by the id of an array


def array_digest(array: Any) -> str:
    """A hash of the dtype, shape and contents of an array; PRNG keys count as arrays.

    One that is cut over devices has another hash than the same on one device: each device hashes its own part.

    An array on an accelerator cannot change: it is copied to the host and hashed once. On a CPU a JAX array may share
    its memory with a NumPy array, which can change.

    Args:
        array: An array, or a number.

    Returns:
        32 hexadecimal digits.
    """
    if not _is_immutable(array):
        return _digest(array)
    reference, digest = _DIGESTS.get(id(array), (None, ""))
    if reference is None or reference() is not array:
        digest, key = _digest(array), id(array)
        _DIGESTS[key] = weakref.ref(array, lambda _: _DIGESTS.pop(key, None)), digest
    return digest


def _is_immutable(array: Any) -> bool:
    return isinstance(array, jax.Array) and all(device.platform != "cpu" for device in array.devices())


def _digest(array: Any) -> str:
    if is_cut(array):
        return digest_of_shards(array)
    array = array if hasattr(array, "dtype") else np.asarray(array)
    kind = str(array.dtype)
    if isinstance(array, jax.Array) and jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    contents = np.ascontiguousarray(array)
    digest = hashlib.blake2b(f"{kind}{contents.shape}".encode(), digest_size=16)
    digest.update(contents.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def ranks(tree: Any) -> list[int]:
    """The place that each leaf has once the keys of every mapping are sorted: the same for a dict and an OrderedDict.

    >>> from collections import OrderedDict
    >>> ranks(OrderedDict(b=1.0, a=[2.0, 3.0]))
    [2, 0, 1]

    Returns:
        One number for each leaf, in the order of the leaves.
    """
    seen: dict[Any, int] = {}
    places = []
    for i, (path, _) in enumerate(jax.tree_util.tree_leaves_with_path(tree)):
        place = []
        for depth, entry in enumerate(path):
            first = seen.setdefault(path[: depth + 1], i)  # the first leaf below this entry
            is_key = isinstance(entry, jax.tree_util.DictKey)
            place.append((type(entry.key).__name__, entry.key) if is_key else ("", first))
        places.append(place)
    try:
        order = sorted(range(len(places)), key=places.__getitem__)
    except TypeError:  # keys that cannot be sorted
        return list(range(len(places)))
    return np.argsort(order).tolist()


def leaf_names(tree: Any) -> list[str]:
    """The readable path of each leaf, in order."""
    return [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def named_shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """The shape of each leaf by its readable path; equal for pytrees that hold the same leaves in another order."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.shape(leaf) for path, leaf in leaves}
