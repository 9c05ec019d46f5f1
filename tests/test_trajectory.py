"""Paths: principal directions against SVD and scikit-learn, coordinates against closed forms, losses against loops."""

import io
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from sklearn.decomposition import PCA

import jaxscape as js
from jaxscape.trajectories import _rows
from tests.problems import classification_data, loop_reference, mlp_loss, mlp_params

DATA = classification_data()


def walk(steps=7, seed=0, dtype=jnp.float64, widths=(5, 7, 4)):
    """Params on a curved path with noise, ending where it will."""
    rng = np.random.default_rng(seed)
    start, towards, bend = (mlp_params(widths, seed=seed + s, dtype=dtype) for s in range(3))

    def at(t):
        return jax.tree.map(
            lambda a, b, c: (a + t * b + t**2 * c + 0.02 * rng.normal(size=a.shape)).astype(dtype), start, towards, bend
        )

    return [at(t) for t in np.linspace(0, 2, steps)]


def flat(tree):
    return np.asarray(ravel_pytree(tree)[0])


def matrix(path):
    return np.stack([flat(point) for point in path])


def equal_up_to_sign(directions, expected, atol=1e-8):
    assert len(directions) == len(expected)
    for direction, row in zip(directions, expected, strict=True):
        result = flat(direction)
        np.testing.assert_allclose(result * np.sign(result @ row), row, atol=atol)


# ---- principal directions


@pytest.mark.parametrize("num", [1, 2, 4])
def test_centered_at_the_mean_they_are_those_of_scikit_learn(num):
    path = walk()
    directions, ratio = js.pca_directions(path, num=num, center="mean")
    expected = PCA().fit(matrix(path))
    equal_up_to_sign(directions, expected.components_[:num])
    np.testing.assert_allclose(ratio, expected.explained_variance_ratio_, atol=1e-8)
    result = js.project(path, unflat(path, expected.mean_), directions)
    scores = PCA(num).fit_transform(matrix(path))
    signs = np.sign([flat(d) @ row for d, row in zip(directions, expected.components_[:num], strict=True)])
    np.testing.assert_allclose(result.coordinates * signs, scores, atol=1e-8)


def unflat(path, vector):
    return ravel_pytree(path[0])[1](jnp.asarray(vector))


@pytest.mark.parametrize("num", [1, 2, 4])
def test_centered_at_the_last_they_are_singular_vectors(num):
    path = walk()
    directions, ratio = js.pca_directions(path, num=num)
    rows = matrix(path)
    _, s, vt = np.linalg.svd(rows[:-1] - rows[-1], full_matrices=False)
    equal_up_to_sign(directions, vt[:num])
    np.testing.assert_allclose(ratio, s**2 / np.sum(s**2), atol=1e-8)
    assert len(ratio) == len(path) - 1
    gram = np.stack([flat(d) for d in directions])
    np.testing.assert_allclose(gram @ gram.T, np.eye(num), atol=1e-12)
    largest = js.project(path, path[-1], directions).coordinates.values
    assert (largest[np.abs(largest).argmax(0), np.arange(num)] > 0).all()


def test_ignored_leaves_take_no_part():
    path = walk()
    directions, ratio = js.pca_directions(path, ignore="bias_norm")
    rows = np.stack([flat([leaf for leaf in jax.tree.leaves(p) if leaf.ndim > 1]) for p in path])
    _, s, vt = np.linalg.svd(rows[:-1] - rows[-1], full_matrices=False)
    np.testing.assert_allclose(ratio, s**2 / np.sum(s**2), atol=1e-8)
    for direction, row in zip(directions, vt, strict=False):
        assert not any(layer["bias"].any() for layer in direction.values())
        kernels = flat([leaf for leaf in jax.tree.leaves(direction) if leaf.ndim > 1])
        np.testing.assert_allclose(abs(kernels @ row), 1, atol=1e-10)


def test_blocks_of_columns_and_devices_do_not_matter(monkeypatch):
    path = walk()
    many, ratio = js.pca_directions(path)  # blocks of 6 columns on 8 devices
    monkeypatch.setattr(_rows.Rows, "blocks", whole)
    one, same = js.pca_directions(path)
    np.testing.assert_allclose(ratio, same, rtol=1e-10, atol=1e-14)
    equal_up_to_sign(many, [flat(d) for d in one], atol=1e-12)


