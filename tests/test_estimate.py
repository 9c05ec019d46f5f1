"""What a call will take: bytes and operations against those that are known, and what does not fit is said."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jaxscape as js
from jaxscape import budgets
from models import gpt
from tests.sharding import cut, mesh, problem

PARAMS = {"a": jnp.ones((64, 128), jnp.float32), "b": jnp.ones((128, 32), jnp.bfloat16)}
X = np.ones((40, 64), np.float32)
GRID = js.Grid.plane((-1, 1, 4), (-1, 1, 3))
MB = 2**20


def loss(p, x):
    return (((x @ p["a"]).astype(jnp.bfloat16) @ p["b"]).astype(jnp.float32) ** 2).sum(-1)


def test_bytes_and_operations_of_a_surface():
    budget = js.estimate(PARAMS, loss, X, grid=GRID, batch_size=40)
    a, b = 64 * 128, 128 * 32
    assert budget.bytes["params"] == budget.bytes["displaced"] == 4 * a + 2 * b
    assert budget.bytes["directions"] == 2 * 4 * (a + b)  # float32 at least
    assert budget.bytes["data"] == X.nbytes
    assert budget.bytes["activations"] >= 4 * 40 * 128  # the hidden layer
    assert budget.work == 12
    assert budget.flop == pytest.approx(12 * 2 * 40 * (a + b), rel=0.1)  # a product has two for each weight and example
    assert (budget.total, budget.fits, budget.seconds) == (sum(budget.bytes.values()), True, None)
    lazy = js.estimate(PARAMS, loss, X, grid=GRID, batch_size=40, lazy=True)
    assert lazy.bytes == budget.bytes | {"directions": 0}
    halves = js.estimate(PARAMS, loss, X, grid=GRID, batch_size=20)
    assert halves.flop == pytest.approx(budget.flop, rel=0.01)
    assert halves.bytes["activations"] < budget.bytes["activations"]


def test_bytes_and_operations_of_a_search_for_eigenvalues():
    params = {"w": jnp.ones((64, 128), jnp.float32)}
    square = lambda p, x: ((x @ p["w"]) ** 2).sum(-1)  # noqa: E731
    budget = js.estimate(params, square, X, call="eigenvalues", max_basis=10, max_matvecs=7, batch_size=40)
    assert budget.bytes["basis"] == 14 * 4 * 64 * 128
    assert budget.work == 7
    product = 2 * 40 * 64 * 128
    assert 2 * product <= budget.flop / 7 <= 6 * product  # forward and back, once more along a vector


@pytest.mark.parametrize("name", ["fsdp", "points, fsdp"])
def test_each_device_has_its_part(name):
    params, loss_fn, data = problem(jnp.float32)
    whole, parts = (js.estimate(p, loss_fn, data, grid=GRID) for p in (params, cut(params, mesh(name))))
    local = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(cut(params, mesh(name))))
    assert parts.bytes["params"] == local < whole.bytes["params"]
    assert parts.bytes["directions"] == 2 * local
    assert parts.flop == pytest.approx(whole.flop, rel=0.05)
    vectors = js.estimate(cut(params, mesh(name)), loss_fn, data, call="eigenvalues", max_basis=6)
    assert vectors.bytes["basis"] == 10 * local


def test_a_model_that_nobody_has_loaded():
    own = mesh("fsdp")
    abstract = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(own, P()))  # noqa: E731
    shapes = {name: abstract(x) for name, x in PARAMS.items()}
    assert js.estimate(shapes, loss, X, grid=GRID, batch_size=40) == js.estimate(
        PARAMS, loss, X, grid=GRID, batch_size=40
    )._replace(free=pytest.approx(2**33, abs=2**40))
    with pytest.raises(ValueError, match="timed is True, but params has shapes without numbers"):
        js.estimate(shapes, loss, X, timed=True)


@pytest.mark.parametrize("call", ["surface", "eigenvalues"])
def test_one_timed_point_or_product(call):
    budget = js.estimate(PARAMS | {"b": jnp.ones((128, 32))}, loss, X, call=call, grid=GRID, timed=True)
    assert 0 < budget.seconds < 60
    assert f"{'time':12} " in str(budget)


def test_what_does_not_fit_is_said_with_the_cure(monkeypatch):
    monkeypatch.setattr(budgets, "free_bytes", lambda devices: 60_000 * len(devices))
    budget = js.estimate(PARAMS, loss, X, grid=GRID, batch_size=40, lazy=False)
    assert not budget.fits
    assert "does not fit: " in str(budget)
    for cure in ("lazy=True spares 0.094 MiB", "params that are cut over devices"):
        assert cure in budget.cure
    assert "a smaller max_basis" in js.estimate(PARAMS, loss, X, call="eigenvalues").cure
    stream = js.estimate(PARAMS, loss, np.ones((4000, 64), np.float32), batch_size=8, lazy=True)
    assert "js.Stream for data that do not fit" in stream.cure


def test_streams_and_terms():
    stream = js.Stream([X[:16], X[16:]])
    assert js.estimate(PARAMS, loss, stream, grid=GRID).work == 12
    both = js.estimate(PARAMS, {"a": loss, "b": loss}, {"a": X, "b": X}, grid=GRID, batch_size=40)
    one = js.estimate(PARAMS, loss, X, grid=GRID, batch_size=40)
    assert both.flop == pytest.approx(2 * one.flop)


def test_what_is_refused():
    with pytest.raises(ValueError, match="call is 'line', expected one of surface, eigenvalues"):
        js.estimate(PARAMS, loss, X, call="line")
    with pytest.raises(TypeError, match="timed is 1"):
        js.estimate(PARAMS, loss, X, timed=1)
    with pytest.raises(TypeError, match="js.estimate is called inside a JAX transform"):
        jax.jit(lambda p: js.estimate(p, loss, X))(PARAMS)


def test_gpt_sizes_are_those_of_their_names():
    for name, low, high in (("gpt_1m", 0.8e6, 1.2e6), ("gpt_10m", 9e6, 12e6), ("gpt_1.3b", 1.2e9, 1.4e9)):
        model = nnx.eval_shape(lambda name=name: gpt.create(name))
        count = sum(x.size for x in jax.tree.leaves(nnx.state(model, nnx.Param)))
        assert low < count < high
