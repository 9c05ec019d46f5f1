"""Eigenvalues, trace and spectral density of the Hessian of a loss: short forms of the methods of `hvp`'s operator."""

from collections.abc import Mapping
from typing import Literal

import xarray as xr
from jax.sharding import Mesh
from jaxtyping import PRNGKeyArray

from jaxscape.arguments import checked
from jaxscape.curvature._operators import hvp
from jaxscape.linalg import (
    Eigenpairs,
    Extremes,
    Storage,
    Trace,
    Which,
    check_density_options,
    check_eigenpairs_options,
    check_options,
    check_trace_options,
)
from jaxscape.types import Data, Ignore, LossFn, Params

Loss = LossFn | Mapping[str, LossFn]


@checked
def extreme_eigenvalues(
    params: Params,
    loss_fn: Loss,
    data: Data,
    *,
    key: PRNGKeyArray | int = 0,
    tol: float = 1e-3,
    max_matvecs: int = 100,
    max_basis: int = 40,
    basis: Storage = "device",
    batch_size: int | Literal["auto"] = "auto",
    mesh: Mesh | None = None,
    ignore: Ignore = None,
    check: bool = True,
    progress: bool | None = None,
) -> Extremes:
    """The smallest and the largest eigenvalue of the Hessian at params, from one Krylov space (paper section 6).

    Short for ``hvp(loss_fn, params, data, ...).extreme_eigenvalues(...)``.

    >>> import jax.numpy as jnp
    >>> def loss(p, x):
    ...     return x * (2 * p["a"] ** 2 - p["b"] ** 2)
    >>> ends = extreme_eigenvalues({"a": jnp.float32(1), "b": jnp.float32(1)}, loss, jnp.ones(3))
    >>> round(float(ends.min_eigenvalue), 4), round(float(ends.max_eigenvalue), 4)
    (-2.0, 4.0)

    Args:
        params: Any pytree of floating arrays.
        loss_fn: ``loss_fn(params, batch)`` -> the loss of each example, a dict with the key ``"loss"``, or the mean of
            the batch, or a dict of such functions, as in `hvp`.
        data: Arrays with a common leading example axis, or a `jaxscape.Stream` of batches; None for a loss without
            data.
        key: A JAX random key, or an integer seed, of the first vector.
        tol: An end is converged when its residual ``norm(H v - lambda v)`` is at most ``tol * abs(lambda)`` and, with a
            probability of at least 99 % whatever the spectrum, no eigenvalue lies beyond it by more than that.
        max_matvecs: Products at most, at least 3.
        max_basis: Vectors in memory at most, at least 6.
        basis: Where the Krylov vectors are: ``"device"``, with the digits of vectors; ``"bfloat16"``, on the device
            with 8 binary digits, in half the memory of float32: eigenvalues are wrong by up to 1e-4 of the largest
            one, and residuals are 0.3 to 1 % of it; or ``"host"``, in the host's memory, at the price of four passes
            over the basis for each product.
        batch_size: Examples of each device at a time, at most; ``"auto"``: as many as a CPU's cache holds the linear
            function of, or 8 GB on other devices.
        mesh: The devices, which share the examples; by default all of all processes.
        ignore: Which leaves are held fixed: None, none of them; ``"bias_norm"``, biases and normalization parameters,
            as in the paper; or a predicate on (path, leaf).
        check: Whether to find out if the loss is a mean over examples: by its jaxpr, or by at most 128 examples, twice.
        progress: True or False for a progress bar; None for one on terminals and in notebooks.

    Returns:
        Eigenvalues, measured residuals and eigenvectors of both ends, the same object as `lanczos` gives; eigenvectors
        are zero in ignored leaves.

    Raises:
        ValueError: An option is out of its range; or params, data or loss_fn are wrong, as `hvp` says.
        TypeError: A leaf of params is not floating.
    """
    check_options(2, max_matvecs, tol, max_basis)
    hessian = hvp(loss_fn, params, data, batch_size=batch_size, mesh=mesh, ignore=ignore, check=check)
    return hessian.extreme_eigenvalues(
        key=key, tol=tol, max_matvecs=max_matvecs, max_basis=max_basis, basis=basis, progress=progress
    )


