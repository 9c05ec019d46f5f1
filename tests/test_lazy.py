"""Directions that are drawn where they are used: equal to the bit to those that are stored."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxscape as js
from jaxscape import checks, shards, trees
from jaxscape.directions import LazyDirections, _random, as_directions
from jaxscape.normalize import rescale
from tests.problems import slow_but
from tests.sharding import cut, mesh, tiny

PARAMS, LOSS, DATA = tiny()
LINE = js.Grid.line(-1, 1, 5)


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, a), jax.tree.map(np.asarray, b))


def pair(params=PARAMS, key=3, **options):
    """The same directions stored and lazy."""
    return js.random_directions(key, params, lazy=False, **options), js.random_directions(
        key, params, lazy=True, **options
    )


@pytest.mark.parametrize("dtype", slow_but(("float32", "bfloat16"), ["float32", "float64", "bfloat16"]))
@pytest.mark.parametrize("ignore", ["bias_norm", None])
def test_entries_are_those_that_are_stored(dtype, ignore):
    params = jax.tree.map(lambda x: x.astype(dtype), PARAMS)
    stored, lazy = pair(params, num=3, ignore=ignore)
    equal(stored.basis, lazy.basis)
    equal(stored[1], lazy[1])
    equal(stored[1:].basis, lazy[1:].basis)
    equal(list(stored)[2], lazy[-1])
    assert (len(lazy), stored.rules, stored.recipe) == (3, lazy.rules, lazy.recipe)
    assert jax.tree.leaves(lazy.basis)[0].dtype == jnp.promote_types(dtype, jnp.float32)


@pytest.mark.parametrize("norm", slow_but(("layer", None), ["layer", "dfilter", "dlayer", None]))
@pytest.mark.parametrize("where", slow_but(("tensor",), [None, "fsdp", "tensor"]))
def test_every_norm_however_params_are_cut(norm, where):
    params = PARAMS if where is None else cut(PARAMS, mesh(where))
    whole, _ = pair(norm=norm)
    stored, lazy = pair(params, norm=norm)
    equal(stored.basis, whole.basis)
    equal(lazy.basis, whole.basis)


def test_weights_as_a_norm_on_leaves_that_are_cut():
    equal(js.random_directions(3, cut(PARAMS, mesh("tensor")), norm="weight").basis, pair_of("weight").basis)


def pair_of(norm):
    return js.random_directions(3, PARAMS, norm=norm)


@pytest.mark.slow  # 6 seconds: many places
def test_numbers_by_their_place_are_those_of_jax():
    key = jax.random.key(5)
    words = shards.key_words(key)
    for dtype in (jnp.float32, jnp.float64):
        whole = jax.random.normal(key, (1000,), dtype)
        equal(shards.normal(words, jnp.arange(1000, dtype=jnp.uint32), dtype), whole)
        equal(shards.normal(words, jnp.arange(10, dtype=jnp.uint32), dtype, first=500), whole[500:510])
    signs = shards.signs(words, jnp.arange(4000, dtype=jnp.uint32), jnp.float32)
    assert set(np.unique(signs)) == {-1, 1}
    assert abs(float(signs.mean())) < 0.05
    beyond = shards.normal(words, jnp.arange(3, dtype=jnp.uint32), jnp.float32, first=2**32 - 2)
    assert float(beyond[2]) != float(whole[0])  # a place beyond 32 bits is no place at the beginning


@pytest.mark.slow  # every program twice: 9 s
def test_blocks_of_rows_change_nothing(monkeypatch):
    params = {"w": jnp.asarray(np.random.default_rng(0).normal(size=(1, 70, 50))), "v": jnp.ones((7, 3))}
    cases = [("filter", lambda p: p), ("layer", lambda p: cut(p, mesh("tensor")))]
    monkeypatch.setattr(_random, "_SMALL", 100)  # `w` counts as large
    whole = [pair(place(params), norm=norm)[1].basis for norm, place in cases]
    monkeypatch.setattr("jaxscape.shards._parts.ROWS", 400)  # 8 of 70 rows, and the last block overlaps
    jax.clear_caches()
    for (norm, place), one in zip(cases, whole, strict=True):
        stored, lazy = pair(place(params), norm=norm)
        equal(lazy.basis, one)
        equal(stored.basis, one)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("axes", [(1,), (0, 2), ()])
def test_norms_are_right_to_the_last_bit_at_any_scale(scale, axes):
    rng = np.random.default_rng(0)
    w, d = (rng.normal(size=(40, 6, 5)).astype(np.float32) for _ in range(2))
    w = w * np.float32(scale)
    kept = tuple(a for a in range(3) if a not in axes)
    length = lambda x: np.sqrt((x.astype(np.longdouble) ** 2).sum(kept, keepdims=True))  # noqa: E731
    expected = d * (length(w) / length(d)).astype(np.float32)
    np.testing.assert_array_equal(trees.in_float64(lambda d, w: rescale(d, w, "filter", axes))(d, w), expected)


def test_a_surface_is_that_of_stored_directions(tmp_path):
    stored, lazy = pair(num=1)
    options = {"grid": LINE, "progress": False}
    whole = js.surface(PARAMS, LOSS, DATA, directions=stored, **options)
    for more in ({}, {"points_per_step": 4}, {"store": tmp_path / "s.zarr"}, {"refine": 1e-9}):
        result = js.surface(PARAMS, LOSS, DATA, directions=lazy, **options, **more)
        np.testing.assert_allclose(result.loss, whole.loss, rtol=1e-12)
        assert result.attrs["direction_key"] == whole.attrs["direction_key"]
    np.testing.assert_allclose(
        js.surface(PARAMS, LOSS, DATA, directions=lazy, rtol=1e-9, **options).loss, whole.loss, rtol=1e-9
    )
    params = cut(PARAMS, mesh("fsdp"))  # drawn for whole params, used where they are cut, and the other way round
    np.testing.assert_allclose(js.surface(params, LOSS, DATA, directions=lazy, **options).loss, whole.loss, rtol=1e-12)
    of_cut = js.random_directions(3, params, num=1, lazy=True)
    np.testing.assert_allclose(
        js.surface(PARAMS, LOSS, DATA, directions=of_cut, **options).loss, whole.loss, rtol=1e-12
    )


def test_sixteen_bits_are_noticed_with_lazy_directions():
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
    data = (DATA[0].astype(jnp.bfloat16), DATA[1])
    stored, lazy = pair(params, num=1)
    for own in (stored, lazy):
        with pytest.warns(UserWarning, match="params have 16 bits"):
            result = js.surface(params, LOSS, data, directions=own, grid=js.Grid.line(-1e-3, 1e-3, 3), progress=False)
        assert result.attrs["unresolved_share"] > 0.5


@pytest.mark.slow  # 8 seconds: every call
def test_what_takes_directions_takes_lazy_ones():
    stored, lazy = pair()
    equal(lazy.orthogonalize().basis, stored.orthogonalize().basis)
    equal(js.Directions.stack([lazy, stored[0]]).basis, js.Directions.stack([stored, stored[0]]).basis)
    assert lazy.explain(PARAMS).equals(stored.explain(PARAMS))
    grid = js.Grid.plane((0, 1, 2), (0, 1, 2))
    a, b = (js.plane_hessian(PARAMS, LOSS, DATA, directions=d, grid=grid, progress=False) for d in (lazy, stored))
    np.testing.assert_allclose(a.plane_hessian, b.plane_hessian, rtol=1e-10)
    path = [jax.tree.map(lambda x, t=t: t * x, PARAMS) for t in (0.5, 1.5)]
    a, b = (js.project(path, PARAMS, d, progress=False) for d in (lazy, stored))
    np.testing.assert_allclose(a.coordinates, b.coordinates, rtol=1e-12)
    assert len(jax.jit(lambda d: d)(lazy)) == 2  # a pytree
    assert "LazyDirections(2 directions" in repr(lazy)
    with pytest.raises(IndexError, match="direction 2 of 2"):
        lazy[2]


def test_leaves_are_found_by_their_names():
    _, lazy = pair()
    turned = dict(reversed(PARAMS.items()))
    assert as_directions(lazy, turned).rules == js.random_directions(3, PARAMS).rules_of(turned)
    equal(as_directions(lazy, turned).basis["out"], lazy.basis["out"])
    with pytest.raises(ValueError, match=r"directions has a leaf \['conv'\]\['bias'\], which params lacks"):
        js.surface({"out": PARAMS["out"]}, LOSS, DATA, directions=lazy)
    other = {**PARAMS, "out": {"kernel": jnp.ones((16, 5))}}
    with pytest.raises(ValueError, match=r"directions\['out'\]\['kernel'\] has shape \(16, 4\), expected \(16, 5\)"):
        js.surface(other, LOSS, DATA, directions=lazy)


def test_what_cannot_be_lazy():
    with pytest.raises(ValueError, match="norm is 'weight', which has a scale for each entry"):
        js.random_directions(0, PARAMS, norm="weight", lazy=True)
    rbg = jax.random.key(0, impl="rbg")
    with pytest.raises(ValueError, match="expected a key of the default generator"):
        js.random_directions(rbg, PARAMS, lazy=True)
    assert isinstance(js.random_directions(rbg, PARAMS), js.Directions)
    with pytest.raises(TypeError, match="lazy is 1"):
        js.random_directions(0, PARAMS, lazy=1)


def test_a_leaf_with_too_many_entries_is_refused():
    part = shards.Part((2**17, 2**16))
    with pytest.raises(ValueError, match=r"a leaf of shape \(131072, 65536\) has more than 2\*\*32 entries"):
        part.rows(0, 1)


def test_they_are_chosen_where_stored_ones_would_not_fit(monkeypatch):
    params = {"w": jnp.ones((300, 300), jnp.float32)}
    assert not isinstance(js.random_directions(0, params), LazyDirections)
    stored = 2 * 4 * 300 * 300
    for free, is_lazy in ((2 * stored, False), (2 * stored - 2, True)):
        monkeypatch.setattr(_random, "free_bytes", lambda devices, free=free: free)
        assert isinstance(js.random_directions(0, params), LazyDirections) == is_lazy
    assert not isinstance(js.random_directions(0, params, norm="weight"), LazyDirections)  # it cannot be


@pytest.mark.parametrize("place", [lambda p: p, lambda p: cut(p, mesh("tensor"))], ids=["whole", "cut"])
def test_bits_do_not_depend_on_how_jax_draws_numbers(place):
    expected = pair_of("filter").basis
    with jax.threefry_partitionable(False):
        for lazy in (False, True):
            equal(js.random_directions(3, place(PARAMS), lazy=lazy).basis, expected)
        traces = [js.hvp(LOSS, p, DATA).trace(num_matvecs=6, progress=False).trace for p in (PARAMS, place(PARAMS))]
        assert traces[1] == pytest.approx(traces[0], rel=1e-12)


def test_float64_without_x64_is_refused():
    lazy = js.random_directions(3, PARAMS, lazy=True)
    short = jax.tree.map(lambda x: np.asarray(x, np.float32), PARAMS)
    with jax.enable_x64(False):
        for use in (
            lambda: lazy.basis,
            lambda: lazy[0],
            lambda: js.surface(short, LOSS, DATA, directions=lazy),
        ):
            with pytest.raises(
                ValueError, match="directions are lazy and of float64, but JAX is configured to float32"
            ):
                use()


@pytest.mark.parametrize("made", slow_but((None, "tensor"), [None, "fsdp", "tensor"]))
@pytest.mark.parametrize("used", slow_but((None, "fsdp"), [None, "fsdp", "tensor"]))
def test_lazy_directions_go_where_params_are(made, used):
    place = lambda params, name: params if name is None else cut(params, mesh(name))  # noqa: E731
    lazy = js.random_directions(3, place(PARAMS, made), lazy=True)
    path = [place(jax.tree.map(lambda x, t=t: t * x, PARAMS), used) for t in (0.5, 1.5)]
    own = place(PARAMS, used)
    projection = js.project(path, own, lazy, progress=False)
    np.testing.assert_allclose(
        projection.coordinates, js.project(path, own, pair_of("filter"), progress=False).coordinates, rtol=1e-10
    )
    assert list(lazy.explain(own).rule) == list(lazy.rules)


@pytest.mark.slow  # a Krylov space: 8 s
def test_leaves_without_entries():
    params = {"none": jnp.zeros((0, 5)), "also": jnp.zeros(0), "w": jnp.ones((4, 3))}
    own = mesh("fsdp")
    in_parts = {
        "none": params["none"],
        "also": params["also"],
        "w": cut({"w": params["w"]}, own)["w"],
        "cut": jax.device_put(jnp.zeros((4, 0)), jax.sharding.NamedSharding(own, jax.sharding.PartitionSpec("fsdp"))),
    }
    loss = lambda p, x: ((x @ p["w"]) ** 2).sum(-1)  # noqa: E731
    for p in (params, in_parts):
        stored, lazy = pair(p, ignore=None)
        equal(stored.basis, lazy.basis)
        assert trees.fingerprint(p)
    ends = js.extreme_eigenvalues(in_parts, loss, jnp.eye(4), progress=False)
    assert float(ends.max_eigenvalue) == pytest.approx(0.5)


def test_params_that_are_cut_are_checked_as_others():
    with pytest.raises(TypeError, match=r"params\['n'\] is int"):
        checks.as_params({"n": jnp.arange(4)})
