"""Pictures of paths: what is drawn is where it belongs, in order, and what it cannot show is said."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr

from jaxscape import plot
from tests.test_plot import _close_figures, colour_bar, contours, notes  # noqa: F401


def path(steps=9, shift=0.0, **attrs):
    """A spiral into the middle of a bowl, whose learning rate falls after the fourth checkpoint."""
    alpha, beta = np.linspace(-2, 2, 9), np.linspace(-1, 3, 5)
    t = np.linspace(0, 1, steps)
    coordinates = np.stack([1.5 * (1 - t) * np.cos(4 * t) + shift, 2 * (1 - t) * np.sin(4 * t)], axis=1)
    variables = {
        "loss": (("alpha", "beta"), 1e-3 + alpha[:, None] ** 2 + beta**2),
        "coordinates": (("step", "axis"), coordinates),
        "in_plane_loss": ("step", 1e-3 + (coordinates**2).sum(1)),
        "true_loss": ("step", 1e-3 + (coordinates**2).sum(1)),
        "off_plane_distance": ("step", 0.1 * t),
        "axis_variance": ("axis", [0.712, 0.2]),
        "explained_variance_ratio": ("component", [0.712, 0.2, 0.088]),
        "epoch": ("step", np.arange(steps, dtype=float)),
        "lr_drop": ("step", np.arange(steps) == 4),
    }
    attrs = {"directions": "PCA", "variance_captured": 0.912, "fingerprint": "plane"} | attrs
    return xr.Dataset(variables, {"alpha": alpha, "beta": beta}, attrs)


def lines(ax, colour):
    return [line for line in ax.lines if mpl.colors.same_color(line.get_color(), colour)]


def test_the_path_is_drawn_in_order_with_its_drops_and_ends():
    result = path()
    ax = plot.trajectory(result)
    x, y = result.coordinates.values.T
    through, dots = lines(ax, "tab:blue")
    np.testing.assert_array_equal(through.get_data(), (x, y))
    np.testing.assert_array_equal(dots.get_data(), (np.delete(x, 4), np.delete(y, 4)))
    (drop,) = lines(ax, "tab:red")
    np.testing.assert_array_equal(drop.get_data(), (x[4:5], y[4:5]))
    start, end = lines(ax, "0.1")
    np.testing.assert_array_equal(start.get_data(), (x[:1], y[:1]))
    np.testing.assert_array_equal(end.get_data(), (x[-1:], y[-1:]))
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("1st PC component: 71.2 %", "2nd PC component: 20.0 %")
    assert "91.2 % of the variance in the plane" in notes(ax)
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["start", "end", "learning rate drops"]
    assert (np.diff(np.log(contours(ax).levels)) > 0).all()
    assert isinstance(contours(ax).norm, mpl.colors.LogNorm)
    assert "log scale" in colour_bar(ax.figure).get_ylabel()


def test_other_planes_say_what_each_axis_captures():
    result = path(directions="random", norm="filter").assign(axis_variance=("axis", [3.2e-4, 0.0]))
    ax = plot.trajectory(result)
    assert ax.get_xlabel().endswith("(random direction 1, filter-normalized): 0.032 %")
    assert ax.get_ylabel().endswith(": 0.0 %")
    solution = path(directions="solution", axis_labels="end to start | random direction")
    assert plot.trajectory(solution).get_xlabel() == "end to start: 71.2 %"


def test_checkpoints_outside_or_not_finite_are_counted():
    result = path()
    coordinates = result.coordinates.values.copy()
    coordinates[2], coordinates[3] = np.nan, 9
    ax = plot.trajectory(result.assign(coordinates=(("step", "axis"), coordinates)))
    assert "1 of 9 checkpoints not finite, 1 of 9 checkpoints outside" in notes(ax)
    nothing = plot.trajectory(result.assign(coordinates=(("step", "axis"), np.full((9, 2), np.nan))))
    assert "9 of 9 checkpoints not finite" in notes(nothing)


def test_negative_losses_are_on_a_linear_scale():
    result = path()
    ax = plot.trajectory(result.assign(loss=result.loss - 2))
    assert not isinstance(contours(ax).norm, mpl.colors.LogNorm)


def test_several_paths_in_one_plane():
    ax = plot.trajectory({"SGD": path(), "Adam": path(5, shift=0.2)})
    assert len(lines(ax, "tab:blue")) == len(lines(ax, "tab:orange")) == 2
    assert [t.get_text() for t in ax.get_legend().get_texts()][:2] == ["SGD", "Adam"]
    assert notes(ax).count("of the variance") == 2


def test_a_list_is_labelled_by_titles_or_places():
    both = [path(), path(5, shift=0.2)]
    ax = plot.trajectory(both)
    assert len(lines(ax, "tab:blue")) == len(lines(ax, "tab:orange")) == 2
    assert [t.get_text() for t in ax.get_legend().get_texts()][:2] == ["0", "1"]
    assert [ax.get_title() for ax in plot.trajectories(both).axes] == ["0", "1"]
    titled = [path(title="SGD"), path(title="Adam", fingerprint="b")]
    assert [ax.get_title() for ax in plot.trajectories(titled).axes] == ["SGD", "Adam"]
    assert [ax.get_title() for ax in plot.trajectories([titled[0]] * 2).axes] == ["0", "1"]  # one title names nothing


def test_panels_side_by_side():
    results = {f"run {i}": path(fingerprint=str(i)) for i in range(3)}
    figure = plot.trajectories(results, columns=2)
    drawn = [ax for ax in figure.axes if ax.axison]
    assert [ax.get_title() for ax in drawn] == list(results)
    assert len(figure.axes) == 4
    assert all(len(lines(ax, "tab:blue")) == 2 and ax.get_legend() is None for ax in drawn)
    one = path(directions="random", norm="filter").assign(axis_variance=("axis", [3.2e-4, 0.0]))
    (ax,) = plot.trajectories({"one": one}).axes
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("random direction 1: 0.032 %", "random direction 2: 0.0 %")


def test_on_the_surface_in_3d_it_has_the_height_of_the_plane():
    result = path()
    ax = plot.trajectory3d(result)
    through = ax.lines[0]
    x, y, z = through.get_data_3d()
    np.testing.assert_array_equal((x, y), result.coordinates.values.T)
    np.testing.assert_allclose(z, np.log10(result.in_plane_loss), atol=1e-12)
    ax.figure.canvas.draw()
    assert ax.get_xlabel() == "1st PC: 71.2 %"  # what fits along a slanted axis
    cut = plot.trajectory3d(result, loss_max=0.5)
    assert cut.lines[0].get_data_3d()[2].max() == np.log10(0.5)
    linear = plot.trajectory3d(result, log=False)
    np.testing.assert_allclose(linear.lines[0].get_data_3d()[2], result.in_plane_loss)


@pytest.mark.slow
def test_an_animation_grows_and_is_written(tmp_path):
    animation = plot.trajectory_animation({"a": path(), "b": path(5)}, fps=20)
    ax = animation._fig.axes[0]
    animation._func(2)
    assert [len(line.get_xdata()) for line in lines(ax, "tab:blue")] == [3, 3]
    assert [len(line.get_xdata()) for line in lines(ax, "tab:red")] == [0, 0]
    assert ax.get_title() == "epoch 2"
    animation._func(8)
    assert [len(line.get_xdata()) for line in lines(ax, "tab:blue")] == [9, 8]
    assert [len(line.get_xdata()) for line in lines(ax, "tab:orange")] == [5, 4]
    file = plot.save(animation, tmp_path / "new" / "path.gif", dpi=20)
    assert file.read_bytes().startswith(b"GIF89a")
    with pytest.raises(ValueError, match=r"path is 'path.png', which is no format of an animation; expected .gif"):
        plot.save(animation, tmp_path / "path.png")


def test_without_ffmpeg_there_is_no_mp4(tmp_path, monkeypatch):
    animation = plot.trajectory_animation([path(3).drop_vars("epoch")])
    animation._func(1)
    assert animation._fig.axes[0].get_title() == "checkpoint 1"
    monkeypatch.setattr(mpl.animation.writers, "is_available", lambda _: False)
    with pytest.raises(ValueError, match="has no ffmpeg to write it with"):
        plot.save(animation, tmp_path / "path.mp4")
    monkeypatch.undo()
    plot.save(animation, tmp_path / "path.gif", dpi=20)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: plot.trajectory({}), "result is empty"),
        (lambda: plot.trajectories([]), "results is empty"),
        (lambda: plot.trajectory([path(), path(fingerprint="b")]), "draw them side by side with js.plot.trajectories"),
        (lambda: plot.trajectory(path().drop_vars("coordinates")), "expected those of js.trajectory in a plane"),
        (lambda: plot.trajectory({"a": path(), "b": path(fingerprint="b")}), "the results lie in different planes"),
        (lambda: plot.trajectory(path(), loss_max=1e-9), "loss_max is 1e-09"),
        (lambda: plot.trajectories({"a": path()}, columns=0), "columns is 0"),
        (lambda: plot.trajectory3d(path(), metric="accuracy"), "metric is 'accuracy', expected 'loss'"),
        (lambda: plot.trajectory3d(path(), plt.subplots()[1]), "ax is not 3-D"),
        (lambda: plot.trajectory_animation(path(), fps=0), "fps is 0"),
    ],
)
def test_bad_calls(call, match):
    with pytest.raises(ValueError, match=match):
        call()


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: plot.trajectory("path.zarr"), "result is str, expected a Dataset, a list of them, or a mapping"),
        (lambda: plot.trajectory(path().loss), "result is DataArray, expected a Dataset"),
        (lambda: plot.trajectories([path(), None]), r"results\['1'\] is NoneType, expected a Dataset"),
        (lambda: plot.trajectories({"a": path(), "b": 3}), r"results\['b'\] is int, expected a Dataset"),
        (lambda: plot.trajectory3d([path()]), "result is list, expected one Dataset of js.trajectory"),
    ],
)
def test_what_is_no_result(call, match):
    with pytest.raises(TypeError, match=match):
        call()
