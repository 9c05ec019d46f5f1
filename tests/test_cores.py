"""Cores of a CPU that share the work of one device: the numbers must not change."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

import jaxscape as js
from jaxscape.curvature import _product
from jaxscape.engine import _program
from jaxscape.objective import _cores, num_lanes, start

ONE = Mesh(np.array(jax.devices()[:1]), ("points",))
ONE_BY_EXAMPLES = Mesh(np.array(jax.devices()[:1]), ("data",))
X, Y = np.random.default_rng(0).normal(size=(2, 37))
PARAMS = {"w": np.array([0.5, -1.0, 2.0], np.float32)}


def loss(params, batch):
    x, y = batch
    values = (jnp.polyval(params["w"], x) - y) ** 2
    return {"loss": values, "large": values > 1}


def mean_loss(params, batch):
    return loss(params, batch)["loss"].mean()


def lanes(monkeypatch, count):
    for module in (_program, _product):
        monkeypatch.setattr(module, "num_lanes", lambda mesh, params=(): count)


def surface(loss_fn=loss, num=11, **options):
    data = tuple(np.asarray(x, np.float32) for x in (X, Y))
    directions = js.random_directions(0, PARAMS, num=1, ignore=None)
    grid = js.Grid.line(-1, 1, num)
    return js.surface(PARAMS, loss_fn, data, directions=directions, grid=grid, mesh=ONE, batch_size=8, **options)


@pytest.mark.parametrize("loss_fn", [loss, mean_loss])
@pytest.mark.parametrize("num", [1, 2, 11])
def test_lanes_change_no_bit_of_a_surface(monkeypatch, loss_fn, num):
    lanes(monkeypatch, 1)
    one = surface(loss_fn, num)
    lanes(monkeypatch, 3)
    several = surface(loss_fn, num)
    for name in one.data_vars:
        np.testing.assert_array_equal(one[name], several[name])


def test_lanes_change_no_bit_of_a_sampled_surface(monkeypatch):
    lanes(monkeypatch, 1)
    one = surface(rtol=0.2)
    lanes(monkeypatch, 3)
    several = surface(rtol=0.2)
    for name in one.data_vars:
        np.testing.assert_array_equal(one[name], several[name])


@pytest.fixture
def no_x64():
    """JAX as users start it; the tests' setting comes back."""
    jax.config.update("jax_enable_x64", False)
    yield
    jax.config.update("jax_enable_x64", True)


@pytest.mark.usefixtures("no_x64")
def test_lanes_compute_in_the_precision_of_the_callers_context(monkeypatch):
    lanes(monkeypatch, 3)
    with jax.enable_x64(True):
        params = jax.tree.map(lambda w: jnp.asarray(w, jnp.float64), PARAMS)
        directions = js.Directions(jax.tree.map(lambda w: jnp.ones_like(w)[None], params))
        grid = js.Grid.line(0, 1, 7)
        result = js.surface(params, loss, (X, Y), directions=directions, grid=grid, mesh=ONE, batch_size=8)
    for alpha, value in zip(result.alpha.values, result.loss.values, strict=True):
        expected = np.mean((np.polyval(np.float64(PARAMS["w"]) + alpha, X) - Y) ** 2)
        np.testing.assert_allclose(value, expected, rtol=1e-14)


@pytest.mark.usefixtures("no_x64")
@pytest.mark.parametrize("linearize", [True, False])
@pytest.mark.parametrize("count", [2, 3, 20])
def test_lanes_add_up_to_the_hessian(monkeypatch, linearize, count):
    lanes(monkeypatch, count)
    with jax.enable_x64(True):
        params = jnp.asarray(PARAMS["w"], jnp.float64)

        def per_example(w, batch):
            return (jnp.sin(jnp.polyval(w, batch[0])) - batch[1]) ** 2

        expected = jax.hessian(lambda w: per_example(w, (X, Y)).mean())(params)
        product = js.hvp(per_example, params, (X, Y), batch_size=4, mesh=ONE_BY_EXAMPLES, linearize=linearize)
        for i, v in enumerate(np.eye(3)):
            np.testing.assert_allclose(product(jnp.asarray(v)), expected[i], rtol=1e-12)
            np.testing.assert_allclose(product(jnp.asarray(v)), expected[i], rtol=1e-12)  # the kept programs


def test_a_nan_of_one_lane_stays_where_it_is(monkeypatch):
    lanes(monkeypatch, 3)
    grid = js.Grid.line(-1, 1, 7)
    directions = js.Directions({"w": np.ones((1, 3), np.float32)})
    result = js.surface(
        PARAMS,
        lambda p, x: jnp.log(p["w"][0] + 0 * x),
        np.ones(5, np.float32),
        directions=directions,
        grid=grid,
        mesh=ONE,
        batch_size=5,
    )
    np.testing.assert_array_equal(np.isnan(result.loss), 0.5 + grid.axes[0] < 0)


def test_a_device_takes_its_share_of_the_cores(monkeypatch):
    monkeypatch.setattr(_cores, "cores", lambda: 8)
    for devices, expected in ((1, 8), (2, 4), (3, 2), (16, 1)):
        monkeypatch.setattr(jax, "local_device_count", lambda devices=devices: devices)
        assert num_lanes(ONE) == expected
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert num_lanes(ONE) == 1


def test_the_first_error_of_a_call_is_raised():
    def fail():
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        start([lambda: jnp.ones(2), fail])()
