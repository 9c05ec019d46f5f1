"""Reading a run back: its data, its weights on other devices, and folders that are no run."""

import json
import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

import jaxscape as js
import train
from jaxscape import datasets
from tests.training import same


def test_load_run_refuses_what_is_no_run(copy, tmp_path):
    with pytest.raises(FileNotFoundError, match="run folder .*nowhere not found; `python train.py --out"):
        js.load_run(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty is no run: its config.json is missing or broken"):
        js.load_run(tmp_path / "empty")
    shutil.rmtree(copy / "checkpoints")
    with pytest.raises(ValueError, match="has no complete checkpoint: its training stopped early"):
        js.load_run(copy)
    (copy / "config.json").write_text("{")
    with pytest.raises(ValueError, match="config.json is missing or broken"):
        js.load_run(copy)
    (copy / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="its config.json lacks arch, noshort, dataset, seed"):
        js.load_run(copy)


def test_load_run_refuses_another_architecture(copy):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"noshort": True}))
    with pytest.raises(
        ValueError, match=r"of another architecture than .* \(tiny, noshort\): params has a leaf .*shortcut"
    ):
        js.load_run(copy)
    (copy / "config.json").write_text(json.dumps(config | {"arch": "resnet20", "builder": "models:create"}))
    with pytest.raises(ValueError, match=r"another architecture .*params has no leaf .*stage1_block1"):
        js.load_run(copy)


def test_load_run_without_the_builder(copy):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"builder": "nowhere:create"}))
    with pytest.raises(ImportError, match=r"the run's network is made by nowhere:create, which cannot be imported"):
        js.load_run(copy)


def test_a_run_that_was_never_evaluated_has_no_metrics(copy):
    (copy / "metrics.csv").unlink()
    assert js.load_run(copy).metrics == []


@pytest.mark.slow
def test_what_many_devices_have_trained_is_read_by_one(run, tmp_path):
    code = f"""
import jax, numpy as np, jaxscape as js
run = js.load_run({str(run.path)!r})
assert jax.device_count() == 1
np.savez({str(tmp_path / "one.npz")!r}, *jax.tree.leaves(run.variables), *jax.tree.leaves(run.checkpoints.variables(0)))
"""
    root = os.path.dirname(train.__file__)
    environment = os.environ | {"JAX_ENABLE_X64": "1", "JAX_NUM_CPU_DEVICES": "1", "PYTHONPATH": root}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    result = np.load(tmp_path / "one.npz")
    expected = [*jax.tree.leaves(run.variables), *jax.tree.leaves(run.checkpoints.variables(0))]
    assert len(result) == len(expected)
    same([result[name] for name in result], expected)


def test_datasets_are_those_of_the_run(run):
    for one, other in zip((run.data, run.test_data), datasets.load("digits"), strict=True):
        np.testing.assert_array_equal(one.images, other.images)
