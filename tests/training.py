"""A small training that the tests share; conftest.py has the fixtures `run`, which is its run, and `copy`."""

import jax
import numpy as np
from flax import nnx

import train
from models.resnet import ResNet

BUILDER = "tests.training:create"


def create(name, *, shortcuts, width, num_classes, image_shape, seed):
    """The stem and one block of a residual network: it compiles in a fifth of the time of the smallest of `models`."""
    assert name == "tiny"
    options = {"num_classes": num_classes, "image_shape": image_shape, "rngs": nnx.Rngs(seed)}
    return ResNet((0, 1), (4 * width, 8 * width), shortcuts=shortcuts, **options)


def config(**options):
    return train.Config(arch="tiny", builder=BUILDER, **options)


CONFIG = config(epochs=3, batch_size=256, lr=0.05, save_every=1)
NETWORK = ["--arch", "tiny", "--builder", BUILDER]
OPTIONS = [*NETWORK, "--epochs", "3", "--batch-size", "256", "--lr", "0.05", "--save-every", "1"]  # CONFIG


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)
