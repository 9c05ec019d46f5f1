"""Data sets: real, split once and for all; the official archives of CIFAR, written here with random pixels."""

import io
import pickle
import tarfile
import types

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import jaxscape as js
from jaxscape import cifar, datasets


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
    with pytest.raises(ValueError, match="dataset is 'mnist', expected one of digits, cifar10, cifar100"):
        js.datasets.load("mnist")


# ---- CIFAR

FILES = {
    "cifar10": ("cifar-10-binary.tar.gz", "cifar-10-batches-bin", 10, 1),
    "cifar100": ("cifar-100-binary.tar.gz", "cifar-100-binary", 100, 2),
}


def random_batches(name, per_file=20):
    """For each file of the official archive its images and labels."""
    rng = np.random.default_rng(0)
    files = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"] if name == "cifar10" else ["train", "test"]
    classes = FILES[name][2]
    return {
        file: (rng.integers(0, 256, (per_file, 32, 32, 3)).astype(np.uint8), rng.integers(0, classes, per_file))
        for file in files
    }


def write_binary(name, folder, batches):
    """As https://www.cs.toronto.edu/~kriz/cifar.html says: labels, then red, green and blue, row by row."""
    archive, inside, _, labels = FILES[name]
    with tarfile.open(folder / archive, "w:gz") as tar:
        for file, (images, classes) in batches.items():
            records = b"".join(
                bytes([7] * (labels - 1) + [int(label)])
                + b"".join(image[:, :, channel].tobytes() for channel in range(3))
                for image, label in zip(images, classes, strict=True)
            )
            add(tar, f"{inside}/{file}.bin", records)
        names = "airplane automobile bird cat deer dog frog horse ship truck".replace(" ", "\n")
        add(tar, f"{inside}/batches.meta.txt", names.encode())
    return folder


def write_python(name, folder, batches):
    key, inside = (b"labels", "cifar-10-batches-py") if name == "cifar10" else (b"fine_labels", "cifar-100-python")
    with tarfile.open(folder / FILES[name][0].replace("binary", "python"), "w:gz") as tar:
        for file, (images, classes) in batches.items():
            rows = np.stack([image.transpose(2, 0, 1).ravel() for image in images])
            add(tar, f"{inside}/{file}", pickle.dumps({b"data": rows, key: classes.tolist()}, protocol=2))
    return folder


def add(tar, name, content):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def expected(batches):
    *train, test = batches.values()
    return [np.concatenate(x) for x in zip(*train, strict=True)], test


def check(name, folder, batches):
    for split, (images, labels) in zip(js.datasets.load(f"{name}-files", folder), expected(batches), strict=True):
        np.testing.assert_array_equal(split.images, images)
        np.testing.assert_array_equal(split.labels, labels)
        assert (split.images.dtype, split.labels.dtype) == (np.uint8, np.int32)


@pytest.mark.parametrize("write", [write_binary, write_python])
@pytest.mark.parametrize("name", FILES)
def test_official_archives_packed_and_not(name, write, tmp_path):
    batches = random_batches(name)
    check(name, write(name, tmp_path, batches), batches)
    (archive,) = tmp_path.iterdir()
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path / "all", filter="data")
    check(name, tmp_path / "all", batches)
    (inside,) = (tmp_path / "all").iterdir()
    check(name, inside, batches)


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"neither cifar-10-binary\.tar\.gz or .*\.gz nor .* put it there"):
        js.datasets.load("cifar10-files", tmp_path)
    with pytest.raises(ValueError, match="data_dir is missing: cifar100-files reads the official archive"):
        js.datasets.load("cifar100-files")


def test_broken_files(tmp_path):
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    (folder / "data_batch_1.bin").write_bytes(b"123")
    with pytest.raises(ValueError, match=r"cifar-10-batches-bin lacks data_batch_2\.bin; fetch it anew"):
        js.datasets.load("cifar10-files", tmp_path)
    for name in [*(f"data_batch_{i}" for i in range(2, 6)), "test_batch"]:
        (folder / f"{name}.bin").write_bytes(b"123")
    with pytest.raises(ValueError, match=r"data_batch_1\.bin has 3 bytes, expected records of 3073"):
        js.datasets.load("cifar10-files", tmp_path)
    with tarfile.open(tmp_path / "cifar-100-binary.tar.gz", "w:gz") as tar:
        add(tar, "other", b"")
    with pytest.raises(ValueError, match=r"cifar-100-binary\.tar\.gz lacks cifar-100-binary/train\.bin"):
        js.datasets.load("cifar100-files", tmp_path)


