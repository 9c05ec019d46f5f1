"""Tests run on 8 virtual CPU devices in float64, so that references are tight and sharding is real."""

import gc
import os
import shutil

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# The networks of the tests are so small that compiling takes most of the time, a third of it for code that is not
# optimized, and in one piece, since two processes share the cores. XLA ends a process when a device waits 40 s for the
# others, and 8 devices on busy cores do. The user's flags win: `XLA_FLAGS=--xla_backend_optimization_level=3 make test`
# tests optimized code.
os.environ["XLA_FLAGS"] = (
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1 "
    f"--xla_cpu_collective_call_terminate_timeout_seconds=3600 {os.getenv('XLA_FLAGS', '')}"
)

import hypothesis
import jax
import matplotlib as mpl
import pytest

import tests.shapes  # noqa: F401, `--jaxtyping-packages` in pyproject.toml names a function of it

gc.set_threshold(200_000, 20, 100)  # tracing makes so many objects that collecting them takes a tenth of the time
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_enable_x64", True)
mpl.use("Agg")
# The same cases each time; a first case compiles.
hypothesis.settings.register_profile("laws", max_examples=6, deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("laws")


RUNS = ("test_resume", "test_runs", "test_steps", "test_train")


@pytest.hookimpl(tryfirst=True)  # before that of pytest-xdist, which reads the marks
def pytest_collection_modifyitems(items):
    """Each file stays with one process of pytest-xdist, and the files that share a trained run with one of both."""
    for item in items:
        module = item.module.__name__.split(".")[-1]
        item.add_marker(pytest.mark.xdist_group("run" if module in RUNS else module))


@pytest.fixture(autouse=True)
def _no_check_of_means(request, monkeypatch):
    """The check that a loss is a mean over examples is a sixth of a first call: few tests need it each time."""
    module = request.module.__name__.split(".")[-1]
    if module not in ("test_any_model", "test_cli") and not request.node.get_closest_marker("check"):
        monkeypatch.setattr("jaxscape.objective._objective.check_is_mean", lambda *_: lambda: None)


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """A finished run of `tests.training.CONFIG`; no test changes it."""
    from tests.training import CONFIG, train  # not for the tests of anything else

    return train.train(CONFIG, tmp_path_factory.mktemp("runs") / "whole", progress=False)


@pytest.fixture
def copy(run, tmp_path):
    """The folder of a copy of the run, to change."""
    return shutil.copytree(run.path, tmp_path / "copy")
