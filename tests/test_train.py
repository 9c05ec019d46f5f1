"""Training: the optimizer against its equations, what a run leaves, exact resume; and reading runs back."""

import dataclasses
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import jaxscape as js
import train
from jaxscape import datasets, runs, trees
from jaxscape.checkpoints import from_vector, to_vector
from tests.problems import launch
from tests.test_datasets import random_batches, write_binary
from training.presets import PRESETS
from training.step import augment, shared

CONFIG = train.Config(arch="resnet20", epochs=3, batch_size=256, lr=0.05, save_every=1)
OPTIONS = ["--arch", "resnet20", "--epochs", "3", "--batch-size", "256", "--lr", "0.05", "--save-every", "1"]  # CONFIG


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    return train.train(CONFIG, tmp_path_factory.mktemp("runs") / "whole", progress=False)


@pytest.fixture
def copy(run, tmp_path):
    return shutil.copytree(run.path, tmp_path / "copy")


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


# ---- the optimizer


def test_the_papers_schedule():
    config = train.Config(epochs=300)
    assert config.drops == (150, 225, 275)
    rates = [config.rate_in(epoch) for epoch in (1, 150, 151, 225, 226, 275, 276, 300)]
    np.testing.assert_allclose(rates, [0.1, 0.1, 0.01, 0.01, 1e-3, 1e-3, 1e-4, 1e-4])
    assert train.Config(optimizer="adam").rate_in(1) == 1e-3


def test_deep_networks_without_shortcuts_start_lower():
    for arch, rate in {"resnet20": 0.1, "resnet56": 0.01, "resnet110": 0.01, "wrn56_2": 0.01}.items():
        assert train.Config(arch=arch).learning_rate == 0.1
        assert train.Config(arch=arch, noshort=True).learning_rate == rate
    assert train.Config(arch="resnet56", noshort=True, optimizer="adam").learning_rate == 1e-3


def test_warmup_grows_from_zero_to_the_rate():
    config = train.Config(epochs=4, warmup=1, momentum=0.0, weight_decay=0.0)
    optimizer = train.make_optimizer(config, steps_per_epoch=4)
    state, steps = optimizer.init(jnp.zeros(())), []
    for _ in range(5):
        update, state = optimizer.update(jnp.ones(()), state, jnp.zeros(()))
        steps.append(-float(update))
    np.testing.assert_allclose(steps, [0.025, 0.05, 0.075, 0.1, 0.1], rtol=1e-6)


def test_biases_and_norms_can_be_spared_from_decay():
    params = {"kernel": jnp.ones((2, 2)), "scale": jnp.ones(2)}
    for decay_norm, scale in ((True, 5e-4), (False, 0.0)):
        optimizer = train.make_optimizer(train.Config(lr=1.0, momentum=0.0, decay_norm=decay_norm), 10)
        update, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
        np.testing.assert_allclose(update["kernel"], -5e-4, rtol=1e-6)
        np.testing.assert_allclose(update["scale"], -scale, rtol=1e-6)


def test_what_is_saved():
    config = train.Config(epochs=300)
    saved = [epoch for epoch in range(301) if config.is_saved(epoch)]
    assert saved == sorted({0, 1, *range(10, 301, 10), 150, 225, 275, 300})


def test_the_optimizer_follows_the_schedule():
    config = train.Config(epochs=4, momentum=0.0, weight_decay=0.0)
    optimizer = train.make_optimizer(config, steps_per_epoch=2)
    state, steps = optimizer.init(jnp.zeros(())), []
    for _ in range(8):
        update, state = optimizer.update(jnp.ones(()), state, jnp.zeros(()))
        steps.append(-float(update))
    np.testing.assert_allclose(steps, np.repeat([config.rate_in(epoch) for epoch in range(1, 5)], 2), rtol=1e-6)


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_optimizers_against_their_equations(name):
    config = train.Config(optimizer=name, lr=0.1, epochs=1000)
    optimizer = train.make_optimizer(config, 10)
    params = w = np.array([1.0, -2.0])
    state = optimizer.init(jnp.asarray(params))
    buffer, second = np.zeros(2), np.zeros(2)
    for t in range(1, 6):
        grad = np.sin(t * params)
        update, state = optimizer.update(jnp.asarray(grad), state, jnp.asarray(params))
        params = params + np.asarray(update)
        g = np.sin(t * w) + 5e-4 * w  # weight decay is part of the gradient
        if name == "sgd":  # Nesterov's, as PyTorch has it
            buffer = 0.9 * buffer + g
            w = w - 0.1 * (g + 0.9 * buffer)
        else:
            buffer, second = 0.9 * buffer + 0.1 * g, 0.999 * second + 0.001 * g**2
            w = w - 0.1 * (buffer / (1 - 0.9**t)) / (np.sqrt(second / (1 - 0.999**t)) + 1e-8)
        np.testing.assert_allclose(params, w, rtol=1e-9)