@checked
def top_eigenpairs(
    params: Params,
    loss_fn: Loss,
    data: Data,
    k: int = 2,
    which: Which = "LA",
    *,
    key: PRNGKeyArray | int = 0,
    tol: float = 1e-3,
    max_matvecs: int | None = None,
    max_basis: int | None = None,
    basis: Storage = "device",
    batch_size: int | Literal["auto"] = "auto",
    mesh: Mesh | None = None,
    ignore: Ignore = None,
    check: bool = True,
    progress: bool | None = None,
) -> Eigenpairs:
    """Some eigenpairs of the Hessian at params.

    Short for ``hvp(loss_fn, params, data, ...).top_eigenpairs(k, which, ...)``. The eigenvectors are axes of a plane:
    ``surface(params, loss_fn, data, directions=pairs.eigenvectors, ...)`` shows the sharpest one, with ``which="BE"``
    that of the largest and the most negative curvature.

    >>> import jax.numpy as jnp
    >>> pairs = top_eigenpairs(jnp.ones(3), lambda p, x: x * (p**2).sum() + x * p[0] ** 2, jnp.ones(4), k=1)
    >>> round(float(pairs.eigenvalues[0]), 4), [abs(round(float(v), 3)) for v in pairs.eigenvectors[0]]
    (4.0, [1.0, 0.0, 0.0])

    Args:
        params: Any pytree of floating arrays.
        loss_fn: ``loss_fn(params, batch)`` -> the loss of each example, a dict with the key ``"loss"``, or the mean of
            the batch, or a dict of such functions, as in `hvp`.
        data: Arrays with a common leading example axis, or a `jaxscape.Stream` of batches; None for a loss without
            data.
        k: How many.
        which: The largest (``"LA"``), the smallest (``"SA"``), the largest in magnitude (``"LM"``), or in turn
            from both ends, beginning with the smallest (``"BE"``).
        key: A JAX random key, or an integer seed, of the first vector.
        tol: A pair is converged when its residual ``norm(H v - lambda v)`` is at most ``tol * abs(lambda)`` and, with a
            probability of at least 99 % for each, none that should come before it is missing.
        max_matvecs: Products at most; None: 100, or 20 for each pair if that is more.
        max_basis: Vectors in memory at most; None: 40, or 4 for each pair if that is more.
        basis: Where the Krylov vectors are: ``"device"``, with the digits of vectors; ``"bfloat16"``, on the device
            with 8 binary digits, in half the memory of float32: eigenvalues are wrong by up to 1e-4 of the largest
            one, and residuals are 0.3 to 1 % of it; or ``"host"``, in the host's memory, at the price of four passes
            over the basis for each product.
        batch_size: Examples of each device at a time, at most; ``"auto"``: as many as a CPU's cache holds the linear
            function of, or 8 GB on other devices.
        mesh: The devices, which share the examples; by default all of all processes.
        ignore: Which leaves are held fixed: None, none of them; ``"bias_norm"``, biases and normalization parameters;
            or a predicate on (path, leaf).
        check: Whether to find out if the loss is a mean over examples: by its jaxpr, or by at most 128 examples, twice.
        progress: True or False for a progress bar; None for one on terminals and in notebooks.

    Returns:
        The pairs. An exactly multiple eigenvalue shows once for each time that rounding brings it up, as in any Krylov
        method that starts from one vector.

    Raises:
        ValueError: k is not within 1 and the number of entries, ``which`` is unknown, or another option is out of its
            range; or params, data or loss_fn are wrong, as `hvp` says.
        TypeError: A leaf of params is not floating, or k is no integer.
    """
    check_eigenpairs_options(k, which, tol, max_matvecs, max_basis)
    hessian = hvp(loss_fn, params, data, batch_size=batch_size, mesh=mesh, ignore=ignore, check=check)
    return hessian.top_eigenpairs(
        k, which, key=key, tol=tol, max_matvecs=max_matvecs, max_basis=max_basis, basis=basis, progress=progress
    )


@checked
def hessian_trace(
    params: Params,
    loss_fn: Loss,
    data: Data,
    *,
    num_matvecs: int = 60,
    method: Literal["hutch++", "hutchinson"] = "hutch++",
    key: PRNGKeyArray | int = 0,
    batch_size: int | Literal["auto"] = "auto",
    mesh: Mesh | None = None,
    ignore: Ignore = None,
    check: bool = True,
    progress: bool | None = None,
) -> Trace:
    """The trace of the Hessian at params, with its standard error.

    Short for ``hvp(loss_fn, params, data, ...).trace(...)``, which describes the two methods.

    >>> import jax.numpy as jnp
    >>> estimate = hessian_trace(jnp.ones(5), lambda p, x: x * (p**2).sum(), jnp.ones(3))
    >>> round(estimate.trace, 3), round(estimate.stderr, 3)
    (10.0, 0.0)

    Args:
        params: Any pytree of floating arrays.
        loss_fn: ``loss_fn(params, batch)`` -> the loss of each example, a dict with the key ``"loss"``, or the mean of
            the batch, or a dict of such functions, as in `hvp`.
        data: Arrays with a common leading example axis, or a `jaxscape.Stream` of batches; None for a loss without
            data.
        num_matvecs: Products, at least 2 for Hutchinson and 6 for Hutch++.
        method: ``"hutch++"`` or ``"hutchinson"``.
        key: A JAX random key, or an integer seed, of the vectors.
        batch_size: Examples of each device at a time, at most; ``"auto"``: as many as a CPU's cache holds the linear
            function of, or 8 GB on other devices.
        mesh: The devices, which share the examples; by default all of all processes.
        ignore: Which leaves are held fixed: None, none of them; ``"bias_norm"``, biases and normalization parameters;
            or a predicate on (path, leaf).
        check: Whether to find out if the loss is a mean over examples: by its jaxpr, or by at most 128 examples, twice.
        progress: True or False for a progress bar; None for one on terminals and in notebooks.

    Returns:
        The estimate. The standard error is that of the random vectors, in Hutch++ given the subspace.

    Raises:
        ValueError: ``method`` is unknown, or ``num_matvecs`` is too small for it; or params, data or loss_fn are wrong,
            as `hvp` says.
        TypeError: A leaf of params is not floating.
    """
    check_trace_options(num_matvecs, method)
    hessian = hvp(loss_fn, params, data, batch_size=batch_size, mesh=mesh, ignore=ignore, check=check)
    return hessian.trace(num_matvecs=num_matvecs, method=method, key=key, progress=progress)


