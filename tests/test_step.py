"""One step of a training: augmentation, devices, batches in parts, precisions, losses."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import train
from jaxscape import datasets, runs
from tests.training import config
from training.step import augment, shared


def reference_augmentation(image, top, left, mirror):
    padded = np.zeros((image.shape[0] + 8, image.shape[1] + 8, image.shape[2]), image.dtype)
    padded[4:-4, 4:-4] = image
    cropped = padded[top : top + image.shape[0], left : left + image.shape[1]]
    return cropped[:, ::-1] if mirror else cropped


def test_augmentation_crops_and_mirrors():
    images = np.random.default_rng(0).integers(1, 256, (400, 6, 5, 3)).astype(np.uint8)
    result = np.asarray(augment(jax.random.key(0), jnp.asarray(images)))
    assert result.dtype == np.uint8
    counts = {}
    for image, new in zip(images, result, strict=True):
        for choice in itertools.product(range(9), range(9), (False, True)):
            if np.array_equal(reference_augmentation(image, *choice), new):
                counts[choice] = counts.get(choice, 0) + 1
                break
        else:
            raise AssertionError("no crop and mirror gives this image")
    for axis in (0, 1):
        assert {choice[axis] for choice in counts} == set(range(9))
    mirrored = sum(count for choice, count in counts.items() if choice[2])
    assert 150 < mirrored < 250  # of 400: within 5 standard deviations
    assert not np.array_equal(result, augment(jax.random.key(1), jnp.asarray(images)))


def start(options, devices=1, dtype=jnp.float64):
    """A step, its first state and the data, on the first devices."""
    data = datasets.load("digits")[0]
    graphdef, *parts = nnx.split(runs.build_model(dataclasses.asdict(options), data), nnx.Param, nnx.BatchStat)
    params, stats = jax.tree.map(lambda x: x.astype(dtype), [nnx.to_pure_dict(part) for part in parts])
    optimizer = train.make_optimizer(options, 10)
    mesh = Mesh(np.array(jax.devices()[:devices]), ("data",))
    everywhere = NamedSharding(mesh, PartitionSpec())
    state, data = jax.device_put((train.TrainState(params, stats, optimizer.init(params)), data), everywhere)
    step = train.make_step(graphdef, optimizer, options, mesh)

    def run(state, rows, key):
        return step(state, data, shared(mesh, rows), key)

    return run, state


@pytest.mark.slow
def test_eight_devices_train_as_one():
    options = config(augment=True, lr=0.01)
    order = np.random.default_rng(0).permutation(1437)
    batches = [*order[: 6 * 48].reshape(6, 48), order[-5:]]  # the last cannot be shared evenly
    states = []
    for devices in (1, 8):
        run, state = start(options, devices)
        for i, rows in enumerate(batches):
            state = run(state, rows, jax.random.key(i))
        assert len(jax.tree.leaves(state)[0].sharding.device_set) == devices
        states.append(jax.device_get(state))
    for one, other in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-7, atol=1e-9)


@pytest.mark.slow
def test_a_batch_in_parts_has_the_mean_gradient():
    rows = np.arange(31)
    options = config(accumulate=4, momentum=0.0, weight_decay=0.0)
    run, state = start(options)
    before = jax.device_get(state)
    after = jax.device_get(run(state, rows, jax.random.key(0)))
    steps, stats = [], before.batch_stats
    run, _ = start(dataclasses.replace(options, accumulate=1))
    for part in np.array_split(rows, 4):
        single = jax.device_get(run(jax.device_put(before._replace(batch_stats=stats)), part, jax.random.key(0)))
        steps.append((len(part), jax.tree.map(np.subtract, single.params, before.params)))
        stats = single.batch_stats
    expected = jax.tree.map(
        lambda *s: sum(n * x for (n, _), x in zip(steps, s, strict=True)) / 31, *[x for _, x in steps]
    )
    result = jax.tree.map(np.subtract, after.params, before.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-12), result, expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), after.batch_stats, stats)


@pytest.mark.slow
def test_bfloat16_steps_are_near_those_of_float32():
    states = []
    for precision in ("float32", "bfloat16"):
        run, state = start(config(precision=precision, lr=0.01), dtype=jnp.float32)
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
