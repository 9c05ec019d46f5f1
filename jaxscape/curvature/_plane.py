"""What a plane shows of the Hessian."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxscape import trees
from jaxscape.directions import Directions
from jaxscape.linalg import Matvec
from jaxscape.objective import fetch
from jaxscape.subspace import Subspace
from jaxscape.types import Vector


class PlaneAxes(NamedTuple):
    """Orthonormal axes of the plane of some directions: ``direction_k = sum_r coefficients[r, k] * vectors[r]``.

    Attributes:
        vectors: Fewer than directions where one depends on the others, or lies in leaves that are left out.
        coefficients: The directions in these axes, shape ``(axes, directions)``, float64.
    """

    vectors: list[Vector]
    coefficients: np.ndarray


def plane_axes(subspace: Subspace, directions: Directions) -> PlaneAxes:
    """Orthonormal axes of a plane, in float64 up to the last rounding.

    The curvature along nearly parallel directions would be a difference of products with errors far larger than itself;
    products with orthonormal vectors have errors of their own size only.

    Args:
        subspace: The leaves that curvature is taken in.
        directions: Those of the plane; they may have any lengths and angles.

    Returns:
        The axes. What a direction has outside of the span of the others counts as rounding, and is dropped, if it is
        shorter than 16 times the machine precision times the direction.

    Raises:
        ValueError: A direction is not finite.
    """
    vectors = [subspace.extract(direction) for direction in directions]
    metric = fetch(_inner(vectors, vectors))
    for k, finite in enumerate(np.isfinite(np.diag(metric))):
        if not finite:
            raise ValueError(f"directions[{k}] has NaN or infinite entries, expected finite ones; leave it out.")
    lengths = np.sqrt(np.diag(metric))
    units = np.where(lengths > 0, lengths, 1)
    squares, rotation = np.linalg.eigh(metric / np.outer(units, units))
    used = squares > max((16 * float(jnp.finfo(subspace.dtype).eps)) ** 2, 1e-13)
    combination = rotation[:, used] / np.sqrt(squares[used]) / units[:, None]
    coefficients = np.sqrt(squares[used])[:, None] * rotation[:, used].T * lengths
    rows = [_combined(vectors, column) for column in combination.T]
    return PlaneAxes(rows, coefficients)


def plane_columns(num: int) -> dict[str, Any]:
    """Names and types of the values of `plane_curvatures` in a plane of ``num`` directions."""
    return {"plane_hessian": (float, (num, num)), "plane_min_eigenvalue": float, "plane_max_eigenvalue": float}


def plane_curvatures(matvec: Matvec, axes: PlaneAxes) -> dict[str, np.ndarray]:
    """Second derivatives in the coordinates, and the extreme curvatures along directions of length 1 in the plane.

    With Q the axes as columns and ``D = Q R`` the directions these are ``D^T H D = R^T (Q^T H Q) R`` and the extreme
    eigenvalues of ``Q^T H Q``.

    Args:
        matvec: Products with the Hessian.
        axes: Those of the plane.

    Returns:
        A value for each of `plane_columns`.
    """
    images = [matvec(vector) for vector in axes.vectors]
    hessian = fetch(_inner(axes.vectors, images)) if images else np.zeros((0, 0))
    hessian = (hessian + hessian.T) / 2
    finite = np.isfinite(hessian).all() and len(images)
    curvatures = np.linalg.eigvalsh(hessian) if finite else np.full(2, np.nan)
    with np.errstate(all="ignore"):  # NaN times 0
        in_coordinates = axes.coefficients.T @ hessian @ axes.coefficients
    return {
        "plane_hessian": in_coordinates,
        "plane_min_eigenvalue": curvatures[0],
        "plane_max_eigenvalue": curvatures[-1],
    }


@trees.in_float64
def _inner(left: list[Vector], right: list[Vector]) -> Array:
    return jnp.stack([jnp.stack([trees.dot64(a, b) for b in right]) for a in left])


@trees.in_float64
def _combined(vectors: list[Vector], weights: Array) -> Vector:
    def leaf(*leaves: Array) -> Array:
        return sum(weight * x for weight, x in zip(weights, leaves, strict=True)).astype(leaves[0].dtype)

    return jax.tree.map(leaf, *vectors)
