"""A small training that the tests share; conftest.py has the fixtures `run`, which is its run, and `copy`."""

import jax
import numpy as np

import train

CONFIG = train.Config(arch="resnet8", epochs=3, batch_size=256, lr=0.05, save_every=1)
OPTIONS = ["--arch", "resnet8", "--epochs", "3", "--batch-size", "256", "--lr", "0.05", "--save-every", "1"]  # CONFIG


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)
