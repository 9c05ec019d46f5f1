"""One call for every library's parameters: flax NNX and Linen, Equinox, a plain dict."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import jaxscape as js
from jaxscape import trees
from models.resnet import ResNet
from tests.problems import cross_entropy, mlp_loss, mlp_params, slow_but

RNG = np.random.default_rng(0)
IMAGES, LABELS = jnp.asarray(RNG.normal(size=(11, 4, 4, 1)), jnp.float32), jnp.asarray(RNG.integers(0, 3, 11))


NETWORK = ResNet(
    (0, 1), (4, 8), shortcuts=True, num_classes=3, image_shape=(4, 4, 1), rngs=nnx.Rngs(0)
)  # the stem and one block


def nnx_resnet():
    graphdef, params, stats = nnx.split(NETWORK, nnx.Param, ...)

    def loss_fn(params, batch):
        return cross_entropy(nnx.merge(graphdef, params, stats)(batch[0]), batch[1])

    return params, loss_fn, {}


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=True)(nn.Conv(5, (3, 3))(x))
        return nn.Dense(3)(nn.relu(x).mean((1, 2)))


def linen_cnn():
    variables = Linen().init(jax.random.key(0), IMAGES)
    stats = variables["batch_stats"]

    def loss_fn(params, batch):
        return cross_entropy(Linen().apply({"params": params, "batch_stats": stats}, batch[0]), batch[1])

    return variables["params"], loss_fn, {}


def equinox_cnn():
    keys = jax.random.split(jax.random.key(0))
    layers = [
        eqx.nn.Conv2d(1, 5, 3, dtype=jnp.float32, key=keys[0]),
        jax.nn.relu,
        lambda x: x.mean((1, 2)),
        eqx.nn.Linear(5, 3, dtype=jnp.float32, key=keys[1]),
    ]
    params, static = eqx.partition(
        eqx.nn.Sequential([eqx.nn.Lambda(f) if i in (1, 2) else f for i, f in enumerate(layers)]), eqx.is_inexact_array
    )

    def loss_fn(params, batch):
        model = eqx.combine(params, static)
        return cross_entropy(jax.vmap(model)(batch[0].transpose(0, 3, 1, 2)), batch[1])

    return params, loss_fn, {"filter_axis": "equinox"}


def plain_dict():
    def loss_fn(params, batch):
        return mlp_loss(params, (batch[0].reshape(len(batch[0]), -1), batch[1]))

    return mlp_params((16, 6, 3), dtype=jnp.float32), loss_fn, {}


@pytest.mark.parametrize(
    "make",
    slow_but([equinox_cnn], [nnx_resnet, linen_cnn, equinox_cnn, plain_dict]),
    ids=lambda f: f.__name__,
)
def test_the_same_call_works_and_is_right(make):
    params, loss_fn, options = make()
    directions = js.random_directions(0, params, **options)
    grid = js.Grid(([-0.5, 0.0, 1.0], [0.0, 0.25]))
    ds = js.surface(params, loss_fn, (IMAGES, LABELS), directions=directions, grid=grid, batch_size=4, progress=False)
    loss_fn = jax.jit(loss_fn)
    params, *directions = jax.device_get((params, *directions))  # in NumPy, where nothing is compiled
    for i, alpha in enumerate(grid.axes[0]):
        for j, beta in enumerate(grid.axes[1]):
            point = jax.tree.map(lambda p, d, e, a=float(alpha), b=float(beta): p + a * d + b * e, params, *directions)
            value = loss_fn(point, (IMAGES, LABELS))
            value = value["loss"] if isinstance(value, dict) else value
            np.testing.assert_allclose(ds.loss[i, j], np.mean(value, dtype=np.float64), rtol=2e-6)


def test_explain_names_the_leaves_of_each_library():
    table = js.random_directions(0, equinox_cnn()[0], filter_axis=0, ignore=None).explain(equinox_cnn()[0])
    assert table.leaf.str.contains("weight").any()
    np.testing.assert_allclose(table.ratio_0, 1, rtol=1e-5)


def test_an_integer_leaf_is_refused_with_a_cure():
    model = eqx.nn.MLP(2, 2, 2, 1, key=jax.random.key(0))
    with pytest.raises(TypeError, match=r"eqx.partition\(model, eqx.is_inexact_array\)"):
        js.surface(model, lambda p, b: b, jnp.ones(3))


def test_overlay_joins_nested_dicts():
    base = {"a": {"x": 1, "y": 2}, "b": 3}
    assert trees.overlay(base, {"a": {"y": 5, "z": 6}}) == {"a": {"x": 1, "y": 5, "z": 6}, "b": 3}
    assert base == {"a": {"x": 1, "y": 2}, "b": 3}


def test_a_loss_may_close_over_arrays_on_a_mesh_of_its_own():
    """As after training on several devices: a network's batch statistics, say."""
    other = Mesh(np.array(jax.devices()[:2]), ("model",))
    scale, kernel = jnp.arange(1.0, 4.0), jnp.ones((3, 3, 2, 3))
    images = (np.arange(6 * 16 * 2).reshape(6, 4, 4, 2) % 7).astype(float)

    def loss_with(scale):
        def loss(kernel, x):
            x = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
            return jnp.mean(jax.nn.relu(x * scale - 9), (1, 2, 3))

        return loss

    grid = js.Grid.line(-1, 1, 3)
    results = [
        js.surface(kernel, loss_with(s), images, directions=[kernel], grid=grid, progress=False).loss
        for s in (scale, jax.device_put(scale, NamedSharding(other, PartitionSpec())))
    ]
    np.testing.assert_array_equal(*results)
