"""Files of the original tool: laid out here as its programs lay them out, read and written by jaxscape."""

import sys

import h5py
import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr

import jaxscape as js

X, Y, SQUARE = np.linspace(-1, 1, 5), np.linspace(0.0, 3.0, 4), np.linspace(0, 3.0, 5)


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def f(x, y):
    return 1 + x + 10 * y


def original_file(path, y=None, *, left=(), eigenvalues=False):
    """A file as plot_surface.py writes it: -1 in the shape (nx, ny), then filled by the flat index of a meshgrid."""
    shape = X.shape if y is None else (len(X), len(y))
    losses, accuracies, smallest, largest = -np.ones(shape), -np.ones(shape), np.ones(shape), -np.ones(shape)
    xs, ys = (X, 0 * X) if y is None else (mesh.ravel() for mesh in np.meshgrid(X, y))
    for index in set(range(losses.size)) - set(left):
        losses.ravel()[index] = f(xs[index], ys[index])
        accuracies.ravel()[index] = 90 - xs[index] - ys[index]
        smallest.ravel()[index], largest.ravel()[index] = -1 - ys[index], 4 + xs[index]
    with h5py.File(path, "w") as file:
        file["dir_file"] = "model_300.t7_weights_xignore=biasbn_xnorm=filter.h5"
        file["xcoordinates"] = X
        if y is not None:
            file["ycoordinates"] = y
        file["train_loss"], file["train_acc"] = losses, accuracies
        if eigenvalues:
            file["min_eig"], file["max_eig"] = smallest, largest
    return path


def change(path, **arrays):
    with h5py.File(path, "a") as file:
        for name, values in arrays.items():
            if name in file:
                del file[name]
            if values is not None:
                file[name] = values
    return path


def as_drawn_by_the_original(path, name):
    """The coordinates and values that plot_2D.py hands to matplotlib."""
    with h5py.File(path) as file:
        x, y = np.meshgrid(file["xcoordinates"][:], file["ycoordinates"][:])
        return x, y, file[name][:]


def surface(y=Y):
    a, b = np.meshgrid(X, y, indexing="ij")
    dims = ("alpha", "beta")
    variables = {"loss": (dims, f(a, b)), "accuracy": (dims, 0.9 - 0.1 * a), "other": (dims, a)}
    return xr.Dataset(variables, {"alpha": X, "beta": y})


# Reading.


def test_a_square_file_has_each_value_at_its_point(tmp_path, recwarn):
    result = js.export.read_h5(original_file(tmp_path / "s.h5", SQUARE))
    a, b = np.meshgrid(X, SQUARE, indexing="ij")
    assert result.loss.dims == ("alpha", "beta")
    np.testing.assert_array_equal(result.alpha, X)
    np.testing.assert_array_equal(result.beta, SQUARE)
    np.testing.assert_array_equal(result.loss, f(a, b))
    np.testing.assert_allclose(result.accuracy, (90 - a - b) / 100)
    assert result.attrs == {
        "dir_file": "model_300.t7_weights_xignore=biasbn_xnorm=filter.h5",
        "source": "s.h5",
        "missing_points": 0,
        "nonfinite_points": 0,
    }
    assert "done" not in result
    assert not recwarn.list


def test_a_file_that_is_not_square_is_unscrambled_with_a_warning(tmp_path):
    path = original_file(tmp_path / "s.h5", Y)
    with pytest.warns(UserWarning, match=r"train_loss, train_acc .* shape \(5, 4\); .* pass fastest='y'") as caught:
        result = js.export.read_h5(path)
    assert caught[0].filename == __file__
    a, b = np.meshgrid(X, Y, indexing="ij")
    np.testing.assert_array_equal(result.loss, f(a, b))
    np.testing.assert_array_equal(js.export.read_h5(path, fastest="x").loss, f(a, b))  # said: no warning


def test_a_fork_that_stores_x_by_rows_is_read_where_the_caller_says_so(tmp_path):
    for y in (Y, SQUARE):
        a, b = np.meshgrid(X, y, indexing="ij")
        path = change(original_file(tmp_path / "s.h5", y), train_loss=f(a, b))
        np.testing.assert_array_equal(js.export.read_h5(path, fastest="y").loss, f(a, b))


def test_rows_over_y_are_no_question_where_the_shape_says_it(tmp_path, recwarn):
    columns, rows = np.meshgrid(X, Y)
    path = change(original_file(tmp_path / "s.h5", Y), train_loss=f(columns, rows), train_acc=None)
    np.testing.assert_array_equal(js.export.read_h5(path).loss, f(columns, rows).T)
    assert not recwarn.list


