"""Laws for params of any shape: scalars, empty leaves, None, nodes of any class, 16 to 64 bits; ragged data; stores."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import jaxscape as js
from jaxscape.sweep import Layout, Store

DTYPES = (jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64)
SHAPES = ((), (0,), (1,), (3,), (2, 3), (0, 2), (2, 1, 3))


@jax.tree_util.register_pytree_with_keys_class
class Pair:
    """A node of a class that JAX did not know."""

    def __init__(self, left, right):
        self.left, self.right = left, right

    def tree_flatten_with_keys(self):
        key = jax.tree_util.GetAttrKey
        return ((key("left"), self.left), (key("right"), self.right)), None

    @classmethod
    def tree_unflatten(cls, _, children):
        return cls(*children)


def leaf(shape, dtype):
    return jnp.asarray(np.random.default_rng(len(shape)).normal(size=shape), dtype)


leaves = st.builds(leaf, st.sampled_from(SHAPES), st.sampled_from(DTYPES))
nodes = st.recursive(
    leaves | st.none(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.sampled_from(["kernel", "bias", "scale", "w"]), inner, max_size=3)
        | st.builds(Pair, inner, inner)
    ),
    max_leaves=5,
)
trees = nodes.filter(lambda tree: any(x.size for x in jax.tree.leaves(tree)))
axes = st.lists(st.sampled_from([-1.0, -0.5, 0.0, 0.25, 1.0, 2.0]), min_size=1, max_size=4, unique=True)
RARE = settings(max_examples=4, suppress_health_check=[HealthCheck.function_scoped_fixture])


def loss(params, x):
    wide = [leaf.astype(jnp.float64) for leaf in jax.tree.leaves(params)]
    return sum((jnp.sum(jnp.tanh(leaf)) - x) ** 2 for leaf in wide)


# 7 s: each example compiles
@RARE
@given(trees, axes, axes, st.integers(1, 7), st.integers(1, 9))
def test_any_params_give_the_values_of_a_loop(params, alphas, betas, examples, batch_size):
    grid = js.Grid((np.array(alphas), np.array(betas)))
    data = np.linspace(-1, 1, examples)
    directions = js.random_directions(0, params, ignore=None)
    assert jax.tree.structure(directions[0]) == jax.tree.structure(params)
    options = {"directions": directions, "grid": grid, "progress": False, "check": False}
    result = js.surface(params, loss, data, batch_size=batch_size, **options)
    for (i, a), (j, b) in itertools.product(enumerate(alphas), enumerate(betas)):
        point = [
            (np.asarray(p, np.float64) + a * np.asarray(d, np.float64) + b * np.asarray(e, np.float64)).astype(p.dtype)
            for p, d, e in zip(*map(jax.tree.leaves, (params, *directions)), strict=True)
        ]
        expected = np.mean([sum((np.tanh(np.float64(p)).sum() - x) ** 2 for p in point) for x in data])
        coarsest = max(float(jnp.finfo(p.dtype).eps) for p in point)
        size = sum(p.size for p in point) + 1
        np.testing.assert_allclose(result.loss[i, j], expected, rtol=1e-6, atol=8 * coarsest * size**2)


# 4 s: each example makes and reads a store
@RARE
@given(axes, axes, st.sampled_from([np.float64, np.float32, np.int64, bool]), st.integers(1, 5), st.data())
def test_any_rows_of_a_store_come_back(tmp_path_factory, alphas, betas, kind, chunk, data):
    path = tmp_path_factory.mktemp("store") / "s.zarr"
    grid = js.Grid((np.array(alphas), np.array(betas)))
    num = int(np.prod(grid.shape)) + data.draw(st.integers(0, 1))
    rng = np.random.default_rng(num)
    columns = {"x": rng.normal(size=num).astype(kind), "y": rng.normal(size=(num, 2, 2)).astype(kind)}
    blocks = data.draw(st.permutations(range(num)))[: data.draw(st.integers(0, num))]
    for row in blocks:
        with Store(path, {"seed": 1}, Layout.of(grid, columns, chunk)) as store:
            store.write(slice(row, row + 1), {name: column[row : row + 1] for name, column in columns.items()})
    with Store(path, {"seed": 1}, Layout.of(grid, columns, chunk + 1)) as store:
        assert sorted(np.flatnonzero(store.done)) == sorted(blocks)
        for name, column in store.read().items():
            assert column.dtype == kind
            np.testing.assert_array_equal(column[sorted(blocks)], columns[name][sorted(blocks)])


def test_empty_params_are_refused():
    for params in ({}, None, [None, {}]):
        with pytest.raises(ValueError, match="params has no leaves"):
            js.surface(params, loss, np.ones(3))


def test_a_stored_surface_of_16_bits_is_the_same(tmp_path):
    params = {"a": leaf((2, 3), jnp.bfloat16), "b": leaf((), jnp.float16), "c": leaf((0,), jnp.float32)}
    options = {"grid": js.Grid.line(-1, 1, 3), "directions": [params], "progress": False}
    plain = js.surface(params, loss, np.ones(3), **options)
    stored = js.surface(params, loss, np.ones(3), store=tmp_path / "s.zarr", **options)
    xr.testing.assert_identical(stored.drop_attrs(), plain.drop_attrs())