class Evil:
    def __reduce__(self):
        return print, ("it ran",)


def test_a_pickle_can_run_nothing(tmp_path, capsys):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        (folder / name).write_bytes(pickle.dumps({b"data": Evil()}))
    with pytest.raises(ValueError, match=r"data_batch_1 is no official batch of images \(it holds builtins.print\)"):
        js.datasets.load("cifar10-files", tmp_path)
    assert capsys.readouterr().out == ""


def test_normalization():
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 3, 3)).astype(np.uint8)
    for name in ("cifar10", "cifar10-files"):
        result = datasets.normalize(jnp.asarray(images), name)
        mean, std = np.array([125.3, 123.0, 113.9]) / 255, np.array([63.0, 62.1, 66.7]) / 255
        np.testing.assert_allclose(result, (images / 255 - mean) / std, rtol=1e-4, atol=1e-5)
        assert result.dtype == jnp.float32
    floats = jnp.ones((2, 8, 8, 1))
    assert datasets.normalize(floats, "digits") is floats or (datasets.normalize(floats, "digits") == floats).all()
    assert datasets.normalize(floats, "digits", jnp.bfloat16).dtype == jnp.bfloat16


@pytest.fixture
def tfds(monkeypatch):
    """tensorflow-datasets, which reads the official files and encodes images without TensorFlow here."""
    tfds = pytest.importorskip("tensorflow_datasets")
    from tensorflow_datasets.core.download import extractor
    from tensorflow_datasets.image_classification import cifar as theirs

    gfile = types.SimpleNamespace(GFile=open)
    tf = types.SimpleNamespace(io=types.SimpleNamespace(gfile=gfile), compat=types.SimpleNamespace(as_text=str))
    for module in (extractor, theirs):
        monkeypatch.setattr(module, "tf", tf)
    monkeypatch.setattr(tfds.features.Image, "encode_example", lambda self, image: as_png(image))
    return tfds


def as_png(image):
    content = io.BytesIO()
    Image.fromarray(image).save(content, "png")
    return content.getvalue()


def same_in_any_order(result, images, labels):
    order, ours = (np.lexsort(x.reshape(len(x), -1).T) for x in (result.images, images))
    np.testing.assert_array_equal(result.images[order], images[ours])
    np.testing.assert_array_equal(result.labels[order], labels[ours])


def test_what_tensorflow_datasets_prepared_gives_the_same_arrays(tmp_path, tfds):
    batches = random_batches("cifar10")
    write_binary("cifar10", tmp_path, batches)
    config = tfds.download.DownloadConfig(manual_dir=tmp_path, register_checksums=True)
    builder = tfds.builder("cifar10", data_dir=tmp_path / "prepared", file_format="array_record")
    builder.download_and_prepare(download_config=config)
    for result, (images, labels) in zip(
        js.datasets.load("cifar10", tmp_path / "prepared"), expected(batches), strict=True
    ):
        same_in_any_order(result, images, labels)  # tensorflow-datasets shuffles when it prepares


def test_an_official_archive_is_enough(tmp_path):
    pytest.importorskip("tensorflow_datasets")
    batches = random_batches("cifar10")
    write_binary("cifar10", tmp_path, batches)
    for result, (images, labels) in zip(js.datasets.load("cifar10", tmp_path), expected(batches), strict=True):
        np.testing.assert_array_equal(result.images, images)
        np.testing.assert_array_equal(result.labels, labels)


def test_what_can_not_be_fetched_is_told(tmp_path, monkeypatch):
    tfds = pytest.importorskip("tensorflow_datasets")

    def refuse(self, **options):
        raise OSError("no network")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", refuse)
    with pytest.raises(FileNotFoundError, match=r"has neither cifar-100-binary.* put it there, as it is. \(no network"):
        js.datasets.load("cifar100", tmp_path)


def test_without_tensorflow_datasets_the_cure_is_told(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tensorflow_datasets", None)
    with pytest.raises(ImportError, match=r"needs tensorflow-datasets: .* --dataset cifar10-files"):
        cifar.from_tensorflow_datasets("cifar10", None)
