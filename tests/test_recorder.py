"""Records of a path while it is walked, against the path itself."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxscape as js
from tests import sharding

RNG = np.random.default_rng(0)


def walk(num=12, dtype=jnp.float64, scale=1.0):
    """Params at each step of a curved walk; entries of very different sizes."""
    first = {
        "w": RNG.normal(size=(8, 16)),
        "b": 1e-6 * RNG.normal(size=16),
        "empty": np.zeros((0, 3)),
        "scalar": np.ones(()),
    }
    axes = [{name: scale * RNG.normal(size=x.shape) * (np.abs(x).max(initial=0) + 0) for name, x in first.items()}
            for _ in range(4)]  # fmt: skip
    path = []
    for i in range(num):
        t = i / num
        moved = {
            name: x + t * axes[0][name] + t**2 * axes[1][name] + 0.1 * np.sin(9 * t) * axes[2][name]
            for name, x in first.items()
        }
        path.append(jax.tree.map(lambda x: jnp.asarray(x, dtype), moved))
    return path


def flat(params, dtype=np.float64):
    return np.concatenate([np.asarray(x, dtype).ravel() for x in jax.tree.leaves(params)])


def recorded(path, **options):
    recorder = js.Recorder(path[0], **options)
    for params in path[1:]:
        recorder(params)
    return recorder


def test_params_come_back_to_16_bits():
    path = walk()
    recorder = recorded(path)
    assert len(recorder) == len(path)
    assert recorder.steps == list(range(len(path)))
    for found, params in zip(recorder, path, strict=True):
        for name, x in params.items():
            move, off = np.abs(x - path[0][name]), np.abs(found[name] - x)
            bound = np.maximum(2.0**-11 * move, 2.0**-24 * move.max(initial=0)) * (1 + 1e-6)
            assert (off <= bound + 1e-30).all()
            assert found[name].dtype == x.dtype
    distances = [np.linalg.norm(flat(params) - flat(path[0])) for params in path]
    np.testing.assert_allclose(recorder.dataset().distance, distances, rtol=1e-12)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_params_of_any_dtype(dtype):
    path = walk(4, dtype)
    for found, params in zip(recorded(path), path, strict=True):
        np.testing.assert_allclose(flat(found), flat(params), rtol=2 * float(jnp.finfo(dtype).eps), atol=2e-3)
        assert found["w"].dtype == dtype


@pytest.mark.parametrize(("size", "dtype"), [(1e-60, jnp.float64), (1e99, jnp.float64), (1e-38, jnp.float32)])
def test_moves_that_float32_does_not_hold(size, dtype):
    path = [{"w": jnp.asarray(size * np.array([1.2, 2.5]) * t, dtype)} for t in (1.0, 1.1)]
    found = recorded(path)[1]["w"]
    np.testing.assert_allclose(found, path[1]["w"], rtol=1e-3)


def test_a_refused_call_changes_nothing(tmp_path):
    path = walk(8)
    recorder = js.Recorder(path[0], every=2, folder=tmp_path)
    for params in path[1:7]:
        recorder(params)
    again = js.Recorder(path[0], every=2, folder=tmp_path)
    with pytest.raises(ValueError, match="step is missing"):
        again.finish(path[7])
    with pytest.raises(ValueError, match="has shape"):
        again(path[4] | {"w": jnp.zeros(4)}, step=4)
    assert again.steps == [0, 2, 4, 6]
    with pytest.raises(ValueError, match="'distance' is the name"):
        again(path[4], step=4, distance=3.0)
    assert again(path[4], step=4, loss=jnp.bfloat16(1.5))
    assert again.steps == [0, 2, 4]
    assert again.dataset().loss.values[-1] == 1.5


def test_a_damaged_folder_is_refused(tmp_path):
    def folder(name):
        recorder = js.Recorder({"w": jnp.zeros(3)}, folder=tmp_path / name)
        for i in range(3):
            recorder({"w": jnp.full(3, float(i))})
        return tmp_path / name

    def opened(path):
        return js.Recorder({"w": jnp.zeros(3)}, folder=path)

    for name in ("start.0.npy", "path.json", "record-000001.0.npz"):
        (folder(name) / name).unlink()
        with pytest.raises(ValueError, match=f"records but lacks {name}"):
            opened(tmp_path / name)
    (folder("a") / "path.json").write_text("{")
    with pytest.raises(ValueError, match=r"path.json is damaged; pass another folder"):
        opened(tmp_path / "a")
    (folder("b") / "record-000002.0.npz").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"record-000002.0.npz is damaged; delete it"):
        opened(tmp_path / "b").dataset()
    one, other = (js.Recorder({"w": jnp.zeros(3)}, folder=tmp_path / "c") for _ in range(2))
    one({"w": jnp.ones(3)})
    other({"w": jnp.ones(3)}, step=1)
    with pytest.raises(ValueError, match="has records of another Recorder since; use one for each folder"):
        one({"w": jnp.ones(3)})


def test_projections_of_nothing_finite():
    ds = recorded([{"w": jnp.full(3, jnp.nan)}] * 2, keep="projections").dataset()
    assert np.isnan(ds.coordinates).all()
    assert ds.attrs["nonfinite_steps"] == 2


def test_a_recorder_is_a_path():
    path = [{name: x for name, x in params.items() if name != "empty"} for params in walk()]
    recorder = recorded(path)
    ours, theirs = js.pca_directions(recorder)[1], js.pca_directions(path)[1]
    np.testing.assert_allclose(ours[:3], theirs[:3], atol=1e-4)
    ds = js.trajectory(recorder, lambda p, x: x * (p["w"] ** 2).sum(), jnp.ones(4), origin=path[-1], points=3)
    expected = [float((params["w"] ** 2).sum()) for params in path]
    np.testing.assert_allclose(ds.true_loss, expected, rtol=1e-3)
    np.testing.assert_allclose(ds.attrs["center_loss"], expected[-1], rtol=1e-12)


def test_every_few_steps_and_the_last():
    path = walk(12)
    recorder = js.Recorder(path[0], every=5)
    kept = [recorder(params, loss=float(i)) for i, params in enumerate(path[1:], start=1)]
    assert recorder.steps == [0, 5, 10]
    assert [i for i, one in enumerate(kept, start=1) if one] == [5, 10]
    recorder.finish(path[11], loss=11.0)
    recorder.finish(path[11], loss=12.0)
    assert recorder.steps == [0, 5, 10, 11]
    np.testing.assert_array_equal(recorder.dataset().loss, [np.nan, 5, 10, 11])
    assert recorder.dataset().step.values.tolist() == [0, 5, 10, 11]
    assert "4 records of steps 0 to 11" in repr(recorder)
    np.testing.assert_allclose(flat(recorder[-1]), flat(path[11]), atol=2e-3)
    assert len(recorder[1:3]) == 2


def test_measures_and_calls_at_each_record():
    path, calls = walk(5), []
    recorder = js.Recorder(
        path[0],
        every=2,
        measures={"square": lambda p: (p["w"] ** 2).sum()},
        on_record=lambda step, values: calls.append((step, values)),
    )
    for params in path[1:]:
        recorder(params, loss=jnp.float32(0.5))
    squares = [float((path[i]["w"] ** 2).sum()) for i in (2, 4)]
    np.testing.assert_allclose(recorder.dataset().square.values[1:], squares)
    assert [step for step, _ in calls] == [0, 2, 4]
    assert calls[1][1] == {"distance": recorder.dataset().distance.values[1], "loss": 0.5, "square": squares[0]}


def test_a_loop_may_donate_its_params():
    step = jax.jit(lambda p: jax.tree.map(lambda x: x + 1, p), donate_argnums=0)
    params = {"w": jnp.zeros(5)}
    recorder = js.Recorder(params)
    for _ in range(3):
        params = step(params)
        recorder(params)
    np.testing.assert_array_equal([p["w"][0] for p in recorder], [0, 1, 2, 3])


def test_projections_estimate_distances_without_bias():
    """The mean over 200 keys is the distance, and the spread is what the docstring says."""
    path = walk(3)
    exact = np.linalg.norm(flat(path[2]) - flat(path[1])) ** 2
    found = []
    for key in range(200):
        recorder = recorded(path, keep="projections", num_projections=50, key=key)
        rows = [record.row for record in recorder._records]
        found.append(np.sum((rows[2] - rows[1]) ** 2) / exact)
    spread = np.sqrt(2 / 50)
    assert abs(np.mean(found) - 1) < 4 * spread / np.sqrt(200)
    assert 0.8 < np.std(found) / spread < 1.2


def test_projections_give_the_path_in_principal_coordinates():
    path = walk(20)
    recorder = recorded(path, keep="projections", num_projections=4096)
    ds = recorder.dataset()
    matrix = np.stack([flat(params) for params in path])
    moves = matrix - matrix[-1]
    u, s, _ = np.linalg.svd(moves, full_matrices=False)
    np.testing.assert_allclose(ds.explained_variance_ratio, (s**2 / np.sum(s**2))[:2], atol=0.02)
    for k in range(2):
        cosine = ds.coordinates.values[:, k] @ u[:, k] / np.linalg.norm(ds.coordinates.values[:, k])
        assert abs(cosine) > 0.97
    np.testing.assert_allclose(ds.distance, [np.linalg.norm(row - matrix[0]) for row in matrix], rtol=1e-12)
    np.testing.assert_allclose(ds.attrs["relative_stderr"], np.sqrt(2 / 4096))
    with pytest.raises(TypeError, match="keep='projections', of which no params can be made"):
        recorder[0]


def test_a_path_that_stays_where_it_is():
    params = {"w": jnp.ones(4)}
    ds = recorded([params] * 3, keep="projections").dataset()
    np.testing.assert_array_equal(ds.coordinates, 0)
    np.testing.assert_array_equal(ds.distance, 0)
    np.testing.assert_array_equal(recorded([params] * 2)[1]["w"], 1)


@pytest.mark.parametrize("keep", ["differences", "projections"])
def test_what_is_not_finite_is_counted(keep):
    path = walk(5)
    path[3] = jax.tree.map(lambda x: x * jnp.nan, path[3])
    path[4] = path[4] | {"b": path[4]["b"].at[0].set(jnp.inf)}
    ds = recorded(path, keep=keep).dataset()
    assert ds.attrs["nonfinite_steps"] == 2
    assert np.isfinite(ds.distance.values).tolist() == [True, True, True, False, False]
    if keep == "projections":
        assert np.isfinite(ds.coordinates.values).all(1).tolist() == [True, True, True, False, False]
    else:
        found = recorded(path)[4]
        assert np.isinf(found["b"][0])
        np.testing.assert_allclose(found["w"], path[4]["w"], atol=2e-3)


@pytest.mark.parametrize("name", ["fsdp", "tensor"])
@pytest.mark.parametrize("keep", ["differences", "projections"])
def test_params_that_are_cut_give_the_same_records(name, keep):
    path = [{"w": params["w"], "b": params["b"]} for params in walk(4)]
    mesh = sharding.mesh(name)
    pieces = [sharding.cut(params, mesh) for params in path]
    ours, theirs = recorded(pieces, keep=keep), recorded(path, keep=keep)
    np.testing.assert_allclose(ours.dataset().distance, theirs.dataset().distance, rtol=1e-12)
    if keep == "differences":
        for a, b, piece in zip(ours, theirs, pieces, strict=True):
            np.testing.assert_array_equal(flat(a), flat(b))
            assert a["w"].sharding == piece["w"].sharding
    else:
        for a, b in zip(ours._records, theirs._records, strict=True):
            np.testing.assert_allclose(a.row, b.row, atol=1e-12)


@pytest.mark.parametrize("keep", ["differences", "projections"])
def test_a_folder_survives_a_crash(tmp_path, keep):
    path = walk(8)
    recorder = js.Recorder(path[0], keep=keep, folder=tmp_path / "path")
    for params in path[1:6]:
        recorder(params, loss=1.0)
    del recorder  # killed after step 5; training goes on from a checkpoint of step 3, with other values
    again = js.Recorder(path[3], keep=keep, folder=tmp_path / "path")
    assert again.steps == [0, 1, 2, 3, 4, 5]
    with pytest.raises(ValueError, match="step is missing: the folder has records up to step 5"):
        again(path[4])
    for i in range(4, 8):
        again(path[i], step=i, loss=2.0)
    assert again.steps == list(range(8))
    np.testing.assert_array_equal(again.dataset().loss, [np.nan, 1, 1, 1, 2, 2, 2, 2])
    whole = recorded(path, keep=keep)
    np.testing.assert_array_equal(again.dataset().distance, whole.dataset().distance)
    if keep == "differences":
        np.testing.assert_array_equal(flat(again[6]), flat(whole[6]))


def test_a_folder_of_another_path_is_refused(tmp_path):
    js.Recorder({"w": jnp.zeros(3)}, folder=tmp_path)
    with pytest.raises(ValueError, match="holds a path with leaves"):
        js.Recorder({"w": jnp.zeros(4)}, folder=tmp_path)
    with pytest.raises(ValueError, match="holds a path with keep"):
        js.Recorder({"w": jnp.zeros(3)}, folder=tmp_path, keep="projections")
    with pytest.raises(ValueError, match="step is 0, expected at least 1"):
        js.Recorder({"w": jnp.zeros(3)}, folder=tmp_path)({"w": jnp.zeros(3)}, step=0)
    shutil.rmtree(tmp_path)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda p: js.Recorder(p, every=0), ValueError, "every is 0, expected an integer of at least 1"),
        (lambda p: js.Recorder(p, keep="all"), ValueError, "keep is 'all', expected 'differences' or 'projections'"),
        (
            lambda p: js.Recorder(p, num_projections=0),
            ValueError,
            "num_projections is 0, expected an integer of at least 1",
        ),
        (lambda p: js.Recorder({"w": jnp.zeros(3, int)}), TypeError, r"params\['w'\] is int"),
        (lambda p: js.Recorder(p, measures={"a": 3}), TypeError, r"measures\['a'\] is int, expected a function"),
        (lambda p: js.Recorder(p, measures={"step": len}), ValueError, "measures has the name 'step', which each"),
        (lambda p: js.Recorder(p)({"w": jnp.zeros(4)}), ValueError, r"params\['w'\] has shape \(4,\)"),
        (lambda p: js.Recorder(p)(p, loss=jnp.zeros(3)), TypeError, r"loss is float64 of shape \(3,\)"),
        (lambda p: js.Recorder(p)(p, loss="low"), TypeError, "loss is <U3 of shape"),
        (lambda p: js.Recorder(p)(p, distance=1.0), ValueError, "'distance' is the name of a measure or of a variable"),
        (lambda p: js.Recorder(p, measures={"a": len})(p, a=1.0), ValueError, "'a' is the name of a measure"),
        (lambda p: js.Recorder(p)(p, step=0), ValueError, "step is 0, expected one after the last, which was 0"),
        (lambda p: jax.jit(lambda x: js.Recorder(p)(x))(p), TypeError, "js.Recorder"),
    ],
)
def test_mistakes_are_told(call, error, message):
    with pytest.raises(error, match=message):
        call({"w": jnp.zeros(3)})
