"""The density of the eigenvalues of a symmetric operator from random probes."""

from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import scipy
import xarray as xr
from jaxtyping import PRNGKeyArray

from jaxscape.checks import as_key
from jaxscape.linalg._bases import Storage
from jaxscape.linalg._krylov import quadrature
from jaxscape.linalg._progress import counted, product_bar
from jaxscape.linalg._trace import standard_error
from jaxscape.shards import within

if TYPE_CHECKING:
    from jaxscape.linalg._operator import Operator


def spectral_density(
    operator: "Operator",
    *,
    num_probes: int,
    num_steps: int,
    num_points: int,
    sigma: float | None,
    key: PRNGKeyArray | int,
    basis: Storage,
    progress: bool | None,
) -> xr.Dataset:
    """The density by stochastic Lanczos quadrature; see `Operator.spectral_density`."""
    check_density_options(num_probes, num_steps, num_points, sigma)
    size, keys = operator.subspace.size, jax.random.split(as_key(key), (num_probes, 2))
    with product_bar(num_probes * min(num_steps, size), progress) as bar, within(operator.subspace.mesh):
        matvec = counted(operator.matvec, bar)
        options: dict[str, Any] = {"specs": operator.subspace.free_specs, "storage": basis}
        rules = [
            quadrature(matvec, operator.subspace.normal(first), later, num_steps, **options) for first, later in keys
        ]
    nodes, weights = (np.array([np.asarray(x) for x in column], np.float64) for column in zip(*rules, strict=True))
    low, high = nodes.min(), nodes.max()
    sigma = sigma or max((high - low) / 100, 1e-6 * max(abs(low), abs(high)), float(np.finfo(np.float32).tiny))
    margin = max(6 * sigma, 1.5 * (high - low) / (num_points - 4))  # the first and the last cell stay empty
    eigenvalues = np.linspace(low - margin, high + margin, num_points)
    # The mean over the cell around each eigenvalue, not the value there: Gaussians narrower than a cell would be missed
    # by all eigenvalues, or counted in full by one that is near.
    half = (eigenvalues[1] - eigenvalues[0]) / 2
    edges = np.append(eigenvalues - half, eigenvalues[-1] + half)
    below = (weights[..., None] * scipy.special.ndtr((edges - nodes[..., None]) / sigma)).sum(1)
    density = np.diff(below, axis=1) / (2 * half)
    means = (weights * nodes).sum(1)
    return xr.Dataset(
        {
            "density": ("eigenvalue", density.mean(0), {"long_name": "density of the eigenvalues"}),
            "density_stderr": ("eigenvalue", standard_error(density)),
            "ritz_value": (("probe", "ritz"), nodes),
            "ritz_weight": (("probe", "ritz"), weights),
        },
        {"eigenvalue": eigenvalues},
        {
            "sigma": float(sigma),
            "num_params": size,
            "mean_eigenvalue": float(means.mean()),
            "mean_eigenvalue_stderr": float(standard_error(means)),
            "num_matvecs": nodes.size,
        },
    )


def check_density_options(num_probes: int, num_steps: int, num_points: int, sigma: float | None) -> None:
    """Refuse what `spectral_density` cannot do.

    Args:
        num_probes: Random vectors.
        num_steps: Products for each of them.
        num_points: Eigenvalues at which the density is given.
        sigma: Width of the Gaussians; None: chosen.

    Raises:
        ValueError: An option is out of its range.
    """
    for name, value, low in (("num_probes", num_probes, 2), ("num_steps", num_steps, 1), ("num_points", num_points, 8)):
        if value < low:
            raise ValueError(f"{name} is {value}, expected at least {low}.")
    if sigma is not None and not sigma > 0:
        raise ValueError(f"sigma is {sigma}, expected a positive width or None.")