def test_an_epoch_is_every_example_once_in_an_order_of_its_own():
    batches = list(train.epoch_batches(CONFIG, 1, 600))
    assert [len(batch) for batch in batches] == [256, 256, 88]
    order = np.concatenate(batches)
    np.testing.assert_array_equal(np.sort(order), np.arange(600))
    np.testing.assert_array_equal(order, np.concatenate(list(train.epoch_batches(CONFIG, 1, 600))))
    assert not np.array_equal(order, np.concatenate(list(train.epoch_batches(CONFIG, 2, 600))))


# ---- the step


def reference_augmentation(image, top, left, mirror):
    padded = np.zeros((image.shape[0] + 8, image.shape[1] + 8, image.shape[2]), image.dtype)
    padded[4:-4, 4:-4] = image
    cropped = padded[top : top + image.shape[0], left : left + image.shape[1]]
    return cropped[:, ::-1] if mirror else cropped


def test_augmentation_crops_and_mirrors():
    images = np.random.default_rng(0).integers(1, 256, (400, 6, 5, 3)).astype(np.uint8)
    found = np.asarray(augment(jax.random.key(0), jnp.asarray(images)))
    assert found.dtype == np.uint8
    seen = {}
    for image, new in zip(images, found, strict=True):
        for choice in itertools.product(range(9), range(9), (False, True)):
            if np.array_equal(reference_augmentation(image, *choice), new):
                seen[choice] = seen.get(choice, 0) + 1
                break
        else:
            raise AssertionError("no crop and mirror gives this image")
    for axis in (0, 1):
        assert {choice[axis] for choice in seen} == set(range(9))
    mirrored = sum(count for choice, count in seen.items() if choice[2])
    assert 150 < mirrored < 250  # of 400: within 5 standard deviations
    assert not np.array_equal(found, augment(jax.random.key(1), jnp.asarray(images)))


def start(config, devices=1, dtype=jnp.float64):
    """A step, its first state and the data, on the first devices."""
    data = datasets.load("digits")[0]
    graphdef, *parts = nnx.split(runs.build_model(dataclasses.asdict(config), data), nnx.Param, nnx.BatchStat)
    params, stats = jax.tree.map(lambda x: x.astype(dtype), [nnx.to_pure_dict(part) for part in parts])
    optimizer = train.make_optimizer(config, 10)
    mesh = Mesh(np.array(jax.devices()[:devices]), ("data",))
    everywhere = NamedSharding(mesh, PartitionSpec())
    state, data = jax.device_put((train.TrainState(params, stats, optimizer.init(params)), data), everywhere)
    step = train.make_step(graphdef, optimizer, config, mesh)

    def run(state, rows, key):
        return step(state, data, shared(mesh, rows), key)

    return run, state


def test_eight_devices_train_as_one():
    config = train.Config(arch="resnet20", augment=True, lr=0.01)
    order = np.random.default_rng(0).permutation(1437)
    batches = [order[i : i + 48] for i in range(0, 19 * 48, 48)] + [order[-5:]]  # 20, the last cannot be shared evenly
    states = []
    for devices in (1, 8):
        run, state = start(config, devices)
        for i, rows in enumerate(batches):
            state = run(state, rows, jax.random.key(i))
        assert len(jax.tree.leaves(state)[0].sharding.device_set) == devices
        states.append(jax.device_get(state))
    for one, other in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-7, atol=1e-9)


