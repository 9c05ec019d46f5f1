"""The cache of compiled programs that the commands use; each case is a process (2 s), since JAX settles it once."""

import os
import subprocess
import sys

import pytest

CODE = """
import jax, jax.numpy as jnp
from jaxscape import compilation
compilation.WORTH = 0.0
compilation.keep_compiled_programs()
print(jax.config.jax_compilation_cache_dir)
print(float(jax.jit(lambda x: jnp.sin(x @ x).sum())(jnp.ones((3, 3)))))
"""


def run(cache, **environment):
    """The folder of the cache, and the number that a program gave."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    environment = {**inherited, "XDG_CACHE_HOME": str(cache), **environment}
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, env=environment, check=True)
    assert not done.stderr
    folder, value = done.stdout.split()
    return folder, float(value)


@pytest.mark.skipif(sys.platform != "linux", reason="XDG_CACHE_HOME names the folder on Linux")
def test_programs_are_kept_for_the_next_process(tmp_path):
    folder, value = run(tmp_path)
    assert folder.startswith(str(tmp_path / "jaxscape" / "programs-"))
    kept = {path.name: path.stat().st_mtime_ns for path in tmp_path.rglob("*-cache")}
    assert kept
    assert run(tmp_path) == (folder, value)
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.rglob("*-cache")} == kept


@pytest.mark.parametrize(
    ("environment", "expected"),
    [({"JAX_COMPILATION_CACHE_DIR": "/nowhere"}, "/nowhere"), ({"JAX_ENABLE_COMPILATION_CACHE": "false"}, "None")],
)
def test_settings_of_the_user_stay(tmp_path, environment, expected):
    if expected != "None":
        environment = {name: str(tmp_path / "own") for name in environment}
        expected = str(tmp_path / "own")
    assert run(tmp_path, **environment)[0] == expected
    assert not (tmp_path / "jaxscape").exists()


def test_a_folder_that_cannot_be_made_is_not_used(tmp_path):
    (tmp_path / "file").write_text("")
    assert run(tmp_path / "file")[0] == "None"
