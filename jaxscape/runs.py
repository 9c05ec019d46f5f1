"""Training runs on disk: read a run as params, loss, data and checkpoints.

``RUN/config.json`` holds the options, from which the network and the data are rebuilt. ``RUN/metrics.csv`` has a row
for each epoch. ``RUN/checkpoints`` (orbax) has the weights and batch statistics from the initialization (epoch 0) to
the end.
"""

import csv
import importlib
import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxscape import checks, trees
from jaxscape.arguments import check_path
from jaxscape.datasets import Split, load, normalize
from jaxscape.normalize import running_statistics
from jaxscape.run_checkpoints import Checkpoints, epoch_checkpoints, step_checkpoints
from jaxscape.torch_weights import import_torch_state_dict as import_torch_state_dict
from jaxscape.types import LossFn, Params

BUILDER = "models:create"
"""The function that creates the network of a run whose config names no builder; train.py uses it."""

CONFIG, METRICS, NORMS = "config.json", "metrics.csv", "weight_norms.csv"


@dataclass(frozen=True)
class Run:
    """A finished or interrupted training run; its parts are arguments of every jaxscape call.

    >>> surface(run.params, run.loss_fn, run.data)  # doctest: +SKIP

    Attributes:
        path: The folder of the run.
        config: The options of the training.
        params: The weights of the last checkpoint, a dict of dicts of arrays, without the batch statistics.
        batch_stats: The running statistics of batch norm of the last checkpoint, in dicts of the same form.
        loss_fn: ``loss_fn(params, batch)`` -> ``{"loss", "accuracy"}`` of each example, in evaluation mode. It takes
            leaves that are missing in ``params`` from the last checkpoint. Thus ``surface(run.params, ...)`` keeps the
            statistics fixed, and ``interpolate(run.variables, other.variables, ...)`` interpolates them too.
        data: The train split.
        test_data: The test split.
        metrics: A record for each epoch: ``epoch``, ``lr``, ``train_loss``, ``train_error`` (percent), ...
        checkpoints: The params of every checkpoint, in the order of training; each access reads them from disk.
        steps: The params between the epochs, if the run was trained with ``--save-steps``; otherwise empty.
    """

    path: Path
    config: Mapping[str, Any]
    params: Params
    batch_stats: Params
    loss_fn: LossFn
    data: Split
    test_data: Split
    metrics: list[dict[str, float]]
    checkpoints: Checkpoints
    steps: Checkpoints

    @property
    def variables(self) -> Params:
        """Weights and batch statistics in one pytree."""
        return trees.overlay(self.params, self.batch_stats)


def _crossentropy(logits: Array, labels: Array) -> Array:
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=-1)[:, 0]


def _mse(logits: Array, labels: Array) -> Array:
    """The mean over the classes of the squared difference between probability and target, as in the paper's code."""
    targets = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    return jnp.mean((jax.nn.softmax(logits) - targets) ** 2, axis=-1)


LOSSES: dict[str, Callable[[Array, Array], Array]] = {"crossentropy": _crossentropy, "mse": _mse}
"""Functions of logits and labels that return the loss of each example."""


