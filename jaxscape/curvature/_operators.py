"""Operators of a loss: its Hessian and its Gauss-Newton matrix."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, get_args

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from jaxscape import checks, trees
from jaxscape.arguments import blamed, checked
from jaxscape.curvature._forms import GaussNewtonSource, Method, ModelFn, Source, advised
from jaxscape.curvature._product import Product
from jaxscape.linalg import Operator
from jaxscape.objective import DATA_AXIS, Objective, Placement, are_large, as_batch_size, split_terms
from jaxscape.shards import mesh_of_shards
from jaxscape.subspace import Subspace
from jaxscape.types import Data, Ignore, LossFn, Params

OutputLossFn = Callable[[Array, Data], Any]


@checked
def hvp(
    loss_fn: LossFn | Mapping[str, LossFn],
    params: Params,
    data: Data,
    *,
    batch_size: int | Literal["auto"] = "auto",
    mesh: Mesh | None = None,
    ignore: Ignore = None,
    linearize: bool | None = None,
    method: Method = "forward_over_reverse",
    check: bool = True,
) -> Operator:
    """The Hessian of the mean loss over all of the data, at ``params``, as an operator: ``H(v)``.

    ``H v = d/dt grad L(params + t v)`` at t = 0, jvp of grad (Pearlmutter 1994), exact: the mean is over examples,
    whatever the batch size and the number of devices. Products of convolutions are in full float32 on every device.

    >>> import jax.numpy as jnp
    >>> def loss(p, x):
    ...     return p["w"] ** 2 * x
    >>> hessian = hvp(loss, {"w": jnp.float32(1.0)}, jnp.array([1.0, 2.0, 3.0]))
    >>> float(hessian({"w": jnp.float32(1.0)})["w"])
    4.0

    Args:
        loss_fn: ``loss_fn(params, batch)`` -> the loss of each example, shape ``(batch,)``; a dict with the key
            ``"loss"``, and ``"weight"`` for weighted examples; or a scalar, the mean of the batch; twice differentiable
            by JAX. A dict of such functions, with a dict of data: the sum of their means.
        params: Any pytree of floating arrays.
        data: Arrays with a common leading example axis, e.g. ``(images, labels)``, or a `jaxscape.Stream` of batches;
            None for a loss without data.
        batch_size: Examples of each device at a time, at most; ``"auto"``: as many as a CPU's cache holds the linear
            function of, or 8 GB on other devices.
        mesh: The devices, which share the examples; by default all of all processes.
        ignore: Which leaves are held fixed: None, none of them; ``"bias_norm"``, biases and normalization parameters;
            or a predicate on (path, leaf). Rows and columns of these leaves are zero.
        linearize: Whether the gradient, linearized at params, is kept in memory, which makes a product 1.1 to 1.2
            times faster; None: where it takes at most a quarter of the free memory.
        method: How the gradient is differentiated along v:

            - ``"forward_over_reverse"``: in forward mode, the fastest.
            - ``"reverse_over_reverse"``: in reverse mode, for functions that have no forward mode, such as a
              `jax.custom_vjp` within the rule of another one.
            - ``"finite_difference"``: ``(g(x + h v) - g(x - h v)) / 2h`` with g the gradient and
              ``h norm(v) = eps^(1/3) (1 + norm(x))``, for kernels whose gradient cannot be differentiated at all, such
              as attention by Pallas. The relative error is about ``eps^(2/3)``: 1e-4 to 1e-3 in float32, so residuals
              of eigenvalues get no smaller. Not for 16-bit leaves.
        check: Whether to find out if the loss is a mean over examples: by its jaxpr, or by at most 128 examples, twice.

    Returns:
        The operator, called from the host or inside `jax.jit` with pytrees like params; results are in at least
        float32.

    Raises:
        ValueError: params or data is empty, leaves of data differ in length, loss_fn gives a wrong shape or is no mean
            over examples, weights depend on params, ``ignore`` leaves nothing, ``batch_size`` is not positive, or
            ``method`` is unknown, or ``"finite_difference"`` with a 16-bit leaf or with ``linearize=True``. The
            operator raises it for a v that is not like params.
        TypeError: A leaf of params is not floating.
    """
    options = Options(batch_size, ignore, check, method)
    params, product = hessian_product(
        loss_fn, params, data, options, mesh_of_products(params, mesh), linearize=linearize
    )
    return Operator(product.at(params), product.subspace)


@checked
def ggn_product(
    model_fn: ModelFn | Mapping[str, ModelFn],
    loss_fn: OutputLossFn | Mapping[str, OutputLossFn],
    params: Params,
    data: Data,
    *,
    batch_size: int | Literal["auto"] = "auto",
    mesh: Mesh | None = None,
    ignore: Ignore = None,
    linearize: bool | None = None,
    check: bool = True,
) -> Operator:
    """The generalized Gauss-Newton matrix of the mean loss over all of the data, at ``params``, an operator: ``G(v)``.

    ``G v = mean_i J_i^T H_i J_i v`` with J the Jacobian of the model's outputs in params and H the Hessian of the loss
    in the outputs (Schraudolph 2002): positive semidefinite for a convex loss, and the Hessian where the model is
    linear. For cross-entropy it is the Fisher information matrix.

    >>> import jax.numpy as jnp
    >>> params = {"w": jnp.float32(3.0)}
    >>> ggn = ggn_product(lambda p, x: p["w"] * x, lambda y, x: y**2, params, jnp.array([1.0, 2.0]))
    >>> float(ggn({"w": jnp.float32(1.0)})["w"]), float(ggn.trace(progress=False).trace)
    (5.0, 5.0)

    Args:
        model_fn: ``model_fn(params, batch)`` -> the outputs, an array of shape ``(batch, ...)`` or a pytree of such. A
            dict of functions where each term has a model of its own.
        loss_fn: ``loss_fn(outputs, batch)`` -> the loss of each example, shape ``(batch,)``; a dict with the key
            ``"loss"``, and ``"weight"`` for weighted examples; or a scalar, the mean of the batch. A dict of such
            functions, with a dict of data: the sum of their means.
        params: Any pytree of floating arrays.
        data: Arrays with a common leading example axis, e.g. ``(images, labels)``, or a `jaxscape.Stream` of batches;
            None for a loss without data.
        batch_size: Examples of each device at a time, at most; ``"auto"``: as many as a CPU's cache holds the linear
            function of, or 8 GB on other devices.
        mesh: The devices, which share the examples; by default all of all processes.
        ignore: Which leaves are held fixed: None, none of them; ``"bias_norm"``, biases and normalization parameters;
            or a predicate on (path, leaf). Rows and columns of these leaves are zero.
        linearize: Whether the model and the gradient, linearized at params, are kept in memory; None: where they take
            at most a quarter of the free memory.
        check: Whether to find out if the loss is a mean over examples: by its jaxpr, or by at most 128 examples, twice.

    Returns:
        The operator, called from the host or inside `jax.jit` with pytrees like params; results are in at least
        float32.

    Raises:
        ValueError: As for `hvp`; or the terms of model_fn and loss_fn differ.
        TypeError: A leaf of params is not floating, or model_fn is no function.
    """
    params = checks.as_params(params)
    terms = split_terms(loss_fn, data)
    models = _models(model_fn, terms)
    composed = {name: _composed(models[name], loss) for name, (loss, _) in terms.items()}
    objective = Objective.of(
        composed if isinstance(loss_fn, Mapping) else composed[""],
        params,
        data,
        compute_dtype="float32",
        check=check,
        batch_size=as_batch_size(batch_size),
    )
    sources = []
    for term in objective.terms:
        loss, part = terms[term.name]
        model, loss = (_without_data(f, part is None) for f in (models[term.name], _as_dict(loss)))
        sources.append(GaussNewtonSource(term, model, loss, params))
    subspace = Subspace.of(params, ignore, in_leaves=are_large(params))
    devices = mesh_of_products(params, mesh)
    product = Product(objective, sources, subspace, as_batch_size(batch_size), devices, linearize=linearize)
    return Operator(product.at(params), product.subspace)


class Options(NamedTuple):
    """How products are taken.

    Attributes:
        batch_size: Examples of each device at a time, or ``"auto"``.
        ignore: Which leaves are held fixed.
        check: Whether to find out if the loss is a mean over examples.
        method: How the gradient is differentiated, as in `hvp`.
        flat: Whether vectors are flat, however large params are.
    """

    batch_size: int | Literal["auto"] = "auto"
    ignore: Ignore = None
    check: bool = True
    method: Method = "forward_over_reverse"
    flat: bool = False


def hessian_product(
    loss_fn: LossFn | Mapping[str, LossFn],
    params: Params,
    data: Data,
    options: Options,
    mesh: Mesh,
    *,
    linearize: bool | None = None,
) -> tuple[Params, Product]:
    """The checked params, and products with the Hessian at any point like them.

    Args:
        loss_fn: The loss, as in `hvp`.
        params: Any pytree of floating arrays.
        data: The data, as in `hvp`.
        options: How products are taken.
        mesh: The devices, as `mesh_of_products` gives them.
        linearize: Whether linear functions are kept; None: where memory allows.

    Returns:
        Params, its leaves JAX arrays, and the product.
    """
    params = checks.as_params(params)
    batch_size = as_batch_size(options.batch_size)
    subspace = Subspace.of(params, options.ignore, in_leaves=are_large(params) and not options.flat)
    _check_method(options.method, subspace, linearize)
    linearize = False if options.method == "finite_difference" else linearize
    objective = Objective.of(loss_fn, params, data, compute_dtype="float32", check=options.check, batch_size=batch_size)
    sources = [Source(term, options.method) for term in objective.terms]
    advise = options.method == "forward_over_reverse"
    make = advised(Product) if advise else Product  # it traces, to choose the batch size
    return params, make(objective, sources, subspace, batch_size, mesh, linearize=linearize, advise=advise)


def _check_method(method: str, subspace: Subspace, linearize: bool | None) -> None:
    """Refuse a method that is unknown or cannot give the product."""
    if method not in get_args(Method):
        raise ValueError(f"method is {method!r}, expected one of {', '.join(get_args(Method))}.")
    if method != "finite_difference":
        return
    if linearize:
        raise ValueError("linearize is True, but method 'finite_difference' has nothing linear; expected None.")
    names = zip(trees.leaf_names(subspace.params_like), subspace.dtypes, subspace.free, strict=True)
    short = next((f"params{name} is {dtype}" for name, dtype, free in names if free and dtype.itemsize < 4), None)
    if short:
        raise ValueError(
            f"method is 'finite_difference', but {short}: its rounding is larger than the step. Cast params to "
            "float32, or pass another method."
        )


def mesh_of_products(params: Params, mesh: Mesh | None) -> Mesh:
    """The devices of a product: all of a mesh along one axis, which shares the examples; or those params are cut over.

    Args:
        params: A pytree of floating arrays.
        mesh: What the caller passed.

    Returns:
        The mesh.

    Raises:
        ValueError: Params are cut along an axis that the mesh lacks.
        TypeError: ``mesh`` is no mesh.
    """
    checks.check_mesh(mesh)
    if mesh_of_shards(params) is None:
        return one_mesh(mesh)
    return Placement.of(params, mesh).mesh


def one_mesh(mesh: Mesh | None) -> Mesh:
    """All devices of a mesh along one axis, which shares the examples."""
    checks.check_mesh(mesh)
    return Mesh(np.array(jax.devices()) if mesh is None else mesh.devices.ravel(), (DATA_AXIS,))


def _models(model_fn: Any, terms: Mapping[str, Any]) -> dict[str, ModelFn]:
    """The model of each term."""
    models = dict(model_fn) if isinstance(model_fn, Mapping) else dict.fromkeys(terms, model_fn)
    if set(models) != set(terms):
        raise ValueError(f"model_fn has the terms {sorted(models)} and loss_fn has {sorted(terms)}; expected the same.")
    for function in models.values():
        if not callable(function):
            raise TypeError(f"model_fn is {type(function).__name__}, expected a function of (params, batch).")
    return models


def _composed(model_fn: ModelFn, loss_fn: OutputLossFn) -> LossFn:
    def composed(params: Params, batch: Data) -> Any:
        with blamed("model_fn", "with params and a batch of data"):
            outputs = model_fn(params, batch)
        return loss_fn(outputs, batch)

    return composed


def _as_dict(loss_fn: OutputLossFn) -> Callable[..., dict[str, Any]]:
    def metrics(outputs: Any, batch: Data) -> dict[str, Any]:
        value = loss_fn(outputs, batch)
        return dict(value) if isinstance(value, Mapping) else {"loss": value}

    return metrics


def _without_data(function: Callable[..., Any], no_data: bool) -> Callable[..., Any]:
    return (lambda first, _: function(first, None)) if no_data else function
