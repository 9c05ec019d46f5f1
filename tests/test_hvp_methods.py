"""Products with the Hessian by other derivatives of the gradient, and by its differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import jaxscape as js
from tests.problems import classification_data, mlp_loss, mlp_params

PARAMS, DATA = mlp_params(), classification_data(examples=23)
V = js.random_directions(0, PARAMS, num=1, ignore=None)[0]
METHODS = ("forward_over_reverse", "reverse_over_reverse", "finite_difference")


def smooth(params, batch):
    """A loss without kinks: differences across one are no derivative."""
    x, labels = batch
    hidden = jnp.tanh(x @ params["layer0"]["kernel"] + params["layer0"]["bias"])
    logits = hidden @ params["layer1"]["kernel"] + params["layer1"]["bias"]
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)[:, 0]


def dense_product(loss, params, v):
    flat, unflatten = ravel_pytree(params)
    hessian = jax.hessian(lambda w: loss(unflatten(w), DATA).mean())(flat)
    return hessian @ ravel_pytree(v)[0]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("batch_size", ["auto", 5])
def test_the_product_is_that_of_the_dense_hessian(method, batch_size):
    product = js.hvp(smooth, PARAMS, DATA, method=method, batch_size=batch_size)(V)
    digits = 1e-7 if method == "finite_difference" else 1e-10  # float64: eps^(2/3) is 4e-11, times third derivatives
    expected = dense_product(smooth, PARAMS, V)
    np.testing.assert_allclose(ravel_pytree(product)[0], expected, rtol=digits, atol=digits)


@pytest.mark.parametrize("method", METHODS)
def test_the_spectrum_inside_and_outside_of_a_transform(method):
    operator = js.hvp(smooth, PARAMS, DATA, method=method)
    np.testing.assert_allclose(
        operator.extreme_eigenvalues(progress=False).max_eigenvalue,
        js.hvp(smooth, PARAMS, DATA).extreme_eigenvalues(progress=False).max_eigenvalue,
        rtol=1e-6,
    )
    inside = jax.jit(operator)(V)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9), inside, operator(V))


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_differences_do_not_depend_on_the_length_of_the_vector(scale):
    operator = js.hvp(smooth, PARAMS, DATA, method="finite_difference")
    scaled = operator(jax.tree.map(lambda x: scale * x, V))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a / scale, b, rtol=1e-6, atol=1e-8), scaled, operator(V))
    zero = operator(jax.tree.map(jnp.zeros_like, V))
    assert not any(np.any(x) for x in jax.tree.leaves(zero))


def test_differences_in_float32():
    params, v = (jax.tree.map(lambda x: x.astype(jnp.float32), tree) for tree in (PARAMS, V))
    product = js.hvp(smooth, params, DATA, method="finite_difference")(v)
    expected = dense_product(smooth, PARAMS, V)
    error = np.linalg.norm(ravel_pytree(product)[0] - expected) / np.linalg.norm(expected)
    assert error < 1e-3


def test_a_stream_and_weights_and_leaves_held_fixed():
    def loss(params, batch):
        return {"loss": smooth(params, batch), "weight": batch[1] + 1.0}

    batches = [tuple(x[i : i + 8] for x in DATA) for i in range(0, 23, 8)]
    expected = js.hvp(loss, PARAMS, DATA, ignore="bias_norm")(V)
    for method in METHODS[1:]:
        product = js.hvp(loss, PARAMS, js.Stream(batches), method=method, ignore="bias_norm")(V)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-8), product, expected)


@jax.custom_vjp
def inner(x):
    return jnp.tanh(x)


inner.defvjp(lambda x: (jnp.tanh(x), x), lambda x, g: (g / jnp.cosh(x) ** 2,))


@jax.custom_vjp
def kernel(x):
    """A function whose rule uses one that has no forward mode."""
    return inner(x)


kernel.defvjp(lambda x: (inner(x), x), lambda x, g: (g * (1 - inner(x) ** 2),))


@jax.custom_vjp
def opaque(x):
    """A function whose gradient cannot be differentiated, as a kernel by Pallas."""
    return _outside(np.tanh, x)


def _outside(function, x):
    return jax.pure_callback(function, jax.ShapeDtypeStruct(x.shape, x.dtype), x, vmap_method="broadcast_all")


opaque.defvjp(lambda x: (_outside(np.tanh, x), x), lambda x, g: (g * _outside(lambda y: 1 / np.cosh(y) ** 2, x),))


def loss_of(function):
    return lambda params, batch: (function(batch[0] @ params["layer0"]["kernel"]) ** 2).sum(-1)


@pytest.mark.parametrize(
    ("function", "methods"),
    [(kernel, METHODS[1:]), (opaque, METHODS[2:])],
    ids=["no forward mode", "no second derivative"],
)
def test_functions_that_refuse_a_derivative(function, methods):
    with pytest.raises((TypeError, ValueError, NotImplementedError)) as error:
        js.hvp(loss_of(function), PARAMS, DATA)(V)
    assert any("pass to js.hvp method='reverse_over_reverse'" in note for note in error.value.__notes__)
    expected = js.hvp(loss_of(jnp.tanh), PARAMS, DATA)(V)
    for method in methods:
        product = js.hvp(loss_of(function), PARAMS, DATA, method=method)(V)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-8), product, expected)


def test_what_is_refused():
    with pytest.raises(
        ValueError, match="method is 'forward', expected one of forward_over_reverse, reverse_over_reverse"
    ):
        js.hvp(smooth, PARAMS, DATA, method="forward")
    with pytest.raises(ValueError, match="linearize is True, but method 'finite_difference' has nothing linear"):
        js.hvp(smooth, PARAMS, DATA, method="finite_difference", linearize=True)
    short = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
    with pytest.raises(
        ValueError, match=r"method is 'finite_difference', but params\['layer0'\]\['bias'\] is bfloat16"
    ):
        js.hvp(smooth, short, DATA, method="finite_difference")


def test_the_default_is_forward_over_reverse():
    first, second = js.hvp(mlp_loss, PARAMS, DATA)(V), js.hvp(mlp_loss, PARAMS, DATA, method=METHODS[0])(V)
    jax.tree.map(np.testing.assert_array_equal, first, second)
