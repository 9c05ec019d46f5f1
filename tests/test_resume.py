"""A run that is resumed: the same to the bit, by other devices or processes, never another run's."""

import dataclasses
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

import jaxscape as js
import train
from jaxscape import runs
from tests.problems import launch
from tests.training import CONFIG, OPTIONS, same


def cut_off(copy, last):
    """The run as a kill leaves it in the epoch after the next checkpoint would have been written."""
    for epoch in range(last + 1, 4):
        shutil.rmtree(copy / "checkpoints" / str(epoch))
    for name in ("metrics.csv", "weight_norms.csv"):
        lines = (copy / name).read_text().splitlines(keepends=True)
        (copy / name).write_text("".join(lines[: last + 3]))


def same_metrics(resumed, run):
    for one, other in zip(resumed.metrics, run.metrics, strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}


def test_resume_is_the_same_to_the_bit(run, copy):
    cut_off(copy, 1)
    (copy / "metrics.csv").write_text((copy / "metrics.csv").read_text()[:-9])  # and the last line in the middle
    with pytest.warns(UserWarning, match=r"metrics.csv: 1 lines are cut or damaged and left out, the first is line 4"):
        resumed = train.train(CONFIG, copy, resume=True, progress=False)
    same(resumed.variables, run.variables)
    same_metrics(resumed, run)
    assert not (copy / ".lock").exists()


def test_rows_that_were_lost_are_computed_anew(run, copy):
    for name in ("metrics.csv", "weight_norms.csv"):
        lines = (copy / name).read_text().splitlines(keepends=True)
        (copy / name).write_text("".join([*lines[:2], "1,0.05,2", *lines[3:]]))  # two lines in one
    with pytest.warns(UserWarning, match="lines are cut or damaged"):
        resumed = train.train(CONFIG, copy, resume=True, progress=False)
    same_metrics(resumed, run)
    assert (copy / "weight_norms.csv").read_bytes() == (run.path / "weight_norms.csv").read_bytes()


def test_a_finished_or_different_run_is_not_overwritten(copy):
    with pytest.raises(ValueError, match="holds a run already; pass --resume to go on, or another --out"):
        train.train(CONFIG, copy)
    with pytest.raises(ValueError, match=r"lr is 0.2, but the run in .* was started with 0.05"):
        train.train(dataclasses.replace(CONFIG, lr=0.2), copy, resume=True)


@pytest.mark.slow
def test_tensorboard_has_the_tables(copy):
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto.event_pb2 import Event

    shutil.rmtree(copy / "checkpoints" / "3")
    train.train(CONFIG, copy, resume=True, progress=False, tensorboard=True)
    content = b"".join(path.read_bytes() for path in (copy / "tensorboard").iterdir())
    result = {}
    while content:  # length, checksum, event, checksum
        length = int.from_bytes(content[:8], "little")
        event, content = Event.FromString(content[12 : 12 + length]), content[16 + length :]
        result |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
    for name in ("metrics", "weight_norms"):
        row = runs.read_table(copy / f"{name}.csv")[-1]
        for column, value in row.items():
            if column != "epoch":
                tag = re.sub(r"[^-/\w.]", "_", f"{name}/{column}").lstrip("/")  # as TensorBoard wants it
                assert result[tag, 3] == pytest.approx(value, rel=1e-5)
    assert {step for _, step in result} == {3}


def test_without_tensorboardx_the_cure_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ImportError, match=r"needs tensorboardX: `pip install -e .\[tensorboard\]`"):
        train.train(CONFIG, tmp_path / "run", tensorboard=True)
    assert not (tmp_path / "run").exists()


WORKER = """
import shutil
from jax.experimental import multihost_utils
import train
from tests.training import config
options = config(epochs=2, batch_size=256, lr=0.01, save_every=1)
run = train.train(options, f"{out}/{num}")
if index == 0:
    shutil.rmtree(run.path / "checkpoints" / "2")
multihost_utils.sync_global_devices("the last epoch is forgotten")
run = train.train(options, f"{out}/{num}", resume=True)
leaves = [np.asarray(x) for x in jax.tree.leaves(run.variables)]
np.savez(f"{out}/{num}-{index}.npz", *leaves, losses=[row["train_loss"] for row in run.metrics])
"""


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    for num in (2, 1):
        processes = launch(num, tmp_path, WORKER)
        output = [process.communicate(timeout=500)[0] for process in processes]
        assert [process.returncode for process in processes] == [0] * num, output
    one = np.load(tmp_path / "1-0.npz")
    for i in range(2):
        result = np.load(tmp_path / f"2-{i}.npz")
        for name in one:
            np.testing.assert_allclose(result[name], one[name], rtol=1e-4, atol=1e-6)
    assert (tmp_path / "2" / "metrics.csv").read_text().count("\n") == 4  # a header, and epochs 0, 1 and 2 once each


@pytest.mark.slow
def test_killed_and_resumed_is_the_same_to_the_bit(run, tmp_path):
    out = tmp_path / "killed"
    command = [sys.executable, "train.py", *OPTIONS, "--out", str(out), "--resume"]
    root = os.path.dirname(train.__file__)
    devices = {"JAX_NUM_CPU_DEVICES": str(jax.device_count())}  # as the tests' own process
    environment = os.environ | {"JAX_ENABLE_X64": "1"} | devices
    process = subprocess.Popen(command, cwd=root, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (out / "metrics.csv").exists() or len((out / "metrics.csv").read_text().splitlines()) < 3:
        time.sleep(0.05)
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    subprocess.run(command, cwd=root, env=environment, check=True, capture_output=True)
    same(js.load_run(out).variables, run.variables)


@pytest.mark.slow
def test_one_device_goes_on_with_what_many_have_trained(run, copy):
    shutil.rmtree(copy / "checkpoints" / "3")
    environment = os.environ | {"JAX_ENABLE_X64": "1", "JAX_NUM_CPU_DEVICES": "1"}
    command = [sys.executable, "train.py", *OPTIONS, "--out", str(copy), "--resume"]
    subprocess.run(command, cwd=os.path.dirname(train.__file__), env=environment, check=True, capture_output=True)
    result = js.load_run(copy).variables
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), result, run.variables)