def test_points_that_were_never_computed_are_nan_and_counted(tmp_path):
    path = original_file(tmp_path / "s.h5", SQUARE, left=[0, 7], eigenvalues=True)
    with h5py.File(path, "a") as file:
        file["train_loss"][2, 2] = np.nan  # a computed one
        file["train_acc"][4, 4] = -1
        file["max_eig"][3, 3] = -1  # below 0 and clipped by MPI's maximum: the other end says that it is there
    result = js.export.read_h5(path)
    assert result.attrs["missing_points"] == 3
    assert result.attrs["nonfinite_points"] == 1
    assert sorted(map(tuple, np.argwhere(~result.done.values))) == [(0, 0), (2, 1), (4, 4)]  # 7 is x[2], y[1]
    assert int(np.isnan(result.loss).sum()) == 3
    for name in ("min_eigenvalue", "max_eigenvalue", "ratio"):
        assert int(np.isnan(result[name]).sum()) == 2
    assert result.max_eigenvalue[3, 3] == -1
    notes = [text.get_text() for text in js.plot.contour(result).texts]
    assert "1 of 25 points not finite\n2 of 25 points not computed yet" in notes


def test_eigenvalues_are_those_of_the_file_and_a_failed_search_is_marked(tmp_path):
    path = original_file(tmp_path / "s.h5", SQUARE, eigenvalues=True)
    with h5py.File(path, "a") as file:
        file["min_eig"][1, 2] = 1.005 * file["max_eig"][1, 2]
    result = js.export.read_h5(path)
    assert np.argwhere(~result.converged.values).tolist() == [[2, 1]]
    assert result.ratio[0, 1] == 1.75 / 3
    assert "summed over the batches" in result.min_eigenvalue.attrs["long_name"]
    ax = js.plot.eigenvalue_map(result)
    assert any("1 of 25 points not converged" in text.get_text() for text in ax.texts)


def test_a_line_is_read_and_drawn(tmp_path):
    result = js.export.read_h5(original_file(tmp_path / "s.h5", left=[1]))
    assert result.loss.dims == ("alpha",)
    np.testing.assert_array_equal(result.loss, np.where(np.arange(5) == 1, np.nan, f(X, 0)))
    js.plot.line(result)


@pytest.mark.parametrize("kind", ["contour", "contourf", "heatmap", "surface3d"])
def test_the_pictures_draw_what_is_read(tmp_path, kind):
    getattr(js.plot, kind)(js.export.read_h5(original_file(tmp_path / "s.h5", SQUARE)))


def test_other_splits_are_read_by_name(tmp_path):
    path = change(original_file(tmp_path / "s.h5", SQUARE), test_loss=np.full((5, 5), 3.0))
    result = js.export.read_h5(path, split="test")
    assert sorted(result) == ["loss"]
    assert (result.loss == 3).all()


# Writing.


@pytest.mark.parametrize("y", [Y, SQUARE], ids=["not square", "square"])
def test_the_original_draws_what_is_written(tmp_path, y, recwarn):
    shuffled = surface(y).transpose("beta", "alpha").isel(alpha=slice(None, None, -1))
    path = js.export.h5(shuffled, tmp_path / "new" / "s.h5")
    x, y, z = as_drawn_by_the_original(path, "train_loss")
    np.testing.assert_array_equal(z, f(x, y))
    np.testing.assert_allclose(as_drawn_by_the_original(path, "train_acc")[2], 90 - 10 * x)
    with h5py.File(path) as file:
        assert sorted(file) == ["dir_file", "train_acc", "train_loss", "xcoordinates", "ycoordinates"]
        # plot_surface.py goes on with the points that its scheduler takes out of the flat array
        np.testing.assert_array_equal(file["train_loss"][:].ravel(), f(x, y).ravel())
    assert not recwarn.list


def test_a_square_surface_is_written_as_the_original_writes_it(tmp_path):
    ours = js.export.h5(
        js.export.read_h5(original_file(tmp_path / "a.h5", SQUARE, eigenvalues=True)), tmp_path / "b.h5"
    )
    with h5py.File(tmp_path / "a.h5") as expected, h5py.File(ours) as file:
        assert sorted(file) == sorted(expected)
        assert file["dir_file"][()] == expected["dir_file"][()]
        for name in set(file) - {"dir_file"}:
            np.testing.assert_allclose(file[name], expected[name], rtol=1e-15, err_msg=name)