def classification_loss(
    graphdef: Any, variables: Params, dataset: str = "digits", loss: str = "crossentropy"
) -> LossFn:
    """Build a function for the loss and the accuracy of an NNX classifier, in evaluation mode.

    Args:
        graphdef: The graph definition of the module, as ``nnx.split`` returns it.
        variables: A dict of all arrays of the module; arrays in ``params`` replace them.
        dataset: The name of the data set, which says how the images are normalized.
        loss: The name of the loss, a key of LOSSES: ``"crossentropy"`` or ``"mse"``.

    Returns:
        ``loss_fn(params, batch)`` with ``batch = (images, labels)``, which returns the dict ``{"loss", "accuracy"}``
        of vectors with one entry for each example. ``params`` may hold any part of the variables. Its attribute
        ``running_statistics`` has the names of the running statistics among the variables, and ``batch_statistics`` is
        a function of params and a batch that gives the statistics of the batch, in training mode.
    """
    from flax import nnx

    def loss_fn(params: Params, batch: Any) -> dict[str, jax.Array]:
        images, labels = batch
        whole = trees.overlay(variables, params)
        logits = nnx.merge(graphdef, whole)(normalize(images, dataset, jax.tree.leaves(params)[0].dtype))
        losses = LOSSES[loss](logits.astype(trees.working_dtype(logits)), labels)
        return {"loss": losses, "accuracy": jnp.argmax(logits, axis=-1) == labels}

    def batch_statistics(params: Params, batch: Any) -> Params:
        whole = trees.overlay(variables, params)
        model = nnx.merge(graphdef, whole)
        model.set_attributes(nnx.BatchNorm, momentum=0.0, raise_if_not_found=False)  # of this batch alone
        model(normalize(batch[0], dataset, jax.tree.leaves(params)[0].dtype), train=True)
        return nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))

    loss_fn.running_statistics = tuple(  # type: ignore[attr-defined]
        name for name, kind in zip(trees.leaf_names(variables), running_statistics(variables), strict=True) if kind
    )
    loss_fn.batch_statistics = batch_statistics  # type: ignore[attr-defined]
    return loss_fn


def load_data(config: Mapping[str, Any]) -> tuple[Split, Split]:
    """Load the train and the test split of a config; a share ``label_noise`` of the training labels is random.

    Args:
        config: The options of a run: ``dataset``; optionally ``data_dir`` and ``label_noise``; and ``seed``, which is
            required with ``label_noise``.

    Returns:
        The train and the test split.

    Raises:
        ValueError: The name of the data set is unknown, ``data_dir`` is missing, or a file is broken.
        FileNotFoundError: The files of the data set do not exist; the message says what to fetch and where to put it.
        ImportError: scikit-learn or tensorflow-datasets is not installed.
    """
    train, test = load(config["dataset"], config.get("data_dir"))
    if not config.get("label_noise"):
        return train, test
    rng = np.random.default_rng((config["seed"], 1))
    noisy = rng.random(len(train.labels)) < config["label_noise"]
    random = rng.integers(0, train.labels.max() + 1, len(train.labels)).astype(np.int32)
    return Split(train.images, np.where(noisy, random, train.labels)), test


def build_model(config: Mapping[str, Any], train: Split) -> Any:
    """Build and initialize the network of a config, for the images and classes of a data set.

    Args:
        config: The options of a run: ``arch``, ``noshort`` and ``seed``; optionally ``width`` (1 by default) and
            ``builder``, the function ``package.module:function`` that creates the network (`BUILDER` by default).
        train: The train split, which gives the shape of the images and the number of classes.

    Returns:
        An NNX module.

    Raises:
        ImportError: The builder cannot be imported.
    """
    builder = config.get("builder", BUILDER)
    module, _, function = builder.partition(":")
    try:
        create = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ImportError(
            f"the run's network is made by {builder}, which cannot be imported ({error}). Install its package or put "
            "its folder on PYTHONPATH; the networks of train.py come with the project: `pip install -e .[train]`."
        ) from error
    return create(
        config["arch"],
        shortcuts=not config["noshort"],
        width=config.get("width", 1),
        num_classes=int(train.labels.max()) + 1,
        image_shape=train.images.shape[1:],
        seed=config["seed"],
    )


def _shape_of_model(config: Mapping[str, Any], train: Split) -> Any:
    """The network of a config without its numbers, which a checkpoint has: of a ResNet-20 in 0.3 instead of 2 s."""
    from flax import nnx

    try:
        return nnx.eval_shape(lambda: build_model(config, train))
    except Exception:  # noqa: BLE001  # a builder of the user's may need numbers; what is wrong is raised here
        return build_model(config, train)


