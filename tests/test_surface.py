"""The surface against plain loops, and the laws it must obey."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

import jaxscape as js
from jaxscape import engine
from jaxscape.objective import Objective
from tests.problems import (
    classification_data,
    compilations,
    cross_entropy,
    loop_reference,
    mlp_apply,
    mlp_loss,
    mlp_params,
    slow_but,
)

PARAMS, DATA = mlp_params(), classification_data()
GRID = js.Grid((np.array([-1.0, 0.25, 0.5]), np.array([0.0, 2.0])))  # 3x2, uneven, starting at 0
DIRECTIONS = js.random_directions(0, PARAMS)


def devices(num):
    return Mesh(np.array(jax.devices()[:num]), ("points",))


def plane(**options):
    return js.surface(PARAMS, mlp_loss, DATA, **{"directions": DIRECTIONS, "grid": GRID, "progress": False} | options)


@pytest.mark.parametrize("metric", slow_but(["loss"], ["loss", "accuracy"]))
@pytest.mark.parametrize(
    "grid",
    [
        js.Grid.line(-1, 1, 5),
        GRID,
        js.Grid((np.array([3.0, -1.0]), np.array([0.0]), np.array([-0.5, 0.5, 0.7]))),  # descending; one point; 3 axes
    ],
    ids=["line", "plane", "volume"],
)
def test_equals_a_double_loop(grid, metric):
    directions = js.random_directions(3, PARAMS, num=len(grid.axes))
    ds = js.surface(PARAMS, mlp_loss, DATA, directions=directions, grid=grid, batch_size=8, progress=False)
    assert ds[metric].dims == grid.names
    assert ds[metric].shape == grid.shape
    np.testing.assert_allclose(ds[metric], loop_reference(PARAMS, directions, grid, DATA, metric), rtol=1e-10)
    for name, axis in zip(grid.names, grid.axes, strict=True):
        np.testing.assert_array_equal(ds[name], axis)


@pytest.mark.parametrize("batch_size", slow_but([22], [1, 4, 22, 23, 1000]))
def test_batch_size_does_not_matter(batch_size):
    whole = plane(batch_size=23)
    ds = plane(batch_size=batch_size)
    np.testing.assert_allclose(ds.loss, whole.loss, rtol=1e-12)
    np.testing.assert_allclose(ds.loss_stderr, whole.loss_stderr, rtol=1e-12)


@pytest.mark.parametrize("num_points", [1, 7, 8, 41])
def test_one_device_equals_all(num_points):
    grid, most = js.Grid.line(-1, 1, num_points), jax.device_count()
    one, several = (plane(grid=grid, directions=DIRECTIONS[:1], mesh=devices(n)) for n in (1, most))
    np.testing.assert_array_equal(one.loss, several.loss)
    assert (one.attrs["num_devices"], several.attrs["num_devices"]) == (1, most)


def test_all_local_devices_by_default():
    assert plane().attrs["num_devices"] == jax.local_device_count() > 1


def test_swapping_the_directions_transposes():
    swapped = plane(directions=js.Directions.stack([DIRECTIONS[1], DIRECTIONS[0]]), grid=js.Grid(GRID.axes[::-1]))
    np.testing.assert_allclose(swapped.loss, plane().loss.T, rtol=1e-12)


def test_example_order_does_not_matter():
    order = np.random.default_rng(0).permutation(23)
    shuffled = js.surface(
        PARAMS, mlp_loss, tuple(x[order] for x in DATA), directions=DIRECTIONS, grid=GRID, progress=False
    )
    np.testing.assert_allclose(shuffled.loss, plane().loss, rtol=1e-12)


def test_error_bars_are_those_of_the_mean():
    losses = np.asarray(mlp_loss(PARAMS, DATA)["loss"])
    ds = plane(grid=js.Grid.plane((0, 1, 2), (0, 1, 2)), batch_size=5)
    np.testing.assert_allclose(ds.loss_stderr[0, 0], losses.std(ddof=1) / np.sqrt(23), rtol=1e-12)
    assert (ds.num_examples == 23).all()


def test_scalar_loss_is_a_batch_mean_without_error_bars():
    def batch_mean(params, batch):
        return jnp.mean(mlp_loss(params, batch)["loss"])

    ds = js.surface(PARAMS, batch_mean, DATA, directions=DIRECTIONS, grid=GRID, batch_size=8, progress=False)
    np.testing.assert_allclose(ds.loss, plane().loss, rtol=1e-12)  # the ragged batch of 7 is weighted by 7
    assert "loss_stderr" not in ds


def test_vector_loss_without_a_dict():
    ds = js.surface(PARAMS, lambda p, b: mlp_loss(p, b)["loss"], DATA, directions=DIRECTIONS, grid=GRID, progress=False)
    np.testing.assert_allclose(ds.loss, plane().loss, rtol=1e-12)
    assert set(ds) == {"loss", "loss_stderr", "num_examples"}


def test_nonfinite_losses_are_stored_and_counted():
    def loss(p, x):
        return jnp.log(p) * x

    grid = js.Grid((np.array([-1.0, 0.0, 1.0]),))
    direction = jnp.ones(())
    ds = js.surface(jnp.zeros(()), loss, np.ones(5), directions=direction, grid=grid, batch_size=2, progress=False)
    np.testing.assert_array_equal(ds.loss, [np.nan, -np.inf, 0.0])
    assert ds.attrs["nonfinite_points"] == 2


def test_error_bars_of_huge_float32_losses_do_not_overflow():
    data = np.array([1e30, 3e30], np.float32)
    ds = js.surface(jnp.float32(1), lambda p, x: p * x, data, directions=jnp.float32(1), grid=js.Grid(([0.0],)))
    np.testing.assert_allclose(ds.loss_stderr, [1e30], rtol=1e-6)


def test_default_directions_and_grids():
    line = js.surface(PARAMS, mlp_loss, DATA, directions=DIRECTIONS[0], progress=False)
    assert dict(line.sizes) == {"alpha": 401}
    ds = js.surface(PARAMS, mlp_loss, DATA, seed=0, grid=GRID, progress=False)
    np.testing.assert_array_equal(ds.loss, plane().loss)
    assert ds.attrs["seed"] == 0
    assert dict(js.surface(PARAMS, mlp_loss, DATA, progress=False).sizes) == {"alpha": 51, "beta": 51}


def test_attrs_say_how_it_was_made():
    attrs = plane().attrs
    np.testing.assert_allclose(attrs["center_loss"], np.mean(mlp_loss(PARAMS, DATA)["loss"]), rtol=1e-12)
    assert attrs["norm"] == "filter"
    assert attrs["ignore"] == "bias_norm"
    assert attrs["num_params"] == 5 * 7 + 7 + 7 * 4 + 4
    assert attrs["fingerprint"] == plane().attrs["fingerprint"]
    assert attrs["fingerprint"] != plane(directions=js.random_directions(1, PARAMS)).attrs["fingerprint"]
    assert {"seconds", "created", "jax_version", "jaxscape_version", "dtype", "batch_size"} <= set(attrs)


def test_results_survive_a_file(tmp_path):
    import xarray as xr

    ds = plane()
    ds.to_zarr(tmp_path / "surface.zarr", consolidated=False)
    xr.testing.assert_identical(xr.open_zarr(tmp_path / "surface.zarr", consolidated=False).load(), ds)


def test_interpolation_joins_all_leaves():
    a, b = mlp_params(seed=0), mlp_params(seed=9)
    ds = js.interpolate(a, b, mlp_loss, DATA, grid=js.Grid.line(0, 1, 3), progress=False)
    for i, point in enumerate([a, jax.tree.map(lambda x, y: (x + y) / 2, a, b), b]):
        np.testing.assert_allclose(ds.loss[i], np.mean(mlp_loss(point, DATA)["loss"]), rtol=1e-12)


def scale_two_layers(params, c):
    """The same function for a ReLU network: its first layer times c, its second over c."""
    first = jax.tree.map(lambda x: c * x, params["layer0"])
    second = {"kernel": params["layer1"]["kernel"] / c, "bias": params["layer1"]["bias"]}
    return {"layer0": first, "layer1": second}


@pytest.mark.parametrize(("norm", "same"), [("filter", True), ("layer", True), (None, False)])
def test_scale_invariance_of_filter_normalization(norm, same):
    grid = js.Grid.line(-1, 1, 9)
    curves = []
    for params in (PARAMS, scale_two_layers(PARAMS, 10.0)):
        directions = js.random_directions(0, params, num=1, norm=norm)
        curves.append(js.surface(params, mlp_loss, DATA, directions=directions, grid=grid, progress=False).loss)
    assert np.allclose(*curves, rtol=1e-10) == same


def test_mean_metrics_is_the_center():
    means = engine.mean_metrics(Objective.of(mlp_loss, PARAMS, DATA), PARAMS, batch_size=8)
    np.testing.assert_allclose(means["loss"], plane().attrs["center_loss"], rtol=1e-14)
    assert set(means) == {"loss", "accuracy"}


def test_params_and_data_are_arguments_of_one_compiled_program():
    def measure(seed):
        loss = lambda params, batch: mlp_loss(params, batch)  # noqa: E731  # a new function each time
        grid = js.Grid.line(0, 1, 3)
        js.surface(mlp_params(seed=seed), loss, classification_data(seed=seed), grid=grid, progress=False)

    measure(0)
    with compilations() as compiled:
        measure(1)
    assert compiled == []


def test_program_size_does_not_grow_with_points():
    (term,) = Objective.of(mlp_loss, PARAMS, DATA).terms
    program = engine.Program(term, PARAMS, DIRECTIONS.basis, engine.Load(8), mesh=devices(1))
    arguments = np.zeros((program.capacity, 2)), np.array([1], np.int32), np.array([0, 3], np.int32)
    compiled = program._run(False).lower(*program._operands, *arguments).compile().memory_analysis()
    outputs = program.capacity * 3 * 5 * (8 + 4)  # batches x sums x (float64 loss, float32 accuracy)
    assert compiled.output_size_in_bytes < 2 * outputs


def test_a_committed_array_in_the_loss_is_fine():
    shift = jax.device_put(jnp.ones(3), jax.devices()[3])
    ds = js.surface(jnp.ones(3), lambda p, x: ((p - shift) * x).sum(-1) ** 2, np.eye(3), directions=jnp.ones(3))
    assert float(ds.loss.sel(alpha=0)) == 0


def test_unhashable_loss():
    class Loss:
        __hash__ = None

        def __call__(self, p, x):
            return p * x

    assert float(js.surface(jnp.float64(2), Loss(), np.ones(3), grid=js.Grid(([0.0],))).loss[0]) == 2


def test_bfloat16_params():
    params = mlp_params(dtype=jnp.bfloat16)
    data = (DATA[0].astype(np.float32), DATA[1])
    ds = js.surface(params, mlp_loss, data, grid=js.Grid.line(0, 1, 2), progress=False)
    np.testing.assert_allclose(ds.loss[0], np.mean(mlp_loss(params, data)["loss"].astype(np.float64)), rtol=1e-5)
    assert ds.attrs["dtype"] == "bfloat16"


# ---- a caller's mistakes


@pytest.mark.parametrize(
    ("params", "error", "match"),
    [
        ({}, ValueError, "params has no leaves"),
        ({"a": jnp.ones(2), "n": {"count": jnp.ones(2, int)}}, TypeError, r"params\['n'\]\['count'\] is int64"),
        ({"a": 1.0}, TypeError, r"params\['a'\] is float, but every leaf must be a floating array"),
    ],
)
def test_bad_params(params, error, match):
    with pytest.raises(error, match=match):
        js.surface(params, mlp_loss, DATA)


@pytest.mark.parametrize(
    ("data", "error", "match"),
    [
        ((np.ones((3, 5)), np.ones(4)), ValueError, r"differ in their number of examples \(data\[0\]: 3, data\[1\]: 4"),
        ((np.ones((0, 5)), np.ones(0)), ValueError, "no examples"),
        ((), ValueError, "data has no leaves"),
        ((np.ones((3, 5)), 2.0), TypeError, r"data\[1\] is 2.0, expected an array"),
    ],
)
def test_bad_data(data, error, match):
    with pytest.raises(error, match=match):
        js.surface(PARAMS, mlp_loss, data)


@pytest.mark.parametrize("batch_size", [0, -1, 2.5, True])
def test_bad_batch_size(batch_size):
    with pytest.raises(ValueError, match="batch_size is .* expected 'auto' or a positive integer"):
        plane(batch_size=batch_size)


@pytest.mark.parametrize(
    ("loss_fn", "error", "match"),
    [
        (lambda p, b: mlp_apply(p, b[0]), ValueError, r"returned \(23, 4\) for 'loss' .* expected \(23,\)"),
        (lambda p, b: {"error": cross_entropy(mlp_apply(p, b[0]), b[1])}, ValueError, r"keys \['error'\]; expect"),
        (lambda p, b: mlp_apply(p, b[0])[:, 0] + 1j, TypeError, "complex128 for 'loss'; expected real numbers"),
    ],
)
def test_bad_loss(loss_fn, error, match):
    with pytest.raises(error, match=match):
        js.surface(PARAMS, loss_fn, DATA, batch_size=10)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("loss_stderr", "the standard error of 'loss'"),
        ("accuracy_stderr", "the standard error of 'accuracy'"),
        ("num_examples", "a name of jaxscape's own"),
        ("alpha", "a name of jaxscape's own"),
    ],
)
@pytest.mark.parametrize("options", [{}, {"rtol": 0.1}])
def test_names_of_metrics_that_the_result_needs(name, reason, options):
    def loss_fn(params, batch):
        assert isinstance(params["layer0"]["bias"], jax.core.Tracer), "before any compute"
        return mlp_loss(params, batch) | {name: batch[1]}

    with pytest.raises(ValueError, match=f"metric named '{name}', which is {reason}; give it another name"):
        js.surface(PARAMS, loss_fn, DATA, grid=js.Grid.line(0, 1, 2), check=False, **options)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"grid": np.linspace(0, 1, 3)}, TypeError, r"grid is ndarray, expected a js.Grid: js.Grid.line\(-1, 1, 51\)"),
        ({"grid": ((0, 1, 2),)}, TypeError, "grid is tuple, expected a js.Grid"),
        ({"seed": -1}, ValueError, "seed is -1, expected an integer of at least 0"),
        ({"seed": 0.5}, TypeError, "seed is 0.5, expected an integer of at least 0"),
        ({"rtol": "1%"}, TypeError, "rtol is '1%', expected a number"),
        ({"mesh": 3}, TypeError, "mesh is int, expected a jax.sharding.Mesh of devices, or None"),
    ],
)
def test_options_of_another_type(options, error, match):
    with pytest.raises(error, match=match):
        js.surface(PARAMS, mlp_loss, DATA, **options)


class Callable(NamedTuple):
    """A loss that is a pytree with an array."""

    scale: jax.Array

    def __call__(self, p, x):
        return x * p["w"].sum() * self.scale


def test_losses_that_are_objects_with_arrays_or_python_numbers():
    params, data, grid = {"w": jnp.ones((2, 3))}, np.arange(1.0, 9.0), js.Grid.line(0, 1, 1)
    for loss, value in ((Callable(jnp.float64(2)), 54), (lambda p, x: 0.5, 0.5)):
        result = js.surface(params, loss, data, directions=params, grid=grid, progress=False)
        np.testing.assert_allclose(result.loss, value)


def test_metrics_of_terms_with_one_name():
    losses = {"a": lambda p, b: mlp_loss(p, b)["loss"], "a_b": lambda p, b: mlp_loss(p, b)["loss"]}
    losses["b"] = lambda p, b: {"loss": mlp_loss(p, b)["loss"], "loss_a": b[1]}
    with pytest.raises(ValueError, match="metric named 'loss_a_b', which is also a metric of another term"):
        js.surface(PARAMS, losses, dict.fromkeys(losses, DATA), grid=js.Grid.line(0, 1, 2))


def test_names_that_are_free_where_nothing_needs_them():
    result = js.surface(
        PARAMS, lambda p, b: mlp_loss(p, b) | {"beta": b[1]}, DATA, grid=js.Grid.line(0, 1, 2), progress=False
    )
    assert set(result.data_vars) >= {"beta", "beta_stderr"}


def test_bad_directions():
    lacking = {"layer0": DIRECTIONS[0]["layer0"]}
    with pytest.raises(ValueError, match=r"directions has no leaf \['layer1'\]\['bias'\], which params has"):
        plane(directions=[lacking, lacking])
    extra = DIRECTIONS[0] | {"layer2": jnp.ones(1)}
    with pytest.raises(ValueError, match=r"directions has a leaf \['layer2'\], which params lacks"):
        plane(directions=[extra, extra])
    wrong = jax.tree.map(lambda x: x.T, DIRECTIONS[0])
    with pytest.raises(ValueError, match=r"directions\['layer0'\]\['kernel'\] has shape \(1, 7, 5\), expected \(1, 5"):
        plane(directions=wrong)
    with pytest.raises(ValueError, match="grid has 2 axes for 1 directions"):
        plane(directions=DIRECTIONS[:1])
    with pytest.raises(ValueError, match="3 directions have no default grid"):
        plane(directions=js.random_directions(0, PARAMS, num=3), grid=None)


# ---- kept on disk: see test_store.py


@pytest.mark.parametrize("loss", [mlp_loss, lambda p, b: mlp_loss(p, b)["loss"].mean()], ids=["per example", "mean"])
def test_a_stored_surface_is_that_of_the_call_without_a_store(tmp_path, loss):
    options = {"directions": DIRECTIONS, "grid": GRID, "progress": False, "batch_size": 8}
    plain, stored = (js.surface(PARAMS, loss, DATA, **options, **more) for more in ({}, {"store": tmp_path / "s.zarr"}))
    assert list(stored.data_vars) == list(plain.data_vars)
    for name in plain.data_vars:
        np.testing.assert_allclose(stored[name], plain[name], rtol=1e-12)
    assert stored.attrs["center_loss"] == pytest.approx(plain.attrs["center_loss"], rel=1e-12)


def test_nan_points_are_kept(tmp_path):
    params = jax.tree.map(lambda x: x.at[..., 0].set(jnp.nan), PARAMS)
    result = js.surface(params, mlp_loss, DATA, grid=GRID, store=tmp_path / "s.zarr", progress=False)
    assert result.attrs["nonfinite_points"] == 6


def test_a_store_of_another_surface_is_refused(tmp_path):
    plane(store=tmp_path / "s.zarr")
    with pytest.raises(ValueError, match=r"s.zarr holds another result: grid is .* there and .* here"):
        plane(store=tmp_path / "s.zarr", grid=js.Grid.plane((0, 1, 2), (0, 1, 3)))
