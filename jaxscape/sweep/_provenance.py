"""What it takes to make the same numbers again."""

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import jax
import jax.numpy as jnp

from jaxscape import trees
from jaxscape.objective import Objective
from jaxscape.types import Params


def inputs(objective: Objective, params: Params, basis: Params) -> dict[str, Any]:
    """What the numbers of a result depend on, one by one, as hashes.

    Args:
        objective: The loss over its data.
        params: The origin.
        basis: The directions, stacked.

    Returns:
        Hashes by the names of the caller's arguments, of loss_fn one for each metric; the same in every process.
    """
    return {**objective.recipe, "params": trees.fingerprint(params), "directions": trees.fingerprint(basis)}


def provenance(inputs: Mapping[str, Any], params: Params) -> dict[str, Any]:
    """Attributes of every result: a hash of all inputs, versions, device and time.

    Args:
        inputs: As `inputs` gives them.
        params: The origin.

    Returns:
        Values that a file can hold.
    """
    return {
        "fingerprint": hashlib.blake2b(repr(sorted(inputs.items())).encode(), digest_size=16).hexdigest(),
        "num_params": trees.size(params),
        "dtype": str(jnp.result_type(*jax.tree.leaves(params))),
        "platform": jax.local_devices()[0].device_kind,
        "jax_version": jax.__version__,
        "jaxscape_version": _version(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _version() -> str:
    try:
        return version("jax-losscape")
    except PackageNotFoundError:  # used from a folder, not installed
        return "unknown"
