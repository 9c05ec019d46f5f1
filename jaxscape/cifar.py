"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009): from the official archives on disk, or with tensorflow-datasets."""

import io
import itertools
import pickle
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

PIXELS = 3 * 32 * 32
Arrays = tuple[np.ndarray, np.ndarray]
"""Images, uint8 of shape ``(examples, 32, 32, 3)``, and labels, int32."""


class _Layout(NamedTuple):
    """The layout of an official archive: its name, the folder inside it, and the files of the train and test split."""

    archive: str
    folder: str
    files: tuple[tuple[str, ...], tuple[str, ...]]
    parse: Callable[[bytes, str], Arrays]


def _from_records(labels: int) -> Callable[[bytes, str], Arrays]:
    """A parser of the binary version: each record has the labels of an example, the last of which is used, and pixels.

    The pixels are 3 planes (red, green and blue) of 32 rows each.

    Args:
        labels: The number of labels in a record.

    Returns:
        A function of the content and the name of a file.
    """

    def parse(content: bytes, name: str) -> Arrays:
        width = labels + PIXELS
        if not content or len(content) % width:
            raise ValueError(f"{name} has {len(content)} bytes, expected records of {width}; fetch it anew.")
        records = np.frombuffer(content, np.uint8).reshape(-1, width)
        return _images(records[:, labels:]), records[:, labels - 1].astype(np.int32)

    return parse


def _from_pickle(key: bytes) -> Callable[[bytes, str], Arrays]:
    """A parser of the Python version: a pickled dict with the entry ``data`` and the labels under ``key``."""

    def parse(content: bytes, name: str) -> Arrays:
        try:
            batch = _ArraysOnly(io.BytesIO(content), encoding="bytes").load()
            return _images(np.asarray(batch[b"data"], np.uint8)), np.asarray(batch[key], np.int32)
        except (pickle.UnpicklingError, EOFError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{name} is no official batch of images ({error}); fetch it anew.") from error

    return parse


class _ArraysOnly(pickle.Unpickler):
    """An unpickler that creates only NumPy arrays, since a pickle could run any code."""

    def find_class(self, module: str, name: str) -> Any:
        """Look up a class or function that creates arrays; refuse all others."""
        if module.split(".")[0] == "numpy" and name in ("_reconstruct", "ndarray", "dtype"):
            return super().find_class(module, name)
        if (module, name) == ("_codecs", "encode"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it holds {module}.{name}")


def _images(rows: np.ndarray) -> np.ndarray:
    """Convert rows of pixels, channels first, to images with channels last."""
    return np.ascontiguousarray(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


_BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))
_OFFICIAL = {
    "cifar10": (
        _Layout(
            "cifar-10-binary.tar.gz",
            "cifar-10-batches-bin",
            (tuple(f"{name}.bin" for name in _BATCHES), ("test_batch.bin",)),
            _from_records(1),
        ),
        _Layout("cifar-10-python.tar.gz", "cifar-10-batches-py", (_BATCHES, ("test_batch",)), _from_pickle(b"labels")),
    ),
    "cifar100": (
        _Layout("cifar-100-binary.tar.gz", "cifar-100-binary", (("train.bin",), ("test.bin",)), _from_records(2)),
        _Layout("cifar-100-python.tar.gz", "cifar-100-python", (("train",), ("test",)), _from_pickle(b"fine_labels")),
    ),
}


def from_files(name: str, data_dir: Path) -> tuple[Arrays, Arrays]:
    """Read the official binary or Python version, packed or unpacked.

    Args:
        name: ``"cifar10"`` or ``"cifar100"``.
        data_dir: The folder that contains the archive, its unpacked folder, or the files of this folder.

    Returns:
        The train and the test split.

    Raises:
        FileNotFoundError: The folder contains none of these; the message says what to fetch and where to put it.
        ValueError: A file is missing or broken.
    """
    for layout in _OFFICIAL[name]:
        content = _unpacked(layout, data_dir) or _packed(layout, data_dir)
        if content:
            train, test = ([layout.parse(content[file], file) for file in files] for files in layout.files)
            return _joined(train), _joined(test)
    raise FileNotFoundError(missing(name, data_dir))


def missing(name: str, data_dir: Path) -> str:
    """The error message for a folder without the files of the data set."""
    archives = " or ".join(layout.archive for layout in _OFFICIAL[name])
    return (
        f"{name} not found: data_dir {data_dir} has neither {archives} nor the unpacked files. Fetch "
        f"https://www.cs.toronto.edu/~kriz/{_OFFICIAL[name][0].archive} and put it there, as it is."
    )


def _unpacked(layout: _Layout, data_dir: Path) -> dict[str, bytes] | None:
    """The content of each unpacked file; None: the files do not exist."""
    for folder in (data_dir / layout.folder, data_dir):
        names = [*itertools.chain(*layout.files)]
        if (folder / names[0]).is_file():
            for name in names:
                if not (folder / name).is_file():
                    raise ValueError(f"{folder} lacks {name}; fetch it anew.")
            return {name: (folder / name).read_bytes() for name in names}
    return None


def _packed(layout: _Layout, data_dir: Path) -> dict[str, bytes] | None:
    """The content of each file in the archive; None: the archive does not exist."""
    path = data_dir / layout.archive
    if not path.is_file():
        return None
    with tarfile.open(path) as archive:
        members = {member.name: member for member in archive if member.isfile()}
        content = {}
        for name in itertools.chain(*layout.files):
            if f"{layout.folder}/{name}" not in members:
                raise ValueError(f"{path} lacks {layout.folder}/{name}; fetch it anew.")
            content[name] = archive.extractfile(members[f"{layout.folder}/{name}"]).read()  # type: ignore[union-attr]
    return content


def _joined(parts: list[Arrays]) -> Arrays:
    images, labels = zip(*parts, strict=True)
    return np.concatenate(images), np.concatenate(labels)


def from_tensorflow_datasets(name: str, data_dir: Path | None) -> tuple[Arrays, Arrays]:
    """Read the data set with tensorflow-datasets.

    tensorflow-datasets needs TensorFlow to prepare a data set. Therefore, if the data set is not prepared and the
    folder contains an official archive, `from_files` reads this archive without TensorFlow.

    Args:
        name: ``"cifar10"`` or ``"cifar100"``.
        data_dir: The folder of the prepared data set, or in which it will be prepared; it may contain an official
            archive. None: ``~/tensorflow_datasets``.

    Returns:
        The train and the test split.

    Raises:
        ImportError: tensorflow-datasets is not installed.
        FileNotFoundError: The data set does not exist, and it could not be fetched.
    """
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ImportError(
            f"dataset {name} needs tensorflow-datasets: `pip install -e .[cifar]`; or read the official archive with "
            f"--dataset {name}-files --data-dir DIR."
        ) from error
    builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
    folder = Path(data_dir or builder.data_dir)
    if not builder.is_prepared():
        try:
            return from_files(name, folder)
        except FileNotFoundError:
            pass
        try:
            builder.download_and_prepare()
        except Exception as error:  # many types: no network, a refused connection, no TensorFlow
            raise FileNotFoundError(f"{missing(name, folder)} ({error})") from error
    train, test = (_stack(iter(builder.as_data_source(split))) for split in ("train", "test"))
    return train, test


def _stack(examples: Iterator[Any]) -> Arrays:
    pairs = [(example["image"], example["label"]) for example in examples]
    images, labels = zip(*pairs, strict=True)
    return np.stack(images), np.array(labels, np.int32)
