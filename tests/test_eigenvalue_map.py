"""Both ends of the Hessian's spectrum over a plane, against dense Hessians at every point; stored and resumed."""

import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh

import jaxscape as js
from jaxscape import trees
from jaxscape.sweep import Store
from tests.problems import classification_data, cross_entropy, launch, mlp_apply, mlp_params, slow_but

PARAMS, DATA = mlp_params(), classification_data()
GRID = js.Grid((np.array([-0.5, 0.0, 1.0]), np.linspace(0, 1, 4)))


def loss_fn(params, batch):
    return cross_entropy(mlp_apply(params, batch[0]), batch[1])


def directions():
    return js.random_directions(1, PARAMS)


def mapped(**options):
    all_options = {
        "directions": directions(),
        "grid": GRID,
        "tol": 1e-8,
        "max_matvecs": 300,
        "progress": False,
    } | options
    return js.eigenvalue_map(PARAMS, loss_fn, DATA, **all_options)


def dense(coords, data=DATA):
    flat, _ = ravel_pytree(trees.displace(PARAMS, directions().basis, jnp.asarray(coords)))
    return np.asarray(flat_hessian(flat, data))


@jax.jit
def flat_hessian(flat, data):
    _, unravel = ravel_pytree(PARAMS)
    return jax.hessian(lambda f: jnp.mean(loss_fn(unravel(f), data)))(flat)


@pytest.fixture(scope="module")
def whole():
    return mapped()


def test_every_point_equals_the_dense_hessian(whole):
    basis = np.stack([ravel_pytree(d)[0] for d in directions()])
    orthonormal = np.linalg.qr(basis.T)[0]
    assert whole.sizes == {"alpha": 3, "beta": 4, "row": 2, "column": 2}
    for i, a in enumerate(GRID.axes[0]):
        for j, b in enumerate(GRID.axes[1]):
            matrix, at = dense((a, b)), whole.isel(alpha=i, beta=j)
            values = np.linalg.eigvalsh(matrix)
            np.testing.assert_allclose([at.min_eigenvalue, at.max_eigenvalue], values[[0, -1]], rtol=1e-8)
            np.testing.assert_allclose(at.ratio, abs(values[0] / values[-1]), rtol=1e-8)
            assert at.min_residual <= 1e-8 * abs(values[0])
            np.testing.assert_allclose(at.plane_hessian, basis @ matrix @ basis.T, rtol=1e-9, atol=1e-12)
            within = np.linalg.eigvalsh(orthonormal.T @ matrix @ orthonormal)
            np.testing.assert_allclose([at.plane_min_eigenvalue, at.plane_max_eigenvalue], within, rtol=1e-9)
    assert whole.converged.all()
    assert whole.attrs["unconverged_points"] == whole.attrs["nonfinite_points"] == 0


def test_a_plane_never_exceeds_the_full_space(whole):
    assert (whole.plane_min_eigenvalue >= whole.min_eigenvalue).all()
    assert (whole.plane_max_eigenvalue <= whole.max_eigenvalue).all()


def test_the_plane_alone(whole):
    result = js.plane_hessian(PARAMS, loss_fn, DATA, directions=directions(), grid=GRID, progress=False)
    assert set(result) == {"plane_hessian", "plane_min_eigenvalue", "plane_max_eigenvalue"}
    for name in result:
        np.testing.assert_allclose(result[name], whole[name], rtol=1e-12)