def test_what_is_written_is_read_again_with_what_is_missing(tmp_path):
    result = surface().assign(min_eigenvalue=-surface().loss, max_eigenvalue=2 * surface().loss)
    done = np.ones((5, 4), bool)
    done[0, :2] = False
    values = {name: result[name].where(xr.DataArray(done, dims=result.loss.dims)) for name in result}
    result = result.assign(values | {"done": (result.loss.dims, done)})
    result.loss[3, 3] = np.inf
    path = js.export.h5(result, tmp_path / "s.h5")
    with h5py.File(path) as file:
        assert (file["train_loss"][0, 0], file["train_acc"][1, 0], file["max_eig"][0, 0]) == (-1, -1, -1)
        assert file["min_eig"][0, 0] == 1
        assert file["train_loss"][3, 3] == np.inf
    again = js.export.read_h5(path)
    for name in ("loss", "accuracy", "min_eigenvalue", "max_eigenvalue"):
        np.testing.assert_allclose(again[name], result[name], rtol=1e-15)
    np.testing.assert_array_equal(again.done, done)
    assert again.attrs["missing_points"] == 2


def test_a_line_with_its_test_losses_is_written(tmp_path):
    train = surface().isel(beta=0, drop=True)
    path = js.export.h5(train, tmp_path / "s.hdf5", test=train.assign(loss=train.loss + 1))
    with h5py.File(path) as file:
        assert "ycoordinates" not in file
        np.testing.assert_array_equal(file["test_loss"], f(X, 0) + 1)
        assert "test_acc" in file
    np.testing.assert_array_equal(js.export.read_h5(path, split="test").loss, f(X, 0) + 1)


def test_a_value_that_the_format_takes_for_missing_is_named(tmp_path):
    result = surface().drop_vars("accuracy")
    result.loss[1, 1] = -1
    with pytest.warns(UserWarning, match="1 values of 'loss' are -1, which means 'not computed'") as caught:
        js.export.h5(result, tmp_path / "s.h5")
    assert caught[0].filename == __file__


# Mistakes.


def test_h5py_that_is_missing_is_named(tmp_path, monkeypatch):
    path = original_file(tmp_path / "s.h5", SQUARE)
    monkeypatch.setitem(sys.modules, "h5py", None)
    for call in (lambda: js.export.read_h5(path), lambda: js.export.h5(surface(), tmp_path / "t.h5")):
        with pytest.raises(
            ImportError, match=r'needs h5py, which is not installed: `pip install "jax-losscape\[export\]"`'
        ):
            call()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"xcoordinates": None}, r"has the datasets \['dir_file', .*\], expected 'xcoordinates' among them"),
        ({"train_loss": None, "train_acc": None}, "expected one or more of .*'train_loss', 'train_acc', 'min_eig'"),
        ({"xcoordinates": [0.0, 0, 1, 2, 3]}, "coordinates that are no grid: grid axis alpha repeats 0"),
        ({"train_acc": np.ones(5)}, r"'train_acc' of .* has the shape \(5,\), expected \(5, 5\)"),
    ],
)
def test_a_file_that_is_not_one_of_the_tool_is_refused(tmp_path, arrays, message):
    path = change(original_file(tmp_path / "s.h5", SQUARE), **arrays)
    with pytest.raises(ValueError, match=message):
        js.export.read_h5(path)


def test_paths_that_cannot_be_read_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.h5 not found; expected a surface file"):
        js.export.read_h5(tmp_path / "none.h5")
    (tmp_path / "text.h5").write_text("no HDF5")
    with pytest.raises(ValueError, match="is no HDF5 file that can be read"):
        js.export.read_h5(tmp_path / "text.h5")
    with pytest.raises(TypeError, match="path is int, expected the path of a file"):
        js.export.read_h5(3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda p: js.export.h5(surface(), p / "s.vtp"), ValueError, r"'s\.vtp', expected .* \.h5 or \.hdf5"),
        (
            lambda p: js.export.h5(surface()[["other"]], p / "s.h5"),
            ValueError,
            r"variables \['other'\], expected .*'loss'",
        ),
        (
            lambda p: js.export.h5(surface().expand_dims(seed=2), p / "s.h5"),
            ValueError,
            r"pass one repeat: result\.isel",
        ),
        (
            lambda p: js.export.h5(surface().expand_dims(axis2=2), p / "s.h5"),
            ValueError,
            "expected one or two axes; pass a",
        ),
        (lambda p: js.export.h5(surface(), p / "s.h5", test=surface(SQUARE)), ValueError, "test has other coordinates"),
        (lambda p: js.export.h5(surface().loss, p / "s.h5"), TypeError, "result is DataArray, expected the whole"),
        (lambda p: js.export.h5(surface(), p / "s.h5", test=3), TypeError, "test is int, expected the whole"),
        (
            lambda p: js.export.read_h5(p / "s.h5", split="val"),
            ValueError,
            "split is 'val', expected 'train' or 'test'",
        ),
        (lambda p: js.export.read_h5(p / "s.h5", fastest="z"), ValueError, "fastest is 'z', expected 'x', 'y' or None"),
    ],
)
def test_mistakes_are_named(tmp_path, call, error, message):
    with pytest.raises(error, match=message):
        call(tmp_path)
    assert not list(tmp_path.iterdir())