def test_a_batch_in_parts_has_the_mean_gradient():
    rows = np.arange(31)
    config = train.Config(arch="resnet20", accumulate=4, momentum=0.0, weight_decay=0.0)
    run, state = start(config)
    before = jax.device_get(state)
    after = jax.device_get(run(state, rows, jax.random.key(0)))
    steps, stats = [], before.batch_stats
    for part in np.array_split(rows, 4):
        run, _ = start(dataclasses.replace(config, accumulate=1))
        single = jax.device_get(run(jax.device_put(before._replace(batch_stats=stats)), part, jax.random.key(0)))
        steps.append((len(part), jax.tree.map(np.subtract, single.params, before.params)))
        stats = single.batch_stats
    expected = jax.tree.map(
        lambda *s: sum(n * x for (n, _), x in zip(steps, s, strict=True)) / 31, *[x for _, x in steps]
    )
    found = jax.tree.map(np.subtract, after.params, before.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-12), found, expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), after.batch_stats, stats)


def test_bfloat16_steps_are_near_those_of_float32():
    states = []
    for precision in ("float32", "bfloat16"):
        run, state = start(train.Config(arch="resnet20", precision=precision, lr=0.01), dtype=jnp.float32)
        before = jax.device_get(state.params)
        states.append(
            jax.tree.map(np.subtract, jax.device_get(run(state, np.arange(128), jax.random.key(0)).params), before)
        )
    flat = [np.concatenate([x.ravel() for x in jax.tree.leaves(s)]) for s in states]
    assert {x.dtype for x in flat} == {np.dtype(np.float32)}
    cosine = flat[0] @ flat[1] / np.linalg.norm(flat[0]) / np.linalg.norm(flat[1])
    assert 0.97 < cosine < 1 - 1e-7  # near, and not the same


def test_losses_against_their_formulas():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(5, 4)), np.array([0, 3, 1, 1, 2])
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(
        runs.LOSSES["crossentropy"](jnp.asarray(logits), labels), -np.log(p[np.arange(5), labels])
    )
    np.testing.assert_allclose(runs.LOSSES["mse"](jnp.asarray(logits), labels), ((p - np.eye(4)[labels]) ** 2).mean(1))


# ---- what a run leaves


@pytest.fixture(scope="module")
def stepped(tmp_path_factory):
    config = dataclasses.replace(CONFIG, epochs=2, save_steps=2)
    return train.train(config, tmp_path_factory.mktemp("runs") / "steps", progress=False)


def test_steps_lie_between_the_epochs(stepped):
    assert stepped.steps.epochs == (0, 2 / 6, 4 / 6, 1, 8 / 6, 10 / 6, 2)  # 1437 digits make 6 batches
    for step, epoch in ((0, 0), (3, 1), (6, 2)):
        same(stepped.steps[step], stepped.checkpoints[epoch])
        same(stepped.steps.with_batch_stats()[step], stepped.checkpoints.with_batch_stats()[epoch])
    moved = [float(trees.norm(trees.axpy(-1, a, b))) for a, b in itertools.pairwise(stepped.steps)]
    assert min(moved) > 0
    assert len(stepped.checkpoints) == 3


@pytest.mark.parametrize(("dtype", "error"), [("float16", 2**-11), ("bfloat16", 2**-8)])
def test_steps_in_16_bits_are_as_near_as_stated(stepped, dtype, error):
    first, exact = stepped.steps.variables(0), stepped.steps.variables(-1)
    kept = from_vector(to_vector(exact, first, dtype), first)

    def near(a, b, c):
        rounding = 2**-24 * (np.abs(b - c) + np.abs(b))  # of the difference, and of the sum
        assert (np.abs(a - b) <= error * np.abs(b - c) + rounding + 3e-8).all()

    jax.tree.map(near, kept, exact, first)
    assert any(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a != b).any()), kept, exact)))
    same(from_vector(to_vector(first, first, dtype), first), first)


