"""Level sets, curvature and minima of sampled planes against closed forms."""

import math

import numpy as np
import pytest
import xarray as xr

import jaxscape as js


def sampled(function, x=(-1, 1, 51), y=(-1, 1, 41)):
    alpha, beta = np.linspace(*x), np.linspace(*y)
    return xr.Dataset(
        {"loss": (("alpha", "beta"), function(alpha[:, None], beta[None, :]))}, {"alpha": alpha, "beta": beta}
    )


def test_an_ellipse():
    table = js.plane_measures(sampled(lambda x, y: 2 + x**2 / 0.8**2 + (y / 0.5) ** 2), level=1)
    np.testing.assert_allclose(table.value["level_set_area"], math.pi * 0.8 * 0.5, rtol=1e-2)
    np.testing.assert_allclose(table.value["width_alpha"], 1.6, rtol=1e-2)
    np.testing.assert_allclose(table.value["width_beta"], 1.0, rtol=1e-2)
    assert table.value["negative_curvature"] == 0
    assert table.value["local_minima"] == 1
    assert (table.note == "").all()
    assert table.attrs["level"] == 1


def test_a_turned_ellipse_with_a_hole():
    def ring(x, y):
        r = np.hypot(x + y, 2 * (x - y)) / math.sqrt(2)
        return (r - 0.5) ** 2 - 0.25 * (np.hypot(x, y) == 0)

    table = js.plane_measures(sampled(ring, (-1, 1, 201), (-1, 1, 201)), level=0.09)
    area = math.pi * (0.8**2 - 0.2**2) / 2
    np.testing.assert_allclose(table.value["level_set_area"], area, rtol=1e-2)


def test_uneven_coordinates_without_the_center():
    result = sampled(lambda x, y: x**2 + 4 * y**2).isel(alpha=slice(None, None, 2))
    keep = [i for i in range(41) if i not in (3, 20)]  # no point has beta = 0
    table = js.plane_measures(result.isel(beta=keep), level=0.5)
    np.testing.assert_allclose(table.value["width_alpha"], 2 * math.sqrt(0.5), rtol=2e-2)
    np.testing.assert_allclose(table.value["level_set_area"], math.pi * 0.5 / 2, rtol=2e-2)
    assert table.value["negative_curvature"] == 0


def test_a_saddle_and_a_plane_of_waves():
    assert js.plane_measures(sampled(lambda x, y: x * y)).value["negative_curvature"] == 1
    waves = js.plane_measures(sampled(lambda x, y: -np.cos(3 * math.pi * x) * np.cos(2 * math.pi * y), y=(-1, 1, 81)))
    # both cosines are 1 at x = -2/3, 0, 2/3 and y = 0, and both are -1 at x = -1/3, 1/3 and y = -1/2, 1/2
    assert waves.value["local_minima"] == 3 + 4
    assert 0.6 < waves.value["negative_curvature"] < 0.8


def test_rounding_is_no_curvature():
    flat = sampled(lambda x, y: np.float32(2.3) + 1e-7 * np.random.default_rng(0).uniform(-1, 1, (51, 41)))
    assert js.plane_measures(flat).value["negative_curvature"] == 0


def test_a_level_set_that_reaches_the_border_says_so():
    table = js.plane_measures(sampled(lambda x, y: x**2 + 0 * y), level=0.25)
    np.testing.assert_allclose(table.value["level_set_area"], 2.0, rtol=1e-2)
    assert "reaches the border: a lower bound" in table.note["level_set_area"]
    assert "reaches the border" in table.note["width_beta"]
    assert table.note["width_alpha"] == ""


def test_nan_is_counted_and_infinite():
    result = sampled(lambda x, y: x**2 + y**2)
    result.loss[30:] = np.nan
    table = js.plane_measures(result, level=0.5)
    assert (table.note.str.contains("NaN")).all()
    assert table.value["width_alpha"] < 1.0
    assert np.isfinite(table.value).all()


