"""What it takes to make the same numbers again."""

from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import jax
import jax.numpy as jnp

from jaxscape import trees
from jaxscape.types import Data, Params


def provenance(params: Params, basis: Params, data: Data) -> dict[str, Any]:
    """Attributes of every result: a hash of what went in, versions, device and time.

    Args:
        params: The origin.
        basis: The directions, stacked.
        data: The examples.

    Returns:
        Values that a file can hold.
    """
    return {
        "fingerprint": trees.fingerprint(params, basis, data),
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
