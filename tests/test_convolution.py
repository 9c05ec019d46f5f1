"""Rewritten convolutions against the native ones: values, gradients, Hessian-vector products; what is left alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxscape.convolution import _forms, compiler_options, fast_convolutions
from jaxscape.convolution._forms import as_matrix, as_patches

RNG = np.random.default_rng(0)
LAYOUTS = {"flax": ("NHWC", "HWIO", "NHWC"), "torch": ("NCHW", "OIHW", "NCHW"), "odd": ("HWNC", "IHWO", "CNHW")}
SAME = ((1, 1), (1, 1))
# Each case adds one thing to a 3x3 convolution of 2x2 pixels.
CASES = {
    "plain": {},
    "one pixel": {"space": (1, 1)},
    "one tap": {"taps": (1, 1), "padding": ((0, 0), (0, 0))},
    "uneven": {"space": (3, 2), "taps": (2, 3), "padding": ((0, 2), (2, 1))},
    "stride": {"space": (4, 5), "strides": (2, 1)},
    "negative padding": {"space": (4, 5), "padding": ((-1, 2), (1, -1))},
    "dilated kernel": {"space": (4, 5), "rhs_dilation": (2, 1), "padding": ((2, 2), (1, 1))},
    "dilated image": {"lhs_dilation": (2, 3), "padding": ((2, 2), (1, 1))},
    "groups": {"groups": 2},
    "torch layout": {"layout": "torch"},
    "odd layout": {"layout": "odd", "space": (3, 2)},
    "float32": {"dtype": np.float32},
    "bfloat16": {"dtype": jnp.bfloat16},
}


def problem(
    space=(2, 2),
    taps=(3, 3),
    strides=(1, 1),
    padding=SAME,
    lhs_dilation=(1, 1),
    rhs_dilation=(1, 1),
    groups=1,
    layout="flax",
    dtype=np.float64,
    features=2,
):
    sizes = {"N": 2, "C": features * groups, "I": features, "O": 3 * groups}
    x_spec, k_spec, _ = LAYOUTS[layout]
    image = sizes | dict(zip("HW", space, strict=True))
    kernel = sizes | dict(zip("HW", taps, strict=True))
    x = jnp.asarray(RNG.normal(size=[image[c] for c in x_spec]), dtype)
    k = jnp.asarray(RNG.normal(size=[kernel[c] for c in k_spec]), dtype)

    def fun(x, k):
        numbers = LAYOUTS[layout]
        return lax.conv_general_dilated(
            x, k, strides, padding, lhs_dilation, rhs_dilation, numbers, feature_group_count=groups
        )

    return fun, x, k


def scalar(fun):
    return lambda x, k: jnp.sum(jnp.sin(fun(x, k)))


@pytest.fixture(params=[as_matrix, as_patches], ids=["matrix", "patches"])
def always(request, monkeypatch):
    """Every convolution in this form, but for those of gradients of groups, which have none."""

    def form(eqn, spec, in_loop):
        return request.param if eqn.params["batch_group_count"] == 1 else None

    monkeypatch.setattr(_forms, "_fastest", form)


def compare(fun, x, k):
    """The rewritten function against the native one: values, gradients, HVPs, rewritten before and after them."""
    loose = {2: 5e-2, 4: 1e-4, 8: 1e-10}[x.dtype.itemsize]

    def same(result, expected):
        for a, b in zip(jax.tree.leaves(result), jax.tree.leaves(expected), strict=True):
            assert a.dtype == b.dtype
            a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
            np.testing.assert_allclose(a, b, rtol=loose, atol=loose * np.abs(b).max())

    def products(f):
        gradient = jax.grad(scalar(f), (0, 1))
        return gradient(x, k), jax.jvp(gradient, (x, k), (jnp.cos(x), jnp.sin(k)))[1]

    fast = fast_convolutions(fun, backend="cpu")
    value, expected = jax.jit(lambda: (fun(x, k), products(fun)))()
    after = fast_convolutions(lambda: products(fun), backend="cpu")
    results = jax.jit(lambda: (fast(x, k), products(fast), after()))()
    same(results[0], value)
    same(results[1], expected)
    same(results[2], expected)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.usefixtures("always")
def test_values_gradients_and_hessian_vector_products(case):
    fun, x, k = problem(**case)
    assert not has_convolution(fast_convolutions(fun, backend="cpu"), x, k)
    compare(fun, x, k)


PAIRS = {
    "plain": {"space": (5, 8)},
    "stride and dilation in height": {"space": (6, 8), "strides": (2, 1), "rhs_dilation": (2, 1)},
    "uneven padding": {"space": (5, 9), "padding": ((1, 1), (2, 1)), "taps": (3, 5)},
    "negative padding": {"space": (5, 9), "padding": ((1, -1), (-1, 2))},
    "torch layout": {"space": (4, 6), "layout": "torch"},
    "odd layout": {"space": (4, 6), "layout": "odd"},
    "float32": {"space": (4, 6), "dtype": np.float32},
    "bfloat16": {"space": (4, 6), "dtype": jnp.bfloat16},
}


@pytest.mark.parametrize("case", PAIRS.values(), ids=PAIRS)
def test_pairs_of_pixels(case):
    fun, x, k = problem(**case, features=5)
    fast = fast_convolutions(fun, backend="cpu")
    assert str(jax.make_jaxpr(fast)(x, k)) != str(jax.make_jaxpr(fun)(x, k))
    assert has_convolution(fast, x, k)  # a native one, of twice the features
    compare(fun, x, k)


@pytest.mark.parametrize(
    "case",
    [
        {"strides": (1, 2)},
        {"lhs_dilation": (1, 2)},
        {"rhs_dilation": (1, 2)},
        {"groups": 2},
        {"space": (5, 7)},
        {"taps": (3, 1)},
    ],
)
def test_no_pairs_where_pixels_do_not_pair_up(case):
    fun, x, k = problem(**{"space": (5, 8), "features": 5} | case)
    fast = fast_convolutions(fun, backend="cpu")
    assert kernels_of(fast, x, k) == kernels_of(fun, x, k)


def kernels_of(fun, x, k):
    """The shapes of the kernels of a function's convolutions."""
    eqns = jax.make_jaxpr(fun)(x, k).eqns
    return [eqn.invars[1].aval.shape for eqn in eqns if eqn.primitive.name == "conv_general_dilated"]


