"""Adaptive grids: fewer points for the same contour lines, and what is interpolated says so."""

import contourpy
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from scipy.spatial import cKDTree

import jaxscape as js
from jaxscape import plot
from jaxscape.sweep._adaptive import CHECKS, AdaptiveGrid, Goal
from tests.problems import launch

AXES = js.Directions({"x": np.eye(2)})
PARAMS = {"x": np.zeros(2)}


def bowl(params, batch):
    """Steep, skew and not quadratic; the closed form of `height`."""
    del batch
    x, y = params["x"]
    return height(x, y, jnp)


def height(x, y, xp=np):
    r = x**2 + 2 * y**2 + 0.6 * x * y
    return 1e-2 + r + 20 * r**2 + 0.3 * r * xp.sin(3 * x + 1)


def examples_of_bowl(params, batch):
    x, y = params["x"]
    losses = height(x, y, jnp) * batch
    return {"loss": losses, "small": losses < 1, "own_stderr": losses}  # a metric may have such a name


def plane(num=33):
    return js.Grid.plane((-1, 1, num), (-1, 1, num))


def on_bowl(loss_fn=bowl, data=None, num=33, **options):
    return js.surface(PARAMS, loss_fn, data, directions=AXES, grid=plane(num), **{"refine": "contours", **options})


def displacement(expected, found, level):
    """The Hausdorff distance of two level lines, in cells."""
    dense = []
    for z in (expected, found):
        lines = contourpy.contour_generator(z=z).lines(level)
        assert lines, f"no line at {level}"
        pieces = [
            a + np.linspace(0, 1, 5)[:, None] * (b - a) for line in lines for a, b in zip(line, line[1:], strict=False)
        ]
        dense.append(np.concatenate(pieces))
    one, other = (cKDTree(points) for points in dense)
    return max(one.query(dense[1])[0].max(), other.query(dense[0])[0].max())


def crossed(z, levels):
    return [level for level in levels if (z < level).any() and (z > level).any()]


def adapted(z, goal=Goal()):  # noqa: B008
    """An adaptive grid of values that are there already."""
    adaptive = AdaptiveGrid(z.shape, goal)
    while (rows := adaptive.next_rows()).size:
        assert not adaptive.done[rows].any()
        adaptive.add(rows, z.ravel()[rows])
    return adaptive, adaptive.interpolate(z.ravel()).reshape(z.shape)


def waves(num, frequency, seed=0):
    x, y = np.meshgrid(np.linspace(-1, 1, num), np.linspace(-1, 1, num), indexing="ij")
    rng = np.random.default_rng(seed)
    terms = [(rng.normal(size=2) * frequency, rng.uniform(0, 6)) for _ in range(8)]
    return 8 + sum(np.cos(k[0] * x + k[1] * y + phase) for k, phase in terms)


def test_contour_lines_stay_within_a_cell_for_a_fifth_of_the_points():
    full, few = on_bowl(num=51, refine=None), on_bowl(num=51)
    assert few.attrs["evaluated_points"] == few.evaluated.sum() <= full.loss.size / 5
    levels = crossed(full.loss.values, plot.levels(full))
    assert len(levels) >= 4
    assert max(displacement(full.loss.values, few.loss.values, level) for level in levels) < 1


def test_evaluated_points_have_the_values_of_the_full_grid_and_the_others_an_error():
    full, few = on_bowl(refine=None), on_bowl()
    there = few.evaluated.values
    np.testing.assert_array_equal(few.loss.values[there], full.loss.values[there])
    assert (few.interpolation_error.values[there] == 0).all()
    off = np.abs(few.loss.values - full.loss.values)[~there]
    assert (off > 0).all()
    assert np.mean(off <= few.interpolation_error.values[~there]) > 0.95
    assert few.attrs["refine"] == "contours"