@pytest.mark.parametrize("center", [np.nan, np.inf])
def test_a_center_that_is_not_finite_has_no_level_set(center):
    result = sampled(lambda x, y: x**2 + y**2)
    result.loss[:] = np.where(result.loss == result.loss.min(), center, result.loss)
    table = js.plane_measures(result)
    rows = ["level_set_area", "width_alpha", "width_beta"]
    assert np.isnan(table.value[rows]).all()
    assert table.note[rows].str.startswith("the center is not finite").all()


def test_losses_beyond_float32():
    plain, large = (
        js.plane_measures(sampled(lambda x, y, s=s: s * (x**2 + 4 * y**2)), level=s * 0.3) for s in (1, 1e300)
    )
    np.testing.assert_allclose(large.value["level_set_area"], plain.value["level_set_area"], rtol=1e-9)


def test_noise_of_sampled_losses_is_no_curvature():
    result = sampled(lambda x, y: x**2 + y**2)
    stderr = 0.01 + 0 * result.loss
    noisy = result.assign(loss=result.loss + np.random.default_rng(0).normal(0, 0.01, result.loss.shape))
    noisy = noisy.assign(loss_stderr=stderr)
    assert js.plane_measures(noisy).value["negative_curvature"] > 0.1  # the stderr of an exact mean is another one
    table = js.plane_measures(noisy.assign_attrs(rtol=0.05))
    assert table.value["negative_curvature"] < 0.01
    assert table.note["local_minima"] == "sampled losses: noise can make minima"


def test_a_line():
    alpha = np.linspace(-2, 2, 401)
    line = xr.Dataset({"loss": ("alpha", (alpha**2 - 1) ** 2)}, {"alpha": alpha})
    table = js.plane_measures(line.assign_coords(alpha=alpha + 1), level=0.5)
    assert table.index.tolist() == ["width_alpha", "negative_curvature", "local_minima"]
    truth = math.sqrt(1 + math.sqrt(0.5)) - math.sqrt(1 - math.sqrt(0.5))
    np.testing.assert_allclose(table.value["width_alpha"], truth, rtol=1e-2)
    np.testing.assert_allclose(table.value["negative_curvature"], 2 / math.sqrt(3) / 4, rtol=1e-2)
    assert table.value["local_minima"] == 2


def test_an_eigenvalue_map():
    grid = {"alpha": [0.0, 1.0], "beta": [0.0, 1.0]}
    values = {"min_eigenvalue": [[-1.0, -0.1], [0.5, np.nan]], "min_residual": [[0.01, 0.2], [0.0, 0.0]]}
    result = xr.Dataset({name: (("alpha", "beta"), value) for name, value in values.items()}, grid)
    table = js.plane_measures(result)
    assert table.value.to_dict() == {"negative_curvature": 1 / 3}
    assert table.note["negative_curvature"] == "1 points are not finite"


@pytest.mark.parametrize(
    ("result", "options", "error", "message"),
    [
        (3, {}, TypeError, "result is int, expected the Dataset of js.surface"),
        (sampled(lambda x, y: x * y), {"level": 0}, ValueError, "level is 0, expected a positive number"),
        (sampled(lambda x, y: x * y), {"metric": "accuracy"}, ValueError, "metric is 'accuracy', expected one of"),
        (sampled(lambda x, y: x * y, x=(1, 2, 5)), {}, ValueError, "alpha has 5 points from 1.0 to 2.0"),
        (sampled(lambda x, y: x * y, x=(-1, 1, 2)), {}, ValueError, "alpha has 2 points"),
        (sampled(lambda x, y: x * y).expand_dims("seed"), {}, ValueError, "expected one or two coordinates"),
    ],
    ids=range(6),
)
def test_mistakes_are_named(result, options, error, message):
    with pytest.raises(error, match=message):
        js.plane_measures(result, **options)
