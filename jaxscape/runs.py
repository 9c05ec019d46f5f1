"""A training run on disk: read one back as params, loss, data and checkpoints.

``RUN/config.json`` rebuilds everything, ``RUN/metrics.csv`` has a row for each epoch, ``RUN/checkpoints`` (orbax) has
the weights and batch statistics from the initialization (epoch 0) to the end.
"""

import csv
import importlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxscape import checks, trees
from jaxscape.checkpoints import Checkpoints, epoch_checkpoints, step_checkpoints
from jaxscape.datasets import Split, load, normalize
from jaxscape.torch_weights import import_torch_state_dict as import_torch_state_dict
from jaxscape.types import LossFn, Params

BUILDER = "models:create"
"""What makes the networks of runs whose config does not say it: the function that train.py uses."""

CONFIG, METRICS, NORMS = "config.json", "metrics.csv", "weight_norms.csv"


@dataclass(frozen=True)
class Run:
    """A finished or interrupted training run, ready for every jaxscape call.

    >>> surface(run.params, run.loss_fn, run.data)  # doctest: +SKIP

    Attributes:
        path: The run's folder.
        config: What it was trained with.
        params: The weights of its last checkpoint, a dict of dicts of arrays; batch statistics are not among them.
        batch_stats: The running statistics of batch norm of its last checkpoint, in dicts of the same form.
        loss_fn: ``loss_fn(params, batch)`` -> ``{"loss", "accuracy"}`` of each example, in evaluation mode. Leaves
            that ``params`` lacks are those of the last checkpoint: so the statistics stay fixed under
            ``surface(run.params, ...)``, and take part under ``interpolate(run.variables, other.variables, ...)``.
        data: The train split.
        test_data: The test split.
        metrics: A record for each epoch: ``epoch``, ``lr``, ``train_loss``, ``train_error`` (percent), ...
        checkpoints: The params of every checkpoint, in order, read when they are asked for.
        steps: The same between the epochs, if it was trained with ``--save-steps``; else empty.
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
    """Mean over the classes of the squared distance of the probabilities from 0 or 1, as the paper's code has it."""
    wanted = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    return jnp.mean((jax.nn.softmax(logits) - wanted) ** 2, axis=-1)


LOSSES: dict[str, Callable[[Array, Array], Array]] = {"crossentropy": _crossentropy, "mse": _mse}
"""The loss of each example, of logits and labels."""


def classification_loss(
    graphdef: Any, variables: Params, dataset: str = "digits", loss: str = "crossentropy"
) -> LossFn:
    """Loss and accuracy of an NNX classifier, in evaluation mode.

    Args:
        graphdef: Of the module, as ``nnx.split`` gives it.
        variables: A dict of all its arrays; those in ``params`` come before them.
        dataset: How the images are normalized.
        loss: One of LOSSES.

    Returns:
        ``loss_fn(params, batch)`` with ``batch = (images, labels)``; ``params`` holds any part of the variables.
    """
    from flax import nnx

    def loss_fn(params: Params, batch: Any) -> dict[str, jax.Array]:
        images, labels = batch
        whole = trees.overlay(variables, params)
        logits = nnx.merge(graphdef, whole)(normalize(images, dataset, jax.tree.leaves(params)[0].dtype))
        return {"loss": LOSSES[loss](logits, labels), "accuracy": jnp.argmax(logits, axis=-1) == labels}

    return loss_fn


def load_data(config: Mapping[str, Any]) -> tuple[Split, Split]:
    """The train and the test split of a config; a share ``label_noise`` of the training labels is random.

    Args:
        config: With ``dataset``, and where they differ from the defaults ``data_dir``, ``label_noise`` and ``seed``.

    Returns:
        The splits.

    Raises:
        ValueError: As in `jaxscape.datasets.load`.
        FileNotFoundError: As there.
        ImportError: As there.
    """
    train, test = load(config["dataset"], config.get("data_dir"))
    if not config.get("label_noise"):
        return train, test
    rng = np.random.default_rng((config["seed"], 1))
    noisy = rng.random(len(train.labels)) < config["label_noise"]
    random = rng.integers(0, train.labels.max() + 1, len(train.labels)).astype(np.int32)
    return Split(train.images, np.where(noisy, random, train.labels)), test


def build_model(config: Mapping[str, Any], train: Split) -> Any:
    """The network of a config, initialized, for the images and classes of a data set.

    Args:
        config: With ``arch``, ``noshort``, ``seed`` and, unless it is 1, ``width``; ``builder``, the function
            ``package.module:function`` that makes the network, unless it is `BUILDER`.
        train: The train split.

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
            f"the run's network is made by {builder}, which cannot be imported ({error}). The networks of train.py "
            "come with the project's checkout: install it with `pip install -e .[train]`."
        ) from error
    return create(
        config["arch"],
        shortcuts=not config["noshort"],
        width=config.get("width", 1),
        num_classes=int(train.labels.max()) + 1,
        image_shape=train.images.shape[1:],
        seed=config["seed"],
    )


def load_run(path: str | Path) -> Run:
    """Read a training run.

    >>> run = load_run("runs/resnet20")  # doctest: +SKIP
    >>> result = surface(run.params, run.loss_fn, run.data)  # doctest: +SKIP

    Args:
        path: The run's folder, made by ``train.py``.

    Returns:
        The run at its last checkpoint.

    Raises:
        ValueError: The folder is no run, has no complete checkpoint, or its checkpoint is of another architecture
            than its config says.
        FileNotFoundError: There is no such folder.
        ImportError: flax, orbax or the project's ``models`` are not installed.
    """
    from flax import nnx

    path = Path(path)
    config = read_config(path)
    checkpoints = epoch_checkpoints(path)
    if not checkpoints:
        raise ValueError(
            f"{path} has no complete checkpoint: its training stopped early. Go on with "
            f"`python train.py --resume` and the same options, or name another run."
        )
    train, test = load_data(config)
    graphdef, *expected = nnx.split(build_model(config, train), nnx.Param, nnx.BatchStat)
    found = checkpoints.variables(-1)
    try:
        params, stats = (
            checks.like(nnx.to_pure_dict(state), found[name], name) if state else {}
            for name, state in zip(("params", "batch_stats"), expected, strict=True)
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
    """The options that a run was trained with.

    Args:
        path: The run's folder.

    Returns:
        The contents of its ``config.json``.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: The file is missing or not readable.
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
    """A record for each epoch of ``metrics.csv`` or ``weight_norms.csv``; empty before the first one is over."""
    if not path.exists():
        return []
    with open(path, newline="") as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    return [row | {"epoch": int(row["epoch"])} for row in rows]
