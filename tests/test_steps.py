"""The weights that a run saves between its epochs."""

import dataclasses
import itertools
import shutil

import jax
import numpy as np
import pytest

import train
from jaxscape import trees
from jaxscape.run_checkpoints import from_vector, to_vector
from tests.training import CONFIG, same


@pytest.fixture(scope="module")
def stepped(tmp_path_factory):
    config = dataclasses.replace(CONFIG, epochs=2, save_steps=2)
    return train.train(config, tmp_path_factory.mktemp("runs") / "steps", progress=False)


@pytest.mark.slow
def test_steps_lie_between_the_epochs(stepped):
    assert stepped.steps.epochs == (0, 2 / 6, 4 / 6, 1, 8 / 6, 10 / 6, 2)  # 1437 digits make 6 batches
    for step, epoch in ((0, 0), (3, 1), (6, 2)):
        same(stepped.steps[step], stepped.checkpoints[epoch])
        same(stepped.steps.with_batch_stats()[step], stepped.checkpoints.with_batch_stats()[epoch])
    moved = [float(trees.norm(trees.axpy(-1, a, b))) for a, b in itertools.pairwise(stepped.steps)]
    assert min(moved) > 0
    assert len(stepped.checkpoints) == 3


@pytest.mark.parametrize(("dtype", "error"), [("float16", 2**-11), ("bfloat16", 2**-8)])
@pytest.mark.slow
def test_steps_in_16_bits_are_as_near_as_stated(stepped, dtype, error):
    first, exact = stepped.steps.variables(0), stepped.steps.variables(-1)
    rounded = from_vector(to_vector(exact, first, dtype), first)

    def near(a, b, c):
        rounding = 2**-24 * (np.abs(b - c) + np.abs(b))  # of the difference, and of the sum
        assert (np.abs(a - b) <= error * np.abs(b - c) + rounding + 3e-8).all()

    jax.tree.map(near, rounded, exact, first)
    assert any(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a != b).any()), rounded, exact)))
    same(from_vector(to_vector(first, first, dtype), first), first)


@pytest.mark.slow
def test_a_run_keeps_its_steps_in_16_bits(stepped, tmp_path):
    config = dataclasses.replace(CONFIG, epochs=2, save_steps=6, steps_dtype="float16")
    run = train.train(config, tmp_path / "run", progress=False)
    assert run.steps.epochs == (0, 1, 2)
    first, exact = stepped.steps.variables(0), stepped.checkpoints.variables(-1)
    same(run.steps.variables(-1), from_vector(to_vector(exact, first, "float16"), first))


@pytest.mark.slow
def test_a_resumed_run_keeps_the_same_steps(stepped, tmp_path, monkeypatch):
    config, out = dataclasses.replace(CONFIG, epochs=2, save_steps=2), tmp_path / "run"
    monkeypatch.setattr("training.folder._TOGETHER", 0)  # each is written at once
    train.train(config, out, progress=False)
    assert sorted(int(folder.name) for folder in (out / "steps").iterdir()) == [2, 4, 6, 8, 10, 12]
    assert sorted(int(folder.name) for folder in (stepped.path / "steps").iterdir()) == [6, 12]  # with each epoch
    shutil.rmtree(out / "checkpoints" / "2")  # killed within epoch 2, after its first steps
    for step in (10, 12):
        shutil.rmtree(out / "steps" / str(step))
    resumed = train.train(config, out, resume=True, progress=False)
    assert resumed.steps.epochs == stepped.steps.epochs
    for a, b in zip(resumed.steps, stepped.steps, strict=True):
        same(a, b)


def test_a_run_without_steps(run):
    assert len(run.steps) == 0