def test_a_run_keeps_its_steps_in_16_bits(stepped, tmp_path):
    config = dataclasses.replace(CONFIG, epochs=2, save_steps=6, steps_dtype="float16")
    run = train.train(config, tmp_path / "run", progress=False)
    assert run.steps.epochs == (0, 1, 2)
    first, exact = stepped.steps.variables(0), stepped.checkpoints.variables(-1)
    same(run.steps.variables(-1), from_vector(to_vector(exact, first, "float16"), first))


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


def test_a_path_ends_at_the_runs_final_loss(run):
    ds = js.trajectory(run, points=3, progress=False)
    np.testing.assert_array_equal(ds.epoch, [0, 1, 2, 3])
    np.testing.assert_allclose(ds.true_loss, [row["train_loss"] for row in run.metrics], rtol=1e-5)  # own statistics
    np.testing.assert_allclose(ds.in_plane_loss[-1], run.metrics[-1]["train_loss"], rtol=1e-5)
    np.testing.assert_allclose(ds.loss.interp(alpha=0, beta=0), run.metrics[-1]["train_loss"], rtol=1e-5)
    drops = [row["epoch"] for row, after in itertools.pairwise(run.metrics) if after["lr"] < row["lr"] and row["epoch"]]
    np.testing.assert_array_equal(ds.epoch[ds.lr_drop], drops)
    whole = js.trajectory(run, points=3, batch_stats=True, progress=False)
    assert whole.attrs["num_params"] == trees.size(run.variables) > ds.attrs["num_params"]
    np.testing.assert_allclose(whole.true_loss, ds.true_loss, rtol=1e-6)


def test_metrics_config_and_checkpoints(run):
    assert [row["epoch"] for row in run.metrics] == [0, 1, 2, 3]
    assert run.metrics[-1]["train_loss"] < run.metrics[0]["train_loss"]
    assert run.checkpoints.epochs == (0, 1, 2, 3)
    assert len(run.checkpoints) == 4
    assert run.config["arch"] == "resnet20"
    assert "jax" in run.config["versions"]
    same(run.checkpoints[-1], run.params)
    assert len(run.checkpoints[1:]) == len(list(run.checkpoints)[1:]) == 3
    initial = runs.build_model(run.config, run.data)
    np.testing.assert_array_equal(run.checkpoints[0]["head"]["kernel"], initial.head.kernel[...])


def test_the_center_of_the_surface_is_the_runs_final_loss(run):
    for split, data in (("train", run.data), ("test", run.test_data)):
        ds = js.surface(run.params, run.loss_fn, data, grid=js.Grid.plane((0, 1, 2), (0, 1, 2)), progress=False)
        last = run.metrics[-1]
        np.testing.assert_allclose(ds.loss[0, 0], last[f"{split}_loss"], rtol=1e-6)
        np.testing.assert_allclose(100 * (1 - ds.accuracy[0, 0]), last[f"{split}_error"], rtol=1e-12, atol=1e-12)
        assert ds.attrs["center_loss"] == float(ds.loss[0, 0])


def test_each_architecture_trains_and_is_found_at_the_center(tmp_path):
    config = train.Config(arch="resnet20", noshort=True, optimizer="adam", epochs=1, batch_size=2000)
    run = train.train(config, tmp_path / "run", progress=False)
    assert "shortcut" not in run.params["stage2_block1"]
    ds = js.surface(run.params, run.loss_fn, run.data, grid=js.Grid.line(0, 1, 2), progress=False)
    np.testing.assert_allclose(ds.loss[0], run.metrics[-1]["train_loss"], rtol=1e-6)


def test_batch_statistics_are_fixed_or_take_part(run):
    other = jax.tree.map(lambda x: 2 * x, run.variables)
    line = js.interpolate(run.variables, other, run.loss_fn, run.test_data, grid=js.Grid.line(0, 1, 2), progress=False)
    np.testing.assert_allclose(line.loss[0], run.metrics[-1]["test_loss"], rtol=1e-6)
    np.testing.assert_allclose(line.loss[1], np.mean(run.loss_fn(other, run.test_data)["loss"]), rtol=1e-5)
    fixed = js.interpolate(run.params, other_params := jax.tree.map(lambda x: 2 * x, run.params), run.loss_fn,
                           run.test_data, grid=js.Grid.line(0, 1, 2), progress=False)  # fmt: skip
    np.testing.assert_allclose(fixed.loss[1], np.mean(run.loss_fn(other_params, run.test_data)["loss"]), rtol=1e-5)
    assert not np.allclose(fixed.loss[1], line.loss[1])