def load_run(path: str | Path) -> Run:
    """Read a training run.

    >>> run = load_run("runs/resnet20")  # doctest: +SKIP
    >>> result = surface(run.params, run.loss_fn, run.data)  # doctest: +SKIP

    Args:
        path: The folder of the run, written by ``train.py``.

    Returns:
        The run at its last checkpoint.

    Raises:
        ValueError: The folder is not a run, it has no complete checkpoint, or its checkpoint has another architecture
            than its config.
        FileNotFoundError: The folder, or a file of the run's data set, does not exist.
        ImportError: flax, orbax or the project's ``models`` are not installed.
    """
    from flax import nnx

    check_path(path, "path")
    path = Path(path)
    config = read_config(path)
    checkpoints = epoch_checkpoints(path)
    if not checkpoints:
        raise ValueError(
            f"{path} has no complete checkpoint: its training stopped early. Go on with "
            f"`python train.py --resume` and the same options, or name another run."
        )
    train, test = load_data(config)
    graphdef, *states = nnx.split(_shape_of_model(config, train), nnx.Param, nnx.BatchStat)
    variables = checkpoints.variables(-1)
    try:
        params, stats = (
            checks.like(nnx.to_pure_dict(state), variables[name], name) if state else {}
            for name, state in zip(("params", "batch_stats"), states, strict=True)
        )
    except ValueError as error:
        raise ValueError(
            f"{path} holds a checkpoint of another architecture than its {CONFIG} says ({config['arch']}"
            f"{', noshort' if config['noshort'] else ''}): {error}"
        ) from error
    loss_fn = classification_loss(
        graphdef, trees.overlay(params, stats), config["dataset"], config.get("loss", "crossentropy")
    )
    steps = step_checkpoints(path, -(-len(train.labels) // config.get("batch_size", len(train.labels))))
    return Run(path, config, params, stats, loss_fn, train, test, read_table(path / METRICS), checkpoints, steps)


def read_config(path: Path) -> dict[str, Any]:
    """Read the options that a run was trained with.

    Args:
        path: The folder of the run.

    Returns:
        The contents of its ``config.json``.

    Raises:
        FileNotFoundError: The folder does not exist.
        ValueError: The file is missing or not readable, or an option is missing in it.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"run folder {path} not found; `python train.py --out {path}` makes it.")
    try:
        config = json.loads((path / CONFIG).read_text())
        missing = [name for name in ("arch", "noshort", "dataset", "seed") if name not in config]
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is no run: its {CONFIG} is missing or broken ({error}).") from error
    if missing:
        raise ValueError(f"{path} is no run: its {CONFIG} lacks {', '.join(missing)}.")
    return config


def read_table(path: Path) -> list[dict[str, float]]:
    """Read ``metrics.csv`` or ``weight_norms.csv``.

    Args:
        path: The path of the table.

    Returns:
        A record for each epoch; an empty list if the table does not exist yet.

    Warns:
        UserWarning: Lines are cut or damaged; they are left out.
    """
    text = path.read_text(errors="replace") if path.exists() else ""
    if not text:
        return []
    header, *lines = text.split("\n")  # after the last line stands ""
    names = header.split(",")
    rows: list[dict[str, float]] = []
    damaged = [] if lines and lines[-1] == "" else [1 + len(lines)]
    for number, line in enumerate(lines[:-1], 2):
        row = _row(names, line)
        if row is None or (rows and row["epoch"] <= rows[-1]["epoch"]):
            damaged.append(number)
        else:
            rows.append(row)
    if damaged:
        warnings.warn(
            f"{path}: {len(damaged)} lines are cut or damaged and left out, the first is line {min(damaged)}.",
            stacklevel=2,
        )
    return rows


def _row(names: list[str], line: str) -> dict[str, float] | None:
    """A line of a table; None where it is damaged."""
    try:
        row = {name: float(value) for name, value in zip(names, next(csv.reader([line])), strict=True)}
        return row | {"epoch": int(row["epoch"])}
    except (ValueError, KeyError, StopIteration, csv.Error):
        return None
