"""A hash of an array that is cut over devices: each hashes its own part."""

import functools
import hashlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array

from jaxscape.shards._mesh import mesh_and_spec
from jaxscape.shards._parts import Part, on_shards, reduced_rows, rows_of

_SEEDS = (0x9E3779B9, 0x85EBCA6B, 0xC2B2AE35, 0x27D4EB2F)


def digest_of_shards(array: jax.Array) -> str:
    """A hash of the dtype, shape and contents, the same however the array is cut.

    It is the sum, over all entries, of a hash of the entry's bits and of its place: the order does not matter.

    Args:
        array: An array with a `NamedSharding`.

    Returns:
        32 hexadecimal digits.
    """
    # In a thread of its own no transform is under way, whatever the caller is inside of.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(_digest, array).result()


def _digest(array: jax.Array) -> str:
    kind = str(array.dtype)
    if jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    mesh, spec = mesh_and_spec(array)
    array = jax.device_put(array, NamedSharding(mesh, spec))
    with jax.set_mesh(mesh):
        sums = np.asarray(_sums(array, Part(array.shape, spec)).addressable_data(0))
    digest = hashlib.blake2b(f"{kind}{array.shape}".encode(), digest_size=16)
    digest.update(sums.tobytes())
    return digest.hexdigest()


@functools.partial(jax.jit, static_argnames="part")
def _sums(array: Array, part: Part) -> Array:
    names = tuple(name for axis in range(len(part.shape)) for name in part.names(axis))

    def on_device(array: Array) -> Array:
        def rows(seed: Array, start: Any, count: int) -> Array:
            mixed = _mixed(part.rows(start, count) + seed)
            for word in _words(rows_of(array, start, count)):
                mixed = _mixed(mixed ^ word)
            return mixed

        every = tuple(range(array.ndim))

        def hashed(seed: Array) -> Array:
            return reduced_rows(array.shape, functools.partial(rows, seed), every, "sum").reshape(())

        if not array.size:
            return jnp.zeros(len(_SEEDS), jnp.uint32)
        sums = lax.map(hashed, jnp.array(_SEEDS, jnp.uint32))
        return lax.psum(sums, names) if names else sums

    return on_shards(on_device, (part.spec,), PartitionSpec())(array)


def _words(x: Array) -> list[Array]:
    """The bits of each entry in words of 32."""
    if x.dtype == jnp.bool_:
        return [x.astype(jnp.uint32)]
    if x.dtype.itemsize == 8:
        wide = lax.bitcast_convert_type(x, jnp.uint32)
        return [wide[..., 0], wide[..., 1]]
    return [lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}")).astype(jnp.uint32)]


def _mixed(x: Array) -> Array:
    """The finalizer of MurmurHash3: every bit of the result depends on every bit of x."""
    x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