def test_second_differences_of_the_surface_are_the_planes_hessian(whole):
    step = 1e-4
    grid = js.Grid.plane((-step, step, 3), (-step, step, 3))
    z = js.surface(PARAMS, loss_fn, DATA, directions=directions(), grid=grid, progress=False).loss.values
    mixed = (z[2, 2] - z[2, 0] - z[0, 2] + z[0, 0]) / 4
    expected = np.array([[z[0, 1] - 2 * z[1, 1] + z[2, 1], mixed], [mixed, z[1, 0] - 2 * z[1, 1] + z[1, 2]]]) / step**2
    result = whole.sel(alpha=0, beta=0).plane_hessian
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", slow_but([(2, 2)], [(1, 1), (2, 2), (-1, 1)]))
def test_devices_do_not_matter(whole, shape):
    devices = jax.devices() if -1 in shape else jax.devices()[: shape[0] * shape[1]]
    mesh = Mesh(np.array(devices).reshape(shape), ("points", "data"))
    result = mapped(mesh=mesh)
    for name in ("min_eigenvalue", "max_eigenvalue", "plane_hessian"):
        np.testing.assert_allclose(result[name], whole[name], rtol=1e-9, atol=1e-12)
    if shape[1] == 1:
        xr.testing.assert_identical(result.drop_attrs(), whole.drop_attrs())


@pytest.mark.slow
def test_params_that_are_tied_to_a_device(whole):
    tied = jax.device_put(PARAMS, jax.devices()[3])
    result = js.eigenvalue_map(
        tied, loss_fn, DATA, directions=directions(), grid=GRID, tol=1e-8, max_matvecs=300, progress=False
    )
    xr.testing.assert_identical(result.drop_attrs(), whole.drop_attrs())


@pytest.mark.parametrize("pilot", [None, 1])
def test_extremes_that_cross_along_the_way(pilot):
    """Eigenvectors that stay where they are while others pass them: at each point those of the ends are reported."""
    middle = np.random.default_rng(0).uniform(-0.1, 0.9, 2000)

    def spectrum(s):
        return jnp.asarray(middle).at[:4].set(jnp.array([1, 0.9 + 0.6 * s, -0.3, -0.2 - 0.65 * s]))

    def loss(params, x):
        return 0.5 * x * (spectrum(params["s"][0, 0]) * params["w"][0] ** 2).sum()

    params = {"s": jnp.zeros((1, 1)), "w": jnp.zeros((1, len(middle)))}
    along = {"s": jnp.ones((1, 1)), "w": jnp.zeros((1, len(middle)))}
    grid = js.Grid.line(0, 1, 4)
    options = {"directions": [along], "grid": grid, "ignore": lambda path, leaf: leaf.size == 1, "progress": False}
    result = js.eigenvalue_map(params, loss, jnp.ones(2), pilot=pilot, **options)
    assert result.converged.all()
    for i, s in enumerate(grid.axes[0]):
        ends = np.sort(spectrum(s))[[0, -1]]
        np.testing.assert_allclose([result.min_eigenvalue[i], result.max_eigenvalue[i]], ends, rtol=1e-2)


def test_points_do_not_depend_on_their_neighbours(whole):
    one = mapped(grid=js.Grid((GRID.axes[0][:1], GRID.axes[1][:1])))
    for name in ("min_eigenvalue", "max_eigenvalue"):
        np.testing.assert_allclose(one[name][0, 0], whole[name][0, 0], rtol=1e-8)


WIDE, MANY = mlp_params((6, 12, 4)), classification_data(examples=400, features=6)


@pytest.mark.slow  # 20 seconds: a map of several pilots; that of several terms stays
def test_a_pilot_spares_products_and_its_errors_are_honest():
    options = {"grid": js.Grid.plane((-1, 1, 3), (-1, 1, 3)), "directions": js.random_directions(1, WIDE)}
    options |= {"progress": False, "max_matvecs": 300}
    whole = js.eigenvalue_map(WIDE, loss_fn, MANY, **options)
    result = js.eigenvalue_map(WIDE, loss_fn, MANY, pilot=100, **options)
    assert result.converged.all()
    assert result.attrs["pilot"] == "100 examples drawn with seed 0"
    flat, unravel = ravel_pytree(WIDE)
    for i, coords in enumerate(options["grid"].points()):
        point, _ = ravel_pytree(trees.displace(WIDE, options["directions"].basis, jnp.asarray(coords)))
        matrix = jax.hessian(lambda f: jnp.mean(loss_fn(unravel(f), MANY)))(point)
        exact = np.linalg.eigvalsh(matrix)[[0, -1]]
        for name, value in zip(("min", "max"), exact, strict=True):
            estimate = float(result[f"{name}_eigenvalue"].values.ravel()[i])
            error = float(result[f"{name}_error"].values.ravel()[i])
            assert error <= 0.01 * abs(estimate)
            assert abs(estimate - value) <= 2 * error + 1e-14
            assert error <= max(result[f"{name}_residual"].values.ravel()[i], 1e-12)  # no less than rounding
    assert result.num_matvecs.sum() + result.pilot_matvecs.sum() / 4 < 0.8 * whole.num_matvecs.sum()