def whole(rows):
    block = np.empty((len(rows), rows.columns), rows.dtype)
    rows._file.seek(0)
    rows._file.readinto(block.data)
    yield block


def test_more_checkpoints_than_weights():
    path = walk(40, widths=(2, 2, 2))
    columns = matrix(path).shape[1]
    _, ratio = js.pca_directions(path)
    s = np.linalg.svd(matrix(path)[:-1] - matrix(path)[-1], compute_uv=False)
    assert len(ratio) == columns < len(path)
    np.testing.assert_allclose(ratio, s**2 / np.sum(s**2), atol=1e-8)


def test_float32_is_nearly_as_good():
    path = walk(dtype=jnp.float32)
    directions, ratio = js.pca_directions(path)
    rows = matrix(path).astype(np.float64)
    _, s, vt = np.linalg.svd(rows[:-1] - rows[-1], full_matrices=False)
    np.testing.assert_allclose(ratio, s**2 / np.sum(s**2), atol=1e-5)
    equal_up_to_sign(directions, vt[:2], atol=1e-4)
    assert jax.tree.leaves(directions.basis)[0].dtype == jnp.float32


def test_checkpoints_are_read_once_and_one_at_a_time():
    read = []

    def stream():
        for i, point in enumerate(walk()):
            read.append(i)
            yield point

    directions, _ = js.pca_directions(stream())
    assert read == list(range(7))
    equal_up_to_sign(directions, [flat(d) for d in js.pca_directions(walk())[0]])


def test_several_paths_have_one_plane():
    a, b = walk(seed=0), walk(seed=5)
    directions, _ = js.pca_directions(itertools.chain(a, b), center="mean")
    equal_up_to_sign(directions, PCA(2).fit(matrix(a + b)).components_)


# ---- degenerate paths


def collinear(steps=5):
    start, towards = mlp_params(seed=0), mlp_params(seed=1)
    return [jax.tree.map(lambda a, b, t=t: a + t * b, start, towards) for t in range(steps)]


def with_nan(path, index):
    broken = jax.tree.map(lambda x: x, path[index])
    broken["layer1"]["kernel"] = broken["layer1"]["kernel"].at[2, 1].set(jnp.nan)
    return [*path[:index], broken, *path[index + 1 :]]


@pytest.mark.parametrize(
    ("path", "options", "match"),
    [
        ([], {}, "checkpoints has 0 of them, expected at least 2"),
        (walk(1), {}, "checkpoints has 1 of them, expected at least 2"),
        (walk(2), {}, "num is 2, but the path of the checkpoints spans 1 dimension; pass num=1"),
        (collinear(), {}, "num is 2, but the path of the checkpoints spans 1 dimension; pass num=1"),
        (collinear(), {"center": "mean"}, "num is 2, but the path of the checkpoints spans 1 dimension"),
        (walk(4), {"num": 5}, "num is 5, but the path of the checkpoints spans 3 dimensions; pass num=3"),
        ([*walk(1), *walk(1), *walk(1)], {}, "checkpoints are all equal: a path that does not move"),
        (with_nan(walk(), 3), {}, r"checkpoints\[3\]\['layer1'\]\['kernel'\] has NaN or infinite entries"),
        (
            [*walk(), mlp_params((5, 6, 4))],
            {},
            r"checkpoints\[7\]\['layer0'\]\['bias'\] has shape \(6,\), expected \(7,",
        ),
        (walk(), {"num": 0}, "num is 0, expected an integer of at least 1"),
        (walk(), {"center": "first"}, "center is 'first', expected 'last' or 'mean'"),
        (walk(), {"ignore": "all"}, "ignore is 'all'"),
    ],
)
def test_bad_paths_of_principal_directions(path, options, match):
    with pytest.raises(ValueError, match=match):
        js.pca_directions(path, **options)


def test_a_leaf_that_is_not_floating():
    with pytest.raises(TypeError, match=r"checkpoints\[1\]\['w'\] is int"):
        js.pca_directions([{"w": jnp.ones(3)}, {"w": jnp.ones(3, int)}])


