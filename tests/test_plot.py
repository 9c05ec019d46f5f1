"""Pictures of closed-form surfaces: what is drawn is where it belongs, and what cannot be drawn is counted."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from matplotlib.colors import LogNorm
from matplotlib.contour import QuadContourSet

from jaxscape import plot
from tests.problems import slow_but, slow_unless

KINDS = ("contour", "contourf", "heatmap", "surface3d")
ALPHA, BETA = np.linspace(-1, 1, 9), np.array([0.0, 0.5, 2.0, 3.0, 4.0])  # not square, not evenly spaced


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def surface(f, alpha=ALPHA, beta=BETA, **attrs):
    a, b = np.meshgrid(alpha, beta, indexing="ij")
    values = np.broadcast_to(f(a, b), a.shape).astype(float)
    attrs = {"directions": "random", "norm": "filter"} | attrs
    variables = {"loss": (("alpha", "beta"), values), "accuracy": (("alpha", "beta"), np.exp(-(a**2) - b**2))}
    return xr.Dataset(variables, {"alpha": alpha, "beta": beta}, attrs)


def line(f, **variables):
    x = np.linspace(-1, 1, 21)
    data = {"loss": ("alpha", f(x))} | {name: ("alpha", np.full(21, value)) for name, value in variables.items()}
    return xr.Dataset(data, {"alpha": x}, {"directions": "random", "norm": "filter"})


def bowl(a, b):
    return 1 + a**2 + b**2 / 16


def steep(a, b):
    return 0.01 + 1e10 * (a**2 + b**2)


def with_nans(result, count=3):
    values = result.loss.values.copy()
    values.flat[:count] = [np.nan, np.inf, -np.inf][:count]
    return result.assign(loss=(result.loss.dims, values))


def contours(ax):
    (drawn,) = (artist for artist in ax.get_children() if isinstance(artist, QuadContourSet))
    return drawn


def notes(ax):
    return "\n".join(text.get_text() for text in ax.texts if isinstance(text, mpl.text.Annotation))


def colour_bar(figure):
    (bar,) = (ax for ax in figure.axes if ax.get_label() == "<colorbar>")
    return bar


# The contour line of L = alpha at 0.5 is the upright line x = 0.5, whatever the order of points and dimensions.
@pytest.mark.parametrize(
    "reorder",
    [
        lambda ds: ds,
        lambda ds: ds.transpose("beta", "alpha"),
        lambda ds: ds.isel(alpha=slice(None, None, -1)),
        lambda ds: ds.isel(beta=[3, 0, 4, 2, 1]),
    ],
    ids=["as made", "transposed", "descending", "shuffled"],
)
@pytest.mark.parametrize(("f", "column"), [(lambda a, b: a, 0), (lambda a, b: b, 1)], ids=["alpha", "beta"])
def test_alpha_runs_along_x_and_beta_along_y(reorder, f, column):
    ax = plot.contour(reorder(surface(f)), levels=[0.5, 0.75])
    for level, path in zip((0.5, 0.75), contours(ax).get_paths(), strict=True):
        np.testing.assert_allclose(path.vertices[:, column], level)
    assert ax.get_xlim() == (-1, 1)
    assert ax.get_ylim() == (0, 4)


def test_heatmap_has_each_value_in_its_cell():
    result = surface(lambda a, b: a + 10 * b)
    mesh = next(m for m in plot.heatmap(result, log=False).collections if isinstance(m, mpl.collections.QuadMesh))
    np.testing.assert_array_equal(mesh.get_array(), result.loss.values.T)
    np.testing.assert_allclose(mesh.get_coordinates()[0, :, 0], np.linspace(-1.125, 1.125, 10))
    np.testing.assert_allclose(mesh.get_coordinates()[:, 0, 1], [-0.25, 0.25, 1.25, 2.5, 3.5, 4.5])


def test_surface3d_has_every_point_as_a_vertex():
    result = surface(lambda a, b: a + 10 * b + 2, np.linspace(-1, 1, 61), np.linspace(0, 1, 60))  # over 50: not thinned
    (drawn,) = plot.surface3d(result, log=False).collections[:1]
    loss = result.loss.values
    corners = (loss[1:, 1:] + loss[1:, :-1] + loss[:-1, 1:] + loss[:-1, :-1]) / 4
    np.testing.assert_allclose(drawn.get_array(), corners.T.ravel())  # faces run over alpha first


def test_surface3d_is_logarithmic_where_steep_and_its_ticks_are_losses():
    ax = plot.surface3d(surface(steep))
    z = np.log10(steep(*np.meshgrid(ALPHA, BETA)))
    np.testing.assert_allclose(ax.collections[0].get_array()[-1], z[-2:, -2:].mean())
    assert "$10^{8}$" in [tick.get_text() for tick in ax.get_zticklabels()]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("f", [slow_unless(False, bowl), steep], ids=["bowl", "steep"])
def test_labels_colour_bar_and_count(kind, f):
    ax = getattr(plot, kind)(with_nans(surface(f, title="resnet20, train")))
    ax.figure.canvas.draw()
    assert "alpha" in ax.get_xlabel()
    assert "beta" in ax.get_ylabel()
    assert ax.get_title() == "resnet20, train"
    assert notes(ax) == "3 of 45 points not finite"
    assert colour_bar(ax.figure).get_ylabel() == ("loss, log scale" if f is steep else "loss")


def incomplete(result, rows=2):
    """As `js.load` gives it: the last rows are missing; in the one before them only the loss is there."""
    done = np.zeros(result.loss.shape, bool)
    done[: -rows - 1] = True
    there = {"loss": done.copy(), "accuracy": done}
    there["loss"][-rows - 1] = True
    found = {name: (result.loss.dims, np.where(mask, result[name], np.nan)) for name, mask in there.items()}
    return result.assign(**found, done=(result.loss.dims, done))


@pytest.mark.parametrize("kind", KINDS)
def test_points_that_are_not_computed_yet_are_dotted_and_counted(kind):
    result = with_nans(incomplete(surface(bowl)))
    ax = getattr(plot, kind)(result)
    assert notes(ax) == "3 of 45 points not finite\n10 of 45 points not computed yet"
    assert "15 of 45 points not computed yet" in notes(getattr(plot, kind)(result, metric="accuracy"))
    if kind != "surface3d":
        (dotted,) = (artist for artist in ax.collections if artist.get_hatch() == "....")
        np.testing.assert_array_equal(np.ma.getmaskarray(dotted.get_array()).reshape(5, 9)[:, -2:], False)
        assert (~np.ma.getmaskarray(dotted.get_array())).sum() == 10


def test_points_of_a_line_that_are_not_computed_yet_are_counted():
    result = line(np.square, accuracy=0.5)
    result = result.assign(loss=("alpha", np.where(np.arange(21) < 18, result.loss, np.nan)))
    ax = plot.line(result.assign(done=("alpha", np.arange(21) < 18)))
    assert notes(ax) == "3 of 21 points not computed yet"
    assert all(line.get_marker() == "None" for line in ax.lines)  # no cross: that is for a loss that is not finite


def test_axis_labels_say_what_the_directions_are():
    assert plot.contour(surface(bowl)).get_ylabel() == r"$\beta$ (random direction 2, filter-normalized)"
    assert plot.contour(surface(bowl, norm="None")).get_xlabel() == r"$\alpha$ (random direction 1)"
    assert plot.contour(surface(bowl, directions="b - a")).get_xlabel() == r"$\alpha$ (b - a)"
    assert plot.contour(surface(bowl, directions="")).get_xlabel() == r"$\alpha$"


def test_accuracy_is_in_percent_and_linear():
    ax = plot.contourf(surface(bowl), metric="accuracy")
    assert colour_bar(ax.figure).get_ylabel() == "accuracy (%)"
    assert contours(ax).levels[-1] == 100


@pytest.mark.parametrize("kind", KINDS)
def test_no_finite_point_is_a_picture_that_says_so(kind):
    ax = getattr(plot, kind)(surface(lambda a, b: np.nan))
    ax.figure.canvas.draw()
    assert notes(ax) == "45 of 45 points not finite"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", slow_but([0.0], [0.0, 0.3, -2.0, 1e30]))
def test_constant_surface(kind, value):
    ax = getattr(plot, kind)(surface(lambda a, b: value))
    ax.figure.canvas.draw()
    if kind == "contour":
        assert notes(ax).startswith("no level is crossed: ")


@pytest.mark.parametrize("kind", KINDS)
def test_zero_loss_on_a_log_scale(kind):
    ax = getattr(plot, kind)(surface(lambda a, b: 1e6 * (a**2 + b**2)))
    ax.figure.canvas.draw()
    assert colour_bar(ax.figure).get_ylabel() == "loss, log scale"


@pytest.mark.parametrize("log", [None, True, False])
@pytest.mark.parametrize("value", slow_but([0.0], [0.0, 1e-300, 1e300]))
def test_a_line_of_one_value(value, log):
    ax = plot.line(surface(lambda a, b: value).isel(beta=0, drop=True), log=log)
    ax.figure.canvas.draw()
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), value)


@pytest.mark.parametrize("kind", [*KINDS, "line"])
@pytest.mark.parametrize("value", slow_but([1.7e308], [1.7e308, -1.7e308]))
def test_values_too_large_to_be_drawn(kind, value):
    result = surface(lambda a, b: np.where(a < 0, value, 1.0) + 0 * b)
    result = result.isel(beta=0, drop=True) if kind == "line" else result
    with pytest.raises(
        ValueError, match="the values reach .*1.7e.308, more than can be drawn; pass loss_max or levels"
    ):
        getattr(plot, kind)(result)
    if value > 0:
        ax = getattr(plot, kind)(result, loss_max=10.0)
        ax.figure.canvas.draw()
        assert "above 10" in notes(ax)


def test_a_variable_instead_of_a_result():
    for kind in (*KINDS, "line"):
        with pytest.raises(TypeError, match="is DataArray, expected (the whole|a) Dataset"):
            getattr(plot, kind)(surface(bowl).loss)


@pytest.mark.parametrize("levels", [[0, np.inf], [np.nan, 1], [1, 0], [1]])
def test_levels_that_are_none(levels):
    with pytest.raises(ValueError, match="expected two or more ascending, finite numbers"):
        plot.contour(surface(bowl), levels=levels)


@pytest.mark.parametrize("kind", KINDS)
def test_loss_max_cuts_and_counts(kind):
    result = surface(lambda a, b: 1 + b)
    ax = getattr(plot, kind)(result, loss_max=3.0)
    assert notes(ax) == "18 of 45 points above 3" + (", cut off there" if kind == "surface3d" else "")
    assert "3" in [tick.get_text() for tick in colour_bar(ax.figure).get_yticklabels()]
    if kind == "contourf":
        assert contours(ax).extend == "max"
        assert contours(ax).levels[-1] == 3


def test_not_finite_cells_are_hatched_where_they_are():
    ax = plot.contour(with_nans(surface(bowl)))
    (cells,) = (c for c in ax.collections if c.get_hatch())
    centers = [path.get_extents() for path in cells.get_paths()]
    assert all(box.contains(-1, b) for box, b in zip(centers, BETA[:3], strict=True))


def test_levels_are_linear_for_a_bowl_and_logarithmic_when_steep():
    linear, log = plot.levels(surface(bowl)), plot.levels(surface(steep))
    np.testing.assert_allclose(np.diff(linear), linear[1] - linear[0])
    ratios = log[1:] / log[:-1]
    np.testing.assert_allclose(ratios, ratios[0])
    assert log[0] <= 0.01
    assert log[-1] >= 17e10


@pytest.mark.parametrize("num", [2, 5, 12, 30])
@pytest.mark.parametrize("top", [1.5, 60.0, 1e4, 1e10, 1e300])
def test_levels_span_all_results_and_ascend(num, top):
    one, other = surface(lambda a, b: 0.9 + a**2), surface(lambda a, b: top - b / 100)
    levels = plot.levels(one, other, num=num)
    assert levels[0] <= 0.9
    assert levels[-1] >= 1.9
    assert levels[-1] >= top
    assert (np.diff(levels) > 0).all()
    assert 2 <= len(levels) <= num + 2


def test_labels_of_contours_do_not_touch_in_a_narrow_valley():
    points = np.linspace(-1, 1, 41)
    valley = surface(lambda a, b: 1e-5 + 100 * np.abs(a) ** 3, points, points)
    ax = plot.contour(valley, plt.subplots(figsize=(2.6, 2.6))[1], log=True)
    boxes = [text.get_window_extent() for text in ax.texts]
    assert len(boxes) >= 2
    assert not any(one.overlaps(other) for i, one in enumerate(boxes) for other in boxes[:i])


def test_a_second_surface_may_be_drawn_on_the_first():
    ax = plot.contour(surface(steep))
    assert plot.contour(surface(bowl), ax) is ax


def test_labels_of_contours_are_not_cut_by_the_frame():
    points = np.linspace(-1, 1, 25)
    for center in np.linspace(0, 1, 9):
        bowl_at_edge = surface(lambda a, b, c=center: np.exp(3 * (a**2 + (b - c) ** 2)), points, points)
        ax = plot.contour(bowl_at_edge, plt.subplots(figsize=(2.6, 2.6))[1], log=True)
        frame = ax.get_window_extent()
        boxes = [text.get_window_extent() for text in ax.texts]
        assert boxes
        assert all(frame.x0 <= b.x0 and b.x1 <= frame.x1 and frame.y0 <= b.y0 and b.y1 <= frame.y1 for b in boxes)


def test_levels_end_at_loss_max():
    assert plot.levels(surface(steep), loss_max=10)[-1] == 10
    assert plot.levels(surface(bowl), loss_max=1.7)[-1] == 1.7
    assert plot.levels(surface(bowl), loss_max=100)[-1] <= 3.5  # not reached: not used


@pytest.mark.parametrize("kind", slow_but(["contour", "surface3d"], KINDS))
def test_compare_shares_levels_limits_and_one_colour_bar(kind):
    wide = surface(bowl, np.linspace(-2, 1, 7), np.linspace(-1, 5, 4))
    figure = plot.compare({"with": wide, "without": with_nans(surface(steep))}, kind, loss_max=50)
    figure.canvas.draw()
    left, right = figure.axes[:2]
    assert [left.get_title(), right.get_title()] == ["with", "without"]
    x, y = ((-2.25, 1.25), (-2, 6)) if kind == "heatmap" else ((-2, 1), (-1, 5))  # cells are shown in full
    assert left.get_xlim() == right.get_xlim() == x
    assert left.get_ylim() == right.get_ylim() == y
    assert colour_bar(figure).get_ylabel() == "loss, log scale"
    assert "not finite" in notes(right)
    assert "not finite" not in notes(left)
    if kind == "contourf":
        np.testing.assert_array_equal(contours(left).levels, contours(right).levels)
    if kind == "contour":
        assert set(contours(left).levels) <= set(plot.levels(wide, surface(steep), loss_max=50))
    if kind == "surface3d":
        assert left.get_zlim() == right.get_zlim()
    else:
        norms = [artist.norm for ax in (left, right) for artist in ax.collections if isinstance(artist.norm, LogNorm)]
        assert len({(norm.vmin, norm.vmax) for norm in norms}) == 1


def test_global_settings_stay_as_they_are():
    before = dict(mpl.rcParams)
    plot.contour(surface(bowl))
    plot.line(line(np.square))
    assert dict(mpl.rcParams) == before


def test_line_has_a_band_of_two_standard_errors_and_accuracy_in_percent():
    ax = plot.line(line(lambda x: 1 + x**2, loss_stderr=0.25, accuracy=0.9), log=False)
    band = ax.collections[0].get_paths()[0].vertices
    at_zero = band[np.isclose(band[:, 0], 0), 1]
    np.testing.assert_allclose([at_zero.min(), at_zero.max()], [0.5, 1.5])
    (right,) = (other for other in ax.figure.axes if other is not ax)
    assert right.get_ylabel() == "accuracy (%)"
    np.testing.assert_allclose(right.lines[0].get_ydata(), 90)


def test_a_band_that_reaches_zero_ends_a_decade_below_on_a_log_axis():
    ax = plot.line(line(lambda x: 1 + x**2, loss_stderr=5.0), log=True)
    band = ax.collections[0].get_paths()[0].vertices
    at_zero = band[np.isclose(band[:, 0], 0), 1]
    np.testing.assert_allclose([at_zero.min(), at_zero.max()], [0.1, 11])


def test_line_compares_train_and_test_and_counts_each():
    def broken(x):
        return np.where(x > 0.85, np.nan, 1 + x**2)

    ax = plot.line({"train": line(np.square), "test": line(broken, error=0.2)})
    ax.figure.canvas.draw()
    assert notes(ax) == "test: 2 of 21 points not finite"
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["train", "test"]
    crosses = next(artist for artist in ax.lines if artist.get_marker() == "x" and len(artist.get_xdata()))
    np.testing.assert_allclose(crosses.get_xdata(), [0.9, 1.0])
    assert ax.figure.axes[1].get_ylabel() == "error (%)"


def test_line_log_and_cut():
    assert plot.line(line(lambda x: 1 + 1e6 * x**2)).get_yscale() == "log"
    ax = plot.line(line(lambda x: 1 + x**2), loss_max=1.5)
    assert ax.get_yscale() == "linear"
    assert ax.get_ylim()[1] == 1.5
    assert notes(ax) == "6 of 21 points above 1.5"


def test_line_without_a_finite_point():
    ax = plot.line(line(lambda x: x * np.nan))
    ax.figure.canvas.draw()
    assert notes(ax) == "21 of 21 points not finite"


RECORDS = [
    {"epoch": 1, "lr": 0.1, "train_loss": 2.0, "train_error": 80.0, "test_loss": 2.1, "test_error": 82.0},
    {"epoch": 2, "lr": 0.1, "train_loss": 1.0, "train_error": 40.0, "test_loss": "", "test_error": None},
    {"epoch": 3, "lr": 0.01, "train_loss": float("nan"), "train_error": 90.0, "test_loss": 1.5, "test_error": 45.0},
]


@pytest.mark.parametrize("as_columns", [False, True])
def test_training_curves(as_columns):
    metrics = {name: [record[name] for record in RECORDS] for name in RECORDS[0]} if as_columns else RECORDS
    ax = plot.training_curves(metrics)
    ax.figure.canvas.draw()
    right = ax.figure.axes[1]
    assert [ax.get_ylabel(), right.get_ylabel(), ax.get_yscale()] == ["loss", "error (%)", "log"]
    np.testing.assert_array_equal(ax.lines[1].get_xdata(), [1, 3])  # epoch 2 was not tested
    np.testing.assert_array_equal(right.lines[0].get_ydata(), [80, 40, 90])
    assert list(ax.lines[2].get_xdata()) == [3, 3]  # where the learning rate drops
    assert notes(ax) == "train loss: 1 of 3 points not finite"


def test_save_embeds_fonts_as_text(tmp_path):
    ax = plot.contour(surface(bowl))
    assert plot.save(ax, tmp_path / "new" / "a.svg").read_text().count("<text") > 5
    assert b"/Type3" not in plot.save(ax.figure, tmp_path / "a.pdf").read_bytes()


@pytest.mark.parametrize("name", ["a", "a.doc", "a.zarr"])
def test_save_refuses_other_formats(tmp_path, name):
    with pytest.raises(ValueError, match=f"path is '{name}', which is no format of a picture; expected .png, .pdf or"):
        plot.save(plot.contour(surface(bowl)), tmp_path / name)
    assert not list(tmp_path.iterdir())


SURFACE, LINE = surface(bowl), line(np.square)
VOLUME = SURFACE.expand_dims(axis2=2).transpose("alpha", "beta", "axis2")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plot.contour(LINE), r"dimension 'alpha' only.*js\.plot\.line"),
        (lambda: plot.surface3d(VOLUME), r"\('alpha', 'beta', 'axis2'\).*isel\(axis2=0\)"),
        (lambda: plot.contour(SURFACE.isel(beta=[0])), "9 x 1 points, expected at least 2 x 2"),
        (lambda: plot.contourf(SURFACE, metric="lose"), r"metric is 'lose', expected one of .*\['accuracy', 'loss'\]"),
        (lambda: plot.contour(SURFACE.isel(alpha=0, beta=0)), "no dimension left in 'loss'"),
        (lambda: plot.contour(SURFACE, levels=[2, 1]), "two or more ascending"),
        (lambda: plot.contour(SURFACE, levels=[1, 2], loss_max=2), "levels and loss_max are both given"),
        (
            lambda: plot.contour(SURFACE, loss_max=0.5),
            "loss_max is 0.5, expected more than the smallest value shown, 1",
        ),
        (lambda: plot.contour(SURFACE, levels=[0, 1], log=True), "log is True with a level at 0"),
        (lambda: plot.contour(SURFACE - 5, log=True), "log is True with values down to -4"),
        (lambda: plot.surface3d(SURFACE, plt.subplots()[1]), 'projection="3d"'),
        (lambda: plot.levels(), "results is empty"),
        (lambda: plot.levels(SURFACE, num=1), "num is 1, expected at least 2"),
        (lambda: plot.compare({}), "results is empty"),
        (lambda: plot.compare({"a": SURFACE}, "line"), r"kind is 'line', expected one of .*js\.plot\.line"),
        (lambda: plot.line(SURFACE), r"\('alpha', 'beta'\), expected one.*sel\(beta=0"),
        (lambda: plot.line({}), "results is empty"),
        (lambda: plot.training_curves([]), "expected records with 'epoch'"),
        (lambda: plot.training_curves({"epoch": [1], "lr": [0.1]}), r"columns \['epoch', 'lr'\]"),
    ],
)
def test_errors_name_the_cause_and_the_cure(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def eigenvalue_map(converged=True):
    a, b = np.meshgrid(ALPHA, BETA, indexing="ij")
    low, high = -np.abs(a) / 10, 1 + b
    values = {"min_eigenvalue": low, "max_eigenvalue": high, "ratio": np.abs(low / high)}
    values["converged"] = np.full(a.shape, True)
    values["converged"][0, :2] = converged
    dims = ("alpha", "beta")
    return xr.Dataset({k: (dims, v) for k, v in values.items()}, {"alpha": ALPHA, "beta": BETA})


def test_lists_are_labelled_by_their_places():
    ax = plot.line([line(np.square), line(np.abs)])
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["0", "1"]
    assert [ax.get_title() for ax in plot.compare([SURFACE, SURFACE]).axes[:2]] == ["0", "1"]
    assert [ax.get_title() for ax in plot.eigenvalue_map([eigenvalue_map()] * 2).axes[:2]] == ["0", "1"]
    with pytest.raises(TypeError, match="results is int, expected a Dataset, a list of them, or a mapping"):
        plot.line(3)
    with pytest.raises(TypeError, match=r"results\['a'\] is list, expected a Dataset"):
        plot.compare({"a": [SURFACE]})


def test_eigenvalue_map_draws_the_ratio():
    ax = plot.eigenvalue_map(eigenvalue_map())
    (mesh,) = (c for c in ax.collections if isinstance(c, mpl.collections.QuadMesh))
    np.testing.assert_allclose(mesh.get_array(), eigenvalue_map().ratio.values.T)
    assert mesh.get_clim() == (0, 0.1)
    assert "not converged" not in notes(ax)
    assert "lambda" in colour_bar(ax.figure).get_ylabel()


def test_eigenvalue_map_with_its_sign_is_centered():
    ax = plot.eigenvalue_map(eigenvalue_map(), signed=True)
    (mesh,) = (c for c in ax.collections if isinstance(c, mpl.collections.QuadMesh))
    assert mesh.get_clim() == (-0.1, 0.1)
    assert mesh.get_cmap().name == "RdBu_r"
    assert mesh.get_array().min() == -0.1


def test_eigenvalue_map_marks_what_did_not_converge():
    ax = plot.eigenvalue_map(eigenvalue_map(converged=False))
    assert "2 of 45 points not converged" in notes(ax)
    (dots,) = ax.lines
    np.testing.assert_allclose(dots.get_xydata(), [[-1, 0], [-1, 0.5]])


def test_eigenvalue_maps_side_by_side_share_a_scale():
    figure = plot.eigenvalue_map({"a": eigenvalue_map(), "b": eigenvalue_map()}, ratio_max=0.05)
    meshes = [c for ax in figure.axes for c in ax.collections if isinstance(c, mpl.collections.QuadMesh)]
    assert {m.get_clim() for m in meshes[:2]} == {(0, 0.05)}
    assert "above 0.05" in notes(figure.axes[0])


@pytest.mark.parametrize(
    ("result", "options", "match"),
    [
        (surface(bowl), {}, "expected those of js.eigenvalue_map"),
        ({}, {}, "result is empty"),
        (eigenvalue_map(), {"ratio_max": 0}, "ratio_max is 0"),
        ({"a": eigenvalue_map()}, {"ax": plt.figure().add_subplot()}, "ax is given for several maps"),
    ],
)
def test_eigenvalue_map_refuses(result, options, match):
    with pytest.raises(ValueError, match=match):
        plot.eigenvalue_map(result, **options)


def density(outliers=(-3.0, 5.0, 9.0)):
    at = np.linspace(-4, 10, 500)
    centers, weights = np.array([0.0, 0.01, *outliers]), np.array([0.5, 0.47, *(0.01 for _ in outliers)])
    values = (weights * np.exp(-0.5 * ((at[:, None] - centers) / 0.1) ** 2)).sum(1) / 0.25
    return xr.Dataset(
        {
            "density": ("eigenvalue", values),
            "density_stderr": ("eigenvalue", 0.1 * values),
            "ritz_value": (("probe", "ritz"), np.stack([centers] * 2)),
            "ritz_weight": (("probe", "ritz"), np.stack([weights] * 2)),
        },
        {"eigenvalue": at},
        {"sigma": 0.1, "num_params": 1000, "title": "net"},
    )


def test_spectrum_names_its_outliers():
    ax = plot.spectrum(density())
    assert ax.get_yscale() == "log"
    labels = [text.get_text() for text in ax.texts]
    assert [v for v in ("-3", "5", "9") if v in labels] == ["-3", "5", "9"]
    (curve,) = ax.lines
    np.testing.assert_allclose(curve.get_ydata(), np.maximum(density().density, ax.get_ylim()[0]))
    one = [text.get_text() for text in plot.spectrum(density(), outliers=1).texts]
    assert "9" in one
    assert "5" not in one


def test_spectrum_of_a_positive_bulk_names_the_largest():
    labels = [text.get_text() for text in plot.spectrum(density(outliers=())).texts]
    assert "0.01" in labels


def test_spectrum_that_is_not_finite_says_so():
    result = density()
    broken = result.assign(density=result.density * np.nan)
    assert "not finite" in notes(plot.spectrum(broken))


@pytest.mark.parametrize(
    ("result", "options", "match"),
    [(surface(bowl), {}, "expected those of js.spectral_density"), (density(), {"outliers": -1}, "outliers is -1")],
)
def test_spectrum_refuses(result, options, match):
    with pytest.raises(ValueError, match=match):
        plot.spectrum(result, **options)


def test_an_interpolation_shows_both_ends_and_their_errors():
    x = np.array([-0.5, 0, 0.5, 1, 1.5])
    accuracy = {"train": [0.5, 1, 0.2, 0.99, 0.4], "test": [0.4, 0.93, 0.1, 0.89, 0.3]}
    results = {
        name: xr.Dataset(
            {"loss": ("alpha", x**2 + i + 0.1), "accuracy": ("alpha", values)}, {"alpha": x}, {"title": "vgg9"}
        )
        for i, (name, values) in enumerate(accuracy.items())
    }
    ax = plot.interpolation(results)
    assert ax.get_title() == "vgg9\ntest error 7.00 % and 11.00 %"
    curves = [artist for artist in ax.lines if len(artist.get_xdata()) == 5]
    assert [artist.get_linestyle() for artist in curves] == ["-", "--"]
    np.testing.assert_allclose(curves[1].get_ydata(), x**2 + 1.1)
    (right,) = (other for other in ax.figure.axes if other is not ax)
    np.testing.assert_allclose(right.lines[0].get_ydata(), 100 * np.array(accuracy["train"]))
    dotted = [artist.get_xdata()[0] for artist in ax.lines if artist.get_linestyle() == ":"]
    assert dotted == [0, 1]
    assert plot.interpolation(results["train"].isel(alpha=[0, 2, 4])).get_title() == "vgg9"  # no ends
    with pytest.raises(ValueError, match="result 'a' has no dimension alpha, expected one of js.interpolate"):
        plot.interpolation({"a": results["train"].rename(alpha="t")})


def test_the_power_of_ten_of_the_ticks_stands_beside_the_note():
    result = with_nans(surface(bowl, beta=BETA * 1e-9))
    ax = plot.contour(result, plt.subplots(figsize=(2, 2))[1])
    ax.figure.canvas.draw()
    power = ax.yaxis.get_offset_text()
    assert power.get_text() == "1e−9"
    note = next(text for text in ax.texts if "points" in text.get_text())
    assert not power.get_window_extent().overlaps(note.get_window_extent())
