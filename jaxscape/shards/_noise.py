"""Random numbers by their place: any part of an array can be drawn alone, equal to the bit to the whole array's."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.random import threefry2x32_p
from jaxtyping import Array, PRNGKeyArray


def key_words(key: PRNGKeyArray) -> Array:
    """The words of a threefry key, shape ``(..., 2)``.

    Args:
        key: One key or more.

    Returns:
        Unsigned integers of 32 bits.

    Raises:
        ValueError: The keys are of another generator, which cannot draw a part of an array alone.
    """
    words = jax.random.key_data(key)
    if not is_threefry(key):
        raise ValueError(
            f"key is {key.dtype}, expected a key of the default generator, jax.random.key(seed, impl='threefry2x32'): "
            "a leaf that is cut over devices is drawn part by part."
        )
    return words


def is_threefry(keys: PRNGKeyArray) -> bool:
    """Whether keys are of the default generator, whose numbers can be drawn by their place."""
    return "fry" in str(keys.dtype)


def normal(words: Array, places: Array, dtype: Any, first: int = 0) -> Any:
    """Standard normal numbers: ``normal(key_words(key), arange(n), dtype)`` is `jax.random.normal(key, (n,), dtype)`.

    Args:
        words: Of one key, shape ``(2,)``.
        places: Unsigned integers of 32 bits, of any shape.
        dtype: float32 or float64.
        first: What is added to the places.

    Returns:
        An array like ``places``.
    """
    one, other = _two_words(words, places, first)
    info = jnp.finfo(dtype)
    if info.bits == 32:
        drawn, kind = one ^ other, jnp.uint32
    else:
        drawn, kind = (one.astype(jnp.uint64) << 32) | other.astype(jnp.uint64), jnp.uint64
    ones = np.array(1.0, dtype).view(kind)
    mantissa = (drawn >> np.array(info.bits - info.nmant, kind)) | ones
    low = np.nextafter(np.array(-1, dtype), np.array(0, dtype))
    uniform = (lax.bitcast_convert_type(mantissa, dtype) - np.array(1, dtype)) * (np.array(1, dtype) - low) + low
    return np.array(np.sqrt(2), dtype) * lax.erf_inv(jnp.maximum(low, uniform))


def signs(words: Array, places: Array, dtype: Any, first: int = 0) -> Array:
    """Random numbers -1 and 1, each as likely.

    Args:
        words: Of one key, shape ``(2,)``.
        places: Unsigned integers of 32 bits, of any shape.
        dtype: A floating dtype.
        first: What is added to the places.

    Returns:
        An array like ``places``.
    """
    return jnp.where(bits(words, places, first) >> 31, -1, 1).astype(dtype)


def bits(words: Array, places: Array, first: int = 0) -> Array:
    """32 random bits for each place.

    Args:
        words: Of one key, shape ``(2,)``.
        places: Unsigned integers of 32 bits, of any shape.
        first: What is added to the places.

    Returns:
        Unsigned integers like ``places``.
    """
    one, other = _two_words(words, places, first)
    return one ^ other


def _two_words(words: Array, places: Array, first: int) -> tuple[Array, Array]:
    """Two words of 32 random bits for each place; a place beyond 2**32 has a second word."""
    keys = (jnp.broadcast_to(words[i], places.shape) for i in range(2))
    low = places + np.uint32(first % 2**32)
    high = (low < places).astype(jnp.uint32) + np.uint32(first // 2**32)
    one, other = threefry2x32_p.bind(*keys, high, low)
    return one, other
