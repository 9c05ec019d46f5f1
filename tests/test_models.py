"""The networks: sizes as the paper's authors have them, initialization, shapes, batch statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import models
from models import num_params
from models.resnet import Block, ResNet
from tests.problems import slow_unless

# Trainable parameters for 32x32x3 images and 10 classes, by arithmetic from the original definitions.
COUNTS = {
    ("resnet20", True): 272_474,
    ("resnet20", False): 269_722,
    ("resnet32", True): 466_906,
    ("resnet32", False): 464_154,
    ("resnet44", True): 661_338,
    ("resnet44", False): 658_586,
    ("resnet56", True): 855_770,
    ("resnet56", False): 853_018,
    ("resnet110", True): 1_730_714,
    ("resnet110", False): 1_727_962,
    ("resnet50_16", True): 758_554,
    ("resnet50_16", False): 755_802,
    ("resnet18", True): 11_173_962,
    ("resnet34", True): 21_282_122,
    ("resnet34", False): 21_108_298,
    ("resnet50", True): 23_520_842,
    ("resnet50", False): 20_744_266,
    ("resnet152", True): 58_156_618,
    ("resnet152", False): 55_380_042,
    ("wrn56_2", True): 3_412_394,
    ("wrn56_2", False): 3_401_770,
    ("wrn56_4", True): 13_628_234,
    ("wrn56_4", False): 13_586_506,
    ("wrn56_8", True): 54_470_282,
    ("wrn110_2", True): 6_904_106,
    ("wrn110_2", False): 6_893_482,
    ("wrn110_4", True): 27_578_954,
    ("wrn110_4", False): 27_537_226,
}


# Tracing takes 3 to 11 s for a deep or wide network; each family of `models.registry` has a quick one.
QUICK = [("resnet20", True), ("resnet20", False), ("resnet18", True)]


@pytest.mark.parametrize(("name", "shortcuts"), [slow_unless(case in QUICK, *case) for case in COUNTS])
def test_parameter_counts(name, shortcuts):
    abstract = nnx.eval_shape(lambda: models.create(name, shortcuts=shortcuts))
    assert num_params(abstract) == COUNTS[name, shortcuts]


@pytest.mark.slow
def test_width_widens_a_residual_network():
    wide, twice = (
        nnx.eval_shape(lambda n=n, w=w: models.create(n, width=w)) for n, w in (("wrn56_2", 1), ("resnet56", 2))
    )
    assert jax.tree.map(jnp.shape, nnx.state(wide)) == jax.tree.map(jnp.shape, nnx.state(twice))


@pytest.mark.parametrize(
    ("shape", "name"),
    [
        slow_unless(name == "vgg9" or (shape == (5, 7, 3) and name == "resnet20"), shape, name)
        for shape in ((8, 8, 1), (5, 7, 3), (1, 1, 2))
        for name in ("resnet20", "resnet50", "vgg9", "densenet121")
    ],
)
def test_any_image_size_and_channels(shape, name):
    logits = nnx.eval_shape(lambda: models.create(name, num_classes=3, image_shape=shape)(jnp.ones((2, *shape))))
    assert logits.shape == (2, 3)


def small(shortcuts):
    """A residual network of one block."""
    return ResNet((1,), (4,), shortcuts=shortcuts, num_classes=3, image_shape=(4, 4, 1), rngs=nnx.Rngs(0))


def test_without_shortcuts_nothing_goes_around():
    model = small(shortcuts=False)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(nnx.state(model))]
    assert not any("shortcut" in path for path in paths)
    block = model.stage1_block1
    block.norm2.scale[...] = jnp.zeros(4, jnp.float32)  # the residual branch is cut
    assert not np.any(block(jnp.ones((1, 4, 4, 4)), False))
    with_shortcuts = small(shortcuts=True).stage1_block1
    with_shortcuts.norm2.scale[...] = jnp.zeros(4, jnp.float32)
    np.testing.assert_array_equal(with_shortcuts(jnp.ones((1, 4, 4, 4)), False), jnp.ones((1, 4, 4, 4)))


def test_initialization():
    model = models.create("resnet20")
    kernel = np.asarray(model.stage3_block2.conv1.kernel[...])  # 3x3x64x64
    assert abs(kernel.std() / np.sqrt(2 / (9 * 64)) - 1) < 0.02
    assert np.abs(kernel).max() > 3 * kernel.std()  # not truncated at 2
    assert abs(np.asarray(model.head.kernel[...]).std() / 1e-3 - 1) < 0.1
    assert not np.any(model.head.bias[...])
    other = models.create("resnet20", seed=1).head.kernel[...]
    assert not np.array_equal(model.head.kernel[...], other)


@pytest.mark.parametrize("train", [False, True])
def test_bfloat16_stays_bfloat16(train):
    """The statistics are float32: JAX would promote what they meet, and the network would compute in float32."""
    block = Block(4, 4, 1, True, nnx.Rngs(0))
    graphdef, params, stats = nnx.split(block, nnx.Param, nnx.BatchStat)
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    block = nnx.merge(graphdef, params, stats)
    assert block(jnp.ones((2, 4, 4, 4), jnp.bfloat16), train).dtype == jnp.bfloat16
    assert block.norm1.mean.dtype == jnp.float32


def test_statistics_move_in_training_only():
    model = small(shortcuts=True)
    before = jax.tree.map(jnp.copy, nnx.state(model, nnx.BatchStat))
    images = jnp.asarray(np.random.default_rng(0).normal(size=(6, 4, 4, 1)), jnp.float32)
    model(images)
    jax.tree.map(np.testing.assert_array_equal, before, nnx.state(model, nnx.BatchStat))
    model(images, train=True)
    stem = model.conv(images)
    np.testing.assert_allclose(model.norm.mean[...], 0.1 * stem.mean((0, 1, 2)), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"name": "resnet21"}, "arch is 'resnet21', expected one of resnet20, resnet32"),
        ({"name": "resnet20", "image_shape": (8, 8)}, r"image_shape is \(8, 8\), expected \(height, width, channels\)"),
        ({"name": "resnet20", "num_classes": 1}, "num_classes is 1, expected at least 2"),
        ({"name": "resnet20", "width": 0}, "width is 0, expected at least 1"),
        ({"name": "vgg9", "shortcuts": False}, "shortcuts is False, but vgg9 has none to leave out"),
        ({"name": "densenet121", "width": 2}, "width is 2, but only residual networks can be widened, not densenet121"),
    ],
)
def test_mistakes(options, match):
    with pytest.raises(ValueError, match=match):
        models.create(**options)
