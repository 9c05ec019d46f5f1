"""Tests run in float64, so that references are tight, and on virtual CPU devices, so that sharding is real.

There are 4 devices: with 8 the suite takes a ninth longer. `make test-all` takes 8.
"""

import gc
import os
import shutil
import time
from importlib.metadata import version

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# The networks of the tests are so small that compiling takes most of the time, a third of it for code that is not
# optimized, and in one piece, since two processes share the cores. XLA ends a process when a device waits 40 s for the
# others, and 8 devices on busy cores do. The user's flags win: `XLA_FLAGS=--xla_backend_optimization_level=3 make test`
# tests optimized code.
os.environ["XLA_FLAGS"] = (
    "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1 "
    f"--xla_cpu_collective_call_terminate_timeout_seconds=3600 {os.getenv('XLA_FLAGS', '')}"
)
if version("jaxlib").startswith(("0.8.", "0.9.", "0.10.")):  # later ones lack the flag, and end the process
    os.environ["XLA_FLAGS"] = f"--xla_cpu_use_fusion_emitters=false {os.environ['XLA_FLAGS']}"

import hypothesis
import jax
import matplotlib as mpl
import pytest

import tests.shapes  # noqa: F401, `--jaxtyping-packages` in pyproject.toml names a function of it
from jaxscape.objective._check import Check

gc.set_threshold(200_000, 20, 100)  # tracing makes so many objects that collecting them takes a tenth of the time
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # for the commands that tests run
jax.config.update("jax_num_cpu_devices", int(os.getenv("JAX_NUM_CPU_DEVICES", "4")))
jax.config.update("jax_enable_x64", True)
mpl.use("Agg")
# The same cases each time; a first case compiles.
LAWS = {"deadline": None, "derandomize": True, "database": None}
hypothesis.settings.register_profile("make test", max_examples=4, **LAWS)
hypothesis.settings.register_profile("make test-all", max_examples=20, **LAWS)


def pytest_configure(config):
    hypothesis.settings.load_profile("make test" if "not slow" in config.option.markexpr else "make test-all")


@pytest.fixture(autouse=True)
def _no_check_of_means(request, monkeypatch):
    """The check that a loss is a mean over examples is a sixth of a first call: few tests need it each time."""
    module = request.module.__name__.split(".")[-1]
    if module not in ("test_any_model", "test_cli") and not request.node.get_closest_marker("check"):
        monkeypatch.setattr("jaxscape.objective._objective.check_is_mean", lambda *_: Check())


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """A finished run of `tests.training.CONFIG`, which the first process trains for all; no test changes it."""
    from jaxscape import runs
    from tests.training import CONFIG, train  # not for the tests of anything else

    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base  # common to all processes
    trained = base / "trained"
    try:
        (base / "training").mkdir()
    except FileExistsError:
        while not trained.exists():
            time.sleep(0.1)
    else:
        try:
            train.train(CONFIG, base / "training" / "whole", progress=False)
        finally:
            trained.touch()
    return runs.load_run(base / "training" / "whole")


@pytest.fixture
def copy(run, tmp_path):
    """The folder of a copy of the run, to change."""
    return shutil.copytree(run.path, tmp_path / "copy")
