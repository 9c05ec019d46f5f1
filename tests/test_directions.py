"""Normalization filter by filter against NumPy loops, and the laws of random directions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import jaxscape as js
from jaxscape import trees
from jaxscape.shards._parts import ROWS
from tests.problems import slow_but

RNG = np.random.default_rng(0)
PARAMS = {
    "conv": {"kernel": jnp.array(RNG.normal(size=(3, 3, 4, 6))), "bias": jnp.array(RNG.normal(size=6))},
    "dense": {"kernel": jnp.array(RNG.normal(size=(5, 7)))},
    "norm": {"scale": jnp.array(RNG.normal(size=7))},
}
TORCH = {"conv": jnp.array(RNG.normal(size=(6, 4, 3, 3))), "linear": jnp.array(RNG.normal(size=(7, 5)))}
NORMS = ("filter", "layer", "weight", "dfilter", "dlayer", None)


def filters(leaf, axis):
    """The filters of a leaf, one by one."""
    return [np.asarray(f) for f in np.moveaxis(np.asarray(leaf), axis, 0)]


@pytest.mark.parametrize(("params", "axis", "filter_axis"), [(PARAMS, -1, None), (TORCH, 0, 0), (PARAMS, 0, 0)])
def test_every_filter_has_the_norm_of_its_counterpart(params, axis, filter_axis):
    for direction in js.random_directions(1, params, filter_axis=filter_axis):
        for d, w in zip(jax.tree.leaves(direction), jax.tree.leaves(params), strict=True):
            if w.ndim > 1:
                for one, other in zip(filters(d, axis), filters(w, axis), strict=True):
                    np.testing.assert_allclose(np.linalg.norm(one), np.linalg.norm(other), rtol=1e-12)


def test_filter_axis_as_a_function_of_path_and_leaf():
    def axes(path, leaf):
        if "heads" in jax.tree_util.keystr(path):
            return (1, 2)  # each head and each of its outputs is a filter
        return None  # one filter

    params = {"heads": jnp.ones((5, 2, 3)), "other": jnp.ones((4, 4))}
    (direction,) = js.random_directions(0, params, num=1, filter_axis=axes)
    np.testing.assert_allclose(np.linalg.norm(direction["heads"], axis=0), np.sqrt(5), rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(direction["other"]), 4, rtol=1e-6)


# Independent formulas, written over the raw draw, which norm=None returns for the same key.
def reference(norm, raw, weights):
    if norm == "weight":
        return raw * weights
    if norm == "layer":
        return raw * np.linalg.norm(weights) / np.linalg.norm(raw)
    if norm == "dlayer":
        return raw / np.linalg.norm(raw)
    if norm is None:
        return raw
    out = np.array(raw)
    for f in range(raw.shape[-1]):
        target = np.linalg.norm(weights[..., f]) if norm == "filter" else 1.0
        out[..., f] *= target / np.linalg.norm(raw[..., f])
    return out


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("ignore", slow_but(["bias_norm"], ["bias_norm", None]))
def test_normalizations_against_loops(norm, ignore):
    raw = js.random_directions(2, PARAMS, num=1, norm=None, ignore=None)[0]
    direction = js.random_directions(2, PARAMS, num=1, norm=norm, ignore=ignore)[0]
    for d, r, w in zip(*map(jax.tree.leaves, (direction, raw, PARAMS)), strict=True):
        zero = ignore == "bias_norm" and w.ndim <= 1
        expected = np.zeros(w.shape) if zero else reference(norm, np.asarray(r), np.asarray(w))
        np.testing.assert_allclose(d, expected, rtol=1e-12)


def test_draws_are_standard_normal_and_differ_between_leaves_and_directions():
    params = {"a": jnp.ones((100, 100)), "b": jnp.ones((100, 100))}
    draws = [np.ravel(leaf) for d in js.random_directions(0, params, norm=None) for leaf in jax.tree.leaves(d)]
    for draw in draws:
        assert abs(draw.mean()) < 0.05
        assert abs(draw.std() - 1) < 0.03
        assert abs((draw**4).mean() - 3) < 0.3  # Gaussian, not uniform (1.8)
    correlations = np.corrcoef(draws) - np.eye(4)
    assert np.abs(correlations).max() < 0.05


def test_a_direction_does_not_depend_on_how_many_are_drawn():
    jax.tree.map(
        np.testing.assert_array_equal,
        js.random_directions(0, PARAMS, num=1)[0],
        js.random_directions(0, PARAMS, num=3)[0],
    )


def test_same_key_same_directions_on_any_device():
    one = js.random_directions(jax.random.key(4), jax.device_put(PARAMS, jax.devices()[3]))
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("d",))
    last = jax.tree.map(
        lambda x: jax.sharding.PartitionSpec(*[None] * (x.ndim - 1), "d" if x.shape[-1] % 2 == 0 else None), PARAMS
    )
    sharded = jax.tree.map(lambda x, s: jax.device_put(x, jax.sharding.NamedSharding(mesh, s)), PARAMS, last)
    for other in (js.random_directions(4, PARAMS), js.random_directions(jax.random.PRNGKey(4), sharded)):
        jax.tree.map(np.testing.assert_array_equal, one.basis, other.basis)


def test_zero_filters_get_a_zero_direction():
    kernel = PARAMS["conv"]["kernel"].at[..., 2].set(0)
    direction = js.random_directions(0, {"kernel": kernel}, num=1)[0]["kernel"]
    assert (direction[..., 2] == 0).all()
    assert np.isfinite(direction).all()


def test_ignore_by_predicate():
    def first(path, leaf):
        return "conv" in jax.tree_util.keystr(path)

    direction = js.random_directions(0, PARAMS, num=1, ignore=first)[0]
    assert not np.any(direction["conv"]["kernel"])
    assert np.any(direction["norm"]["scale"])


def test_low_precision_params_get_float32_directions():
    direction = js.random_directions(0, {"w": jnp.ones((3, 3), jnp.bfloat16)})
    assert direction.basis["w"].dtype == jnp.float32


def test_indexing_iterating_and_stacking():
    three = js.random_directions(0, PARAMS, num=3)
    assert len(three) == 3
    assert len(three[1:]) == 2
    again = js.Directions.stack([three[0], three[1:]])
    jax.tree.map(np.testing.assert_array_equal, again.basis, three.basis)
    jax.tree.map(np.testing.assert_array_equal, list(three)[2], three[-1])
    assert js.Directions.stack([three[:1], three[1:]]).recipe == three.recipe
    assert jax.tree.leaves(jax.jit(lambda d: d)(three))[0].shape[0] == 3  # a pytree
    with pytest.raises(IndexError, match="direction 3 of 3"):
        three[3]


def test_orthogonalize_is_gram_schmidt():
    three = js.random_directions(0, PARAMS, num=3)
    flat = np.stack([np.concatenate([np.ravel(x) for x in jax.tree.leaves(d)]) for d in three])
    done = three.orthogonalize()
    ours = np.stack([np.concatenate([np.ravel(x) for x in jax.tree.leaves(d)]) for d in done])
    q, r = np.linalg.qr(flat.T)
    np.testing.assert_allclose(ours.T, q * np.diag(r), rtol=1e-10, atol=1e-12)
    assert ("orthogonalized", "Gram-Schmidt") in done.recipe
    jax.tree.map(np.testing.assert_array_equal, done[0], three[0])


def test_dependent_directions_cannot_be_orthogonalized():
    one = js.random_directions(0, PARAMS, num=1)
    twice = js.Directions.stack([one, one])
    with pytest.raises(ValueError, match="direction 1 lies in the span of the directions before it"):
        twice.orthogonalize()


def test_explain_tells_rule_and_ratio_of_each_leaf():
    table = js.random_directions(0, PARAMS).explain(PARAMS).set_index("leaf")
    assert table.loc["['conv']['kernel']", "rule"] == "filter: 6 over axis 3"
    assert table.loc["['conv']['bias']", "rule"] == "ignored: rank <= 1"
    np.testing.assert_allclose(table.loc["['dense']['kernel']", ["ratio_0", "ratio_1"]].astype(float), 1, rtol=1e-6)
    np.testing.assert_array_equal(table.loc["['norm']['scale']", ["ratio_0", "ratio_1"]].astype(float), 0)


def test_direction_between_reaches_the_other_end():
    other = jax.tree.map(lambda x: x + 1, PARAMS)
    jax.tree.map(lambda d: np.testing.assert_allclose(d, 1), js.direction_between(PARAMS, other))
    with pytest.raises(ValueError, match=r"b has no leaf \['norm'\]\['scale'\]"):
        js.direction_between(PARAMS, {k: v for k, v in PARAMS.items() if k != "norm"})


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"norm": "filters"}, ValueError, "norm is 'filters', expected one of 'filter', 'layer'"),
        ({"ignore": "bias"}, ValueError, "ignore is 'bias', expected 'bias_norm', None or a predicate"),
        ({"num": 2.5}, TypeError, "num is 2.5, expected an integer of at least 1"),
        ({"num": 0}, ValueError, "num is 0, expected an integer of at least 1"),
        ({"filter_axis": 2}, ValueError, r"filter_axis 2 is outside params\['dense'\]\['kernel'\] of shape \(5, 7\)"),
    ],
)
def test_bad_options(options, error, match):
    with pytest.raises(error, match=match):
        js.random_directions(0, PARAMS, **options)


def test_bad_keys_and_params():
    with pytest.raises(TypeError, match="key is str, expected a JAX random key or an integer seed"):
        js.random_directions("seed", PARAMS)
    with pytest.raises(ValueError, match="params has no leaves"):
        js.random_directions(0, {})
    with pytest.raises(ValueError, match="directions is empty"):
        js.Directions.stack([])


def test_dot_keeps_full_precision_and_displace_is_affine():
    a = {"x": jnp.full(1000, 1e-3, jnp.bfloat16)}
    assert trees.dot(a, a).dtype == jnp.float32
    two = js.random_directions(0, PARAMS)
    point = trees.displace(PARAMS, two.basis, jnp.array([2.0, -0.5]))
    expected = jax.tree.map(lambda p, d, e: p + 2 * d - 0.5 * e, PARAMS, two[0], two[1])
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-12), point, expected)


def test_a_large_leaf_is_normal_in_every_chunk():
    size = 2 * ROWS + 5
    leaf = np.asarray(js.random_directions(0, jnp.ones((size, 1), jnp.float32), num=1, norm=None).basis[0, :, 0])
    for part in (leaf[:ROWS], leaf[ROWS : 2 * ROWS]):
        assert scipy.stats.kstest(part, "norm").pvalue > 1e-3
    assert np.count_nonzero(leaf) == size
    assert abs(np.corrcoef(leaf[:ROWS], leaf[-ROWS:])[0, 1]) < 5e-3