def has_convolution(fun, *args):
    return "conv_general_dilated" in str(jax.make_jaxpr(fun)(*args))


def small(x, k):
    return lax.conv_general_dilated(x, k, (1, 1), SAME, dimension_numbers=LAYOUTS["flax"])


X, K = jnp.asarray(RNG.normal(size=(4, 2, 2, 3))), jnp.asarray(RNG.normal(size=(3, 3, 3, 3)))


@jax.custom_jvp
def with_jvp(x, k):
    return small(x, k)


@with_jvp.defjvp
def _(primals, tangents):
    return with_jvp(*primals), 7 * tangents[0]  # no true derivative: it must survive


@jax.custom_vjp
def with_vjp(x, k):
    return small(x, k)


with_vjp.defvjp(lambda x, k: (small(x, k), k), lambda k, g: (7 * g, 0 * k))


def looped(x, k):
    return lax.scan(lambda x, _: (small(x, k), None), x, length=3)[0]


def while_looped(x, k):
    return lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, small(c[1], k)), (0, x))[1]


def branching(x, k):
    return lax.cond(x.sum() > 0, lambda: small(x, k), lambda: small(x, 2 * k))


WRAPPED = {
    "jit": jax.jit(small),
    "nested jit": jax.jit(lambda x, k: jax.jit(small)(x, k)),
    "scan": looped,
    "while": while_looped,
    "cond": branching,
    "checkpoint": jax.checkpoint(small),
    "custom_jvp": with_jvp,
    "custom_vjp": with_vjp,
    "vmap": jax.vmap(small, in_axes=(None, 0)),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_it_reaches_through(name):
    fun = WRAPPED[name]
    k = jnp.stack([K, 2 * K]) if name == "vmap" else K
    fast = fast_convolutions(fun, backend="cpu")
    np.testing.assert_allclose(fast(X, k), fun(X, k), rtol=1e-12)
    np.testing.assert_allclose(jax.jit(fast)(X, k), fun(X, k), rtol=1e-12)
    assert not has_convolution(fast, X, k)
    if name != "while":  # has no reverse mode
        for one, other in zip(jax.grad(scalar(fast), (0, 1))(X, k), jax.grad(scalar(fun), (0, 1))(X, k), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("case", [{"features": 3}, {"features": 7, "taps": (1, 1), "strides": (2, 2)}])
def test_few_features_or_a_single_tap_are_patches(case):
    fun, x, k = problem(**{"space": (8, 8)} | case)
    assert not has_convolution(fast_convolutions(fun, backend="cpu"), x, k)
    compare(fun, x, k)


def test_in_a_loop_large_images_are_patches_and_gradients_too():
    x, k = jnp.asarray(RNG.normal(size=(2, 9, 9, 5))), jnp.asarray(RNG.normal(size=(3, 3, 5, 5)))
    assert has_convolution(fast_convolutions(small, backend="cpu"), x, k)
    assert not has_convolution(fast_convolutions(looped, backend="cpu"), x, k)
    gradient = jax.grad(scalar(looped), 1)
    fast = fast_convolutions(gradient, backend="cpu")
    assert not has_convolution(fast, x, k)
    np.testing.assert_allclose(fast(x, k), gradient(x, k), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("layout", ["flax", "torch"])
def test_gradients_of_kernels_in_parts_of_the_batch(layout, monkeypatch):
    fun, _, k = problem(layout=layout, space=(4, 6), features=5, strides=(2, 1))
    shape = (7, 5, 4, 6) if layout == "torch" else (7, 4, 6, 5)
    x = jnp.asarray(RNG.normal(size=shape))
    monkeypatch.setattr(_forms, "PART", 3 * 4 * 6 * 5)  # three images
    gradient = jax.grad(scalar(fun), 1)
    fast = fast_convolutions(gradient, backend="cpu")
    convolutions = [str(jax.make_jaxpr(f)(x, k)).count("conv_general_dilated[") for f in (gradient, fast)]
    assert convolutions[1] == convolutions[0] + 2
    np.testing.assert_allclose(fast(x, k), gradient(x, k), rtol=1e-10, atol=1e-12)


def test_vmap_over_kernels_after_the_rewrite():
    kernels = jnp.stack([K, 2 * K, -K])
    fast = jax.vmap(fast_convolutions(small, backend="cpu"), in_axes=(None, 0))
    np.testing.assert_allclose(fast(X, kernels), jnp.stack([small(X, k) for k in kernels]), rtol=1e-12)


def test_what_is_not_known_to_be_faster_is_left_alone():
    large, kernel = jnp.ones((2, 8, 8, 5)), jnp.ones((3, 3, 5, 32))
    assert has_convolution(fast_convolutions(small, backend="cpu"), large, kernel)
    assert has_convolution(fast_convolutions(small, backend="gpu"), X, K)
    assert has_convolution(fast_convolutions(small, backend="cpu"), X.astype(int), K.astype(int))

    def batch_groups(x, k):
        return lax.conv_general_dilated(x, k, (1, 1), SAME, dimension_numbers=LAYOUTS["flax"], batch_group_count=2)

    k = jnp.ones((3, 3, 3, 4))
    np.testing.assert_array_equal(fast_convolutions(batch_groups, backend="cpu")(X, k), batch_groups(X, k))


def test_pytrees_keywords_and_closures():
    shift = jnp.ones(3)

    def fun(inputs, *, scale):
        return {"y": small(*inputs) * scale + shift, "n": 3}

    out = fast_convolutions(fun, backend="cpu")((X, K), scale=2.0)
    np.testing.assert_allclose(out["y"], 2 * small(X, K) + 1, rtol=1e-12)
    assert out["n"] == 3


def test_functions_without_convolutions_are_the_same():
    def fun(x):
        return jax.nn.relu(x) @ x.T

    assert str(jax.make_jaxpr(fast_convolutions(fun, backend="cpu"))(jnp.ones((3, 3)))) == str(
        jax.make_jaxpr(fun)(jnp.ones((3, 3)))
    )


# ---- what is between the convolutions

FEW = (3, 8, 32, 16)  # images, height, width, features: rows of 512 floats


def elementwise(x, y, b):
    """Batch norm with ReLU, and more of what networks do at each place; b is per feature."""
    x = (x - b) * lax.rsqrt(jnp.square(b) + 1) + jnp.broadcast_to(b, x.shape)
    x = jnp.where(x > y, jnp.tanh(x), jnp.exp(-(y**2))) + x.astype(y.dtype)
    return jax.nn.relu(x) + jax.nn.gelu(y) * 2 + jnp.clip(x, -1, 1)


OPERANDS = {
    "per feature": (16,),
    "per image and feature": (3, 1, 1, 16),
    "per line and feature": (3, 8, 1, 16),
    "per image": (3, 1, 1, 1),
    "at each place": FEW,
}


@pytest.mark.parametrize("shape", OPERANDS.values(), ids=OPERANDS)
@pytest.mark.parametrize("few", [FEW, FEW[1:]], ids=["images", "sequences"])
def test_elementwise_operations_in_rows(few, shape):
    shape = shape[-len(few) :] if len(shape) > 1 else shape
    x, y = (jnp.asarray(RNG.normal(size=few)) for _ in range(2))
    b = jnp.asarray(RNG.normal(size=shape))
    fast = fast_convolutions(elementwise, backend="cpu")
    merged = (*few[:-2], few[-2] * few[-1])
    assert merged in shapes_of(jax.make_jaxpr(fast)(x, y, b).jaxpr, "max", "sub", "tanh", "select_n")
    assert few not in shapes_of(jax.make_jaxpr(fast)(x, y, b).jaxpr, "max", "sub", "tanh", "select_n", "erfc")
    direction = tuple(map(jnp.cos, (x, y, b)))

    def products(f):
        gradient = jax.grad(lambda *args: jnp.sum(jnp.sin(f(*args))), (0, 1, 2))
        return f(x, y, b), gradient(x, y, b), jax.jvp(gradient, (x, y, b), direction)[1]

    expected = jax.jit(lambda: products(elementwise))()
    after = fast_convolutions(lambda: products(elementwise), backend="cpu")
    for result in jax.jit(lambda: (products(fast), after()))():
        for one, other in zip(jax.tree.leaves(result), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)


def shapes_of(jaxpr, *names):
    """The shapes of what primitives of these names give, anywhere inside."""
    result = set()
    for eqn in jaxpr.eqns:
        if eqn.primitive.name in names:
            result |= {v.aval.shape for v in eqn.outvars}
        for value in eqn.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                result |= shapes_of(inner, *names)
    return result


@pytest.mark.parametrize("shape", [(3, 8, 32, 64), (3, 8, 2, 16), (512, 16), (1, 2, 32, 16)])
def test_rows_that_would_gain_nothing_are_left_alone(shape):
    fun = jax.nn.relu
    x = jnp.ones(shape)
    assert str(jax.make_jaxpr(fast_convolutions(fun, backend="cpu"))(x)) == str(jax.make_jaxpr(fun)(x))


def test_an_operand_that_differs_along_the_row_but_not_the_features_is_left_alone():
    x, b = jnp.ones(FEW), jnp.arange(32.0)[:, None]
    fast = fast_convolutions(lambda x, b: x * b, backend="cpu")
    np.testing.assert_array_equal(fast(x, b), x * b)
    assert shapes_of(jax.make_jaxpr(fast)(x, b).jaxpr, "mul") == {FEW}


def test_tokens_pass_through():
    def fun(x):
        return lax.after_all(lax.create_token()), jax.nn.relu(x)

    jaxpr = jax.make_jaxpr(fast_convolutions(fun, backend="cpu"))(jnp.ones(FEW))
    assert "after_all" in str(jaxpr)
    assert shapes_of(jaxpr.jaxpr, "max") == {(3, 8, 512)}


def test_what_convolutions_and_others_use_is_computed_once():
    kernels = jnp.asarray(RNG.normal(size=(6, 3, 3, 16, 16))) / 12

    def residual(x):
        for kernel in kernels:
            x = jax.nn.relu(x + small(x, kernel))
        return x

    x = jnp.asarray(RNG.normal(size=FEW))
    compiled = jax.jit(fast_convolutions(residual, backend="cpu"), compiler_options=compiler_options("cpu"))
    np.testing.assert_allclose(compiled(x), residual(x), rtol=1e-9)
    assert compiled.lower(x).compile().as_text().count(" maximum(") == len(kernels)
    assert compiler_options("gpu") == {}
