"""Tests run on 8 virtual CPU devices in float64, so that references are tight and sharding is real."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import matplotlib as mpl

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_enable_x64", True)
mpl.use("Agg")