def test_weight_norms_are_kept(run):
    rows = runs.read_table(run.path / "weight_norms.csv")
    assert [row["epoch"] for row in rows] == [0, 1, 2, 3]
    leaves = [np.asarray(x, np.float64) for x in jax.tree.leaves(run.params)]
    np.testing.assert_allclose(rows[-1]["all"], np.sqrt(sum((x**2).sum() for x in leaves)), rtol=1e-6)
    assert len(rows[-1]) == 2 + len(leaves)
    kernel = next(name for name in rows[-1] if "head" in name and "kernel" in name)
    np.testing.assert_allclose(rows[-1][kernel], np.linalg.norm(run.params["head"]["kernel"]), rtol=1e-6)


def test_divergence_names_the_last_good_checkpoint(tmp_path, capsys):
    options = [
        "--arch",
        "resnet20",
        "--epochs",
        "3",
        "--lr",
        "1e30",
        "--batch-size",
        "700",
        "--out",
        str(tmp_path / "run"),
    ]
    assert train.main(options) == 3
    told = capsys.readouterr().err
    assert "diverged: a weight became NaN or infinite in epoch 1. The last good checkpoint, of epoch 0" in told
    assert js.load_run(tmp_path / "run").checkpoints.epochs == (0,)
    assert [row["epoch"] for row in js.load_run(tmp_path / "run").metrics] == [0, 1]


def test_label_noise_is_in_the_training_labels_and_stays(tmp_path):
    config = train.Config(arch="resnet20", epochs=1, batch_size=2000, label_noise=0.5, seed=3)
    run = train.train(config, tmp_path / "run", progress=False)
    clean, test = datasets.load("digits")
    assert 0.4 < np.mean(run.data.labels != clean.labels) < 0.5  # a tenth of the random labels are right
    np.testing.assert_array_equal(run.test_data.labels, test.labels)
    np.testing.assert_array_equal(run.data.labels, js.load_run(tmp_path / "run").data.labels)


def test_cifar_files_train_and_are_found_at_the_center(tmp_path, capsys):
    write_binary("cifar10", tmp_path, random_batches("cifar10"))
    options = ["--arch", "resnet20", "--dataset", "cifar10-files", "--data-dir", str(tmp_path), "--loss", "mse"]
    assert train.main([*options, "--epochs", "1", "--batch-size", "64", "--out", str(tmp_path / "run")]) == 0
    run = js.load_run(tmp_path / "run")
    assert run.data.images.dtype == np.uint8
    ds = js.surface(run.params, run.loss_fn, run.data, grid=js.Grid.line(0, 1, 2), progress=False)
    np.testing.assert_allclose(ds.loss[0], run.metrics[-1]["train_loss"], rtol=1e-6)