def test_what_the_pilot_does_not_see_is_still_an_eigenpair():
    """One example of 200 has all of the largest curvature, and the pilot lacks it: residuals are of all examples."""
    data = jnp.zeros(200).at[7].set(1.0)

    def loss(w, x):
        return 0.5 * ((w**2) @ jnp.linspace(-1, 1, 50) + 500 * x * w[3] ** 2)

    options = {"directions": [jnp.ones(50)], "grid": js.Grid.line(0, 1, 2), "progress": False, "tol": 1e-4}
    result = js.eigenvalue_map(jnp.ones(50), loss, data, pilot=20, **options)
    spectrum = np.linspace(-1, 1, 50) + 2.5 * (np.arange(50) == 3)
    for name in ("min", "max"):
        values = result[f"{name}_eigenvalue"].values
        assert (np.abs(values[:, None] - spectrum).min(1) <= result[f"{name}_residual"].values).all()


def test_a_pilot_of_several_terms_devices_and_a_store(tmp_path):
    terms = {"a": loss_fn, "b": lambda p, x: 0.1 * (mlp_apply(p, x) ** 2).sum(1)}
    data = {"a": MANY, "b": MANY[0][:50]}
    options = {"directions": js.random_directions(1, WIDE), "grid": js.Grid.plane((0, 1, 2), (0, 1, 2))}
    options |= {"progress": False, "pilot": 60, "tol": 1e-6}
    one = js.eigenvalue_map(WIDE, terms, data, mesh=Mesh(jax.devices()[:1], ("points",)), **options)
    several = js.eigenvalue_map(WIDE, terms, data, store=tmp_path / "map.zarr", **options)
    for name in ("min_eigenvalue", "max_eigenvalue"):
        np.testing.assert_allclose(one[name], several[name], rtol=1e-9)
    again = js.eigenvalue_map(WIDE, terms, data, store=tmp_path / "map.zarr", **options)
    np.testing.assert_array_equal(again.max_error, several.max_error)
    with pytest.raises(ValueError, match="pilot is '60 examples drawn with seed 0' there and '70 examples"):
        js.eigenvalue_map(WIDE, terms, data, store=tmp_path / "map.zarr", **{**options, "pilot": 70})


def test_a_subset_is_seeded_and_told():
    result = mapped(subset=10, seed=3, grid=js.Grid(([0.0], [0.0])))
    rows = np.sort(np.random.default_rng(3).choice(23, 10, replace=False))
    values = np.linalg.eigvalsh(dense((0.0, 0.0), tuple(x[rows] for x in DATA)))
    np.testing.assert_allclose(result.max_eigenvalue.sel(alpha=0, beta=0), values[-1], rtol=1e-8)
    assert result.attrs["subset"] == "10 examples drawn with seed 3"
    assert result.attrs["num_examples"] == 10


@pytest.mark.slow
def test_without_biases():
    result = mapped(ignore="bias_norm", grid=js.Grid(([1.0], [1.0])))
    takes_part = np.concatenate([np.full(leaf.size, leaf.ndim > 1) for leaf in jax.tree.leaves(PARAMS)])
    values = np.linalg.eigvalsh(dense((1.0, 1.0))[np.ix_(takes_part, takes_part)])
    np.testing.assert_allclose(result.min_eigenvalue.sel(alpha=1, beta=1), values[0], rtol=1e-8)


