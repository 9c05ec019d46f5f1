"""Image data sets by name: real ones, in memory, normalized with the statistics of their train split."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np


class Split(NamedTuple):
    """Images and labels of one split; as a tuple it is the ``data`` of every jaxscape call.

    Attributes:
        images: Shape ``(examples, height, width, channels)``, float32, normalized.
        labels: Shape ``(examples,)``, int32, from 0 to the number of classes less 1.
    """

    images: np.ndarray
    labels: np.ndarray


def load(name: str, data_dir: str | Path | None = None) -> tuple[Split, Split]:
    """Load a data set.

    ``"digits"``: 1797 real grey images of handwritten digits, 8x8, 10 classes (Alpaydin & Kaynak 1998; embedded in
    scikit-learn), in a fixed stratified split into 1437 for training and 360 for test.

    >>> train, test = load("digits")
    >>> train.images.shape, test.labels.shape
    ((1437, 8, 8, 1), (360,))

    Args:
        name: Which one.
        data_dir: Where the files are, for a data set that is not embedded.

    Returns:
        The train and the test split; each channel has mean 0 and standard deviation 1 over the train split.

    Raises:
        ValueError: The name is unknown; the message lists the known ones.
    """
    if name not in LOADERS:
        raise ValueError(f"dataset is {name!r}, expected one of {', '.join(LOADERS)}.")
    return LOADERS[name](data_dir)


def _digits(data_dir: str | Path | None) -> tuple[Split, Split]:
    del data_dir  # embedded
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8, 1)
    parts = train_test_split(images, labels, test_size=360, stratify=labels, random_state=0)
    return _normalized(*parts)


def _normalized(train: np.ndarray, test: np.ndarray, *labels: np.ndarray) -> tuple[Split, Split]:
    """Shift and scale each channel by the statistics of the train split."""
    mean, std = train.mean((0, 1, 2)), train.std((0, 1, 2))
    splits = [
        Split(((images - mean) / std).astype(np.float32), label.astype(np.int32))
        for images, label in zip((train, test), labels, strict=True)
    ]
    return splits[0], splits[1]


LOADERS: dict[str, Callable[[str | Path | None], tuple[Split, Split]]] = {"digits": _digits}
