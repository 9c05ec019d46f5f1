"""Processes that are killed, interrupted or starved of disk: what was finished stays, no folder is ever stuck.

The kills are of real processes, so that most of these tests take minutes and are slow.
"""

import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import xarray as xr

import jaxscape as js
from jaxscape.sweep import Layout, Store, _shares
from tests.problems import launch, slow_but, slow_unless
from tests.training import OPTIONS, same

ROOT = Path(js.__file__).parents[1]
# Not the flags of the tests: unoptimized code would take minutes.
ENVIRONMENT = {
    **os.environ,
    "XLA_FLAGS": "",
    "JAX_NUM_CPU_DEVICES": "2",
    "PYTHONPATH": str(ROOT),
    "JAX_PLATFORMS": "cpu",
}
PROBLEM = """
import sys, jax, jax.numpy as jnp, numpy as np
import jaxscape as js
from jaxscape.engine import Evaluator
from jaxscape.sweep import Store, _blocks

out, log = sys.argv[1], open(sys.argv[1] + ".log", "a", buffering=1)
_blocks.SECONDS = 0.5
rng = np.random.default_rng(0)
params = {"w": jnp.asarray(rng.normal(size=(64, 64)), jnp.float32), "v": jnp.asarray(rng.normal(size=64), jnp.float32)}
data = rng.normal(size=(%d, 64)).astype(np.float32)

def loss(p, x):
    return jnp.tanh(jnp.tanh(x @ p["w"]) @ p["w"]) @ p["v"] ** 2

def logged(cls, name, text):
    method = getattr(cls, name)
    def call(self, *args):
        result = method(self, *args)
        log.write(text(*args) + "\\n")
        return result
    setattr(cls, name, call)

logged(Evaluator, "__call__", lambda coords, *_: f"computed {len(coords)}")
logged(Store, "write", lambda rows, _: f"wrote {rows.start} {rows.stop}")
options = dict(directions=js.random_directions(0, params), progress=False, store=out)
print("ready", flush=True)
"""
SURFACE = PROBLEM % 20000 + "js.surface(params, loss, data, grid=js.Grid.plane((-1, 1, 41), (-1, 1, 41)), **options)\n"
MAP = PROBLEM % 2000 + (
    "js.eigenvalue_map(params, loss, data, grid=js.Grid.plane((-1, 1, 9), (-1, 1, 9)), tol=1e-6, **options)\n"
)


def start(script, out):
    command = [sys.executable, "-c", script, str(out)]
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n", process.stderr.read()
    return process


def lines(out):
    log = Path(f"{out}.log")
    return log.read_text().splitlines() if log.exists() else []


@pytest.mark.slow
@pytest.mark.parametrize("script", [SURFACE, MAP], ids=["surface", "map"])
def test_twenty_kills_change_no_bit(tmp_path, script):
    whole, out = tmp_path / "whole", tmp_path / "killed"
    process = start(script, whole)
    assert process.wait() == 0, process.stderr.read()
    process.communicate()
    chance = random.Random(0)
    for _ in range(20):
        before = len(lines(out))
        process = start(script, out)
        while len(lines(out)) == before and process.poll() is None:
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.6))
        process.kill()
        process.communicate()
    process = start(script, out)
    assert process.wait() == 0, process.stderr.read()
    process.communicate()
    xr.testing.assert_identical(js.load(out).drop_attrs(), js.load(whole).drop_attrs())
    written = [range(*map(int, line.split()[1:])) for line in lines(out) if line.startswith("wrote")]
    rows = [row for block in written for row in block]
    longest = max(map(len, written))
    points = js.load(out).sizes["alpha"] * js.load(out).sizes["beta"]
    assert len(set(rows)) >= points - 20 * longest  # a kill may fall between a write and its line in the log
    assert len(rows) <= len(set(rows)) + 20 * longest  # at most the block in which each kill fell, twice