@pytest.mark.parametrize("frequency", [3, 8])
@pytest.mark.parametrize("seed", [0, 1])
def test_lines_of_waves_stay_within_a_cell(frequency, seed):
    z = waves(41, frequency, seed)
    adaptive, found = adapted(z)
    assert adaptive.done.sum() < (0.35, 0.95)[frequency == 8] * z.size
    for level in crossed(z, plot.levels(as_surface(z))):
        assert displacement(z, found, level) < 1


def as_surface(z):
    grid = js.Grid.plane((0, 1, len(z)), (0, 1, len(z[0])))
    return js.surface({"x": np.zeros(2)}, lambda p, _: 0 * p["x"][0], None, directions=AXES, grid=grid).assign(
        loss=(("alpha", "beta"), z)
    )


def test_given_levels_are_those_that_count():
    few, all_levels = on_bowl(refine=[0.5]), on_bowl(refine=0.001)
    assert few.evaluated.sum() < all_levels.evaluated.sum()
    assert displacement(on_bowl(refine=None).loss.values, few.loss.values, 0.5) < 1
    assert few.attrs["refine"] == [0.5]


@pytest.mark.parametrize("refine", [0.1, 0.001])
def test_a_number_bounds_the_relative_error(refine):
    full, few = on_bowl(refine=None).loss.values, on_bowl(refine=refine)
    off = np.abs(few.loss.values - full) / np.abs(full)
    assert np.mean(off <= refine) > 0.99
    assert off.max() < 3 * refine
    assert (few.interpolation_error.values <= refine * np.abs(few.loss.values) + 1e-15).all()


def test_noise_is_not_interpolated():
    z = np.random.default_rng(0).normal(size=(33, 33))
    assert adapted(z)[0].done.mean() > 0.98


def test_a_constant_stays_constant():
    adaptive, found = adapted(np.full((33, 33), 3.0))
    assert (found == 3.0).all()
    assert adaptive.done.sum() == 81 + CHECKS


@pytest.mark.parametrize("shape", [(101,), (17, 9), (9, 9, 9), (1, 7), (2, 2), (1,), (1001, 3)])
def test_any_number_of_axes(shape):
    cells = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    z = np.exp(sum(x**2 for x in cells))
    adaptive, found = adapted(z, Goal(rtol=0.02))
    np.testing.assert_allclose(found, z, rtol=0.02)
    assert adaptive.done.all() or z.size > 81


def test_what_is_not_finite_is_seen_to_its_border():
    x, y = np.meshgrid(np.linspace(-1, 1, 41), np.linspace(-1, 1, 41), indexing="ij")
    z = np.where(x + 0.3 * y > 0.4, np.nan, x**2 + y**2)
    z[5, 7] = np.inf
    adaptive, found = adapted(z)
    np.testing.assert_array_equal(np.isfinite(found), np.isfinite(z) | (found == found[5, 7]))
    # every point that has a neighbour of the other kind is evaluated, but for the lone one, which may be missed
    bad = np.isnan(z)
    border = np.zeros_like(bad)
    border[1:] |= bad[1:] != bad[:-1]
    border[:-1] |= bad[1:] != bad[:-1]
    assert adaptive.done.reshape(z.shape)[border].all()
    assert adaptive.done.mean() < 0.8


def test_nothing_finite_ends_after_the_first_levels():
    adaptive, found = adapted(np.full((33, 33), np.nan))
    assert np.isnan(found).all()
    assert adaptive.done.sum() == 81 + CHECKS
    assert np.isinf(adaptive.error()[~adaptive.done]).all()


@pytest.mark.parametrize("hidden", ["hole", "pattern"])
def test_random_points_find_what_the_first_levels_miss(hidden):
    x, y = np.meshgrid(np.linspace(-1, 1, 33), np.linspace(-1, 1, 33), indexing="ij")
    z = 1 + x
    if hidden == "hole":  # between the points of the first levels, which are 4 cells apart
        z[1::4] += np.sin(3 * y[1::4])
    else:
        z[np.indices(z.shape).sum(0) % 4 == 1] = np.nan
    adaptive, found = adapted(z)
    assert adaptive.done.sum() > 81 + CHECKS
    if hidden == "pattern":
        np.testing.assert_array_equal(np.isnan(found), np.isnan(z))
    else:
        assert np.abs(found - z).max() < 0.3


