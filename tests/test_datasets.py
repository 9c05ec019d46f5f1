"""Data sets: real, split once and for all, normalized by their train split."""

import numpy as np
import pytest

import jaxscape as js


def test_digits():
    train, test = js.datasets.load("digits")
    assert train.images.shape == (1437, 8, 8, 1)
    assert test.images.shape == (360, 8, 8, 1)
    assert (train.images.dtype, train.labels.dtype) == (np.float32, np.int32)
    np.testing.assert_allclose([train.images.mean(), train.images.std()], [0, 1], atol=1e-5)
    assert 0 < abs(test.images.mean()) < 0.1  # by the train split's statistics, not by its own
    counts = np.bincount(test.labels)
    assert len(counts) == 10
    assert counts.min() >= 34  # stratified
    whole = np.concatenate([train.images, test.images]).reshape(1797, -1)
    assert len(np.unique(whole, axis=0)) == 1797  # no image is in both


def test_the_split_is_always_the_same():
    for one, other in zip(js.datasets.load("digits"), js.datasets.load("digits"), strict=True):
        np.testing.assert_array_equal(one.labels, other.labels)
        np.testing.assert_array_equal(one.images, other.images)


def test_unknown_name():
    with pytest.raises(ValueError, match="dataset is 'mnist', expected one of digits"):
        js.datasets.load("mnist")
