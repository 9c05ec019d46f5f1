"""What a plane shows of the Hessian."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxscape.directions import Directions
from jaxscape.linalg import Matvec
from jaxscape.subspace import Subspace


def plane_columns(num: int) -> dict[str, Any]:
    """Names and types of the values of `plane_curvatures` in a plane of ``num`` directions."""
    return {"plane_hessian": (float, (num, num)), "plane_min_eigenvalue": float, "plane_max_eigenvalue": float}


def plane_curvatures(subspace: Subspace, matvec: Matvec, directions: Directions) -> dict[str, np.ndarray]:
    """Second derivatives in the coordinates, and the extreme curvatures along directions of length 1 in the plane.

    With D the directions as columns these are ``D^T H D``, and its eigenvalues in the metric ``D^T D``.

    Args:
        subspace: The leaves that curvature is taken in.
        matvec: Products with the Hessian.
        directions: Those of the plane.

    Returns:
        A value for each of `plane_columns`.
    """
    vectors = [subspace.extract(direction) for direction in directions]
    images = [matvec(vector) for vector in vectors]
    hessian, metric = (
        np.array([[float(_inner(a, b)) for b in others] for a in vectors]) for others in (images, vectors)
    )
    hessian = (hessian + hessian.T) / 2
    lengths, axes = np.linalg.eigh(metric)
    used = lengths > 1e-12 * lengths.max()  # a direction that the leaves left out hold, or a repeated one
    white = axes[:, used] / np.sqrt(lengths[used])
    finite = np.isfinite(hessian).all() and used.any()
    curvatures = np.linalg.eigvalsh(white.T @ hessian @ white) if finite else np.full(2, np.nan)
    return {
        "plane_hessian": hessian,
        "plane_min_eigenvalue": curvatures[0],
        "plane_max_eigenvalue": curvatures[-1],
    }


@jax.jit
def _inner(a: Array, b: Array) -> Array:
    return jnp.vdot(a, b, precision="highest")
