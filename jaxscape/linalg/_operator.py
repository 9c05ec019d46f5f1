"""A symmetric linear map on pytrees: what eigenvalues, trace and density are taken of."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import PRNGKeyArray

from jaxscape import checks
from jaxscape.arguments import blamed, checked
from jaxscape.linalg import _density, _eigen, _trace
from jaxscape.linalg._bases import Storage
from jaxscape.linalg._ritz import Which
from jaxscape.meshes import outside_meshes
from jaxscape.objective import are_large, fetch, refuse_inside_transform
from jaxscape.shards import mesh_of_shards, within
from jaxscape.subspace import Subspace
from jaxscape.types import Params, Vector

Matvec = Callable[[Vector], Vector]


class Operator:
    """A symmetric linear map on pytrees like params: ``H(v)`` or ``H @ v``.

    `jaxscape.hvp` and `jaxscape.ggn_product` make one of a loss; `Operator.of` makes one of any function.

    >>> operator = Operator.of(lambda v: {"x": jnp.array([3.0, -1.0, 0.5]) * v["x"]}, {"x": jnp.zeros(3)})
    >>> (operator @ {"x": jnp.ones(3)})["x"].tolist(), operator.shape
    ([3.0, -1.0, 0.5], (3, 3))
    >>> round(float(operator.extreme_eigenvalues(progress=False).max_eigenvalue), 4)
    3.0

    Attributes:
        subspace: The leaves that the operator acts in, which become vectors and back.
        matvec: ``v -> H v`` on vectors, from the host or inside a JAX transform. Vectors are flat, of length ``n``;
            where params are cut over devices or take more than 256 MB, they are lists of leaves, each cut as that of
            params.
    """

    def __init__(self, matvec: Matvec, subspace: Subspace) -> None:
        """Wrap a product.

        Args:
            matvec: ``v -> H v`` on vectors of the subspace.
            subspace: The leaves that the operator acts in.
        """
        self.matvec, self.subspace = matvec, subspace

    @classmethod
    def of(cls, matvec: Callable[[Params], Params], like: Params) -> "Operator":
        """An operator of a function on pytrees.

        Args:
            matvec: ``v -> H v``, linear and symmetric, of pytrees like ``like``; real, not complex.
            like: A pytree of floating arrays, or of their shapes and dtypes: those of the vectors.

        Returns:
            The operator. A product raises a ValueError or a TypeError if the result of ``matvec`` is not like ``like``.

        Raises:
            ValueError: ``like`` has no leaf.
            TypeError: A leaf of ``like`` is no floating array.
        """
        for path, leaf in jax.tree_util.tree_leaves_with_path(like):
            if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype") or isinstance(leaf.dtype, str):
                name = f"like{jax.tree_util.keystr(path)}"
                raise TypeError(
                    f"{name} is {type(leaf).__name__}, expected floating arrays, or their shapes and dtypes."
                )
        like = checks.as_params(like if mesh_of_shards(like, "like") else jax.tree.map(_zeros, like), "like")
        subspace = Subspace.of(like, None, in_leaves=are_large(like))
        like = subspace.params_like

        def on_vectors(vector: Vector) -> Vector:
            in_dtypes = jax.tree.map(lambda x, y: x.astype(y.dtype), subspace.embed(vector), like)
            with blamed("matvec", "with a pytree like `like`"):
                image = matvec(in_dtypes)
            return subspace.extract(checks.like(subspace.params_like, image, "the result of matvec"))

        return cls(on_vectors, subspace)

    @outside_meshes
    def __call__(self, v: Params) -> Params:
        """``H v``, in at least float32; zero in the leaves that are ignored.

        Args:
            v: A pytree like params.

        Returns:
            A pytree like params.

        Raises:
            ValueError: v is not like params; the message has the path of the leaf.
            TypeError: A leaf of v is no floating array.
        """
        v = self.subspace.place(checks.like(self.subspace.params_like, v, "v"))
        with within(self.subspace.mesh):
            return self.subspace.embed(self.matvec(self.subspace.extract(v)))

    def __matmul__(self, v: Params) -> Params:
        return self(v)

    def __repr__(self) -> str:
        n = self.subspace.size
        return f"Operator({n} x {n}, {self.dtype})"

    @property
    def shape(self) -> tuple[int, int]:
        """``(n, n)`` with n the number of entries in the leaves that are not ignored."""
        return self.subspace.size, self.subspace.size

    @property
    def dtype(self) -> np.dtype:
        """Of vectors: at least float32."""
        return np.dtype(self.subspace.dtype)

    def to_scipy(self) -> Any:
        """A `scipy.sparse.linalg.LinearOperator` on flat NumPy vectors.

        >>> from scipy.sparse.linalg import eigsh
        >>> operator = Operator.of(lambda v: jnp.arange(8.0) * v, jnp.zeros(8))
        >>> eigsh(operator.to_scipy(), k=1, which="LA")[0].round(3).tolist()
        [7.0]

        Returns:
            The operator. ``operator.subspace.embed(vector)`` makes a pytree of a flat vector.
        """
        from scipy.sparse.linalg import LinearOperator

        whole = self.subspace._replace(mesh=None, specs=None, in_leaves=False)

        def matvec(vector: np.ndarray) -> np.ndarray:
            flat = jnp.asarray(vector.ravel(), self.dtype)
            if self.subspace.is_flat:
                return np.asarray(outside_meshes(self.matvec)(flat))
            return np.asarray(whole.extract(fetch(self(whole.embed(flat)))))

        return LinearOperator(self.shape, matvec=matvec, rmatvec=matvec, dtype=self.dtype)

    @checked
    def extreme_eigenvalues(
        self,
        *,
        key: PRNGKeyArray | int = 0,
        tol: float = 1e-3,
        max_matvecs: int = 100,
        max_basis: int = 40,
        basis: Storage = "device",
        progress: bool | None = None,
    ) -> _eigen.Extremes:
        """The smallest and the largest eigenvalue, from one Krylov space.

        >>> operator = Operator.of(lambda v: jnp.array([3.0, -1.0, 0.5]) * v, jnp.zeros(3))
        >>> operator.extreme_eigenvalues(progress=False).min_eigenvalue.round(4).item()
        -1.0

        Args:
            key: A JAX random key, or an integer seed, of the first vector.
            tol: An end is converged when its residual ``norm(H v - lambda v)`` is at most ``tol * abs(lambda)`` and,
                with a probability of at least 99 % whatever the spectrum, no eigenvalue lies beyond it by more than
                that (van Dorsselaer, Hochstenbach and van der Vorst 2000). For an end that rounding cannot tell from 0,
                what rounding makes of 0 takes the place of ``tol * abs(lambda)``.
            max_matvecs: Products at most, at least 3.
            max_basis: Vectors in memory at most, at least 6.
            basis: Where the Krylov vectors are: ``"device"``, with the digits of vectors; ``"bfloat16"``, on the device
                with 8 binary digits, in half the memory of float32: eigenvalues are wrong by up to 1e-4 of the largest
                one, and residuals are 0.3 to 1 % of it; or ``"host"``, in the host's memory, at the price of four
                passes over the basis for each product.
            progress: True or False for a progress bar; None for one on terminals and in notebooks.

        Returns:
            Eigenvalues, measured residuals and eigenvectors of both ends.

        Raises:
            ValueError: An option is out of its range.
            TypeError: ``key`` is no key.
        """
        return _eigen.extreme_eigenvalues(
            self, key=key, tol=tol, max_matvecs=max_matvecs, max_basis=max_basis, basis=basis, progress=progress
        )

    @checked
    def top_eigenpairs(
        self,
        k: int = 2,
        which: Which = "LA",
        *,
        key: PRNGKeyArray | int = 0,
        tol: float = 1e-3,
        max_matvecs: int | None = None,
        max_basis: int | None = None,
        basis: Storage = "device",
        progress: bool | None = None,
    ) -> _eigen.Eigenpairs:
        """Some eigenvalues and eigenvectors.

        >>> operator = Operator.of(lambda v: jnp.array([3.0, -1.0, 0.5]) * v, jnp.zeros(3))
        >>> operator.top_eigenpairs(2, "BE", progress=False).eigenvalues.round(4).tolist()
        [-1.0, 3.0]

        Args:
            k: How many.
            which: The largest (``"LA"``), the smallest (``"SA"``), the largest in magnitude (``"LM"``), or in turn
                from both ends, beginning with the smallest (``"BE"``).
            key: A JAX random key, or an integer seed, of the first vector.
            tol: A pair is converged when its residual ``norm(H v - lambda v)`` is at most ``tol * abs(lambda)`` and,
                with a probability of at least 99 % for each, none that should come before it is missing.
            max_matvecs: Products at most; None: 100, or 20 for each pair if that is more.
            max_basis: Vectors in memory at most; None: 40, or 4 for each pair if that is more.
            basis: Where the Krylov vectors are: ``"device"``, with the digits of vectors; ``"bfloat16"``, on the device
                with 8 binary digits, in half the memory of float32: eigenvalues are wrong by up to 1e-4 of the largest
                one, and residuals are 0.3 to 1 % of it; or ``"host"``, in the host's memory, at the price of four
                passes over the basis for each product.
            progress: True or False for a progress bar; None for one on terminals and in notebooks.

        Returns:
            The pairs. An exactly multiple eigenvalue shows once for each time that rounding brings it up, as in any
            Krylov method that starts from one vector.

        Raises:
            ValueError: k is not within 1 and n, ``which`` is unknown, or another option is out of its range.
            TypeError: ``key`` is no key, or k is no integer.
        """
        refuse_inside_transform("top_eigenpairs")
        return _eigen.top_eigenpairs(
            self,
            k,
            which,
            key=key,
            tol=tol,
            max_matvecs=max_matvecs,
            max_basis=max_basis,
            basis=basis,
            progress=progress,
        )

    @checked
    def trace(
        self,
        *,
        num_matvecs: int = 60,
        method: _trace.Method = "hutch++",
        key: PRNGKeyArray | int = 0,
        progress: bool | None = None,
    ) -> _trace.Trace:
        """The sum of all eigenvalues, with its standard error.

        Hutchinson (1990): the mean of ``z^T H z`` over vectors z of random signs. Hutch++ (Meyer, Musco, Musco and
        Woodruff 2021): a third of the products find a subspace Q of the large eigenvalues, a third take the trace
        within it exactly, and the last third estimate the trace outside of it, as Hutchinson does.

        >>> operator = Operator.of(lambda v: 2 * v, jnp.zeros(5))
        >>> round(operator.trace(progress=False).trace, 3)
        10.0

        Args:
            num_matvecs: Products, at least 2 for Hutchinson and 6 for Hutch++.
            method: ``"hutch++"`` or ``"hutchinson"``.
            key: A JAX random key, or an integer seed, of the vectors.
            progress: True or False for a progress bar; None for one on terminals and in notebooks.

        Returns:
            The estimate. The standard error is that of the random vectors, in Hutch++ given Q.

        Raises:
            ValueError: ``method`` is unknown, or ``num_matvecs`` is too small for it.
            TypeError: ``key`` is no key.
        """
        refuse_inside_transform("trace")
        return _trace.trace(self, num_matvecs=num_matvecs, method=method, key=key, progress=progress)

    @checked
    def spectral_density(
        self,
        *,
        num_probes: int = 8,
        num_steps: int = 40,
        num_points: int = 1024,
        sigma: float | None = None,
        key: PRNGKeyArray | int = 0,
        basis: Storage = "device",
        progress: bool | None = None,
    ) -> xr.Dataset:
        """The density of the eigenvalues, by stochastic Lanczos quadrature.

        For each random Gaussian probe Lanczos gives Ritz values and weights; their sum of Gaussians of width sigma,
        averaged over the probes, estimates ``mean_i N(lambda; lambda_i, sigma^2)`` (Lin, Saad and Yang 2016; Ghorbani,
        Krishnan and Xiao 2019). An eigenvalue of weight ``1/n`` far from the others shows as a peak of that weight.

        >>> operator = Operator.of(lambda v: 2 * v, jnp.zeros(5))
        >>> round(float(operator.spectral_density(sigma=0.1, progress=False).density.idxmax()), 1)
        2.0

        Args:
            num_probes: Random vectors, at least 2: their spread is the uncertainty.
            num_steps: Products for each of them.
            num_points: Eigenvalues at which the density is given.
            sigma: Width of the Gaussians; None: a hundredth of the range of the Ritz values.
            key: A JAX random key, or an integer seed, of the probes.
            basis: Where the Krylov vectors are: ``"device"``, with the digits of vectors; ``"bfloat16"``, on the device
                with 8 binary digits, in half the memory of float32: eigenvalues are wrong by up to 1e-4 of the largest
                one, and residuals are 0.3 to 1 % of it; or ``"host"``, in the host's memory, at the price of four
                passes over the basis for each product.
            progress: True or False for a progress bar; None for one on terminals and in notebooks.

        Returns:
            A Dataset: ``density`` and ``density_stderr`` over ``eigenvalue``, the density's integral is 1;
            ``ritz_value`` and ``ritz_weight`` over ``probe`` and ``ritz``. The attrs have ``sigma``, ``num_params``,
            and ``mean_eigenvalue`` with its standard error.

        Raises:
            ValueError: An option is out of its range.
            TypeError: ``key`` is no key.
        """
        refuse_inside_transform("spectral_density")
        return _density.spectral_density(
            self,
            num_probes=num_probes,
            num_steps=num_steps,
            num_points=num_points,
            sigma=sigma,
            key=key,
            basis=basis,
            progress=progress,
        )


def _zeros(x: Any) -> jax.Array:
    return jnp.zeros(x.shape, x.dtype)
