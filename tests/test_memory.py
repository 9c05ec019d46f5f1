"""The peak memory of a surface: it does not grow with the points, and is a few times the params'."""

import os
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_peak_memory_does_not_grow_with_the_points():
    code = """
import sys, resource, jax.numpy as jnp, jaxscape as js
params = {"a": jnp.ones((300, 300)), "b": jnp.ones((300, 300))}
loss = lambda p, x: ((jnp.tanh(x @ p["a"]) @ p["b"]) ** 2).mean(-1)
js.surface(params, loss, jnp.ones((512, 300)), grid=js.Grid.line(0, 1, int(sys.argv[1])), progress=False)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    peaks = [
        int(subprocess.run([sys.executable, "-c", code, str(n)], capture_output=True, text=True, check=True).stdout)
        for n in (20, 2000)
    ]
    assert peaks[1] - peaks[0] < 15_000, peaks  # KiB; storing the points' params would take 1.4 GB more


@pytest.mark.slow
def test_peak_memory_of_a_surface_of_a_large_model():
    code = """
import resource, jax, jax.numpy as jnp, numpy as np, jaxscape as js
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
def measure(n):
    fill = lambda *shape: jnp.asarray(np.full(shape, 1 / n, np.float32))
    params = {"a": fill(64, n), "b": fill(n, n), "c": fill(n, 10)}
    loss = lambda p, x: (jax.nn.relu(jax.nn.relu(x @ p["a"]) @ p["b"]) @ p["c"]).mean(-1)
    js.surface(params, loss, jnp.ones((64, 64)), grid=js.Grid.plane((-1, 1, 2), (-1, 1, 2)))
    return sum(leaf.nbytes for leaf in params.values()) / 2**20
measure(8)
before = peak()
print(measure(7300), peak() - before)
"""
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    size, grown = map(float, done.stdout.split())
    assert size > 4 * 53e6 / 2**20
    assert grown < 6 * size  # params, two directions, a point: 4