def test_other_metrics_are_interpolated_within_their_range():
    data = np.linspace(0.5, 1.5, 20)
    full, few = on_bowl(examples_of_bowl, data, refine=None), on_bowl(examples_of_bowl, data)
    there = few.evaluated.values
    assert ((few.small >= 0) & (few.small <= 1)).all()
    assert np.abs(few.small - full.small).values.mean() < 0.05
    assert (few.num_examples.values == np.where(there, 20, 0)).all()
    np.testing.assert_allclose(few.own_stderr, few.loss, rtol=0.05)
    for name in ("loss_stderr", "small_stderr"):
        np.testing.assert_array_equal(np.isnan(few[name]), ~there)
        np.testing.assert_array_equal(few[name].values[there], full[name].values[there])


def test_one_device_takes_the_points_of_several():
    mesh = Mesh(np.array(jax.devices()[:1]), ("points",))
    data = np.linspace(0.5, 1.5, 20)
    one, several = on_bowl(examples_of_bowl, data, mesh=mesh), on_bowl(examples_of_bowl, data)
    for name in one.data_vars:
        np.testing.assert_array_equal(one[name], several[name])


def test_the_center_is_that_of_params_though_no_point_of_the_grid():
    few = on_bowl(num=32)
    assert few.attrs["center_loss"] == height(0.0, 0.0)


def test_each_seed_has_points_of_its_own():
    result = js.surface(PARAMS, bowl, None, grid=plane(17), num_seeds=2, refine="contours")
    assert result.evaluated.dims == ("seed", "alpha", "beta")
    one = js.surface(PARAMS, bowl, None, grid=plane(17), seed=1, refine="contours")
    np.testing.assert_array_equal(result.evaluated[1], one.evaluated)


def test_a_preview_has_more_points_each_time():
    seen = []
    result = on_bowl(preview=lambda preview: seen.append(preview))
    counts = [int(preview.evaluated.sum()) for preview in seen]
    assert counts == sorted(set(counts))
    assert counts[0] == 9
    assert counts[-1] == result.evaluated.sum()
    assert all(np.isfinite(preview.loss).all() for preview in seen)
    np.testing.assert_array_equal(seen[-1].loss, result.loss)


def test_a_stopped_run_goes_on_from_its_store(tmp_path):
    def stop(preview):
        if preview.evaluated.sum() > 50:
            raise KeyboardInterrupt

    calls = []

    def counted(params, batch):
        jax.debug.callback(lambda: calls.append(1))
        return bowl(params, batch)

    with pytest.raises(KeyboardInterrupt):
        on_bowl(store=tmp_path / "s.zarr", preview=stop)
    kept = js.load(tmp_path / "s.zarr")
    assert 50 < kept.done.sum() < 150
    np.testing.assert_array_equal(kept.evaluated == 1, kept.done)
    assert np.isnan(kept.loss.values[~kept.done.values.astype(bool)]).all()
    whole, expected = on_bowl(store=tmp_path / "s.zarr"), on_bowl()
    for name in expected.data_vars:
        np.testing.assert_array_equal(whole[name], expected[name])
    loaded = js.load(tmp_path / "s.zarr")
    np.testing.assert_array_equal(loaded.loss, expected.loss)
    np.testing.assert_array_equal(loaded.evaluated, expected.evaluated)
    again = on_bowl(store=tmp_path / "s.zarr")
    np.testing.assert_array_equal(again.loss, expected.loss)
    assert again.attrs["evaluated_points"] == expected.attrs["evaluated_points"]


