"""Rewritten convolutions against the native ones: values, gradients, Hessian-vector products; what is left alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from jaxscape import runs, trees
from jaxscape.convolution import _cpu, _forms, compiler_options, fast_convolutions
from jaxscape.convolution._forms import as_matrix, as_patches
from jaxscape.convolution._rules import convolutions
from models.resnet import ResNet
from tests.problems import slow_but, slow_unless

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

    monkeypatch.setattr(_cpu, "_fastest", form)


def compare(fun, x, k, backend="cpu"):
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

    fast = fast_convolutions(fun, backend=backend)
    value, expected = jax.jit(lambda: (fun(x, k), products(fun)))()
    after = fast_convolutions(lambda: products(fun), backend=backend)
    results = jax.jit(lambda: (fast(x, k), products(fast), after()))()
    same(results[0], value)
    same(results[1], expected)
    same(results[2], expected)


FEW_CASES = ("stride", "float32")


@pytest.mark.parametrize("case", [slow_unless(name in FEW_CASES, CASES[name]) for name in CASES], ids=CASES)
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


FEW_PAIRS = ("plain", "uneven padding", "odd layout", "float32")


@pytest.mark.parametrize("case", [slow_unless(name in FEW_PAIRS, PAIRS[name]) for name in PAIRS], ids=PAIRS)
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
    return [eqn.invars[1].aval.shape for eqn in convolutions(jax.make_jaxpr(fun)(x, k).jaxpr)]


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


@pytest.mark.parametrize("name", slow_but(["scan", "custom_vjp"], WRAPPED))
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
QUICK = [("per image", FEW)]  # 3 s each: products of all operands


@pytest.mark.parametrize(
    ("name", "few"),
    [slow_unless((name, few) in QUICK, name, few) for name in OPERANDS for few in (FEW, FEW[1:])],
)
def test_elementwise_operations_in_rows(name, few):
    shape = OPERANDS[name]
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


# ---- on a GPU: the rewrite is the same program on a CPU, so its numbers can be seen here

BLOCKS = {  # the rewritten kernel's shape; in the layout (H, W, in, out)
    "blocks of 4": ({"features": 5}, (3, 6, 5, 12)),
    "read in blocks of 4": ({"features": 8, "dtype": jnp.bfloat16}, (3, 3, 32, 12)),
    "an odd width": ({"features": 5, "space": (3, 6)}, (3, 3, 5, 3)),
    "stride and dilation in height": ({"features": 5, "strides": (2, 1), "rhs_dilation": (2, 1)}, (3, 6, 5, 12)),
    "uneven padding": ({"features": 8, "padding": ((1, 1), (2, 0)), "dtype": jnp.float16}, (3, 6, 8, 12)),
    "five taps": ({"features": 8, "taps": (3, 5), "padding": ((1, 1), (2, 2)), "dtype": jnp.float16}, (3, 8, 8, 12)),
    "a stride": ({"features": 5, "strides": (1, 2)}, (3, 3, 5, 3)),
    "groups": ({"groups": 2}, (3, 3, 2, 6)),
    "one tap": ({"taps": (1, 1), "padding": ((0, 0), (0, 0))}, (1, 1, 2, 3)),
    "float64": ({"dtype": np.float64}, (3, 3, 2, 3)),
}


@pytest.mark.parametrize(
    ("case", "shape"), [slow_unless(i % 2 == 0, *block) for i, block in enumerate(BLOCKS.values())], ids=BLOCKS
)
def test_blocks_of_pixels_on_a_gpu(case, shape):
    fun, x, k = problem(**{"space": (3, 8), "dtype": np.float32} | case)
    assert kernels_of(fast_convolutions(fun, backend="gpu"), x, k) == [shape]
    compare(fun, x, k, backend="gpu")


@pytest.mark.parametrize(("features", "size"), [(16, 4), (32, 2), (64, 2), (65, 1)])
def test_more_features_need_smaller_blocks(features, size):
    x, k = jnp.ones((1, 4, 8, 3), jnp.float32), jnp.ones((3, 3, 3, features), jnp.float32)
    assert kernels_of(fast_convolutions(small, backend="gpu"), x, k) == [(3, 2 + size, 3, size * features)]


@pytest.mark.parametrize("change", [{"layout": "torch"}, {"precision": "float32"}])
def test_other_layouts_and_full_float32_have_no_blocks(change):
    fun, x, k = problem(space=(4, 8), features=5, dtype=np.float32, layout=change.get("layout", "flax"))
    with jax.default_matmul_precision(change.get("precision", "tensorfloat32")):
        assert kernels_of(fast_convolutions(fun, backend="gpu"), x, k) == kernels_of(fun, x, k)


def block(x, k, numbers, *, chain):
    """A residual block: a convolution, what follows it, the sum and ReLU; numbers are per feature."""
    a, b = (n.reshape(1, 1, 1, -1) for n in numbers)
    return jax.nn.relu(chain(small(x, k), a, b) + x)


CHAINS = {
    "batch norm": lambda y, a, b: (y - a) * (lax.rsqrt(jnp.square(b) + 1e-5) * a) + b,
    "bias": lambda y, a, b: y + a,
    "factor": lambda y, a, b: a * y,
    "division": lambda y, a, b: (y + a) / (1 + b * b),
    "taken away": lambda y, a, b: a - (b - y) * a,
    "numbers": lambda y, a, b: 2 * y - 3,
    "other dtypes": lambda y, a, b: (y.astype(jnp.float32) * a.astype(jnp.float32)).astype(y.dtype) + b,
}


@pytest.mark.parametrize(
    "chain", [slow_unless(i % 4 == 0, chain) for i, chain in enumerate(CHAINS.values())], ids=CHAINS
)
@pytest.mark.parametrize("features", slow_but([16], [16, 96]), ids=["blocks", "single pixels"])
def test_what_follows_a_convolution_becomes_part_of_it_on_a_gpu(features, chain):
    x, k, *numbers = (
        jnp.asarray(RNG.normal(size=shape), jnp.float32)
        for shape in [(2, 4, 8, features), (3, 3, features, features), (features,), (features,)]
    )
    fun = functools.partial(block, chain=chain)
    k = k / 3 / features**0.5  # so that the results are near 1
    fast = fast_convolutions(fun, backend="gpu")
    np.testing.assert_allclose(jax.jit(fast)(x, k, numbers), jax.jit(fun)(x, k, numbers), rtol=1e-4, atol=1e-4)
    for wrt in (0, 1, 2):
        gradients = [
            jax.jit(jax.grad(lambda *a, f=f: jnp.sum(jnp.sin(f(*a))), wrt))(x, k, numbers) for f in (fast, fun)
        ]
        for one, other in zip(*map(jax.tree.leaves, gradients), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-3 * np.abs(other).max())
    after = images_of(jax.make_jaxpr(fast)(x, k, numbers).jaxpr, x.size)
    assert after.count("mul") == after.count("sub") == after.count("div") == 0
    assert after.count("add") <= 2  # the summand and the residual
    assert after.count("max") == 1


def images_of(jaxpr, size):
    """The names of the operations whose result has this many numbers, anywhere inside."""
    names = []
    for eqn in jaxpr.eqns:
        inner = [getattr(v, "jaxpr", v) for v in eqn.params.values()]
        inner = [j for j in inner if hasattr(j, "eqns")]
        names += [name for j in inner for name in images_of(j, size)]
        if not inner and any(v.aval.size == size for v in eqn.outvars):
            names.append(eqn.primitive.name)
    return names


def test_what_differs_from_pixel_to_pixel_stays_outside():
    x, k = jnp.asarray(RNG.normal(size=(2, 4, 8, 16)), jnp.float32), jnp.ones((3, 3, 16, 16), jnp.float32)

    def fun(x, k):
        y, z = small(x, k), small(x, 2 * k)
        y = y * jnp.arange(8.0, dtype=y.dtype)[:, None]  # by column
        jax.debug.callback(lambda y: None, small(x, k))  # it has no result
        jax.debug.callback(lambda: None)  # and this one no operand either
        return y * z, z * 2 + z, 1 / (small(x, 3 * k) + 1), small(x, k) > 0

    results = zip(jax.jit(fast_convolutions(fun, backend="gpu"))(x, k), jax.jit(fun)(x, k), strict=True)
    for result, expected in results:
        np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4)


def test_a_network_on_a_gpu_gives_the_same_losses():
    """Blocks, factors and summands, and what is between them, in a whole network in evaluation mode."""
    model = ResNet((1, 1), (4, 8), num_classes=10, image_shape=(8, 8, 3), shortcuts=True, rngs=nnx.Rngs(0))
    graphdef, *parts = nnx.split(model, nnx.Param, nnx.BatchStat)
    params, stats = map(nnx.to_pure_dict, parts)
    stats = jax.tree.map(lambda s: s + jnp.abs(jnp.asarray(RNG.normal(size=s.shape), s.dtype)), stats)
    batch = RNG.normal(size=(4, 8, 8, 3)).astype(np.float32), np.arange(4)
    loss = runs.classification_loss(graphdef, trees.overlay(params, stats))
    fast = fast_convolutions(loss, backend="gpu")
    result, expected = jax.jit(fast)(params, batch), jax.jit(loss)(params, batch)
    np.testing.assert_allclose(result["loss"], expected["loss"], rtol=1e-5)
    text = str(jax.make_jaxpr(fast)(params, batch))
    assert "4,8,2,16]" in text  # blocks of 4 pixels, of 4 features
    assert "sub" not in images_of(jax.make_jaxpr(fast)(params, batch).jaxpr, 4 * 8 * 8 * 4)
    assert "sub" in images_of(jax.make_jaxpr(loss)(params, batch).jaxpr, 4 * 8 * 8 * 4)