def test_a_nan_in_an_ignored_leaf_does_not_matter():
    path = walk()
    broken = jax.tree.map(lambda x: x, path[2])
    broken["layer1"]["bias"] = broken["layer1"]["bias"] * jnp.nan
    expected = js.pca_directions(path, ignore="bias_norm")[1]
    result = js.pca_directions([*path[:2], broken, *path[3:]], ignore="bias_norm")[1]
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("path", [walk(2), collinear()])
def test_a_straight_path_has_one_direction(path):
    directions, ratio = js.pca_directions(path, num=1)
    step = flat(path[0]) - flat(path[-1])
    equal_up_to_sign(directions, [step / np.linalg.norm(step)])
    np.testing.assert_allclose(ratio[0], 1, rtol=1e-12)


# ---- coordinates


def skewed():
    """Two directions of other lengths, at an angle of 60 degrees, and one that is orthogonal to both."""
    a, b, c = (flat(mlp_params(seed=s)).copy() for s in (3, 4, 5))
    a /= np.linalg.norm(a)
    b -= (a @ b) * a
    b /= np.linalg.norm(b)
    c -= (a @ c) * a + (b @ c) * b
    c /= np.linalg.norm(c)
    return 3 * a, 0.5 * (np.cos(np.pi / 3) * a + np.sin(np.pi / 3) * b), c


def test_projection_on_skewed_axes_is_exact():
    path, (d0, d1, rest) = walk(1), skewed()
    origin = flat(path[0])
    wanted = np.array([[0.0, 0.0], [2.0, -3.0], [0.1, 4.0]])
    off = np.array([0.0, 0.7, 2.5])
    points = [unflat(path, origin + a * d0 + b * d1 + r * rest) for (a, b), r in zip(wanted, off, strict=True)]
    directions = [unflat(path, d0), unflat(path, d1)]
    result = js.project(points, path[0], directions)
    np.testing.assert_allclose(result.coordinates, wanted, atol=1e-12)
    np.testing.assert_allclose(result.off_plane_distance, off, atol=1e-12)
    np.testing.assert_allclose(result.distance, [np.linalg.norm(flat(p) - origin) for p in points], rtol=1e-12)
    # The original tool divides each inner product by the length of the axis (its "cos" projection): not so here.
    cosines = [[(flat(p) - origin) @ d / np.linalg.norm(d) for d in (d0, d1)] for p in points]
    assert np.abs(np.array(cosines) - wanted).max() > 1


def test_cosines_of_steps_and_shares_of_axes():
    path, (d0, d1, rest) = walk(1), skewed()
    origin, unit = flat(path[0]), d0 / np.linalg.norm(d0)
    ways = [0 * unit, 4 * unit, 4 * unit + 3 * rest, 4 * unit + 3 * rest, 1 * unit]
    points = [unflat(path, origin + way) for way in ways]
    result = js.project(points, path[0], [unflat(path, d0), unflat(path, d1)])
    np.testing.assert_allclose(result.step_cosine, [np.nan, 1, 0, np.nan, 3 / 18**0.5], atol=1e-12)
    total = sum(way @ way for way in ways)
    captured = 16 + 16 + 16 + 1
    np.testing.assert_allclose(result.attrs["variance_captured"], captured / total, rtol=1e-12)
    np.testing.assert_allclose(
        result.axis_variance, [captured / total, captured / total / 4], rtol=1e-12
    )  # cos 60 = 1/2


@pytest.mark.parametrize("center", ["last", "mean"])
@pytest.mark.parametrize("num", [1, 2, 3])
def test_coordinates_directions_and_the_rest_give_back_each_checkpoint(center, num):
    path = walk()
    directions, ratio = js.pca_directions(path, num=num, center=center)
    result = js.project(path, path[-1], directions)
    np.testing.assert_array_equal(result.coordinates[-1], 0)
    assert result.distance[-1] == result.off_plane_distance[-1] == 0
    basis = np.stack([flat(d) for d in directions])
    for i, point in enumerate(path):
        rest = flat(point) - flat(path[-1]) - result.coordinates.values[i] @ basis
        np.testing.assert_allclose(np.linalg.norm(rest), result.off_plane_distance[i], atol=1e-10)
        np.testing.assert_allclose(basis @ rest, 0, atol=1e-10)  # the shortest way to the plane
        together = (result.coordinates.values[i] ** 2).sum() + float(result.off_plane_distance[i]) ** 2
        np.testing.assert_allclose(together, result.distance[i] ** 2, atol=1e-10)
    if center == "last":
        np.testing.assert_allclose(result.axis_variance, ratio[:num], atol=1e-10)
        np.testing.assert_allclose(result.attrs["variance_captured"], ratio[:num].sum(), atol=1e-10)


