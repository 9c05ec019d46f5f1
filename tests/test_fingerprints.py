"""Hashes of pytrees: equal for equal contents, other for any change."""

import gc
import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxscape import trees


def by_definition(tree):
    """The hash of each leaf, one after another."""
    whole = hashlib.blake2b(digest_size=8)
    for path, leaf in jax.tree_util.tree_leaves_with_path((tree,)):
        leaf = np.atleast_1d(np.asarray(leaf))
        one = hashlib.blake2b(f"{leaf.dtype}{leaf.shape}".encode() + leaf.tobytes(), digest_size=16)
        whole.update(f"{jax.tree_util.keystr(path)}{one.hexdigest()}".encode())
    return whole.hexdigest()


@pytest.mark.parametrize("size", [0, 3, 3_000_000])  # the last one is hashed in threads
def test_by_definition(size):
    tree = {"b": np.arange(size, dtype=np.float32), "a": [jnp.arange(2.0 * size), 3.0, np.arange(4)[::2]]}
    assert trees.fingerprint(tree) == by_definition(tree)
    for entry in {0, size // 2, size - 1} if size else ():
        assert trees.fingerprint(tree | {"b": np.where(np.arange(size) == entry, -1, tree["b"])}) != by_definition(tree)


def test_an_array_that_shares_its_memory_with_numpy():
    entries = np.zeros(1024, np.float32)
    shared = jnp.asarray(entries)
    before = trees.fingerprint(shared)
    entries += 1
    assert (trees.fingerprint(shared) == before) == bool((np.array(shared) == 0).all())


def test_an_immutable_array_is_hashed_once(monkeypatch):
    hashed = []
    digest = trees._digest
    monkeypatch.setattr(trees, "_is_immutable", lambda array: isinstance(array, jax.Array))  # as on an accelerator
    monkeypatch.setattr(trees, "_digest", lambda array: hashed.append(1) or digest(array))
    remembered = len(trees._DIGESTS)
    tree = {"w": jnp.arange(5.0), "b": np.zeros(2)}
    assert trees.fingerprint(tree) == trees.fingerprint(tree) == by_definition(tree)
    assert len(hashed) == 3  # the NumPy array twice
    del tree
    gc.collect()
    assert len(trees._DIGESTS) == remembered
