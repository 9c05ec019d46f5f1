"""Hessian-vector products on pytrees, and the operator that every curvature call makes."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh

from jaxscape import engine, trees
from jaxscape.curvature._product import (
    Form,
    GaussNewton,
    Hessian,
    ModelFn,
    OutputLossFn,
    Product,
    choose_batch_size,
    hashable,
)
from jaxscape.data import as_batch_size, num_examples
from jaxscape.layout import Layout
from jaxscape.types import Data, Ignore, LossFn, Params


def hvp(
    loss_fn: LossFn,
    params: Params,
    data: Data,
    *,
    batch_size: int | Literal["auto"] = "auto",
    mesh: Mesh | None = None,
    ignore: Ignore = None,
    linearize: bool | None = None,
) -> Callable[[Params], Params]:
    """Products with the Hessian of the mean loss over all of the data, at ``params``.

    ``H v = d/dt grad L(params + t v)`` at t = 0, jvp of grad (Pearlmutter 1994), exact: the mean is over examples,
    whatever the batch size and the number of devices. Products of convolutions are in full float32 on every device.

    >>> import jax.numpy as jnp
    >>> def loss(p, x):
    ...     return p["w"] ** 2 * x
    >>> product = hvp(loss, {"w": jnp.float32(1.0)}, jnp.array([1.0, 2.0, 3.0]))
    >>> float(product({"w": jnp.float32(1.0)})["w"])
    4.0

    Args:
        loss_fn: ``loss_fn(params, batch)`` -> the loss of each example, shape ``(batch,)``, a dict with the key
            ``"loss"``, or a scalar, the mean of the batch; twice differentiable by JAX.
        params: Any pytree of floating arrays.
        data: Arrays with a common leading example axis.
        batch_size: Examples of each device at a time; ``"auto"``: as many as a CPU's cache holds the linear function
            of, 512 on other devices.
        mesh: The devices, which share the examples; by default all of all processes.
        ignore: Which leaves are held fixed: None, none of them; ``"bias_norm"``, those of rank at most 1; or a
            predicate on (path, leaf). Rows and columns of these leaves are zero.
        linearize: Whether the gradient, linearized at params, is kept in memory, which makes a product 1.1 to 1.2
            times faster; None: where it takes at most a quarter of the free memory.

    Returns:
        ``v -> H v``, of pytrees like params, in at least float32; called from the host or inside `jax.jit`.

    Raises:
        ValueError: params or data is empty, leaves of data differ in length, loss_fn gives a wrong shape, ``ignore``
            leaves nothing, or ``batch_size`` is not positive. The product raises it for a v that is not like params.
        TypeError: A leaf of params is not floating.
    """
    params, product = operator(
        params, loss_fn, data, batch_size=batch_size, mesh=mesh, ignore=ignore, linearize=linearize
    )
    return _on_pytrees(params, product)


def ggn_product(
    model_fn: ModelFn,
    loss_fn: OutputLossFn,
    params: Params,
    data: Data,
    *,
    batch_size: int | Literal["auto"] = "auto",
    mesh: Mesh | None = None,
    ignore: Ignore = None,
    linearize: bool | None = None,
) -> Callable[[Params], Params]:
    """Products with the generalized Gauss-Newton matrix of the mean loss over all of the data, at ``params``.

    ``G v = mean_i J_i^T H_i J_i v`` with J the Jacobian of the model's outputs in params and H the Hessian of the loss
    in the outputs (Schraudolph 2002): positive semidefinite for a convex loss, and the Hessian where the model is
    linear. For cross-entropy it is the Fisher information matrix.

    >>> import jax.numpy as jnp
    >>> params = {"w": jnp.float32(3.0)}
    >>> product = ggn_product(lambda p, x: p["w"] * x, lambda y, x: y**2, params, jnp.array([1.0, 2.0]))
    >>> float(product({"w": jnp.float32(1.0)})["w"])
    5.0

    Args:
        model_fn: ``model_fn(params, batch)`` -> the outputs, shape ``(batch, ...)``.
        loss_fn: ``loss_fn(outputs, batch)`` -> the loss of each example, shape ``(batch,)``.
        params: Any pytree of floating arrays.
        data: As in `hvp`.
        batch_size: As in `hvp`.
        mesh: As in `hvp`.
        ignore: As in `hvp`.
        linearize: As in `hvp`.

    Returns:
        ``v -> G v``, as `hvp` gives it.

    Raises:
        ValueError: As in `hvp`.
        TypeError: As in `hvp`.
    """
    params = trees.as_params(params)
    form = GaussNewton(hashable(model_fn), hashable(loss_fn))

    def whole(params: Params, batch: Data) -> Any:
        return loss_fn(model_fn(params, batch), batch)

    product = _product(form, whole, params, data, batch_size, mesh, ignore, linearize)
    return _on_pytrees(params, product)


def operator(
    params: Params,
    loss_fn: LossFn,
    data: Data,
    *,
    batch_size: int | Literal["auto"],
    mesh: Mesh | None,
    ignore: Ignore,
    linearize: bool | None = None,
) -> tuple[Params, Product]:
    """The checked params, and the Hessian's product at any point like them.

    Args:
        params: As in `hvp`.
        loss_fn: As in `hvp`.
        data: As in `hvp`.
        batch_size: As in `hvp`.
        mesh: As in `hvp`.
        ignore: As in `hvp`.
        linearize: As in `hvp`.

    Returns:
        Params, its leaves JAX arrays, and the product.
    """
    params = trees.as_params(params)
    form = Hessian(hashable(loss_fn))
    return params, _product(form, loss_fn, params, data, batch_size, mesh, ignore, linearize)


def _product(
    form: Form,
    loss_fn: LossFn,
    params: Params,
    data: Data,
    batch_size: int | Literal["auto"],
    mesh: Mesh | None,
    ignore: Ignore,
    linearize: bool | None,
) -> Product:
    examples = num_examples(data)
    size = None if batch_size == "auto" else as_batch_size(batch_size, examples)
    layout = Layout.of(params, ignore)
    per_example = engine.probe(loss_fn, params, data, min(2, examples))["loss"]
    devices = np.array(jax.devices()) if mesh is None else mesh.devices.ravel()
    return Product(
        form,
        layout,
        data,
        per_example=per_example,
        batch_size=size or min(choose_batch_size(form, layout, params, data, per_example), examples),
        mesh=Mesh(devices, (engine.DATA_AXIS,)),
        linearize=linearize,
    )


def _on_pytrees(params: Params, product: Product) -> Callable[[Params], Params]:
    layout = product.layout
    flat = product.at(params)
    embed, extract = jax.jit(layout.embed), jax.jit(layout.extract)

    def matvec(v: Params) -> Params:
        """``H v``."""
        return embed(flat(extract(trees.like(params, v, "v"))))

    return matvec