def test_presets_are_listed_and_take_options(tmp_path, capsys):
    assert train.main(["--preset", "paper-table1", "--list", "--out", str(tmp_path), "--epochs", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(set(lines)) == 8
    assert all(line.endswith(": not begun") for line in lines)
    asked, *_ = train.parse(["--preset", "paper-table2", "--dataset", "digits"])
    assert [config.dataset for config, _ in asked] == ["digits"] * 7
    assert len({path for _, path in asked}) == 7
    assert {config.batch_size for config in PRESETS["paper-fig2"]} == {128, 8192}


def test_resume_is_the_same_to_the_bit(run, tmp_path, monkeypatch):
    def power_cut(folder, name, row, log=train.RunFolder.log):
        log(folder, name, row)
        if row["epoch"] == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(train.RunFolder, "log", power_cut)
    with pytest.raises(KeyboardInterrupt):
        train.train(CONFIG, tmp_path / "cut", progress=False)
    monkeypatch.undo()
    resumed = train.train(CONFIG, tmp_path / "cut", resume=True, progress=False)
    same(resumed.variables, run.variables)
    for one, other in zip(resumed.metrics, run.metrics, strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}
    again = train.train(CONFIG, tmp_path / "cut", resume=True, progress=False)  # nothing is left to do
    assert len(again.metrics) == 4


def test_a_finished_or_different_run_is_not_overwritten(copy):
    with pytest.raises(ValueError, match="holds a run already; pass --resume to go on, or another --out"):
        train.train(CONFIG, copy)
    with pytest.raises(ValueError, match=r"lr is 0.2, but the run in .* was started with 0.05"):
        train.train(dataclasses.replace(CONFIG, lr=0.2), copy, resume=True)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"arch": "resnet57"}, "arch is 'resnet57', expected one of resnet20"),
        ({"dataset": "mnist"}, "dataset is 'mnist', expected one of digits"),
        ({"optimizer": "lion"}, "optimizer is 'lion', expected one of sgd, adam"),
        ({"loss": "hinge"}, "loss is 'hinge', expected one of crossentropy, mse"),
        ({"precision": "float16"}, "precision is 'float16', expected one of float32, bfloat16"),
        ({"epochs": 0}, "epochs is 0, expected at least 1"),
        ({"accumulate": 0}, "accumulate is 0, expected at least 1"),
        ({"save_steps": -1}, "save_steps is -1, expected at least 0"),
        ({"steps_dtype": "int8"}, "steps_dtype is .int8., expected one of float32, float16, bfloat16"),
        ({"epochs": 5, "warmup": 5}, "warmup is 5, expected less than the 5 epochs"),
        ({"label_noise": 1.5}, "label_noise is 1.5, expected a share from 0 to 1"),
    ],
)
def test_bad_configs(options, match):
    with pytest.raises(ValueError, match=match):
        train.Config(**options)


def test_the_command_trains_and_tells_what_to_do_next(run, copy, capsys):
    assert train.main([*OPTIONS, "--out", str(copy), "--resume"]) == 0
    assert f"jaxscape surface {copy}" in capsys.readouterr().out
    assert train.main([*OPTIONS, "--out", str(copy)]) == 2
    assert capsys.readouterr().err.startswith("train.py: error: out is ")
    with pytest.raises(SystemExit, match="2"):
        train.main(["--arch", "alexnet"])
    assert "resnet20" in capsys.readouterr().err


def test_default_folder():
    [(config, out)], flags = train.parse(["--arch", "resnet20", "--noshort"])
    assert (config.noshort, str(out), flags) == (True, "runs/resnet20_noshort_digits", set())
    assert train.parse(["--distributed", "--resume"])[1] == {"distributed", "resume"}
    [(_, out)], *_ = train.parse(["--lr", "0.05", "--no-decay-norm", "--save-every", "3"])
    assert str(out) == "runs/resnet56_digits_lr=0.05_decay_norm=False"


def test_tensorboard_has_the_tables(copy):
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto.event_pb2 import Event

    shutil.rmtree(copy / "checkpoints" / "3")
    train.train(CONFIG, copy, resume=True, progress=False, tensorboard=True)
    content = b"".join(path.read_bytes() for path in (copy / "tensorboard").iterdir())
    found = {}
    while content:  # length, checksum, event, checksum
        length = int.from_bytes(content[:8], "little")
        event, content = Event.FromString(content[12 : 12 + length]), content[16 + length :]
        found |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
    for name in ("metrics", "weight_norms"):
        row = runs.read_table(copy / f"{name}.csv")[-1]
        for column, value in row.items():
            if column != "epoch":
                tag = re.sub(r"[^-/\w.]", "_", f"{name}/{column}").lstrip("/")  # as TensorBoard wants it
                assert found[tag, 3] == pytest.approx(value, rel=1e-5)
    assert {step for _, step in found} == {3}


def test_without_tensorboardx_the_cure_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ImportError, match=r"needs tensorboardX: `pip install -e .\[tensorboard\]`"):
        train.train(CONFIG, tmp_path / "run", tensorboard=True)
    assert not (tmp_path / "run").exists()


# ---- several processes