def test_what_is_not_finite_or_not_converged_is_counted():
    def steep(params, batch):
        value = loss_fn(params, batch)
        return jnp.where(params["layer0"]["bias"][0] > 0.9, jnp.nan, 1.0) * value

    direction = jax.tree.map(jnp.zeros_like, PARAMS)
    direction["layer0"]["bias"] = direction["layer0"]["bias"].at[0].set(1.0)
    grid = js.Grid.line(0, 1, 4)
    result = js.eigenvalue_map(PARAMS, steep, DATA, directions=direction, grid=grid, max_matvecs=5, progress=False)
    assert result.attrs["nonfinite_points"] == np.isnan(result.max_eigenvalue).sum() == 1
    assert result.attrs["unconverged_points"] == 3
    assert not result.converged.any()
    assert np.isnan(result.plane_max_eigenvalue[-1])


def test_a_killed_map_goes_on(tmp_path, whole, monkeypatch):
    path, rows = tmp_path / "map.zarr", []
    one = Mesh(np.array(jax.devices()[:1]), ("points",))
    plain = Store.write

    def dies(self, part, values):
        if len(rows) == 5:
            raise KeyboardInterrupt
        plain(self, part, values)
        rows.append(part.start)

    monkeypatch.setattr(Store, "write", dies)
    with pytest.raises(KeyboardInterrupt) as interrupt:
        mapped(store=path, mesh=one)
    assert interrupt.value.__notes__ == [f"5 of 12 points are kept in {path}; the same call goes on from there."]
    monkeypatch.setattr(Store, "write", lambda self, part, v: (rows.append(part.start), plain(self, part, v)))
    result = mapped(store=path, mesh=one)
    assert rows == list(range(12))  # nothing was computed twice
    xr.testing.assert_identical(result.drop_attrs(), whole.drop_attrs())
    again = mapped(store=path, mesh=one)
    assert len(rows) == 12
    xr.testing.assert_identical(again.drop_attrs(), whole.drop_attrs())
    xr.testing.assert_identical(js.load(path), again)


def test_a_store_of_another_result_is_refused(tmp_path):
    path = tmp_path / "map.zarr"
    options = {"directions": directions()[:1], "grid": js.Grid.line(0, 1, 2), "store": path}
    mapped(**options)
    with pytest.raises(ValueError, match="holds another result: tol is 1e-08 there and 0.01 here"):
        mapped(**options, tol=1e-2)
    with pytest.raises(ValueError, match="data is .* there and .* here"):
        mapped(**options, subset=20)
    other = tmp_path / "folder"
    other.mkdir()
    (other / "mine").touch()
    with pytest.raises(ValueError, match="is no zarr folder"):
        mapped(**{**options, "store": other})


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"subset": 24}, "subset is 24, expected between 1 and the 23 examples"),
        ({"subset": 0}, "subset is 0, expected"),
        ({"pilot": 24}, "pilot is 24, expected between 1 and the 23 examples"),
        ({"pilot": 11, "subset": 10}, "pilot is 11, expected between 1 and the 10 examples"),
        ({"grid": js.Grid.line()}, "grid has 1 axes for 2 directions"),
        ({"max_basis": 2}, "max_basis is 2, expected at least 6"),
        ({"tol": -1.0}, "tol is -1.0"),
        ({"ignore": "all"}, "ignore is 'all'"),
    ],
)
def test_bad_calls(options, match):
    with pytest.raises(ValueError, match=match):
        mapped(**options)


