"""The same surface with several seeds: each repeat is a call of its own, the spread a number, the band a picture."""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr

import jaxscape as js
from jaxscape import plot
from tests.problems import classification_data, mlp_loss, mlp_params

PARAMS, DATA = mlp_params(), classification_data()
LINE, PLANE = js.Grid.line(-1, 1, 5), js.Grid.plane((-1, 1, 3), (0, 1, 2))


def repeated(num_seeds=3, grid=LINE, **options):
    return js.surface(PARAMS, mlp_loss, DATA, grid=grid, num_seeds=num_seeds, progress=False, **options)


@pytest.fixture(scope="module")
def three():
    return repeated(seed=5)


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


def test_each_repeat_is_a_call_with_its_seed(three):
    assert three.loss.dims == ("seed", "alpha")
    np.testing.assert_array_equal(three.seed, [5, 6, 7])
    for seed in three.seed.values:
        alone = js.surface(PARAMS, mlp_loss, DATA, grid=LINE, seed=int(seed), progress=False)
        for name, values in alone.items():
            np.testing.assert_array_equal(three[name].sel(seed=seed), values)
    assert len(np.unique(three.loss.sel(alpha=1))) == 3
    assert len(np.unique(three.loss.sel(alpha=0))) == 1  # params itself


def test_the_spread_is_that_over_the_seeds(three):
    loss = three.loss.values
    np.testing.assert_allclose(three.spread, np.std(loss, axis=0, ddof=1), rtol=1e-12)
    assert three.spread.dims == ("alpha",)
    expected = np.std(loss, axis=0, ddof=1).mean() / loss.mean()
    np.testing.assert_allclose(three.attrs["mean_spread"], expected, rtol=1e-12)
    one = repeated(1)
    assert np.isnan(one.spread).all()
    assert np.isnan(one.attrs["mean_spread"])


def test_devices_do_not_matter(three):
    one = repeated(seed=5, mesh=jax.sharding.Mesh(np.array(jax.devices()[:1]), ("points",)))
    np.testing.assert_array_equal(one.loss, three.loss)


def test_points_that_are_not_finite_are_counted_and_left_out_of_the_mean_spread():
    def loss(p, x):
        return jnp.where(p["w"].sum() > 3, jnp.nan, 1.0) * x * (p["w"] ** 2).sum()

    params = {"w": jnp.ones((2, 1))}
    ds = js.surface(params, loss, np.ones(3), grid=LINE, num_seeds=4, progress=False)
    finite = np.isfinite(ds.loss.values)
    assert 0 < ds.attrs["nonfinite_points"] == (~finite).sum()
    whole = finite.all(0)
    loss_there = ds.loss.values[:, whole]
    expected = loss_there.std(0, ddof=1).sum() / loss_there.mean(0).sum()
    np.testing.assert_allclose(ds.attrs["mean_spread"], expected, rtol=1e-12)


def test_each_seed_has_a_store(three, tmp_path):
    kept = repeated(seed=5, store=tmp_path / "store")
    np.testing.assert_array_equal(kept.loss, three.loss)
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == ["seed5.zarr", "seed6.zarr", "seed7.zarr"]
    np.testing.assert_array_equal(js.load(tmp_path / "store" / "seed6.zarr").loss, three.loss.sel(seed=6))
    xr.testing.assert_equal(repeated(seed=5, store=tmp_path / "store").drop_attrs(), kept.drop_attrs())


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="spread"):
        js.surface(PARAMS, lambda p, b: {"loss": b[0][:, 0], "spread": b[0][:, 0]}, DATA, grid=LINE, num_seeds=2)
    with pytest.raises(
        ValueError, match="num_seeds is 2, which draws new directions for each seed; expected directions"
    ):
        repeated(2, directions=[PARAMS])
    with pytest.raises(ValueError, match="num_seeds is 0"):
        repeated(0)
    with pytest.raises(TypeError, match="num_seeds is 'x'"):
        repeated("x")


def test_the_band_shows_mean_deviation_and_repeats(three):
    ax = plot.band(three, log=False)
    *repeats, mean = (line.get_ydata() for line in ax.get_lines())
    np.testing.assert_array_equal(repeats, three.loss)
    np.testing.assert_allclose(mean, three.loss.mean("seed"))
    corners = ax.collections[0].get_paths()[0].vertices
    upper = (three.loss.mean("seed") + three.spread).values
    np.testing.assert_allclose(corners[:, 1].max(), upper.max())
    assert ax.get_legend().get_texts()[0].get_text() == "3 repeats, mean and one standard deviation"
    ax = plot.band([three.sel(seed=5)])
    assert ax.get_legend().get_texts()[0].get_text() == "1 repeat, no band"
    with pytest.raises(ValueError, match="results have other coordinates"):
        plot.band([three.sel(seed=5), three.sel(seed=6).isel(alpha=slice(3))])
    with pytest.raises(ValueError, match="expected one"):
        plot.band(repeated(2, PLANE))


def test_planes_are_small_multiples():
    ds = repeated(4, PLANE)
    figure = plot.compare(ds, kind="heatmap", columns=3)
    panels = [ax for ax in figure.axes if ax.get_title()]
    assert [ax.get_title() for ax in panels] == ["seed 0", "seed 1", "seed 2", "seed 3"]
    assert len(figure.axes) == 5  # and the colour bar
    assert panels[0].get_position().y0 > panels[3].get_position().y0
    assert {ax.get_xlim() for ax in panels} == {panels[0].get_xlim()}
