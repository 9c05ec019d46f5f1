"""What refuses a caller's mistake: each message names the argument or the leaf, what came, and what was expected."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jaxtyping import Array, PRNGKeyArray

from jaxscape import trees
from jaxscape.types import Params


def as_params(params: Any, name: str = "params") -> Params:
    """Check that a pytree holds floating arrays only, and give its leaves as JAX arrays.

    Args:
        params: What the caller passed.
        name: What the caller's argument is called, for the message.

    Returns:
        The same pytree, its leaves JAX arrays.

    Raises:
        ValueError: There is no leaf.
        TypeError: A leaf is no floating array; the message has its path.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    if not leaves:
        raise ValueError(f"{name} has no leaves; expected a pytree with at least one floating array.")
    for path, leaf in leaves:
        dtype = getattr(leaf, "dtype", type(leaf).__name__)
        if not hasattr(leaf, "shape") or isinstance(dtype, str) or not jnp.issubdtype(leaf.dtype, jnp.floating):
            cure = (
                "Pass its real and imaginary parts as two leaves."
                if "complex" in str(dtype)
                else "Keep the trainable leaves only, e.g. `nnx.split(model, nnx.Param, ...)` or `eqx.partition(model, "
                "eqx.is_inexact_array)`, and put the rest back inside loss_fn."
            )
            raise TypeError(
                f"{name}{jax.tree_util.keystr(path)} is {dtype}, but every leaf must be a floating array. {cure}"
            )
    return jax.tree.map(_as_array, params)


def like(params: Params, tree: Any, name: str, leading: Sequence[int] = ()) -> Params:
    """Check that ``tree`` has the leaves of ``params``, and give it the very structure of ``params``.

    Leaves are matched by their paths, never by their order: an OrderedDict, or a dict that another library filled, may
    hold the same leaves in another order.

    Args:
        params: The reference.
        tree: What the caller passed.
        name: What the caller's argument is called, for the message.
        leading: Axes that each leaf of ``tree`` has in front of the shape of its counterpart.

    Returns:
        The leaves of ``tree`` in the structure of ``params``.

    Raises:
        ValueError: A leaf is missing, is one too many, or has another shape; the message has its path.
    """
    wanted, given = trees.leaf_names(params), trees.leaf_names(tree)
    for path in wanted:
        if path not in given:
            raise ValueError(f"{name} has no leaf {path}, which params has; build it from the same pytree.")
    for path in given:
        if path not in wanted:
            raise ValueError(f"{name} has a leaf {path}, which params lacks; build it from the same pytree.")
    leaves = jax.tree.leaves(as_params(tree, name))
    if wanted != given:
        _check_distinct(wanted, "params")
        _check_distinct(given, name)
        by_path = dict(zip(given, leaves, strict=True))
        leaves = [by_path[path] for path in wanted]
    for path, leaf, reference in zip(wanted, leaves, jax.tree.leaves(params), strict=True):
        expected = (*leading, *reference.shape)
        if leaf.shape != expected:
            raise ValueError(f"{name}{path} has shape {leaf.shape}, expected {expected} as in params.")
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


def _check_distinct(paths: Sequence[str], name: str) -> None:
    """Refuse leaves that share a path, of trees whose order differs: nothing tells which is which."""
    repeated = next((path for path in paths if paths.count(path) > 1), None)
    if repeated is not None:
        raise ValueError(
            f"{name} has several leaves with the path {repeated}, in another order than the other pytree; register the "
            "class with `jax.tree_util.register_pytree_with_keys` and a name for each leaf."
        )


def _as_array(leaf: Any) -> Array:
    """A JAX array; where it is sharded over Explicit mesh axes, these become Auto.

    An operation on explicitly sharded arrays asks its caller how to shard the result, and jaxscape has no answer that
    fits every model.

    Returns:
        The array, on the same devices.
    """
    # `jnp.asarray` compiles a program for each shape of NumPy arrays (jax 0.10)
    array = jax.device_put(leaf) if isinstance(leaf, np.ndarray | np.generic) else jnp.asarray(leaf)
    sharding = getattr(array, "sharding", None)
    if not isinstance(sharding, NamedSharding) or AxisType.Explicit not in sharding.mesh.axis_types:
        return array
    if isinstance(array, jax.core.Tracer) or not isinstance(sharding.mesh, Mesh):
        return array
    mesh = Mesh(sharding.mesh.devices, sharding.mesh.axis_names)
    return jax.device_put(array, NamedSharding(mesh, sharding.spec))


def check_count(value: Any, name: str, least: int = 1) -> None:
    """Check that a number of things is an integer.

    Args:
        value: What the caller passed.
        name: What the caller's argument is called, for the message.
        least: The smallest number allowed.

    Raises:
        TypeError: It is no integer.
        ValueError: It is too small.
    """
    if not isinstance(value, int | np.integer) or isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}, expected an integer of at least {least}.")
    if not least <= value < 2**63:
        raise ValueError(f"{name} is {value}, expected an integer of at least {least}, and of at most 63 bits.")


def check_mesh(mesh: Any) -> None:
    """Check that devices are given as a mesh, or not at all.

    Args:
        mesh: What the caller passed.

    Raises:
        TypeError: It is neither.
    """
    if mesh is not None and not isinstance(mesh, Mesh):
        raise TypeError(
            f"mesh is {type(mesh).__name__}, expected a jax.sharding.Mesh of devices, or None for all devices."
        )


def as_key(key: PRNGKeyArray | int, name: str = "key") -> PRNGKeyArray:
    """A JAX random key, of a key or an integer seed.

    Args:
        key: What the caller passed.
        name: What the caller's argument is called, for the message.

    Returns:
        The key.

    Raises:
        TypeError: It is neither.
        ValueError: The seed has more than 63 bits.
    """
    if isinstance(key, int | np.integer) and not isinstance(key, bool):
        if not -(2**63) <= key < 2**63:
            raise ValueError(f"{name} is {key}, expected a JAX random key or an integer seed of at most 63 bits.")
        return jax.random.key(int(key))
    if not isinstance(key, jax.Array) or not (
        jnp.issubdtype(key.dtype, jax.dtypes.prng_key) or key.dtype == jnp.uint32
    ):
        raise TypeError(f"{name} is {type(key).__name__}, expected a JAX random key or an integer seed.")
    return key if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else jax.random.wrap_key_data(key)