MEMORY = """
import resource, threading, time
import jax, jax.numpy as jnp, numpy as np
import jaxscape as js
width, rows = 5196, 2
params = {name: jnp.full((width, width), 1e-3) for name in ("a", "b")}  # 54 million
data = np.random.default_rng(0).normal(size=(rows, width)).astype(np.float32)
def loss_fn(p, x):
    return jnp.mean((jnp.tanh(x @ p["a"]) @ p["b"] - 1) ** 2, axis=1)
directions = js.random_directions(0, params, norm="dlayer")
grid = js.Grid.plane((0, 1, 2), (0, 1, 2))
size = sum(x.nbytes for x in params.values())
def held():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
jax.block_until_ready((params, directions))
before, peak = held() - 3 * size, [0]  # without params and directions
def watch():
    while True:
        peak[0] = max(peak[0], held())
        time.sleep(0.002)
threading.Thread(target=watch, daemon=True).start()
options = dict(directions=directions, grid=grid, max_basis=8, max_matvecs=20, progress=False)
ds = js.eigenvalue_map(params, loss_fn, data, **options)
print((peak[0] - before) / size, int(ds.num_matvecs.max()))
"""


@pytest.mark.slow
def test_memory_is_bounded_by_the_basis():
    out = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True, timeout=600)
    times, matvecs = map(float, out.stdout.split())
    assert matvecs > 8  # it restarted
    assert times < 8 + 6  # the basis, params, two directions, the point, and 2 for the product


WORKER = """
from tests.test_eigenvalue_map import DATA, PARAMS, directions, loss_fn, mapped
plain, stored = mapped(), mapped(store=f"{out}/map.zarr")
one = mapped(directions=directions()[:1], grid=js.Grid.line(0, 1, 2))  # fewer chains than processes
ends = js.extreme_eigenvalues(PARAMS, loss_fn, DATA, tol=1e-9, max_matvecs=300, progress=False)
try:
    mapped(store=f"{out}/map.zarr", tol=1e-2)
except ValueError as error:  # of the first process too, while the others wait for it
    refused = str(error)
names = "min_eigenvalue", "max_eigenvalue", "num_matvecs", "plane_hessian"
np.savez(f"{out}/{index}.npz", one=one.max_eigenvalue, end=ends.max_eigenvalue, refused=refused,
         **{n: plain[n] for n in names}, **{f"stored_{n}": stored[n] for n in names})
"""


def free_of(name):
    """Different predicates with one name and one text."""

    class Predicate:
        def __call__(self, path, leaf):
            return name in jax.tree_util.keystr(path)

        def __repr__(self):
            return "predicate"

    return Predicate()


def test_predicates_are_told_apart_by_the_leaves_they_leave_out(tmp_path):
    """Not by their text, which two may share, nor by their address, which is another one in a new process."""
    small = {"grid": js.Grid.plane((0, 1, 1), (0, 1, 1)), "directions": directions(), "progress": False}
    call = functools.partial(js.eigenvalue_map, PARAMS, loss_fn, DATA, store=tmp_path / "map.zarr", **small)
    first = call(ignore=free_of("bias"))
    again = call(ignore=lambda path, leaf: "bias" in jax.tree_util.keystr(path))
    xr.testing.assert_identical(again.drop_attrs(), first.drop_attrs())
    with pytest.raises(ValueError, match="free_leaves is"):
        call(ignore=free_of("kernel"))


@pytest.mark.slow
def test_several_processes_give_the_same_everywhere(tmp_path, whole):
    processes = launch(2, tmp_path, WORKER)
    output = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], output
    for i in range(2):
        result = np.load(tmp_path / f"{i}.npz")
        for name in ("min_eigenvalue", "max_eigenvalue", "num_matvecs", "plane_hessian"):
            np.testing.assert_array_equal(result[name], whole[name])
            np.testing.assert_array_equal(result[f"stored_{name}"], whole[name])
        np.testing.assert_allclose(result["one"][0], result["end"], rtol=1e-7)
        assert "tol is 1e-08 there and 0.01 here" in str(result["refused"])