@checked
def spectral_density(
    params: Params,
    loss_fn: Loss,
    data: Data,
    *,
    num_probes: int = 8,
    num_steps: int = 40,
    num_points: int = 1024,
    sigma: float | None = None,
    key: PRNGKeyArray | int = 0,
    basis: Storage = "device",
    batch_size: int | Literal["auto"] = "auto",
    mesh: Mesh | None = None,
    ignore: Ignore = None,
    check: bool = True,
    progress: bool | None = None,
) -> xr.Dataset:
    """The density of the Hessian's eigenvalues at params, by stochastic Lanczos quadrature.

    Short for ``hvp(loss_fn, params, data, ...).spectral_density(...)``, which has the formula.

    >>> import jax.numpy as jnp
    >>> ds = spectral_density(jnp.ones(5), lambda p, x: x * (p**2).sum(), jnp.ones(3), sigma=0.1)
    >>> round(float(ds.density.integrate("eigenvalue")), 3), round(float(ds.density.idxmax()), 1)
    (1.0, 2.0)

    Args:
        params: Any pytree of floating arrays.
        loss_fn: ``loss_fn(params, batch)`` -> the loss of each example, a dict with the key ``"loss"``, or the mean of
            the batch, or a dict of such functions, as in `hvp`.
        data: Arrays with a common leading example axis, or a `jaxscape.Stream` of batches; None for a loss without
            data.
        num_probes: Random vectors, at least 2: their spread is the uncertainty.
        num_steps: Products for each of them.
        num_points: Eigenvalues at which the density is given.
        sigma: Width of the Gaussians; None: a hundredth of the range of the Ritz values.
        key: A JAX random key, or an integer seed, of the probes.
        basis: Where the Krylov vectors are: ``"device"``, with the digits of vectors; ``"bfloat16"``, on the device
            with 8 binary digits, in half the memory of float32: eigenvalues are wrong by up to 1e-4 of the largest
            one, and residuals are 0.3 to 1 % of it; or ``"host"``, in the host's memory, at the price of four passes
            over the basis for each product.
        batch_size: Examples of each device at a time, at most; ``"auto"``: as many as a CPU's cache holds the linear
            function of, or 8 GB on other devices.
        mesh: The devices, which share the examples; by default all of all processes.
        ignore: Which leaves are held fixed: None, none of them; ``"bias_norm"``, biases and normalization parameters;
            or a predicate on (path, leaf).
        check: Whether to find out if the loss is a mean over examples: by its jaxpr, or by at most 128 examples, twice.
        progress: True or False for a progress bar; None for one on terminals and in notebooks.

    Returns:
        A Dataset: ``density`` and ``density_stderr`` over ``eigenvalue``, the density's integral is 1; ``ritz_value``
        and ``ritz_weight`` over ``probe`` and ``ritz``. The attrs have ``sigma``, ``num_params`` and the mean
        eigenvalue.

    Raises:
        ValueError: An option is out of its range; or params, data or loss_fn are wrong, as `hvp` says.
        TypeError: A leaf of params is not floating.
    """
    check_density_options(num_probes, num_steps, num_points, sigma)
    hessian = hvp(loss_fn, params, data, batch_size=batch_size, mesh=mesh, ignore=ignore, check=check)
    return hessian.spectral_density(
        num_probes=num_probes,
        num_steps=num_steps,
        num_points=num_points,
        sigma=sigma,
        key=key,
        basis=basis,
        progress=progress,
    )
