"""The permutations of a network: found from its computation, they change nothing; aligned, they are undone."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxscape as js
import models
from jaxscape import trees
from jaxscape.alignment._match import indices
from tests.problems import slow_but

RNG = np.random.default_rng(0)


def normal(**shapes):
    return {name: jnp.asarray(np.random.default_rng(len(name)).normal(size=shape)) for name, shape in shapes.items()}


def mlp(p, x):
    return jax.nn.relu(x @ p["w1"] + p["b1"]) @ p["w2"]


def residual(p, x):
    h = x @ p["stem"]
    return (h + jnp.tanh(h @ p["w1"]) @ p["w2"]) @ p["head"]


def attention(p, x):
    """4 heads of 3, in flat kernels."""
    q, k, v = ((x @ p[name]).reshape(*x.shape[:-1], 4, 3) for name in ("q", "k", "v"))
    weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k), axis=-1)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(*x.shape[:-1], 12) @ p["out"]


def dense_block(p, x):
    first = jax.nn.relu(x @ p["w1"])
    both = jnp.concatenate([first, jax.nn.relu(first @ p["w2"])], axis=-1) * p["scale"]
    return both @ p["head"]


def convolution(x, kernel, groups=1):
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=numbers, feature_group_count=groups
    )


def images(p, x):
    """A convolution, a depthwise one, pooling, and all pixels in one vector."""
    x = convolution(convolution(x, p["stem"]), p["depthwise"], 6)
    x = nnx.max_pool(jax.nn.relu(x + p["bias"]), (2, 2), strides=(2, 2))
    return x.reshape(len(x), -1) @ p["head"]


def grouped(p, x):
    return convolution(convolution(x, p["stem"]), p["groups"], 2).mean((1, 2)) @ p["head"]


def looped(p, x):
    return jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x @ p["stem"], p["layers"])[0] @ p["head"]


ONES = jnp.ones(7)


def with_constants(p, x):
    """Arrays that it closes over: one that is the same everywhere, and one that is not."""
    return jax.nn.relu(x @ p["w1"] + ONES) @ p["w2"] * np.arange(2.0)


NETWORKS = {  # function, params, input, number of permutations
    "mlp": (mlp, normal(w1=(3, 7), b1=(7,), w2=(7, 2)), (5, 3), 1),
    "constants": (with_constants, normal(w1=(3, 7), w2=(7, 2)), (5, 3), 1),
    "residual": (residual, normal(stem=(3, 6), w1=(6, 9), w2=(9, 6), head=(6, 2)), (5, 3), 2),
    "attention": (attention, normal(q=(5, 12), k=(5, 12), v=(5, 12), out=(12, 2)), (2, 6, 5), 3),
    "concatenation": (dense_block, normal(w1=(3, 4), w2=(4, 5), scale=(9,), head=(9, 2)), (5, 3), 2),
    "images": (
        images,
        normal(stem=(3, 3, 1, 6), depthwise=(3, 3, 1, 6), bias=(6,), head=(2 * 2 * 6, 3)),
        (2, 4, 4, 1),
        1,
    ),
    "one kernel for all features": (
        lambda p, x: (
            convolution(jax.nn.relu(convolution(x, p["stem"])), jnp.ones((3, 3, 1, 12)), 6).mean((1, 2)) @ p["head"]
        ),
        normal(stem=(3, 3, 1, 6), head=(12, 2)),
        (2, 4, 4, 1),
        2,
    ),
    "one kernel for all groups": (
        lambda p, x: convolution(convolution(x, p["stem"]), jnp.ones((3, 3, 3, 4)), 2).mean((1, 2)) @ p["head"],
        normal(stem=(3, 3, 1, 6), head=(4, 2)),
        (2, 4, 4, 1),
        0,
    ),
    "units twice": (
        lambda p, x: (jnp.tanh(x @ p["w1"]) + jnp.tanh(x @ p["w1"]) @ p["w"]) @ p["w2"],
        normal(w1=(3, 6), w=(6, 6), w2=(6, 2)),
        (5, 3),
        1,
    ),
    "groups": (grouped, normal(stem=(3, 3, 1, 6), groups=(3, 3, 3, 4), head=(4, 2)), (2, 4, 4, 1), 0),
    "loop": (looped, normal(stem=(3, 4), layers=(2, 4, 4), head=(4, 2)), (5, 3), 0),
}


def permuted(params, spec, rng):
    permutations = {name: rng.permutation(size) for name, size in spec.sizes.items()}
    leaves = []
    for path, leaf in zip(trees.leaf_names(params), map(np.asarray, jax.tree.leaves(params)), strict=True):
        for place, (axis, size) in enumerate(zip(spec.axes[path], leaf.shape, strict=True)):
            leaf = leaf.take(indices(axis, size, permutations, spec.sizes), place)
        leaves.append(jnp.asarray(leaf))
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


@pytest.mark.parametrize("name", NETWORKS)
def test_permutations_leave_the_function_as_it_is(name):
    function, params, shape, count = NETWORKS[name]
    x = RNG.normal(size=shape)
    spec = js.permutation_spec(function, params, x)
    assert len(spec.sizes) == count
    other = permuted(params, spec, RNG)
    np.testing.assert_allclose(function(other, x), function(params, x), rtol=1e-9, atol=1e-11)
    assert count == 0 or any(
        (leaf != old).any() for leaf, old in zip(*map(jax.tree.leaves, (other, params)), strict=True)
    )


@pytest.mark.parametrize("name", [name for name, network in NETWORKS.items() if network[3]])
def test_a_permuted_network_is_recovered(name):
    function, params, shape, _ = NETWORKS[name]
    spec = js.permutation_spec(function, params, jnp.zeros(shape))
    other = permuted(params, spec, RNG)
    jax.tree.map(np.testing.assert_array_equal, js.align(params, other, spec), params)


def test_permuted_copies_of_a_deep_and_narrow_network_are_recovered():
    """From the order of the copy alone 3 of these 10 are not."""
    names = [f"w{i:02}" for i in range(16)]

    def function(p, x):
        for name in names:
            x = jnp.tanh(x @ p[name])
        return x

    spec = None
    for seed in range(10):
        rng = np.random.default_rng(seed)
        params = {
            name: jnp.asarray(rng.normal(size=(8 if i else 3, 8 if i < 15 else 2))) for i, name in enumerate(names)
        }
        spec = spec or js.permutation_spec(function, params, jnp.zeros((2, 3)))
        aligned = js.align(params, permuted(params, spec, rng), spec)
        jax.tree.map(np.testing.assert_array_equal, aligned, params)


def test_products_and_sums_are_described():
    _, params, shape, _ = NETWORKS["images"]
    axes = js.permutation_spec(images, params, jnp.zeros(shape)).axes
    assert axes["['head']"] == (("product", 2, 2, axes["['bias']"][0]), None)
    _, params, shape, _ = NETWORKS["concatenation"]
    axes = js.permutation_spec(dense_block, params, jnp.zeros(shape)).axes
    assert axes["['scale']"] == (("sum", axes["['w1']"][1], axes["['w2']"][1]),)


def test_one_hidden_layer_against_all_permutations():
    a, b = normal(w1=(3, 5), w2=(5, 2)), normal(w1=(3, 5), w2=(5, 2))
    b = jax.tree.map(lambda x, y: x + 2 * jnp.asarray(RNG.normal(size=y.shape)), a, b)
    aligned = js.align(a, b, {"['w1']": (None, "h"), "['w2']": ("h", None)})

    def product(order):
        order = np.array(order)
        return float((a["w1"] * b["w1"][:, order]).sum() + (a["w2"] * b["w2"][order]).sum())

    best = np.array(max(itertools.permutations(range(5)), key=product))
    np.testing.assert_array_equal(aligned["w1"], b["w1"][:, best])
    np.testing.assert_array_equal(aligned["w2"], b["w2"][best])


def test_alignment_never_increases_the_distance():
    function, a, shape, _ = NETWORKS["residual"]
    b = jax.tree.map(lambda x: jnp.asarray(RNG.normal(size=x.shape)), a)
    aligned = js.align(a, b, js.permutation_spec(function, a, jnp.zeros(shape)))
    x = RNG.normal(size=shape)
    np.testing.assert_allclose(function(aligned, x), function(b, x), rtol=1e-9)
    distances = [float(trees.norm(jax.tree.map(jnp.subtract, a, other))) for other in (b, aligned)]
    assert distances[1] < distances[0]


def test_it_ends_where_units_are_on_two_axes_of_a_leaf():
    """There an assignment can raise what it maximizes and lower the inner product, for ever."""
    function, a, shape, _ = NETWORKS["units twice"]
    spec = js.permutation_spec(function, a, jnp.zeros(shape))
    for _ in range(20):
        b = jax.tree.map(lambda x: jnp.asarray(RNG.normal(size=x.shape)), a)
        aligned = js.align(a, b, spec)
        distances = [float(trees.norm(jax.tree.map(jnp.subtract, a, other))) for other in (b, aligned)]
        assert distances[1] <= distances[0]


def variables_of(name, image, **options):
    """Any weights that keep the activations near 1, and the function of the network."""
    build = functools.partial(models.create, name, num_classes=3, image_shape=image, **options)
    graphdef, *states = nnx.split(nnx.eval_shape(build), nnx.Param, nnx.BatchStat)
    rng = np.random.default_rng(0)

    def weights(leaf):
        if leaf.ndim == 1:
            return jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape), leaf.dtype)
        return jnp.asarray(rng.normal(size=leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1])), leaf.dtype)

    variables = jax.tree.map(weights, trees.overlay(*map(nnx.to_pure_dict, states)))
    return variables, lambda p, x: nnx.merge(graphdef, p)(x)


MODELS = {  # name, image, options, number of permutations
    "resnet20": ("resnet20", (8, 8, 1), {}, 3 + 9),
    "resnet20, noshort": ("resnet20", (8, 8, 1), {"shortcuts": False}, 19),
    "vgg9": ("vgg9", (16, 16, 3), {}, 8),
    "wide": ("wrn56_2", (8, 8, 1), {}, 3 + 27),
    "bottleneck": ("resnet50", (8, 8, 3), {}, 5 + 32),
    "densenet121": ("densenet121", (8, 8, 3), {}, 1 + 2 * 58 + 3),
}


@pytest.mark.parametrize("name", slow_but(["resnet20, noshort"], MODELS))
def test_networks_of_models_need_no_specification(name):  # each traces a whole network, twice: 5 s
    architecture, image, options, count = MODELS[name]
    variables, function = variables_of(architecture, image, **options)
    spec = js.permutation_spec(function, variables, jnp.zeros((2, *image), jnp.float32))
    assert len(spec.sizes) == count
    other = permuted(variables, spec, RNG)
    x = jnp.asarray(RNG.normal(size=(4, *image)), jnp.float32)
    np.testing.assert_allclose(function(other, x), function(variables, x), rtol=2e-3, atol=1e-3)
    jax.tree.map(np.testing.assert_array_equal, js.align(variables, other), variables)


def test_a_permuted_run_is_recovered_to_barrier_zero(run):
    spec = js.permutation_spec(run.loss_fn, run.variables, tuple(x[:4] for x in run.data))
    other = permuted(run.variables, spec, RNG)
    grid = js.Grid.line(0, 1, 5)
    before, after = (
        js.loss_barrier(js.interpolate(run.variables, b, run.loss_fn, run.test_data, grid=grid, progress=False)).value
        for b in (other, js.align(run.variables, other, spec))
    )
    assert before > 1e-3
    assert abs(after) < 1e-6


SPEC = {"['w1']": (None, "h"), "['w2']": ("h", None)}
PAIR = normal(w1=(3, 5), w2=(5, 2))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"spec": None}, ValueError, r"spec is None, but params are those of no network of `models`"),
        ({"spec": 3}, TypeError, "spec is int, expected a mapping"),
        ({"spec": {"['w1']": (None, "h")}}, ValueError, r"spec lacks \['w2'\]"),
        ({"spec": SPEC | {"['w3']": ("h",)}}, ValueError, r"spec has \['w3'\], which params lack"),
        ({"spec": SPEC | {"['w2']": ("h",)}}, ValueError, r"expected a name or None for each of 2 axes"),
        ({"spec": SPEC | {"['w2']": (None, "h")}}, ValueError, r"an axis 'h' of 5 units; the leaf has 2"),
        ({"spec": dict.fromkeys(SPEC, (None, None))}, ValueError, "spec permutes no axis"),
        ({"spec": SPEC | {"['w1']": (None, ("product", "x", "y"))}}, ValueError, "x, y do not follow from spec"),
        ({"spec": js.Spec(SPEC, {"h": 4})}, ValueError, r"an axis 'h' of 4 units; the leaf has 5"),
        ({"spec": js.Spec(SPEC, {"h": "5"})}, ValueError, r"spec.sizes\['h'\] is '5', expected a positive integer"),
        ({"spec": SPEC | {"['w1']": None}}, ValueError, r"spec\[.*\] is None, expected a name or None for each of 2"),
        (
            {"spec": SPEC | {"['w1']": (None, ("foo", 1, "h"))}},
            ValueError,
            r"expected a name or None for each of 2 axes",
        ),
        ({"spec": SPEC | {"['w1']": (None, ("product", 2, "x"))}}, ValueError, r"does not fit the 5 units of the leaf"),
        ({"b": PAIR | {"w1": jnp.full((3, 5), jnp.nan)}}, ValueError, r"b\['w1'\] has NaN or infinite entries"),
        ({"b": normal(w1=(3, 5))}, ValueError, "b "),
        ({"seed": -1}, ValueError, "seed is -1"),
    ],
    ids=range(16),
)
def test_mistakes_are_named(change, error, message):
    arguments = {"a": PAIR, "b": PAIR, "spec": SPEC} | change
    with pytest.raises(error, match=message):
        js.align(arguments.pop("a"), arguments.pop("b"), **arguments)
