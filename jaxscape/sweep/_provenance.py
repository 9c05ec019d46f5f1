"""What it takes to make the same numbers again."""

from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import jax
import jax.numpy as jnp

from jaxscape import trees
from jaxscape.objective import Objective
from jaxscape.types import Params


def provenance(objective: Objective, params: Params, basis: Params) -> dict[str, Any]:
    """Attributes of every result: a hash of all inputs, versions, device and time.

    Args:
        objective: The loss over its data.
        params: The origin.
        basis: The directions, stacked.

    Returns:
        Values that a file can hold.
    """
    return {
        "fingerprint": trees.fingerprint(params, basis) + objective.fingerprint[:16],
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