@pytest.mark.parametrize("options", [{"refine": 0.1}, {"refine": None}, {"num": 65}])
def test_a_store_of_other_points_is_refused(tmp_path, options):
    on_bowl(store=tmp_path / "s.zarr")
    with pytest.raises(ValueError, match=r"store .* holds"):
        on_bowl(store=tmp_path / "s.zarr", **options)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"refine": "lines"}, ValueError, "refine is 'lines', expected 'contours', ascending levels"),
        ({"refine": 0.0}, ValueError, "refine is 0.0, expected"),
        ({"refine": -1}, ValueError, "refine is -1, expected"),
        ({"refine": np.nan}, ValueError, "refine is nan, expected"),
        ({"refine": []}, ValueError, "refine is .*, expected"),
        ({"refine": [1.0, 0.5]}, ValueError, "refine is .*, expected 'contours', ascending levels"),
        ({"refine": True}, TypeError, "refine is True, expected"),
        ({"refine": [[1.0]]}, TypeError, "refine is .*, expected"),
        ({"refine": object()}, TypeError, "refine is object, expected"),
        ({"rtol": 0.1}, ValueError, "refine is 'contours' and rtol is 0.1; expected one of them"),
        ({"refine": None, "preview": print}, ValueError, "preview is .* with refine=None; expected a function"),
        ({"preview": 3}, ValueError, "preview is 3 with refine='contours'; expected a function"),
    ],
)
def test_what_cannot_be_refined_is_refused(options, error, match):
    with pytest.raises(error, match=match):
        on_bowl(**options)


@pytest.mark.parametrize("name", ["evaluated", "interpolation_error"])
def test_names_of_the_result_are_its_own(name):
    def loss(params, batch):
        return {"loss": bowl(params, None) * batch, name: batch}

    with pytest.raises(ValueError, match=f"a metric named '{name}'"):
        on_bowl(loss, np.ones(3))
    assert name in on_bowl(loss, np.ones(3), refine=None, num=3)


@pytest.mark.parametrize("draw", [plot.contour, plot.contourf, plot.heatmap])
def test_plots_hatch_interpolated_points_on_demand(draw):
    few = on_bowl(num=17)
    rest = int((~few.evaluated).sum())
    notes = [text.get_text() for text in draw(few, hatch=True).texts]
    assert any(f"{rest} of 289 points interpolated (hatched)" in note for note in notes)
    assert not any("interpolated" in text.get_text() for text in draw(few).texts)
    hatched = [c for c in draw(few, hatch=True).collections if c.get_hatch()]
    assert sum(len(c.get_paths()) for c in hatched) == rest


def test_a_live_picture_is_written_each_time(tmp_path):
    written = []
    show = plot.live("contourf", path=tmp_path / "now.png", hatch=True)

    def preview(result):
        show(result)
        written.append((tmp_path / "now.png").stat().st_mtime_ns)

    on_bowl(num=17, preview=preview)
    assert len(set(written)) == len(written) >= 2


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: plot.live(), "path is missing: there is no notebook to draw in"),
        (lambda: plot.live("lines", path="a.png"), "kind is 'lines', expected one of"),
        (lambda: plot.live(path="a.doc"), "path is 'a.doc', which is no format of a picture"),
    ],
)
def test_a_live_picture_needs_a_place(call, match):
    with pytest.raises(ValueError, match=match):
        call()


@pytest.mark.slow  # two processes that start and compile
def test_two_processes_take_the_points_of_one(tmp_path):
    code = """
from tests.test_refine import examples_of_bowl, on_bowl
result = on_bowl(examples_of_bowl, np.linspace(0.5, 1.5, 20), num=17, store=f"{out}/s.zarr")
np.savez(f"{out}/{index}.npz", loss=result.loss, evaluated=result.evaluated, small=result.small)
"""
    processes = launch(2, tmp_path, code)
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
    one = on_bowl(examples_of_bowl, np.linspace(0.5, 1.5, 20), num=17)
    for index in range(2):
        result = np.load(tmp_path / f"{index}.npz")
        np.testing.assert_array_equal(result["evaluated"], one.evaluated)
        for name in ("loss", "small"):
            np.testing.assert_allclose(result[name], one[name], rtol=1e-12)
