"""Real image data sets, loaded into memory by name."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxscape import cifar
from jaxscape.arguments import checked

# Mean and standard deviation of red, green and blue over the train split, on a scale from 0 to 255, from the paper's
# code.
STATISTICS = {
    "cifar10": ((125.3, 123.0, 113.9), (63.0, 62.1, 66.7)),
    "cifar100": ((129.3, 124.1, 112.4), (68.2, 65.4, 70.4)),
}


class Split(NamedTuple):
    """The images and labels of one split, a tuple that every jaxscape call accepts as ``data``.

    Attributes:
        images: Shape ``(examples, height, width, channels)``: float32 and normalized; or uint8 and not normalized,
            which takes a quarter of the memory (`normalize` normalizes a batch).
        labels: Shape ``(examples,)``, int32, from 0 to the number of classes less 1.
    """

    images: np.ndarray
    labels: np.ndarray


@checked
def load(name: str, data_dir: str | Path | None = None) -> tuple[Split, Split]:
    """Load the train and the test split of a data set.

    - ``"digits"``: 1797 real grey images of handwritten digits, 8x8 pixels, 10 classes (Alpaydin & Kaynak 1998; part
      of scikit-learn), in a fixed stratified split into 1437 images for training and 360 for test; float32,
      normalized.
    - ``"cifar10"``, ``"cifar100"``: 50,000 color images for training and 10,000 for test, 32x32 pixels (Krizhevsky
      2009), loaded with tensorflow-datasets; uint8. If ``data_dir`` holds the official binary archive, no network is
      needed.
    - ``"cifar10-files"``, ``"cifar100-files"``: the same images, read from the official binary or Python archive,
      packed or unpacked.

    >>> train, test = load("digits")
    >>> train.images.shape, test.labels.shape
    ((1437, 8, 8, 1), (360,))

    Args:
        name: The name of the data set, one of those above.
        data_dir: The folder with the files of the data set. ``"digits"`` ignores it. None: for ``"cifar10"`` and
            ``"cifar100"`` the folder of tensorflow-datasets; the ``-files`` data sets require a folder.

    Returns:
        The train and the test split.

    Raises:
        ValueError: The name is unknown (the message lists the known names), ``data_dir`` is missing, or a file is
            broken.
        FileNotFoundError: The files of the data set do not exist; the message says what to fetch and where to put it.
        ImportError: scikit-learn or tensorflow-datasets is not installed.
    """
    if name not in LOADERS:
        raise ValueError(f"dataset is {name!r}, expected one of {', '.join(LOADERS)}.")
    return LOADERS[name](data_dir)


def normalize(images: Array, name: str, dtype: Any = jnp.float32) -> Array:
    """Normalize uint8 images to ``(x - mean) / std`` for each channel; floating images are only cast.

    >>> round(float(normalize(jnp.full((1, 32, 32, 3), 255, jnp.uint8), "cifar10")[0, 0, 0, 0]), 3)
    2.059

    Args:
        images: Shape ``(batch, height, width, channels)``.
        name: The name of the data set, whose statistics are used.
        dtype: The dtype of the result.

    Returns:
        The images, of type ``dtype``.
    """
    if images.dtype != jnp.uint8:
        return images.astype(dtype)
    mean, std = (jnp.array(x, dtype) for x in STATISTICS[name.removesuffix("-files")])
    return (images.astype(dtype) - mean) / std


def _digits(data_dir: str | Path | None) -> tuple[Split, Split]:
    del data_dir  # embedded
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8, 1)
    train, test, *labels = train_test_split(images, labels, test_size=360, stratify=labels, random_state=0)
    mean, std = train.mean((0, 1, 2)), train.std((0, 1, 2))
    splits = [
        Split(((x - mean) / std).astype(np.float32), y.astype(np.int32))
        for x, y in zip((train, test), labels, strict=True)
    ]
    return splits[0], splits[1]


def _cifar(name: str, data_dir: str | Path | None) -> tuple[Split, Split]:
    train, test = cifar.from_tensorflow_datasets(name, Path(data_dir) if data_dir else None)
    return Split(*train), Split(*test)


def _cifar_files(name: str, data_dir: str | Path | None) -> tuple[Split, Split]:
    if data_dir is None:
        raise ValueError(f"data_dir is missing: {name}-files reads the official archive from there (--data-dir DIR).")
    train, test = cifar.from_files(name, Path(data_dir))
    return Split(*train), Split(*test)


LOADERS: dict[str, Callable[[str | Path | None], tuple[Split, Split]]] = {
    "digits": _digits,
    **{name: functools.partial(_cifar, name) for name in STATISTICS},
    **{f"{name}-files": functools.partial(_cifar_files, name) for name in STATISTICS},
}
