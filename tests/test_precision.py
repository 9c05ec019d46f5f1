"""Float32 and 16-bit inputs against float64 references, at small angles, small movements and fine steps."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxscape as js
from tests.problems import slow_but

ONE = jax.sharding.Mesh(jax.devices()[:1], ("points",))
POINT = js.Grid.plane((0, 1, 1), (0, 1, 1))
N = 400


def quadratic(p, x):
    """Its Hessian is diag(1, ..., 400)."""
    return x * 0.5 * (jnp.arange(1.0, N + 1, dtype=p.dtype) * p * p).sum()


def in_the_plane(u, v):
    """The extreme curvatures in the span of two directions, by a float64 SVD."""
    q, s, _ = np.linalg.svd(np.stack([u, v], 1).astype(np.float64), full_matrices=False)
    q = q[:, s > 1e-6 * s[0]]
    return np.linalg.eigvalsh(q.T @ (np.arange(1.0, N + 1)[:, None] * q))[[0, -1]]


A, B = np.random.default_rng(0).normal(size=(2, N)).astype(np.float32)


@pytest.mark.parametrize(
    "directions",
    [(A, 3 * A), (A, np.float32(1.7) * A), (A, A + np.float32(1e-3) * B), (A, A + np.float32(1e-5) * B), (A, B)],
    ids=["3a", "1.7a", "angle 1e-3", "angle 1e-5", "independent"],
)
@pytest.mark.parametrize("lengths", slow_but([(2.0**10, 2.0**-13)], [(1, 1), (2.0**10, 2.0**-13), (2.0**-50, 2.0**50)]))
def test_curvatures_in_a_plane_of_any_angle_and_lengths(directions, lengths):
    u, v = directions
    scaled = [np.float32(length) * d for length, d in zip(lengths, directions, strict=True)]
    options = {"grid": POINT, "progress": False, "mesh": ONE, "check": False}
    result = js.plane_hessian(np.zeros(N, np.float32), quadratic, np.ones(2, np.float32), directions=scaled, **options)
    found = result.plane_min_eigenvalue.item(), result.plane_max_eigenvalue.item()
    tolerance = 2e-2 if np.allclose(u, v, rtol=1e-3) and not np.array_equal(u, v) else 1e-4
    np.testing.assert_allclose(
        found, in_the_plane(*scaled) if lengths == (1, 1) else in_the_plane(u, v), rtol=tolerance
    )
    exact = np.array([[(a.astype(float) * np.arange(1, N + 1) * b).sum() for b in scaled] for a in scaled])
    np.testing.assert_allclose(result.plane_hessian.values[0, 0], exact, rtol=1e-5)


def test_a_direction_that_is_not_finite():
    options = {"grid": POINT, "progress": False, "mesh": ONE, "check": False}
    with pytest.raises(ValueError, match=r"directions\[1\] has NaN or infinite entries"):
        js.plane_hessian(jnp.zeros(N), quadratic, np.ones(2), directions=[A, A * np.float32(np.nan)], **options)


@pytest.mark.parametrize("angle", [1.0, 1e-2, 1e-3])
def test_projections_on_directions_at_a_small_angle(angle):
    rng = np.random.default_rng(1)
    u, w = rng.normal(size=(2, 10_000))
    u, v = u.astype(np.float32), (u + angle * w).astype(np.float32)
    origin = rng.normal(size=10_000).astype(np.float32)
    path = [(origin + c * u + d * v + 0.3 * rng.normal(size=10_000)).astype(np.float32) for c, d in ((1, 2), (-3, 0.5))]
    result = js.project(path, origin, [u, v], progress=False)
    matrix = np.stack([u, v], 1).astype(np.float64)
    for row, point in enumerate(path):
        moved = point.astype(np.float64) - origin
        coords, (rest,), *_ = np.linalg.lstsq(matrix, moved, rcond=None)
        np.testing.assert_allclose(result.coordinates[row], coords, rtol=1e-6)
        np.testing.assert_allclose(result.off_plane_distance[row], np.sqrt(rest), rtol=1e-8)


@pytest.mark.parametrize("center", ["last", "mean"])
@pytest.mark.parametrize(("weights", "movement"), [(1e4, 1e-3), (1.0, 1e-6), (1.0, 1e-7), (1e20, 1e19), (1e-18, 1e-18)])
def test_principal_directions_of_a_path_that_barely_moves(weights, movement, center):
    """The mean rounded to float32 had given 0.57 and 0.25 for 0.72 and 0.11."""
    rng, t = np.random.default_rng(0), np.linspace(0, 1, 20)
    shape = np.outer((1 - t) ** 2, rng.normal(size=500)) + 0.3 * np.outer(np.sin(3 * t), rng.normal(size=500))
    rows = (weights + movement * shape).astype(np.float32)
    directions, ratio = js.pca_directions(list(rows), center=center, progress=False)
    exact = rows.astype(np.float64)
    exact = exact - exact.mean(0) if center == "mean" else exact[:-1] - exact[-1]
    _, s, axes = np.linalg.svd(exact, full_matrices=False)
    np.testing.assert_allclose(ratio[:3], (s**2 / (s**2).sum())[:3], rtol=1e-9, atol=1e-14)
    for k in range(2):
        np.testing.assert_allclose(abs(directions[k] @ axes[k].astype(np.float32)), 1, rtol=1e-5)


X = np.random.default_rng(0).normal(size=(64, 16)).astype(np.float32)


def network(p, x):
    return jnp.tanh(x.astype(p["w"].dtype) @ p["w"]).astype(jnp.float32).sum(-1) ** 2


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_interpolation_of_16_bit_params_ends_at_both_params(dtype):
    rng = np.random.default_rng(0)
    a, b = ({"w": jnp.asarray(scale * rng.normal(size=(16, 8)), dtype)} for scale in (1, 0.01))
    options = {"grid": js.Grid.line(0, 1, 3), "progress": False, "mesh": ONE, "batch_size": 64, "points_per_step": 1}
    result = js.interpolate(a, b, network, X, **options)
    for params, end in ((a, 0), (b, -1)):
        assert result.loss[end] == js.interpolate(params, params, network, X, **options).loss[0]
    exact = js.interpolate(*(jax.tree.map(lambda x: x.astype(jnp.float32), p) for p in (a, b)), network, X, **options)
    np.testing.assert_allclose(result.loss, exact.loss, rtol=30 * float(jnp.finfo(dtype).eps))


def test_a_difference_that_float16_cannot_hold():
    a, b = ({"w": jnp.full((1, 1), x, jnp.float16)} for x in (-4e4, 4e4))
    loss = lambda p, x: x * p["w"][0, 0].astype(jnp.float32)  # noqa: E731
    result = js.interpolate(a, b, loss, np.ones(2, np.float32), grid=js.Grid.line(0, 1, 3), progress=False)
    assert result.loss.values.tolist() == [-40000.0, 0.0, 40000.0]
    assert js.direction_between(a, b)["w"].dtype == jnp.float32


def value(p, x):
    return x * p["w"].astype(jnp.float32).sum()


@pytest.mark.parametrize(("dtype", "options"), [(jnp.bfloat16, {}), (jnp.float32, {"compute_dtype": "bfloat16"})])
def test_a_line_too_fine_for_16_bits_says_so(dtype, options):
    params = {"w": jnp.ones((3, 3), dtype)}
    options |= {"directions": {"w": jnp.ones((3, 3))}, "progress": False, "mesh": ONE}
    with pytest.warns(UserWarning, match=r"along alpha \(0\.001 apart\) 100% of the weights there do not change"):
        result = js.surface(params, value, np.ones(2, np.float32), grid=js.Grid.line(0, 0.008, 9), **options)
    assert result.unresolved_share == 1.0
    assert len(np.unique(result.loss)) < 9
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        coarse = js.surface(params, value, np.ones(2, np.float32), grid=js.Grid.line(0, 0.8, 9), **options)
    assert coarse.unresolved_share == 0.0


def test_float32_says_nothing_of_rounding():
    result = js.surface({"w": jnp.ones((3, 3))}, value, np.ones(2), grid=js.Grid.line(0, 1e-3, 3), progress=False)
    assert "unresolved_share" not in result.attrs