CREATION = """
import os, signal, sys, warnings
import numpy as np
import jaxscape as js
from jaxscape.sweep import Layout, Store

columns = {"x": np.arange(5.0)}
grid = js.Grid.line(1, 2, 4)

def use(path):
    with Store(path, {"seed": 1}, Layout.of(grid, columns, 2)) as store:
        store.write(slice(0, 5), columns)
        store.finish({"done": 1})

def dies_at(event, path):
    count = 0
    def hook(name, _):
        nonlocal count
        if name in ("open", "os.mkdir", "os.rename", "os.link", "os.remove", "shutil.rmtree"):
            count += 1
            if count == event:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)
    use(path)

def child(function, *args):
    pid = os.fork()
    if not pid:
        status = 1
        try:
            function(*args)
            status = 0
        finally:
            os._exit(status)
    return os.waitpid(pid, 0)[1]

warnings.simplefilter("ignore")
kills = 0
for event in range(1, 1000, int(sys.argv[2])):
    path = f"{sys.argv[1]}/{event}"
    status = child(dies_at, event, path)
    if os.WIFEXITED(status):
        assert os.WEXITSTATUS(status) == 0
        break
    kills += 1
    assert child(use, path) == 0, f"stuck after a kill at event {event}"
    result = js.load(path)
    assert result.x.values.tolist() == [0, 1, 2, 3], event
print(kills)
"""


# 10 s: a process for each moment
@pytest.mark.parametrize("every", slow_but([40], [40, 1]))
def test_no_kill_leaves_a_folder_that_is_stuck(tmp_path, every):
    command = [sys.executable, "-W", "ignore", "-c", CREATION, str(tmp_path), str(every)]
    result = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) * every > 100


@pytest.mark.slow
def test_twenty_kills_of_a_training_change_no_bit(run, tmp_path):
    out = tmp_path / "killed"
    command = [sys.executable, "train.py", *OPTIONS, "--out", str(out), "--resume"]
    environment = os.environ | {
        "JAX_ENABLE_X64": "1",
        "JAX_NUM_CPU_DEVICES": str(jax.device_count()),
    }  # as the tests' own process
    chance = random.Random(0)
    for _ in range(20):
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        time.sleep(chance.uniform(3, 20))
        process.kill()
        process.communicate()
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    same(js.load_run(out).variables, run.variables)


DEAF = """
import hashlib, sys
from jaxscape import interrupts
interrupts.PATIENCE = float(sys.argv[1])
def command():  # it lets other threads run, but is in C as long as it takes
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
interrupts.leave(interrupts.run_command("it", ["it", "--again"], command))
"""


@pytest.mark.parametrize(("patience", "signals"), [(0.5, 1), slow_unless(False, 100.0, 2)])
def test_a_signal_that_python_does_not_hear_ends_the_command(patience, signals):
    process = subprocess.Popen(
        [sys.executable, "-c", DEAF, str(patience)],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    for _ in range(signals):
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 143
    assert process.communicate()[1] == "it: terminated. What was finished is kept. Go on with: it --again\n"


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_keeps_what_is_finished_and_says_how_to_go_on(run, tmp_path, number, status):
    out = tmp_path / "s.zarr"
    arguments = ["surface", str(run.path), "--points", "200", "--out", str(out)]
    command = [sys.executable, "-m", "jaxscape", *arguments]
    process = subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "s.partial" / "done" / "c").exists():
        time.sleep(0.05)
        assert process.poll() is None
    process.send_signal(number)
    begin = time.monotonic()
    errors = process.communicate()[1]
    assert process.returncode == status
    assert time.monotonic() - begin < 10
    word = {130: "interrupted", 143: "terminated"}[status]
    last = errors.splitlines()[-1]
    kept = js.load(tmp_path / "s.partial").done.values.sum()
    assert last.startswith(
        f"jaxscape: {word}. {kept} of 40000 points are kept in {tmp_path}/s.partial; the same call goes"
    )
    assert last.endswith(f"Go on with: jaxscape {shlex.join(arguments)}")
    assert not (tmp_path / "s.partial" / "jaxscape" / ".lock").exists()


PEERS = """
import jax.numpy as jnp
from jaxscape.sweep import _blocks
_blocks.SECONDS = 0.2
data = np.random.default_rng(0).normal(size=(2000, 64))
params = {"w": jnp.ones((64, 64)) / 8}
options = dict(grid=js.Grid.plane((-1, 1, 101), (-1, 1, 101)), store=f"{out}/s.zarr", progress=False)
js.surface(params, lambda p, x: (jnp.tanh(x @ p["w"]) ** 2).sum(-1), data, **options)
"""