def test_a_checkpoint_that_is_not_finite_is_counted_and_left_out():
    path = walk()
    directions, _ = js.pca_directions(path)
    clean, result = (js.project(p, path[-1], directions) for p in (path, with_nan(path, 3)))
    assert result.attrs["nonfinite_steps"] == 1
    assert clean.attrs["nonfinite_steps"] == 0
    assert np.isnan(result.coordinates[3]).all()
    assert np.isnan(result.step_cosine[3:5]).all()
    keep = [0, 1, 2, 4, 5, 6]
    np.testing.assert_array_equal(result.coordinates[keep], clean.coordinates[keep])
    assert 0.5 < result.attrs["variance_captured"] <= 1


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"checkpoints": []}, "checkpoints is empty"),
        ({"checkpoints": [*walk(), mlp_params((5, 6, 4))]}, r"checkpoints\[7\]\['layer0'\]"),
        ({"origin": mlp_params((5, 6, 4))}, r"directions\['layer0'\]\['bias'\] has shape"),
        ({"directions": [mlp_params(seed=1)] * 2}, "directions depend on each other"),
        (
            {"directions": [mlp_params(seed=1), jax.tree.map(jnp.zeros_like, mlp_params())]},
            r"directions\[1\] has length 0.0, expected a finite one above 0",
        ),
    ],
)
def test_bad_calls_of_project(change, match):
    call = {"checkpoints": walk(), "origin": walk()[-1], "directions": [mlp_params(seed=1), mlp_params(seed=2)]}
    with pytest.raises(ValueError, match=match):
        js.project(**(call | change))


# ---- the path on the surface


def small_walk():
    """Near enough for finite losses that differ."""
    return [jax.tree.map(lambda x: 0.3 * x, point) for point in walk()]


@pytest.fixture(scope="module")
def walked():
    return js.trajectory(small_walk(), mlp_loss, DATA, points=(5, 7), progress=False)


def loss_at(params):
    zero = jax.tree.map(jnp.zeros_like, params)
    return loop_reference(params, [zero], js.Grid.line(0, 0, 1), DATA)[0]


def test_true_and_in_plane_losses_against_loops(walked):
    path = small_walk()
    directions, ratio = js.pca_directions(path)
    for i, point in enumerate(path):
        at = jax.tree.map(
            lambda p, d, c=walked.coordinates.values[i]: p + c[0] * d[0] + c[1] * d[1], path[-1], directions.basis
        )
        np.testing.assert_allclose(walked.true_loss[i], loss_at(point), rtol=1e-10)
        np.testing.assert_allclose(walked.in_plane_loss[i], loss_at(at), rtol=1e-10)
    np.testing.assert_allclose(walked.explained_variance_ratio, ratio)
    np.testing.assert_allclose(walked.true_loss[-1], walked.in_plane_loss[-1], rtol=1e-12)


def test_the_grid_covers_the_path_and_meets_its_end(walked):
    assert (walked.sizes["alpha"], walked.sizes["beta"]) == (5, 7)
    for axis, column in zip((walked.alpha.values, walked.beta.values), walked.coordinates.values.T, strict=True):
        assert 0 in axis
        assert axis[0] < column.min()
        assert axis[-1] > column.max()
        np.testing.assert_allclose(np.diff(axis), np.diff(axis)[0])
    end = walked.loss.interp(alpha=0, beta=0)
    np.testing.assert_allclose(end, walked.true_loss[-1], rtol=1e-12)
    np.testing.assert_allclose(end, walked.attrs["center_loss"], rtol=1e-12)


def test_the_surface_is_that_of_the_directions(walked):
    path = small_walk()
    directions, _ = js.pca_directions(path)
    grid = js.Grid((walked.alpha.values, walked.beta.values))
    np.testing.assert_allclose(walked.loss, loop_reference(path[-1], list(directions), grid, DATA), rtol=1e-10)
    assert walked.attrs["directions"] == "PCA"
    assert walked.attrs["num_checkpoints"] == "7"


