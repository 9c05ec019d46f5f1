"""Small problems that the tests share: a plain-dict ReLU network, its data and an independent reference."""

import contextlib
import itertools
import os
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest


def slow_unless(quick, *values):
    """A case of a test that `make test-all` runs, and `make test` only if it is quick."""
    return pytest.param(*values, marks=[] if quick else pytest.mark.slow)


def slow_but(quick, values):
    """The cases of a test, of which `make test` runs the quick ones."""
    return [slow_unless(value in quick, value) for value in values]


def mlp_params(widths=(5, 7, 4), seed=0, dtype=jnp.float64):
    keys = jax.random.split(jax.random.key(seed), len(widths))
    return {
        f"layer{i}": {
            "kernel": jax.random.normal(keys[i], (a, b), dtype) / a**0.5,
            "bias": 0.1 * jnp.arange(b, dtype=dtype),
        }
        for i, (a, b) in enumerate(itertools.pairwise(widths))
    }


def mlp_apply(params, x):
    for i in range(len(params)):
        x = x @ params[f"layer{i}"]["kernel"] + params[f"layer{i}"]["bias"]
        x = jax.nn.relu(x) if i + 1 < len(params) else x
    return x


def cross_entropy(logits, labels):
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)[:, 0]


def mlp_loss(params, batch):
    x, labels = batch
    logits = mlp_apply(params, x)
    return {"loss": cross_entropy(logits, labels), "accuracy": jnp.argmax(logits, -1) == labels}


def classification_data(examples=23, features=5, classes=4, seed=1):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(examples, features)), rng.integers(0, classes, examples)


def loop_reference(params, directions, grid, data, metric="loss"):
    """The surface by Python loops over points and examples, in NumPy, through none of the engine."""
    params = jax.tree.map(np.asarray, params)
    directions = [jax.tree.map(np.asarray, d) for d in directions]
    out = np.empty(grid.shape)
    for index in np.ndindex(*grid.shape):
        point = params
        for axis, direction, i in zip(grid.axes, directions, index, strict=True):
            point = jax.tree.map(lambda p, d, c=axis[i]: p + c * d, point, direction)
        out[index] = np.mean([_example(point, x, y)[metric] for x, y in zip(*data, strict=True)])
    return out


def _example(params, x, label):
    for i in range(len(params)):
        x = x @ params[f"layer{i}"]["kernel"] + params[f"layer{i}"]["bias"]
        x = np.maximum(x, 0) if i + 1 < len(params) else x
    return {"loss": np.log(np.sum(np.exp(x - x.max()))) + x.max() - x[label], "accuracy": np.argmax(x) == label}


@contextlib.contextmanager
def compilations():
    """A list that gets an entry for each program that XLA compiles."""
    compiled, active = [], True

    def listener(event, duration, **kwargs):
        if active and event == "/jax/core/compile/backend_compile_duration":
            compiled.append(kwargs.get("fun_name", "?"))

    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        yield compiled
    finally:
        active = False


PREAMBLE = """
import sys
import numpy as np
import jax
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_cpu_collectives_implementation", "gloo")
port, num, index, out = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
jax.distributed.initialize(f"127.0.0.1:{port}", num, index, heartbeat_timeout_seconds=30)
import jaxscape as js
"""


def launch(num, out, code):
    """Start the processes of one program, 2 devices each; the code knows `num`, `index` and the folder `out`."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # the system chooses: other workers of pytest launch processes at the same time
        port = str(free.getsockname()[1])
    flags = [flag for flag in os.getenv("XLA_FLAGS", "").split() if "device_count" not in flag]
    environment = os.environ | {"PYTHONPATH": root, "XLA_FLAGS": " ".join(flags)}
    return [
        subprocess.Popen(
            [sys.executable, "-c", PREAMBLE + code, port, str(num), str(i), str(out)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(num)
    ]