@pytest.mark.slow
@pytest.mark.parametrize("dead", [0, 1])
def test_a_dead_peer_ends_the_others_in_one_line(tmp_path, dead):
    processes = launch(2, tmp_path, PEERS)
    while not (tmp_path / "s.zarr" / "done" / "c").exists():
        time.sleep(0.05)
        assert [process.poll() for process in processes] == [None, None]
    time.sleep(5)  # several signs of life
    begin = time.monotonic()
    processes[dead].kill()
    processes[dead].communicate()
    other = processes[1 - dead]
    output = other.communicate(timeout=100)[0]
    assert time.monotonic() - begin < 30
    kept = rf"\d+ of 10201 points are kept in {tmp_path}/s.zarr; the same call goes on from there."
    if dead == 1:
        assert other.returncode == 1, output
        assert re.search(rf"^jaxscape: process 1 of 2 is gone, so this one ends. {kept}$", output, re.MULTILINE), output
        assert "Check failure" not in output
    else:  # JAX aborts the other, and our line is the last
        assert re.fullmatch(rf"jaxscape: process 1 of 2 was ended, .* {kept}", output.splitlines()[-1]), output
    assert js.load(tmp_path / "s.zarr").done.values.any()


def test_a_thread_that_computes_ends_soon_after_an_interrupt(monkeypatch):
    """The main thread of a map waits for the others, which look for an interrupt before each product."""
    params = {"w": np.linspace(0.1, 1, 8)}
    counts = []

    def loss(p, x):
        return x * (p["w"] ** 4).sum()

    def interrupted(futures):
        counts.append(len(futures))
        raise KeyboardInterrupt

    monkeypatch.setattr(_shares, "as_completed", interrupted)
    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        js.eigenvalue_map(params, loss, np.ones(3), grid=js.Grid.plane((-1, 1, 30), (-1, 1, 30)), progress=False)
    assert time.monotonic() - begin < 10
    assert counts == [jax.device_count()]


# ---- disks that are full or cannot be written


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 2 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], capture_output=True)
    if mount.returncode:
        pytest.skip("mounting a disk is not allowed here")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.parametrize(
    "room", slow_but([4, 64, 128, 400], [0, 4, 8, 16, 32, 64, 96, 128, 160, 400])
)  # KB; the store takes 200
def test_a_full_disk_loses_nothing(small_disk, room):
    """With so many KB of room; the store takes 200."""
    columns = {"x": np.arange(600.0), "y": np.random.default_rng(0).normal(size=(600, 4))}
    layout = Layout.of(js.Grid.line(0, 1, 600), columns, 16)

    def use():
        with Store(small_disk / "s.zarr", {"seed": 1}, layout) as store:
            done = int(store.done.sum())
            for start in range(0, 600, 16):
                rows = slice(start, min(start + 16, 600))
                if not store.done[start]:
                    store.write(rows, {name: column[rows] for name, column in columns.items()})
            return done, store.read()

    free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_bsize
    (small_disk / "ballast").write_bytes(bytes(free - 1024 * room))
    full = room < 400
    if full:
        with pytest.raises(OSError, match="No space left on device"):
            use()
    (small_disk / "ballast").unlink()
    done, values = use()
    assert (0 < done < 600) == (32 < room < 400) or not full
    for name, column in columns.items():
        np.testing.assert_array_equal(values[name], column)


@pytest.mark.slow
@pytest.mark.parametrize("room", [10, 50, 120])  # KB; a checkpoint takes 70
def test_a_training_on_a_full_disk_ends_in_one_line(run, small_disk, room):
    command = [sys.executable, "train.py", *OPTIONS, "--out", str(small_disk / "run"), "--resume"]
    environment = os.environ | {
        "JAX_ENABLE_X64": "1",
        "JAX_NUM_CPU_DEVICES": str(jax.device_count()),
    }  # as the tests' own process
    (small_disk / "ballast").write_bytes(bytes(2**21 - 1024 * room))
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    (line,) = (text for text in result.stderr.splitlines() if "epoch/s" not in text and "/epoch" not in text)
    assert line.startswith("train.py: error: the disk is full")
    (small_disk / "ballast").unlink()
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    same(js.load_run(small_disk / "run").variables, run.variables)


def test_a_folder_that_cannot_be_written(small_disk):
    grid, columns = js.Grid.line(0, 1, 3), {"x": np.arange(3.0)}
    layout = Layout.of(grid, columns, 16)
    with Store(small_disk / "s.zarr", {"seed": 1}, layout) as store:
        store.write(slice(0, 2), {"x": columns["x"][:2]})
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for path in (small_disk / "s.zarr", small_disk / "new.zarr"):
        with pytest.raises(OSError, match="Read-only file system"), Store(path, {"seed": 1}, layout):
            pass
    assert js.load(small_disk / "s.zarr").attrs["missing_points"] == 1
