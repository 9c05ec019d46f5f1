"""The engine: the same numbers on any mesh, at any load and on any number of processes; how it chooses its load."""

import time
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

import jaxscape as js
from jaxscape import engine
from jaxscape.engine import Load, Program, _strategy
from jaxscape.objective import (
    Objective,
    batch_sizes,
    cached_examples,
    even_size,
    num_lanes,
    results_of_products,
    stack_batches,
    trace,
)
from tests.problems import classification_data, launch, mlp_loss, mlp_params, slow_but, slow_unless

PARAMS, DATA = mlp_params(), classification_data(examples=37)
DIRECTIONS = js.random_directions(0, PARAMS)
GRID = js.Grid.plane((-1, 1, 5), (0, 1, 3))


def plane(loss=mlp_loss, **options):
    options = {"directions": DIRECTIONS, "grid": GRID, "batch_size": 8, "progress": False} | options
    return js.surface(PARAMS, loss, DATA, **options)


def mesh(*shape, names=("points", "data")):
    return Mesh(np.array(jax.devices()[: int(np.prod(shape))]).reshape(shape), names[: len(shape)])


def batch_mean(params, batch):
    return jnp.mean(mlp_loss(params, batch)["loss"])


# ---- meshes and loads


SHAPES = ((-1, 1), (-1, 2), (2, -1), (1, -1))
QUICK = ((mlp_loss, (-1, 2)),)


@pytest.mark.parametrize(
    ("loss", "shape"),
    [slow_unless((loss, shape) in QUICK, loss, shape) for loss in (mlp_loss, batch_mean) for shape in SHAPES],
)
def test_points_and_data_shared_in_any_proportion(shape, loss):
    one = plane(loss, mesh=mesh(1))
    ds = plane(loss, mesh=Mesh(np.array(jax.devices()).reshape(shape), ("points", "data")))
    np.testing.assert_allclose(ds.loss, one.loss, rtol=1e-12)
    assert ds.attrs["num_devices"] == jax.device_count()
    if loss is mlp_loss:
        np.testing.assert_allclose(ds.loss_stderr, one.loss_stderr, rtol=1e-10)
        np.testing.assert_array_equal(ds.accuracy, one.accuracy)


def test_a_mesh_of_data_only_and_one_of_three_axes():
    devices = np.array(jax.devices())
    for other in (Mesh(devices, ("data",)), Mesh(devices.reshape(2, -1, 2), ("hosts", "chips", "data"))):
        np.testing.assert_allclose(plane(mesh=other).loss, plane(mesh=mesh(1)).loss, rtol=1e-12)


@pytest.mark.parametrize("width", slow_but([2, 64], engine.WIDTHS))
def test_points_side_by_side(width):
    ds = plane(points_per_step=width)
    np.testing.assert_allclose(ds.loss, plane(points_per_step=1).loss, rtol=1e-12)
    assert ds.attrs["points_per_step"] == width


@pytest.mark.parametrize(("examples", "batch_size"), [(10, 4), (7, 7), (7, 100), (1437, 128), (5, 1)])
@pytest.mark.parametrize("shares", [1, 3])
def test_batches_hold_every_example_once(examples, batch_size, shares):
    sizes = batch_sizes(examples, batch_size, shares)
    batches = stack_batches(np.arange(examples), len(sizes), even_size(examples, batch_size))
    assert batches.shape[1] <= batch_size
    assert len(batches) % shares == 0
    examples_in_batches = np.concatenate([batch[:size] for batch, size in zip(batches, sizes, strict=True)])
    np.testing.assert_array_equal(examples_in_batches, np.arange(examples))
    assert sum(1 for size in sizes if size) * batches.shape[1] - examples < len(sizes)  # little is padded