def test_distributed_finds_its_peers_first(monkeypatch, tmp_path, capsys):
    begun = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda: begun.append(1))
    assert train.main(["--distributed", "--list", "--out", str(tmp_path / "run")]) == 0
    assert begun == [1]
    assert "not begun" in capsys.readouterr().out


WORKER = """
import shutil
from jax.experimental import multihost_utils
import train
config = train.Config(arch="resnet20", epochs=2, batch_size=256, lr=0.01, save_every=1)
run = train.train(config, f"{out}/{num}")
if index == 0:
    shutil.rmtree(run.path / "checkpoints" / "2")
multihost_utils.sync_global_devices("the last epoch is forgotten")
run = train.train(config, f"{out}/{num}", resume=True)
leaves = [np.asarray(x) for x in jax.tree.leaves(run.variables)]
np.savez(f"{out}/{num}-{index}.npz", *leaves, losses=[row["train_loss"] for row in run.metrics])
"""


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    for num in (2, 1):
        processes = launch(num, tmp_path, WORKER)
        told = [process.communicate(timeout=500)[0] for process in processes]
        assert [process.returncode for process in processes] == [0] * num, told
    one = np.load(tmp_path / "1-0.npz")
    for i in range(2):
        found = np.load(tmp_path / f"2-{i}.npz")
        for name in one:
            np.testing.assert_allclose(found[name], one[name], rtol=1e-4, atol=1e-6)
    assert (tmp_path / "2" / "metrics.csv").read_text().count("\n") == 4  # a header, and epochs 0, 1 and 2 once each


# ---- reading runs back


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
        ValueError, match=r"of another architecture than .* \(resnet20, noshort\): params has a leaf .*shortcut"
    ):
        js.load_run(copy)
    (copy / "config.json").write_text(json.dumps(config | {"arch": "resnet32"}))
    with pytest.raises(ValueError, match=r"another architecture .*params has no leaf .*stage1_block4"):
        js.load_run(copy)


def test_load_run_without_models(copy, monkeypatch):
    monkeypatch.setitem(sys.modules, "models", None)
    with pytest.raises(ImportError, match=r"the run's network is made by models:create, which cannot be imported"):
        js.load_run(copy)


def test_a_run_that_was_never_evaluated_has_no_metrics(copy):
    (copy / "metrics.csv").unlink()
    assert js.load_run(copy).metrics == []


@pytest.mark.slow
def test_killed_and_resumed_is_the_same_to_the_bit(run, tmp_path):
    out = tmp_path / "killed"
    command = [sys.executable, "train.py", *OPTIONS, "--out", str(out), "--resume"]
    root = os.path.dirname(train.__file__)
    environment = os.environ | {"JAX_ENABLE_X64": "1", "JAX_NUM_CPU_DEVICES": "8"}  # as the tests' own process
    process = subprocess.Popen(command, cwd=root, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (out / "metrics.csv").exists() or len((out / "metrics.csv").read_text().splitlines()) < 3:
        time.sleep(0.05)
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    subprocess.run(command, cwd=root, env=environment, check=True, capture_output=True)
    same(js.load_run(out).variables, run.variables)


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
    found = np.load(tmp_path / "one.npz")
    expected = [*jax.tree.leaves(run.variables), *jax.tree.leaves(run.checkpoints.variables(0))]
    assert len(found) == len(expected)
    same([found[name] for name in found], expected)


@pytest.mark.slow
def test_one_device_goes_on_with_what_many_have_trained(run, copy):
    shutil.rmtree(copy / "checkpoints" / "3")
    environment = os.environ | {"JAX_ENABLE_X64": "1", "JAX_NUM_CPU_DEVICES": "1"}
    command = [sys.executable, "train.py", *OPTIONS, "--out", str(copy), "--resume"]
    subprocess.run(command, cwd=os.path.dirname(train.__file__), env=environment, check=True, capture_output=True)
    found = js.load_run(copy).variables
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found, run.variables)


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


def test_datasets_are_those_of_the_run(run):
    for one, other in zip((run.data, run.test_data), datasets.load("digits"), strict=True):
        np.testing.assert_array_equal(one.images, other.images)
