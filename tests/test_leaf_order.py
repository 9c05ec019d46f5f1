"""Leaves are matched by their paths: a pytree with the same leaves in another order is the same pytree."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jaxscape as js
from jaxscape import trees

LEAVES = {"b": 2.0, "a": 1.0, "inner": {"z": 5.0, "y": 4.0}}
A = jax.tree.map(lambda x: jnp.full((2, 2), x, jnp.float32), LEAVES)
DATA = np.ones(4, np.float32)
FACTORS = {"['a']": 10.0, "['b']": 1.0, "['inner']['y']": 3.0, "['inner']['z']": 0.5}
QUICK = {"mesh": jax.sharding.Mesh(jax.devices()[:1], ("points",)), "check": False}


def named(tree):
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def loss(params, x):
    """Each leaf counts with a factor of its own."""
    return x * sum(FACTORS[name] * (leaf**2).sum() for name, leaf in named(params).items())


def ordered(tree, order):
    """The same pytree of OrderedDicts, the outer keys in this order and the inner keys backwards."""
    inner = collections.OrderedDict((k, tree["inner"][k]) for k in ("z", "y"))
    return collections.OrderedDict((k, inner if k == "inner" else tree[k]) for k in order)


ORDERS = st.permutations(list(LEAVES))
LINE = js.Grid.line(0, 1, 2)


@given(ORDERS)
def test_directions(order):
    other = ordered(A, order)
    assert all(not x.any() for x in jax.tree.leaves(js.direction_between(A, other)))
    drawn, same = js.random_directions(0, A), js.random_directions(0, other)
    for name, leaf in named(drawn.basis).items():
        np.testing.assert_array_equal(named(same.basis)[name], leaf, name)
    table = same.explain(A)
    assert (table == drawn.explain(A)).all(axis=None)
    assert len(js.Directions.stack([drawn, same])) == 4


def test_rules_follow_their_leaves():
    params = {"b": jnp.ones((2, 3)), "a": jnp.ones(3)}
    directions = js.random_directions(0, params)
    other = collections.OrderedDict(b=params["b"], a=params["a"])
    assert (
        directions.explain(other).set_index("leaf").rule.to_dict()
        == directions.explain(params).set_index("leaf").rule.to_dict()
    )
    stacked = js.Directions.stack([directions, js.random_directions(1, other)])
    assert stacked.rules == directions.rules


@given(ORDERS)
def test_surfaces(order):
    other = ordered(A, order)
    value = float(loss(A, 1.0))
    options = {"grid": LINE, "batch_size": 4, "points_per_step": 1, "progress": False, **QUICK}
    assert js.interpolate(A, other, loss, DATA, **options).loss.values.tolist() == [value, value]
    assert js.surface(A, loss, DATA, directions=other, **options).loss.values.tolist() == [value, 4 * value]
    assert js.surface(A, loss, DATA, directions=[other], **options).loss.values.tolist() == [value, 4 * value]


@given(ORDERS)
def test_products(order):
    hessian = js.hvp(loss, A, DATA, **QUICK)
    for name, leaf in named(hessian(ordered(A, order))).items():
        np.testing.assert_allclose(leaf, 2 * FACTORS[name] * named(A)[name])


@given(ORDERS)
def test_the_result_of_a_product_that_anybody_gives(order):
    def matvec(v):
        return ordered({**jax.tree.map(lambda x: x, v), "a": 7 * v["a"]}, order)

    image = js.Operator.of(matvec, A)(A)
    assert float(image["a"][0, 0]) == 7
    assert float(image["b"][0, 0]) == 2
    assert js.lanczos(matvec, A, key=0).max_eigenvalue.round(4) == 7


@given(ORDERS)
def test_paths(order):
    other = ordered(A, order)
    assert js.project([other], A, [A], progress=False).distance.values.tolist() == [0.0]
    assert js.project([A], other, [A], progress=False).coordinates.values.tolist() == [[0.0]]
    rows = [jax.tree.map(lambda x, k=k: x * (1.0 + 0.1 * k**2) + k, A) for k in range(4)]
    mixed = [ordered(row, order) if k % 2 else row for k, row in enumerate(rows)]
    (plain, ratio), (same, of_mixed) = (js.pca_directions(r, num=1, progress=False) for r in (rows, mixed))
    np.testing.assert_array_equal(of_mixed, ratio)
    jax.tree.map(np.testing.assert_array_equal, same.basis, plain.basis)


@jax.tree_util.register_pytree_with_keys_class
class Nameless:
    """Two leaves with one path."""

    def __init__(self, *leaves):
        self.leaves = leaves

    def tree_flatten_with_keys(self):
        return [(jax.tree_util.GetAttrKey("x"), leaf) for leaf in self.leaves], None

    @classmethod
    def tree_unflatten(cls, aux, leaves):
        return cls(*leaves)


def test_leaves_without_names_keep_their_order():
    point = {"n": Nameless(jnp.ones(2), jnp.zeros(2))}
    between = js.direction_between(point, {"n": Nameless(jnp.zeros(2), jnp.zeros(2))})
    assert [leaf.tolist() for leaf in jax.tree.leaves(between)] == [[-1.0, -1.0], [0.0, 0.0]]


def test_leaves_without_names_in_another_order_are_refused():
    a = {"m": jnp.ones(2), "n": Nameless(jnp.ones(2), jnp.zeros(2))}
    b = collections.OrderedDict(n=a["n"], m=a["m"])
    with pytest.raises(ValueError, match=r"several leaves with the path \['n'\]\.x"):
        js.direction_between(a, b)


def test_matvec_gives_other_leaves():
    with pytest.raises(ValueError, match=r"the result of matvec has no leaf \['b'\]"):
        js.Operator.of(lambda v: {"a": v["a"]}, {"a": jnp.ones(2), "b": jnp.ones(2)})(
            {"a": jnp.ones(2), "b": jnp.ones(2)}
        )


def test_a_complex_operator_is_refused():
    with pytest.raises(TypeError, match="the result of matvec is complex"):
        js.lanczos(lambda v: 1j * v, jnp.zeros(5), key=0)


def test_leaves_without_names_that_are_too_many_are_refused():
    a, b = {"n": Nameless(jnp.ones(2))}, {"n": Nameless(jnp.ones(2), jnp.zeros(2))}
    with pytest.raises(ValueError, match=r"b has several leaves with the path \['n'\]\.x"):
        js.direction_between(a, b)


def test_keys_that_cannot_be_sorted_keep_their_order():
    assert trees.ranks(collections.OrderedDict([(2j, 1.0), (1j, 2.0)])) == [0, 1]