def test_values_of_single_examples_and_their_rows():
    (term,) = Objective.of(mlp_loss, PARAMS, DATA).terms
    for share in (mesh(jax.device_count()), mesh(2, jax.device_count() // 2)):
        program = Program(term, PARAMS, DIRECTIONS.basis, Load(4), mesh=share)
        values = program.values(np.zeros((3, 2)), 1, program.layout.local_batches)()
        rows = program.layout.examples(1, program.layout.local_batches)
        expected = np.asarray(mlp_loss(PARAMS, DATA)["loss"])
        np.testing.assert_allclose(values["loss"], np.broadcast_to(expected[rows], (3, len(rows))), rtol=1e-6)
        both = np.concatenate([rows, program.layout.examples(0, 1)])
        np.testing.assert_array_equal(np.sort(both), np.arange(37))
        assert program.count(1) == len(program.layout.examples(0, 1))


# ---- precision


@pytest.mark.parametrize("compute_dtype", slow_but(["float32", "bfloat16"], ["float32", "tensorfloat32", "bfloat16"]))
def test_lower_precision_is_near(compute_dtype):
    ds = plane(compute_dtype=compute_dtype)
    error = np.abs(ds.loss / plane().loss - 1).max()
    assert error < (3e-2 if compute_dtype == "bfloat16" else 1e-5)
    assert (error > 1e-6) == (compute_dtype == "bfloat16")  # it does change what is computed
    assert ds.attrs["compute_dtype"] == compute_dtype


def test_precision_reaches_the_products():
    equations = trace(mlp_loss, PARAMS, DATA, compute_dtype="float32").computation.jaxpr.eqns
    precisions = {str(eqn.params["precision"]) for eqn in equations if eqn.primitive.name == "dot_general"}
    assert "HIGHEST" in str(precisions)


def test_unknown_precision_and_width():
    with pytest.raises(ValueError, match="compute_dtype is 'float16', expected None or one of float32, tensorfloat32"):
        plane(compute_dtype="float16")
    with pytest.raises(ValueError, match=r"points_per_step is 3, expected 'auto' or one of \(1, 2, 4"):
        plane(points_per_step=3)


# ---- memory


@pytest.fixture
def small_memory(monkeypatch):
    """A device whose memory holds 16 examples times points."""
    send = Program._send

    def limited(self, *args, **kwargs):
        if self.load.batch_size * self.load.points_per_step > 16:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 2 bytes")
        return send(self, *args, **kwargs)

    monkeypatch.setattr(Program, "_send", limited)


@pytest.mark.usefixtures("small_memory")
@pytest.mark.parametrize("options", [{}, {"rtol": 0.1}], ids=["exact", "tolerance"])
def test_out_of_memory_halves_the_load_with_one_warning(options):
    with pytest.warns(UserWarning, match=r"out of memory with Load\(batch_size=32, points_per_step=8\)") as caught:
        ds = plane(batch_size=32, points_per_step=8, **options)
    assert len(caught) == 1
    assert (ds.attrs["batch_size"], ds.attrs["points_per_step"]) == (16, 1)
    np.testing.assert_allclose(ds.loss, plane(batch_size=16).loss, rtol=0.5 if options else 1e-12)


def test_other_failures_and_hopeless_ones_are_raised(monkeypatch):
    def fail(message):
        def call(self, *args, **kwargs):
            raise jax.errors.JaxRuntimeError(message)

        monkeypatch.setattr(Program, "_send", call)

    fail("INTERNAL: broken")
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        plane()
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        plane(batch_size="auto")
    fail("RESOURCE_EXHAUSTED: too large")
    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED"):
        plane()


# ---- the choice of a load


@pytest.fixture
def clock(monkeypatch):
    """Trials cost no time, and measure ``clock.cost(load)``."""
    clock = type("Clock", (), {"tried": [], "cost": None})()

    def measure(program):
        clock.tried.append(program.load)
        return clock.cost(program.load)

    monkeypatch.setattr(_strategy, "_measure", measure)
    monkeypatch.setattr(_strategy, "_known", {})
    return clock


def choose(examples=5000, fixed=(None, None), loss=mlp_loss, params=PARAMS, points=10**9):
    data = (
        (np.ones((examples, 9, 9, 5)),)
        if jax.tree.leaves(params)[0].ndim > 2
        else classification_data(examples=examples)
    )
    basis = jax.tree.map(lambda x: x[None], params)
    (term,) = Objective.of(loss, params, data, check=False).terms
    return _strategy.choose_load(
        lambda load: Program(term, params, basis, load, mesh=mesh(1)), term, points, mesh(1), fixed
    )


def scaled(scale):
    """A loss that computes something else for each scale."""
    return lambda params, batch: mlp_loss(params, batch)["loss"] * scale


def distance(best_size, best_width):
    return lambda load: 1 + abs(np.log2(load.batch_size / best_size)) + abs(np.log2(load.points_per_step / best_width))


@pytest.mark.parametrize("best", [(512, 16), (8, 1), (32, 64), (5000, 4)])
def test_it_climbs_to_the_fastest_load(clock, best):
    clock.cost = distance(*best)
    assert choose() == best
    assert len(clock.tried) == len(set(clock.tried))


def test_what_the_caller_fixes_stays(clock):
    clock.cost = distance(512, 16)
    assert choose(fixed=(100, None)) == (100, 16)
    assert choose(fixed=(None, 1)) == (512, 1)
    clock.tried.clear()
    assert choose(fixed=(100, 2)) == (100, 2)
    assert clock.tried == []


def test_a_choice_is_kept_for_the_process(clock, monkeypatch):
    clock.cost = distance(512, 16)
    assert choose(loss=scaled(1.0)) == (512, 16)
    clock.tried.clear()
    assert choose(loss=scaled(1.0)) == (512, 16)  # another function that computes the same
    assert clock.tried == []
    choose(loss=scaled(2.0))
    assert clock.tried
    monkeypatch.setattr(_strategy, "REMEMBERED", 3)
    for i in range(5):
        choose(loss=scaled(3.0 + i))
    assert len(_strategy._known) == 3


def test_a_choice_cut_short_is_made_anew_for_larger_work(clock, monkeypatch):
    clock.cost = distance(512, 16)
    with monkeypatch.context() as patch:
        patch.setattr(_strategy, "WORTH", np.inf)
        assert choose() == choose() == (128, 1)
    assert clock.tried == [(128, 1)]  # what was measured is not measured again
    assert choose() == (512, 16)


def test_small_work_is_not_worth_a_trial(clock, monkeypatch):
    def slow(program):
        clock.tried.append(program.load)
        time.sleep(0.01)
        return 1e-9

    monkeypatch.setattr(_strategy, "_measure", slow)
    assert choose(points=10) == (128, 1)
    assert len(clock.tried) == 1


def test_a_load_that_does_not_fit_is_passed_over(clock):
    def cost(load):
        if load.batch_size > 256:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: too large")
        return 1 / load.batch_size

    clock.cost = cost
    assert choose(fixed=(None, 1)) == (256, 1)


def test_the_first_batch_is_larger_on_an_accelerator_and_shrinks_until_it_fits(clock, monkeypatch):
    def cost(load):
        if load.batch_size > 200:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: too large")
        return 1 / load.batch_size

    clock.cost = cost
    monkeypatch.setattr(_strategy.jax, "default_backend", lambda: "tpu")
    monkeypatch.setattr(_strategy, "FIRST_RESULTS", 1024 * (7 + 4) // 2)  # the layers of the MLP have 7 and 4 numbers
    assert choose(fixed=(None, 1)) == (128, 1)
    assert clock.tried == [(size, 1) for size in (1024, 512, 256, 128, 64)]


def test_little_work_has_no_trial(clock):
    clock.cost = distance(256, 4)
    lanes = num_lanes(mesh(1))
    few = choose(examples=64, points=_strategy.SMALL * lanes)
    assert few == (64, 1)
    assert not clock.tried
    assert choose(examples=64, points=_strategy.SMALL * lanes + 1) == (64, 4)


def test_products_are_counted_in_loops_and_branches_too():
    def loss(params, batch):
        step = lambda x, _: (jnp.tanh(x @ params), None)  # noqa: E731
        x = jax.lax.scan(step, batch, None, length=3)[0]
        return jax.lax.cond(params[0, 0] > 0, lambda x: (x @ params[:, :2]).sum(1), lambda x: x[:, 0], x)

    jaxpr = trace(loss, np.ones((5, 5)), np.ones((7, 5))).computation.jaxpr
    assert sorted(results_of_products(jaxpr)) == [14, 35]


def test_native_convolutions_are_not_vmapped_on_a_cpu_and_start_from_what_is_cached(clock):
    def loss(kernel, batch):
        return jax.lax.conv(batch[0].transpose(0, 3, 1, 2), kernel, (1, 1), "SAME").mean((1, 2, 3))

    first = cached_examples((np.ones((1, 9, 9, 5)),))
    assert first == 8 * 32 * 32 * 3 // (9 * 9 * 5)
    clock.cost = distance(2 * first, 64)
    assert choose(examples=200, loss=loss, params=jnp.ones((2, 5, 3, 3))) == (2 * first, 1)
    assert clock.tried[0] == (first, 1)


@pytest.mark.slow
def test_a_real_trial_measures(monkeypatch):
    monkeypatch.setattr(_strategy, "_known", {})
    monkeypatch.setattr(_strategy, "WORTH", 0)  # always worth it
    ds = plane(batch_size="auto", points_per_step="auto")
    np.testing.assert_allclose(ds.loss, plane().loss, rtol=1e-12)
    assert ds.attrs["batch_size"] <= 37


# ---- processes

WORKER = """
import time
from types import SimpleNamespace
from jaxscape.engine import _strategy
_strategy.time = SimpleNamespace(perf_counter=lambda: 1e3**index * time.perf_counter())  # each has times of its own
from tests.problems import classification_data, mlp_loss, mlp_params
params, data = mlp_params(), classification_data(examples=37)
options = dict(directions=js.random_directions(0, params), grid=js.Grid.plane((-1, 1, 5), (0, 1, 3)), batch_size=8)
exact = js.surface(params, mlp_loss, data, **options)
stored = js.surface(params, mlp_loss, data, store=f"{out}/s.zarr", **options)
mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(num, 2), ("points", "data"))
shared = js.surface(params, mlp_loss, data, mesh=mesh, **options)
auto = options | {"batch_size": "auto"}
rough = js.surface(params, mlp_loss, data, rtol=0.2, store=f"{out}/r.zarr", **auto)
fine = js.surface(params, mlp_loss, data, rtol=0.05, store=f"{out}/r.zarr", **auto)
js.surface(params, lambda p, b: mlp_loss(p, b)["loss"], data, store=f"{out}/m.zarr", **options)
further = js.surface(params, mlp_loss, data, store=f"{out}/m.zarr", **options)
losses = dict(exact=exact.loss, stored=stored.loss, shared=shared.loss, rough=rough.loss, fine=fine.loss,
              further=further.loss, accuracy=further.accuracy)
np.savez(f"{out}/{index}.npz", devices=jax.device_count(), **losses)
"""


@pytest.mark.slow
@pytest.mark.parametrize("num", [2, 4])
def test_several_processes_give_the_same_everywhere(num, tmp_path):
    processes = launch(num, tmp_path, WORKER)
    output = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * num, output
    one = plane()
    for i in range(num):
        result = np.load(tmp_path / f"{i}.npz")
        assert result["devices"] == 2 * num
        np.testing.assert_allclose(result["exact"], one.loss, rtol=1e-12)
        np.testing.assert_allclose(result["stored"], one.loss, rtol=1e-12)
        np.testing.assert_allclose(result["shared"], one.loss, rtol=1e-12)
        for name in ("rough", "fine"):
            np.testing.assert_array_equal(result[name], np.load(tmp_path / "0.npz")[name])
        np.testing.assert_array_equal(result["further"], result["stored"])
        np.testing.assert_array_equal(result["accuracy"], one.accuracy)


@pytest.mark.slow
def test_a_process_that_dies_ends_the_others_with_an_error(tmp_path):
    code = WORKER.replace("exact =", "if index == 1: import os; os._exit(9)\nexact =", 1)
    start = time.perf_counter()
    processes = launch(2, tmp_path, code)
    output = [process.communicate(timeout=200)[0] for process in processes]
    assert processes[1].returncode == 9
    assert processes[0].returncode != 0
    assert time.perf_counter() - start < 120
    assert any(word in output[0] for word in ("Connection closed", "heartbeat", "unhealthy", "Gloo", "died")), output[
        0
    ][-2000:]


def test_no_warning_without_need():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plane()
