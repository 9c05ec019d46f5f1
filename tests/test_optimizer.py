"""The optimizer of a training: its schedule, its equations, what it decays; the order of the examples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import train
from tests.training import CONFIG


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