def test_other_planes_origins_and_grids():
    path = small_walk()
    directions = js.random_directions(0, path[-1])
    result = js.trajectory(path, mlp_loss, DATA, directions=directions, origin=path[0], points=3, progress=False)
    expected = js.project(path, path[0], directions)
    np.testing.assert_allclose(result.coordinates, expected.coordinates)
    np.testing.assert_array_equal(result.coordinates[0], 0)
    assert "explained_variance_ratio" not in result
    line = js.trajectory(
        path, mlp_loss, DATA, directions=directions[:1], grid=js.Grid.line(-1, 1, 3), epochs=range(7), progress=False
    )
    assert line.loss.shape == (3,)
    assert line.coordinates.shape == (7, 1)
    np.testing.assert_array_equal(line.epoch, np.arange(7))


@pytest.mark.slow
def test_a_random_plane_holds_little_of_a_path():
    path = walk(widths=(5, 40, 40, 4))
    principal, random = (
        js.project(path, path[-1], d) for d in (js.pca_directions(path)[0], js.random_directions(0, path[-1]))
    )
    assert principal.attrs["variance_captured"] > 0.95
    assert random.attrs["variance_captured"] < 0.02  # two of about 2000 dimensions


def test_drops_are_marked_at_the_last_checkpoint_before_them():
    result = js.trajectory(
        small_walk(), mlp_loss, DATA, points=3, epochs=[0, 1, 3, 5, 7, 9, 10], drops=[4, 9], progress=False
    )
    np.testing.assert_array_equal(result.lr_drop, [False, False, True, False, False, True, False])


def test_a_nan_on_the_way_is_shown_in_a_given_plane():
    path = with_nan(small_walk(), 3)
    result = js.trajectory(
        path, mlp_loss, DATA, directions=js.pca_directions(small_walk())[0], points=3, progress=False
    )
    assert result.attrs["nonfinite_steps"] == 1
    assert np.isnan([result.true_loss[3], result.in_plane_loss[3]]).all()
    assert np.isfinite(result.true_loss.values[[0, 1, 2, 4, 5, 6]]).all()


@pytest.mark.parametrize("path", [walk(1), [*walk(1), *walk(1), *walk(1)]])
def test_a_path_that_does_not_move_in_a_given_plane(path):
    result = js.trajectory(path, mlp_loss, DATA, directions=js.random_directions(0, path[0]), points=3, progress=False)
    np.testing.assert_array_equal(result.coordinates, 0)
    assert np.isfinite(result.loss).all()
    assert np.isnan(result.attrs["variance_captured"])


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"loss_fn": None}, TypeError, "loss_fn is missing"),
        ({"data": None}, TypeError, "data is missing"),
        ({"run": []}, ValueError, "checkpoints is empty"),
        ({"points": 2}, ValueError, "points is 2, expected at least 3"),
        ({"points": (5, 5, 5)}, ValueError, r"points is \(5, 5, 5\), expected at least 3, or two such numbers"),
        ({"margin": -1}, ValueError, "margin is -1, expected at least 0"),
        ({"epochs": [1, 2]}, ValueError, "epochs has 2 entries for 7 checkpoints"),
        ({"batch_stats": True}, ValueError, "batch_stats is True, but bare checkpoints"),
        ({"directions": mlp_params(seed=1)}, ValueError, "grid is missing: 1 directions have no default grid"),
        ({"run": collinear()}, ValueError, "num is 2, but the path"),
    ],
)
def test_bad_calls_of_trajectory(options, error, match):
    call = {"run": small_walk(), "loss_fn": mlp_loss, "data": DATA} | options
    with pytest.raises(error, match=match):
        js.trajectory(**call)


def test_rows_come_back_by_blocks_of_columns():
    rows = _rows.Rows(io.BytesIO(), 3, np.float32)
    rows.append(np.arange(3))
    rows.append(np.arange(3, 6))
    blocks = list(rows.blocks())
    assert all(block.shape == (2, 1) for block in blocks)
    np.testing.assert_array_equal(np.hstack(blocks), [[0, 1, 2], [3, 4, 5]])
