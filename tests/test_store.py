"""Results on disk: resumed to the bit, damage found, foreign folders refused, one writer at a time, read by anyone."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import psutil
import pytest
import xarray as xr

import jaxscape as js
from jaxscape import files
from jaxscape.engine import Evaluator
from jaxscape.files import FolderLock
from jaxscape.sweep import Layout, Store, _blocks, save
from jaxscape.sweep._extend import rows_at
from tests.damage import KINDS, damages, files_of
from tests.problems import classification_data, mlp_loss, mlp_params, slow_but, slow_unless

PARAMS, DATA = mlp_params(), classification_data()
DIRECTIONS = js.random_directions(0, PARAMS)
GRID = js.Grid.plane((0.5, 1, 2), (0.5, 2, 5))  # params itself is a row of its own
COLUMNS = {"x": np.arange(11.0) + 0.5, "y": np.arange(22.0).reshape(11, 2), "n": np.arange(1, 12)}


def store(path, *, recipe=None, grid=GRID, chunk=3, columns=COLUMNS):
    return Store(path, recipe or {"seed": 1}, Layout.of(grid, columns, chunk), {"x": "a number"})


def filled(path, rows=slice(0, 11)):
    """A store with these rows of COLUMNS."""
    with store(path) as result:
        result.write(rows, {name: column[rows] for name, column in COLUMNS.items()})
    return path


def stop_after(patch, blocks):
    """Stores raise an error instead of a later block."""
    write, count = Store.write, iter(range(10**6))

    def counted(self, rows, values):
        if next(count) == blocks:
            raise ZeroDivisionError
        write(self, rows, values)

    patch.setattr(Store, "write", counted)


def plane(**options):
    options = {"directions": DIRECTIONS, "grid": GRID, "progress": False, "batch_size": 8, **options}
    return js.surface(PARAMS, mlp_loss, DATA, **options)


@pytest.fixture(scope="module")
def whole():
    return plane(points_per_step=1)


# ---- resumed


@pytest.mark.parametrize("chunk", slow_but([2], [1, 2, 128]))
@pytest.mark.parametrize("seconds", slow_but([1e-9], [1e-9, 1e9]), ids=["small blocks", "growing blocks"])
def test_a_resumed_surface_is_the_same_to_the_bit(tmp_path, monkeypatch, whole, chunk, seconds):
    monkeypatch.setattr(sys.modules["jaxscape.sweep._losses"], "CHUNK", chunk)
    monkeypatch.setattr(_blocks, "SECONDS", seconds)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("points",))
    write, done = Store.write, []

    def dies(self, rows, values):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(rows)
        write(self, rows, values)

    options = {"store": tmp_path / "s.zarr", "mesh": mesh, "points_per_step": 1}
    monkeypatch.setattr(Store, "write", dies)
    with pytest.raises(KeyboardInterrupt) as interrupt:
        plane(**options)
    rows = done[-1].stop
    assert interrupt.value.__notes__ == [
        f"{rows} of 10 points are kept in {options['store']}; the same call goes on from there."
    ]
    monkeypatch.setattr(Store, "write", lambda self, rows, values: done.append(rows) or write(self, rows, values))
    resumed = plane(**options)
    assert sorted(i for rows in done for i in range(rows.start, rows.stop)) == list(range(11))  # each once
    xr.testing.assert_identical(resumed.drop_attrs(), whole.drop_attrs())
    assert resumed.attrs["center_loss"] == whole.attrs["center_loss"]
    again = len(done)
    xr.testing.assert_identical(plane(**options).drop_attrs(), whole.drop_attrs())
    assert len(done) == again


def test_what_was_chosen_automatically_stays(tmp_path, monkeypatch):
    options = {"store": tmp_path / "s.zarr", "batch_size": "auto"}
    first = plane(**options)
    for file in (tmp_path / "s.zarr" / "done" / "c").rglob("*"):
        file.unlink() if file.is_file() else None
    monkeypatch.setattr("jaxscape.engine._strategy._known", {})
    monkeypatch.setattr("jaxscape.engine._strategy._measure", None)  # nothing is tried again
    with pytest.warns(UserWarning, match=r"1 files are damaged or missing \(done/c/0/0\)"):
        again = plane(**options)
    assert again.attrs["batch_size"] == first.attrs["batch_size"]
    xr.testing.assert_identical(again.drop_attrs(), first.drop_attrs())


def test_a_block_takes_about_so_many_seconds(tmp_path, monkeypatch):
    """Blocks grow up to fourfold at a time, and shrink at once."""
    speed, sizes, now = [100.0], [], [0.0]
    evaluate = _blocks.Evaluator.__call__

    def timed(self, coords, loads, bar):
        sizes.append(len(coords))
        now[0] += len(coords) / speed[0]
        speed[0] = 100.0 if sum(sizes) < 50 else 2.0
        return evaluate(self, coords, loads, bar)

    monkeypatch.setattr(_blocks.Evaluator, "__call__", timed)
    monkeypatch.setattr(_blocks, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("points",))
    line = {"directions": DIRECTIONS[:1], "grid": js.Grid.line(0, 1, 400), "mesh": mesh, "points_per_step": 1}
    plane(store=tmp_path / "s.zarr", **line)
    assert sizes[:7] == [1, 4, 16, 64, 256, 10, 10]  # 2 points a second, for 5 seconds
    assert sum(sizes) == 400


# ---- read


def test_anyone_reads_what_is_finished(tmp_path):
    path = filled(tmp_path / "s.zarr", slice(0, 4))
    result = xr.open_zarr(path).load()
    flat = {name: result[name].values.reshape(10, *COLUMNS[name].shape[1:]) for name in COLUMNS}
    for name, column in flat.items():
        np.testing.assert_array_equal(column[:4], COLUMNS[name][:4])
        assert np.isnan(column[4:]).all()
    assert result.done.values.ravel().tolist() == [True] * 4 + [False] * 6
    np.testing.assert_array_equal(result.beta, GRID.axes[1])


def test_load_gives_the_result_of_the_call(tmp_path):
    result = plane(store=tmp_path / "s.zarr")
    loaded = js.load(tmp_path / "s.zarr")
    xr.testing.assert_identical(loaded, result)
    for name in result.variables:
        assert loaded[name].dtype == result[name].dtype
        assert loaded[name].attrs == result[name].attrs
    assert {name: type(value) for name, value in loaded.attrs.items()} == {
        name: type(value) for name, value in result.attrs.items()
    }


def test_load_says_what_is_missing(tmp_path):
    result = js.load(filled(tmp_path / "s.zarr", slice(2, 9)))
    assert result.attrs["missing_points"] == 3
    assert result.done.values.ravel().tolist() == [False] * 2 + [True] * 7 + [False]
    np.testing.assert_array_equal(np.isnan(result.n.values.ravel()), ~result.done.values.ravel())
    np.testing.assert_array_equal(result.y.values.reshape(10, 2)[2:9], COLUMNS["y"][2:9])
    assert result.x.attrs == {"long_name": "a number"}


def test_load_refuses_what_is_no_result(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"s.zarr not found; expected a result: the store= of a call"):
        js.load(tmp_path / "s.zarr")
    with pytest.raises(ValueError, match="is no result; expected a folder that was the store= of a call"):
        js.load(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file is no result"):
        js.load(tmp_path / "file")


def test_a_saved_result_is_loaded_as_it_was(tmp_path, whole):
    for result in (whole, whole.assign_attrs(center_loss=np.nan, title="é", shape=(2, 3)), whole.isel(alpha=0)):
        save(result, tmp_path / "r.zarr")
        loaded = js.load(tmp_path / "r.zarr")
        xr.testing.assert_identical(loaded.drop_attrs(), result.drop_attrs())
        assert str({**loaded.attrs, "shape": 0}) == str({**result.attrs, "shape": 0})
    assert [path.name for path in tmp_path.iterdir()] == ["r.zarr"]


def test_results_of_others_are_read_too(tmp_path, whole):
    whole.to_zarr(tmp_path / "r.zarr", consolidated=False)
    xr.testing.assert_identical(js.load(tmp_path / "r.zarr"), whole)


def test_rows_that_are_all_nan_or_zero_are_there(tmp_path):
    columns = {"x": np.full(11, np.nan), "y": np.zeros((11, 2)), "n": np.zeros(11, int)}
    with store(tmp_path / "s.zarr", columns=columns) as result:
        result.write(slice(0, 11), columns)
    with store(tmp_path / "s.zarr", columns=columns) as result:
        assert result.done.all()


# ---- damage


@pytest.fixture(scope="module")
def damageable(tmp_path_factory):
    """A store with all kinds of files, in which row 9 is missing."""
    return filled(filled(tmp_path_factory.mktemp("store") / "s.zarr", slice(0, 9)), slice(10, 11))


# 35 files in 5 ways; each takes 0.1 s
@pytest.mark.parametrize(
    ("kind", "start"), [slow_unless(i == j == 1, k, j) for i, k in enumerate(KINDS) for j in range(5)]
)
def test_damage_is_never_a_wrong_number(damageable, tmp_path, kind, start):
    """The rows that are left are right, or the file is named."""
    names = files_of(damageable)
    assert len(names) == 35
    for name in names[start::5]:
        copy = shutil.copytree(damageable, tmp_path / "copy.zarr")
        damages(copy / name)[kind]()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            if name == "jaxscape/manifest.json":
                with pytest.raises(ValueError, match=f"{name}( is damaged|: it is none)"), store(copy):
                    pass
            else:
                with store(copy) as result:
                    check_rows(result, name, kind, caught)
                    result.write(slice(0, 11), COLUMNS)
                with store(copy) as result:
                    assert result.done.all()
                    for column, values in result.read().items():
                        np.testing.assert_array_equal(values, COLUMNS[column])
        shutil.rmtree(copy)


def check_rows(result, name, kind, caught):
    """What is done is right, and what is no longer done is said."""
    done = result.done
    assert not done[9]
    for column, values in COLUMNS.items():
        np.testing.assert_array_equal(result._contents.columns[column][done], values[done])
    if kind == "deleted" and "done/c/" in name:
        return  # the same as after a kill at an early moment
    if "/c/" not in name or name.startswith(GRID.names):
        assert done[:9].all()  # what describes an array, and coordinates, are mended
    if name != "zarr.json" or kind != "flipped":  # still JSON: like an older one, it is written anew
        assert any(name in str(warning.message) for warning in caught), (name, kind)


@pytest.mark.parametrize("kind", slow_but(["deleted"], KINDS))
def test_damage_of_variables_that_were_there_first_is_never_a_wrong_number(tmp_path, kind):
    """The same in a store that got the variable y: what it had before is there in rows that are not done."""
    few = {"recipe": {"loss_fn": {"x": 1}}, "columns": {"x": COLUMNS["x"]}}
    many = {"recipe": {"loss_fn": {"x": 1, "y": 2}}, "columns": {name: COLUMNS[name] for name in "xy"}}
    with store(tmp_path / "s.zarr", **few) as result:
        result.write(slice(0, 9), {"x": COLUMNS["x"][:9]})
    with store(tmp_path / "s.zarr", **many) as result:
        assert not result.done.any()
        result.write(slice(0, 4), {"y": COLUMNS["y"][:4]})
        np.testing.assert_array_equal(result.done, np.arange(11) < 4)
        np.testing.assert_array_equal(result.there["x"], np.arange(11) < 9)
    for name in files_of(tmp_path / "s.zarr"):
        if "/c/" not in name:
            continue
        copy = shutil.copytree(tmp_path / "s.zarr", tmp_path / "copy.zarr")
        damages(copy / name)[kind]()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with store(copy, **many) as result:
                result.write(slice(10, 11), {name: COLUMNS[name][10:] for name in "xy"})
            with store(copy, **many) as result:  # what was lost stays lost though its file was written anew
                for column, there in result.there.items():
                    np.testing.assert_array_equal(result._contents.columns[column][there], COLUMNS[column][there])
                assert result.there["x"].sum() >= 7
        shutil.rmtree(copy)


def test_what_damage_took_is_not_done_after_a_kill_while_it_is_computed_anew(tmp_path, monkeypatch):
    path = filled(tmp_path / "s.zarr")
    damages(path / "x/c/0/0")["deleted"]()
    write = Layout.write

    def killed(self, folder, name, shares, column):
        if name == "y":
            raise ZeroDivisionError
        write(self, folder, name, shares, column)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with store(path) as result:
            monkeypatch.setattr(Layout, "write", killed)
            with pytest.raises(ZeroDivisionError):  # the file is there again, with one of its three rows
                result.write(slice(0, 1), {name: column[:1] for name, column in COLUMNS.items()})
    monkeypatch.undo()
    with store(path) as result:
        assert result.done.tolist() == [False] * 3 + [True] * 8


def test_a_damaged_store_is_loaded_with_a_warning(tmp_path):
    path = filled(tmp_path / "s.zarr")
    damages(path / "x/c/1/0")["flipped"]()
    with pytest.warns(UserWarning, match=r"1 files are damaged or missing \(x/c/1/0\); their points count as missing"):
        result = js.load(path)
    assert result.attrs["missing_points"] == 3
    np.testing.assert_array_equal(np.isnan(result.x.values.ravel()), [0, 0, 0, 0, 0, 1, 1, 1, 0, 0])


def test_a_damaged_result_is_refused(tmp_path, whole):
    save(whole, tmp_path / "r.zarr")
    for name in files_of(tmp_path / "r.zarr"):
        for kind in KINDS:
            copy = shutil.copytree(tmp_path / "r.zarr", tmp_path / "copy.zarr")
            damages(copy / name)[kind]()
            if (name, kind) == ("jaxscape/manifest.json", "deleted"):
                xr.testing.assert_identical(js.load(copy), whole)  # as a result of others
            else:
                with pytest.raises(ValueError, match=f"{name}.*(damaged|missing)"):
                    js.load(copy)
            shutil.rmtree(copy)


@pytest.mark.parametrize("name", ["zarr.json", "jaxscape/manifest.json", "x/zarr.json"])
def test_a_bit_anywhere_in_the_metadata_of_a_result_is_found(tmp_path, name):
    """Names of fields too: a field with another name is valid JSON."""
    result = xr.Dataset({"x": ("alpha", np.arange(3.0))}, attrs={"nan": float("nan")})
    save(result, tmp_path / "r.zarr")
    xr.testing.assert_identical(js.load(tmp_path / "r.zarr"), result)
    content = (tmp_path / "r.zarr" / name).read_bytes()
    for place in range(0, len(content), 7):
        if content[place : place + 1].isspace():
            continue
        flipped = bytearray(content)
        flipped[place] ^= 4
        (tmp_path / "r.zarr" / name).write_bytes(flipped)
        with pytest.raises(ValueError, match=f"{name} is damaged"):
            js.load(tmp_path / "r.zarr")


# ---- other folders


def test_other_folders_are_refused_and_left_alone(tmp_path):
    folder, file, group = (tmp_path / name for name in ("folder", "file", "group"))
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    file.write_text("mine")
    xr.Dataset({"x": ("t", np.ones(3))}).to_zarr(group, consolidated=False)
    before = files_of(tmp_path)
    for path, message in (
        (folder, "folder exists and is no zarr folder; name another path"),
        (file, "file is a file; expected a folder"),
        (group, "group holds a zarr group without jaxscape/manifest.json: it is none of jaxscape"),
    ):
        with pytest.raises(ValueError, match=message), store(path):
            pass
    assert files_of(tmp_path) == before


def test_a_store_of_another_recipe_names_what_differs(tmp_path):
    path = filled(tmp_path / "s.zarr")
    for options, message in (
        ({"recipe": {"seed": 2}}, "holds another result: seed is 1 there and 2 here. Name another path, or remove it"),
        ({"recipe": {"seed": 1, "tol": 0.1}}, "tol is None there and 0.1 here"),
        ({"grid": js.Grid.plane((0, 2, 2), (0.5, 2, 5))}, "grid is .* there and .* here"),
        ({"columns": {"x": COLUMNS["x"]}}, "variables is .* there and .* here"),
    ):
        with pytest.raises(ValueError, match=message), store(path, **options):
            pass
    with store(path, chunk=128) as result:  # how many points share a file does not matter
        assert result.done.all()


# ---- extended


LARGER = js.Grid.plane((0, 1, 3), (0.5, 2, 9))  # finer, and wider: it has params itself only as a row of its own
OTHER = js.Grid.plane((0, 1, 3), (-1, 2, 8))  # some points of GRID are not among its
WITH_ZERO = js.Grid(((0.0, 0.5, 1.0), (0.0, *GRID.axes[1])))


@pytest.mark.parametrize("grid", [LARGER, WITH_ZERO], ids=["finer", "with params"])
def test_a_larger_grid_takes_over_the_points(tmp_path, monkeypatch, grid):
    plane(store=tmp_path / "s.zarr", points_per_step=1)
    rows, write = [], Store.write

    def logged(self, part, values):
        rows.extend(range(part.start, part.stop))
        write(self, part, values)

    monkeypatch.setattr(Store, "write", logged)
    result = plane(store=tmp_path / "s.zarr", points_per_step=1, grid=grid)
    fresh = plane(points_per_step=1, grid=grid)
    xr.testing.assert_identical(result.drop_attrs(), fresh.drop_attrs())
    assert result.attrs["center_loss"] == fresh.attrs["center_loss"]
    points = np.prod(grid.shape) + (grid is LARGER)
    assert len(rows) == len(set(rows)) == points - 11  # those of GRID and params itself were there
    xr.testing.assert_identical(js.load(tmp_path / "s.zarr"), result)
    assert [path.name for path in tmp_path.iterdir()] == ["s.zarr"]
    with pytest.raises(ValueError, match="grid is .* there and .* here"):  # it does not shrink
        plane(store=tmp_path / "s.zarr", points_per_step=1)


def test_a_grid_that_lacks_a_point_is_refused(tmp_path):
    plane(store=tmp_path / "s.zarr")
    for grid in (OTHER, js.Grid.plane((0.5, 1, 2), (0.5, 2, 6)), js.Grid.plane((0.5, 1, 2))):
        with pytest.raises(ValueError, match="s.zarr holds another result: "):
            plane(store=tmp_path / "s.zarr", grid=grid, directions=DIRECTIONS[: len(grid.axes)])


def loss_alone(params, batch):
    return mlp_loss(params, batch)["loss"]


def with_accuracy(params, batch):
    return {**mlp_loss(params, batch), "squared": loss_alone(params, batch) ** 2}


TERMS = {"a": loss_alone, "b": lambda p, b: 2 * loss_alone(p, b)}
FURTHER_TERMS = {"a": loss_alone, "b": lambda p, b: {"loss": 2 * loss_alone(p, b), "half": loss_alone(p, b) / 2}}


@pytest.mark.parametrize(
    ("few", "many"),
    [slow_unless(False, loss_alone, with_accuracy), (TERMS, FURTHER_TERMS)],
    ids=["one term", "two terms"],
)
@pytest.mark.parametrize("finished", slow_but([True], [True, False]))
def test_further_metrics_alone_are_computed(tmp_path, monkeypatch, few, many, finished):
    data = dict.fromkeys("ab", DATA) if isinstance(few, dict) else DATA
    path, calls = tmp_path / "s.zarr", []

    def run(loss_fn, **options):
        mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("points",))  # so that a block can be one point
        options = {"directions": DIRECTIONS, "grid": GRID, "batch_size": 8, "points_per_step": 1, **options}
        return js.surface(PARAMS, loss_fn, data, mesh=mesh, progress=False, **options)

    monkeypatch.setattr(_blocks, "SECONDS", 1e-9)
    if finished:
        before = run(few, store=path)
    else:
        with monkeypatch.context() as patch:
            stop_after(patch, 4)
            with pytest.raises(ZeroDivisionError):
                run(few, store=path)
        before = js.load(path)
    evaluate = Evaluator.__call__

    def logged(self, coords, loads, bar):
        part = evaluate(self, coords, loads, bar)
        calls.append((sorted(part.metrics), len(coords)))
        return part

    monkeypatch.setattr(Evaluator, "__call__", logged)
    with monkeypatch.context() as patch:
        stop_after(patch, 6)
        with pytest.raises(ZeroDivisionError):
            run(many, store=path)
    half = js.load(path)
    there = before.loss.notnull()
    xr.testing.assert_identical(half.loss.where(there), before.loss)  # what was there is there
    assert half.attrs["missing_points"] == 4
    result, stored, fresh = run(many, store=path), tuple(calls), run(many)
    for name in fresh:
        np.testing.assert_allclose(result[name], fresh[name], rtol=1e-6)
        if name in before:
            np.testing.assert_array_equal(result[name].where(there), before[name])
    old, new = set(before) - {"num_examples"}, set(fresh)
    further = sorted(name for name in new - old if not name.endswith("_stderr") and name != "num_examples")
    computed = sum(num for names, num in stored if names == further)
    assert computed == (12 if finished else 4), stored
    assert sum(num for _, num in stored) == 12  # params itself is a row, and one row was computed but not written
    xr.testing.assert_identical(js.load(path), result)
    with pytest.raises(ValueError, match="holds another result: loss_fn is .* there and .* here"):
        run(few, store=path)  # it does not lose one again


def test_another_metric_of_the_same_name_is_refused(tmp_path):
    def other(params, batch):
        return with_accuracy(params, batch) | {"squared": loss_alone(params, batch) ** 3}

    js.surface(PARAMS, with_accuracy, DATA, directions=DIRECTIONS, grid=GRID, store=tmp_path / "s.zarr", progress=False)
    with pytest.raises(ValueError, match="holds another result: loss_fn is .* there and .* here"):
        js.surface(PARAMS, other, DATA, directions=DIRECTIONS, grid=GRID, store=tmp_path / "s.zarr", progress=False)


def test_a_link_stays_a_link_when_its_store_is_extended(tmp_path):
    real, link = tmp_path / "disk" / "real.zarr", tmp_path / "link"
    real.mkdir(parents=True)
    link.symlink_to(real)
    plane(store=link)
    result = plane(store=link, grid=LARGER)
    xr.testing.assert_identical(js.load(real), result)
    assert link.is_symlink()
    assert [entry.name for entry in real.parent.iterdir()] == ["real.zarr"]


def crash_at_removal(monkeypatch, path):
    """Extend a store, and crash when the one before is removed."""
    remove = shutil.rmtree

    def crash(folder, *args, **options):
        if str(folder).endswith(".smaller") and not options:
            raise ZeroDivisionError
        remove(folder, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", crash)
        columns = {"x": np.zeros(28), "y": np.zeros((28, 2)), "n": np.zeros(28, int)}
        with pytest.raises(ZeroDivisionError), store(path, grid=LARGER, columns=columns):
            pass
    return columns


def test_a_removed_store_does_not_come_back(tmp_path, monkeypatch):
    path = filled(tmp_path / "s.zarr")
    crash_at_removal(monkeypatch, path)
    assert (tmp_path / ".s.zarr.smaller").exists()
    shutil.rmtree(path)  # to start over
    with store(path) as result:
        assert not result.done.any()
    assert [entry.name for entry in tmp_path.iterdir()] == ["s.zarr"]


def test_a_store_between_two_names_is_loaded(tmp_path, monkeypatch):
    path = filled(tmp_path / "s.zarr")
    columns = crash_at_removal(monkeypatch, path)
    path.rename(tmp_path / ".s.zarr.larger")  # as a kill one step before leaves it
    assert js.load(path).attrs["missing_points"] == 17
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the lock
        with store(path, grid=LARGER, columns=columns) as result:
            assert result.done.sum() == 11


def test_a_kill_while_a_store_is_finished_is_no_damage(tmp_path, monkeypatch):
    path = filled(tmp_path / "s.zarr")
    older = (path / "zarr.json").read_text()
    with store(path) as result:
        result.finish({"title": "a"})
    (path / "zarr.json").write_text(older)
    assert js.load(path).attrs == {"title": "a"}  # a warning would be an error
    with store(path):
        pass
    assert json.loads((path / "zarr.json").read_text())["attributes"] == {"title": "a"}


def test_a_call_on_a_complete_store_leaves_its_attributes(tmp_path):
    first = plane(store=tmp_path / "s.zarr")
    again = plane(store=tmp_path / "s.zarr")
    xr.testing.assert_identical(again, first)
    xr.testing.assert_identical(js.load(tmp_path / "s.zarr"), first)


def test_attributes_of_an_unfinished_extension_are_its_own(tmp_path, monkeypatch):
    first = plane(store=tmp_path / "s.zarr")
    stop_after(monkeypatch, 0)
    with pytest.raises(ZeroDivisionError):
        plane(store=tmp_path / "s.zarr", grid=LARGER)
    attrs = js.load(tmp_path / "s.zarr").attrs
    assert attrs["fingerprint"] == first.attrs["fingerprint"]
    assert {"seconds", "center_loss", "nonfinite_points"}.isdisjoint(attrs)


def test_an_interrupted_extension_says_what_is_kept(tmp_path):
    few = {"recipe": {"loss_fn": {"x": 1}}, "columns": {"x": COLUMNS["x"]}}
    many = {"recipe": {"loss_fn": {"x": 1, "y": 2}}, "columns": {name: COLUMNS[name] for name in "xy"}}
    with store(tmp_path / "s.zarr", **few) as result:
        result.write(slice(0, 11), {"x": COLUMNS["x"]})
    result = store(tmp_path / "s.zarr", **many)
    error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt), result:
        raise error
    assert error.__notes__[0].startswith("0 of 10 points are kept in ")
    assert ", and what was there before of 10 others; the same call goes on" in error.__notes__[0]


@pytest.mark.parametrize(
    ("shape", "chunk", "files"),
    [
        ((40, 1), 16, 3),
        ((5, 4), 8, 3),
        ((3, 4, 5), 10, 6),
        slow_unless(False, (5, 4), 128, 1),
        slow_unless(False, (5, 4), 3, 10),
        slow_unless(False, (3, 4, 5), 20, 3),
        slow_unless(False, (7,), 2, 4),
    ],
)
def test_a_chunk_has_as_many_points_as_fit(tmp_path, shape, chunk, files):
    """Neighbouring rows; a grid with short lines has no file for each."""
    grid = js.Grid(tuple(np.linspace(0, 1, n) for n in shape))
    values = np.random.default_rng(0).normal(size=int(np.prod(shape)))
    layout = Layout.of(grid, {"x": values}, chunk)
    assert np.array_equal(np.concatenate([np.arange(s.start, s.stop) for s in layout.shares]), np.arange(len(values)))
    with Store(tmp_path / "s.zarr", {}, layout) as result:
        for share in reversed(layout.shares):
            result.write(share, {"x": values[share]})
        result.finish({})
    assert len([file for file in files_of(tmp_path / "s.zarr") if file.startswith("x/c/")]) == files
    np.testing.assert_array_equal(js.load(tmp_path / "s.zarr").x.values.ravel(), values)
    np.testing.assert_array_equal(xr.open_zarr(tmp_path / "s.zarr").x.values.ravel(), values)


def test_rows_are_found_by_their_coordinates():
    axes = (np.array([0.0, 2.0, -1.0]), np.array([1.0, 0.25, 0.5, 3.0]))  # in any order
    layout = Layout.of(js.Grid(axes), {"x": np.zeros(13)}, 4)
    points = js.Grid(axes).points()
    order = np.random.default_rng(0).permutation(12)
    np.testing.assert_array_equal(rows_at(layout, points[order] + 1e-12), order)
    np.testing.assert_array_equal(
        rows_at(layout, np.array([[0.0, 0.0], [0.0, 0.3], [9.0, 1.0], [0, -9]])), [12, -1, -1, -1]
    )


NAMES = ("", ".", "..", "../x", "/x", "a/b", "a\\b", ".hidden", "jaxscape", "zarr.json", "x" * 300, "a\0b")


@pytest.mark.parametrize("name", slow_but(["..", "a/b", "done"], [*NAMES, "done"]))
def test_a_metric_that_could_be_no_folder_is_refused(tmp_path, name):
    mine = tmp_path / "mine.txt"
    mine.write_text("mine")

    def loss(params, batch):
        return {"loss": loss_alone(params, batch), name: loss_alone(params, batch)}

    options = {"directions": DIRECTIONS, "grid": GRID, "progress": False}
    with pytest.raises(
        ValueError, match="loss_fn returned a metric named .*, which (a store cannot have|is a name of)"
    ):
        js.surface(PARAMS, loss, DATA, store=tmp_path / "s.zarr", **options)
    assert list(tmp_path.iterdir()) == [mine]


@pytest.mark.parametrize("moment", ["write_manifest", "shutil.copy", "Path.rename"])
def test_a_crash_while_a_store_is_extended_loses_nothing(tmp_path, monkeypatch, moment):
    path = filled(tmp_path / "s.zarr", slice(0, 4))
    rename = Path.rename

    def crash(*args):
        if moment == "Path.rename":
            rename(*args)
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        target = Path if moment == "Path.rename" else sys.modules["jaxscape.sweep._extend"]
        name = "jaxscape.sweep._extend.shutil.copy" if moment == "shutil.copy" else None
        patch.setattr(name, crash) if name else patch.setattr(target, moment.removeprefix("Path."), crash)
        columns = {"x": np.zeros(28), "y": np.zeros((28, 2)), "n": np.zeros(28, int)}
        with pytest.raises(ZeroDivisionError), store(path, grid=LARGER, columns=columns):
            pass
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the lock that the crash left
        if moment == "Path.rename":  # the larger one is whole by then
            with store(path, grid=LARGER, columns=columns) as result:
                assert result.done.sum() == 4
                np.testing.assert_array_equal(np.sort(result.read()["x"])[:4], COLUMNS["x"][:4])
        else:
            with store(path) as result:
                assert result.done[:4].all()
                np.testing.assert_array_equal(result.read()["x"][:4], COLUMNS["x"][:4])
    assert [entry.name for entry in tmp_path.iterdir() if "smaller" in entry.name] == []


@pytest.mark.parametrize("left", ["nothing", "arrays", "temporary files"])
def test_a_folder_that_is_half_made_is_taken_over(tmp_path, monkeypatch, left):
    path = tmp_path / "s.zarr"
    if left == "arrays":
        with monkeypatch.context() as patch:
            patch.setattr("jaxscape.sweep._store.write_manifest", lambda *_: os.kill(0, 0) or 1 / 0)
            with pytest.raises(ZeroDivisionError), store(path):
                pass
        assert (path / "x" / "zarr.json").exists()
    else:
        path.mkdir()
    if left == "temporary files":
        (path / "jaxscape").mkdir()
        for name in (".zarr.json.0a1b2c3d.new", "jaxscape/.lock.0a1b2c3d.new", "jaxscape/.manifest.json.0a1b2c3d.new"):
            (path / name).touch()
    filled(path)
    assert js.load(path).x.notnull().all()


# ---- one writer


def test_two_writers_are_refused(tmp_path):
    with store(tmp_path / "s.zarr"):
        match = rf"s.zarr is being written by process {os.getpid()} on {socket.gethostname()}, started .*; wait until"
        with pytest.raises(ValueError, match=match), store(tmp_path / "s.zarr"):
            pass
    assert not (tmp_path / "s.zarr" / "jaxscape" / ".lock").exists()


def lock_text(**changes):
    return json.dumps({**files._this_process(), **changes})


def test_the_lock_of_a_dead_process_is_taken_over(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    started = psutil.Process().create_time() - 1e5
    for text in (lock_text(pid=process.pid), lock_text(started=started)):  # gone; its number is another process's now
        (tmp_path / ".lock").write_text(text)
        with (
            pytest.warns(UserWarning, match=r"was left locked by process \d+ on .*, which is gone"),
            FolderLock(tmp_path),
        ):
            assert (tmp_path / ".lock").read_text() == lock_text()
    assert list(tmp_path.iterdir()) == []


def test_the_lock_of_another_machine_counts_while_it_shows_signs_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "SILENCE", 0.2)
    for text in (lock_text(host="elsewhere 1"), "", "{"):
        (tmp_path / ".lock").write_text(text)
        with pytest.warns(UserWarning, match=r"was left locked by (process \d+ on elsewhere|an unknown process)"):
            FolderLock(tmp_path).acquire()
        (tmp_path / ".lock").unlink()
    (tmp_path / ".lock").write_text(lock_text(host="elsewhere 1"))
    sleep = time.sleep
    monkeypatch.setattr(files.time, "sleep", lambda s: (sleep(s), os.utime(tmp_path / ".lock")))
    with pytest.raises(ValueError, match="is being written by process .* on elsewhere"):
        FolderLock(tmp_path).acquire()


def test_a_lock_shows_signs_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "BEAT", 0.01)
    with FolderLock(tmp_path):
        os.utime(tmp_path / ".lock", (0, 0))
        end = time.monotonic() + 10
        while (tmp_path / ".lock").stat().st_mtime == 0:
            assert time.monotonic() < end
            time.sleep(0.01)


def test_nothing_is_written_without_the_lock(tmp_path):
    with store(tmp_path / "s.zarr") as result:
        (tmp_path / "s.zarr" / "jaxscape" / ".lock").write_text(lock_text(host="elsewhere 1"))
        with pytest.raises(OSError, match="belongs to process .* on elsewhere.*: this process no longer writes"):
            result.write(slice(0, 1), {name: column[:1] for name, column in COLUMNS.items()})
        (tmp_path / "s.zarr" / "jaxscape" / ".lock").unlink()
        with pytest.raises(OSError, match="lock .* is gone: this process no longer writes"):
            result.finish({})


def test_a_lock_needs_no_hard_links(tmp_path, monkeypatch):
    def refused(*_):
        raise PermissionError

    monkeypatch.setattr(os, "link", refused)
    with FolderLock(tmp_path), pytest.raises(ValueError, match="is being written"):
        FolderLock(tmp_path).acquire()


def test_unicode_symlinks_and_dots(tmp_path):
    real = tmp_path / "größe ∇.run.zarr"
    filled(real)
    link = tmp_path / "link"
    link.symlink_to(real)
    with store(link) as result:
        assert result.done.all()
    assert js.load(Path(f"{link}/../link")).x.notnull().all()


def test_the_folder_itself_can_be_the_store(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    filled(".")
    assert js.load(".").x.notnull().all()
