"""Train a network and keep what it takes to look at its landscape.

    python train.py --arch resnet56 --noshort --epochs 30 --lr 0.01
    python train.py --arch resnet56 --out runs/mine --resume

Everything goes into the run folder (--out): config.json, metrics.csv (a row per epoch), checkpoints (orbax: epoch 0 is
the initialization). `jaxscape surface RUN` draws it, `js.load_run(RUN)` reads it.
"""

import argparse
import csv
import dataclasses
import functools
import importlib.metadata
import io
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx
from jaxtyping import Array, Int
from tqdm.auto import tqdm

import models
from jaxscape import datasets, runs, trees
from jaxscape.convolution import compiler_options, fast_convolutions
from jaxscape.engine import mean_metrics
from jaxscape.types import LossFn, Params

OPTIMIZERS = {"sgd": 0.1, "adam": 1e-3}  # with the paper's initial learning rate, section 5
COLUMNS = ("epoch", "lr", "train_loss", "train_error", "test_loss", "test_error", "seconds")


@dataclasses.dataclass(frozen=True)
class Config:
    """What a run is made from; the defaults are the paper's (section 5 and appendix A.5)."""

    arch: str = "resnet56"
    noshort: bool = False  # without shortcuts
    dataset: str = "digits"
    data_dir: str | None = None
    optimizer: str = "sgd"
    lr: float | None = None  # None: 0.1 for sgd, 0.001 for adam
    batch_size: int = 128
    weight_decay: float = 5e-4
    momentum: float = 0.9
    epochs: int = 300
    seed: int = 0
    save_every: int = 10  # epochs

    def __post_init__(self) -> None:
        """Refuse what cannot be trained, before anything is written."""
        for name, known in (("arch", models.names()), ("dataset", datasets.LOADERS), ("optimizer", OPTIMIZERS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected one of {', '.join(known)}.")
        for name in ("batch_size", "epochs", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1.")

    @property
    def learning_rate(self) -> float:
        """The initial learning rate."""
        return OPTIMIZERS[self.optimizer] if self.lr is None else self.lr

    @property
    def drops(self) -> tuple[int, ...]:
        """The learning rate falls by 10 after these epochs: 50 %, 75 % and 91.7 % (150, 225 and 275 of 300)."""
        return tuple(self.epochs * twelfths // 12 for twelfths in (6, 9, 11))

    def rate_in(self, epoch: Any) -> Any:
        """The learning rate in an epoch, counted from 1; the epoch may be traced."""
        return self.learning_rate / 10 ** sum(1 * (drop < epoch) for drop in self.drops)


class TrainState(NamedTuple):
    """What a training step maps to the next."""

    params: Params
    batch_stats: Params
    optimizer: optax.OptState


def make_optimizer(config: Config, steps_per_epoch: int) -> optax.GradientTransformation:
    """Nesterov SGD or Adam with the paper's schedule; weight decay on every parameter, added to the gradient."""

    def schedule(steps_done: Array) -> Array:
        return config.rate_in(steps_done // steps_per_epoch + 1)

    rule = optax.sgd(schedule, config.momentum, nesterov=True) if config.optimizer == "sgd" else optax.adam(schedule)
    return optax.chain(optax.add_decayed_weights(config.weight_decay), rule)


def make_step(graphdef: Any, optimizer: optax.GradientTransformation) -> Callable[..., TrainState]:
    """The compiled training step ``(state, data, rows) -> state`` on the examples ``rows`` of the data."""

    def mean_loss(params: Params, batch_stats: Params, images: Array, labels: Array) -> tuple[Array, Params]:
        model = nnx.merge(graphdef, params, batch_stats)
        losses = optax.softmax_cross_entropy_with_integer_labels(model(images, train=True), labels)
        return losses.mean(), nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))

    @functools.partial(jax.jit, donate_argnums=0, compiler_options=compiler_options())
    def step(state: TrainState, data: datasets.Split, rows: Int[Array, " batch"]) -> TrainState:
        gradient = jax.grad(fast_convolutions(mean_loss), has_aux=True)
        grads, batch_stats = gradient(state.params, state.batch_stats, data.images[rows], data.labels[rows])
        updates, optimizer_state = optimizer.update(grads, state.optimizer, state.params)
        return TrainState(optax.apply_updates(state.params, updates), batch_stats, optimizer_state)

    return step


def epoch_batches(config: Config, epoch: int, examples: int) -> Iterator[np.ndarray]:
    """Every example once, in an order that depends on seed and epoch only; the last batch may be smaller."""
    order = np.random.default_rng((config.seed, epoch)).permutation(examples)
    return (order[i : i + config.batch_size] for i in range(0, examples, config.batch_size))


def evaluate(loss_fn: LossFn, state: TrainState, train: datasets.Split, test: datasets.Split) -> dict[str, float]:
    """Loss, and error in percent, over all of each split, in evaluation mode."""
    variables = trees.overlay(state.params, state.batch_stats)
    row: dict[str, float] = {}
    for split, data in (("train", train), ("test", test)):
        means = mean_metrics(loss_fn, variables, data)
        row |= {f"{split}_loss": means["loss"], f"{split}_error": 100 * (1 - means["accuracy"])}
    return row


class RunFolder:
    """Where a run is kept: config, metrics and checkpoints, complete after every epoch."""

    def __init__(self, path: Path, config: Config, resume: bool) -> None:
        """Open a folder; refuse one that holds another run, or one of the same run without ``resume``.

        Raises:
            ValueError: The folder holds a run already, and it is not to be resumed or has other options.
        """
        self.path = path
        there = (path / runs.CONFIG).exists()
        if there and not resume:
            raise ValueError(f"out is {path}, which holds a run already; pass --resume to go on, or another --out.")
        if there:
            self._check_same(config)
        path.mkdir(parents=True, exist_ok=True)
        if not there:
            kept = dataclasses.asdict(config) | {"versions": _versions()}
            _replace(path / runs.CONFIG, json.dumps(kept, indent=2) + "\n")
        self.manager = runs.checkpoint_manager(path / runs.CHECKPOINTS)

    def _check_same(self, config: Config) -> None:
        before = runs.read_config(self.path)
        for name, value in dataclasses.asdict(config).items():
            if before.get(name) != value:
                raise ValueError(
                    f"{name} is {value!r}, but the run in {self.path} was started with {before.get(name)!r}; "
                    "resume it with its own options, or start another one elsewhere with --out."
                )

    def restore(self, state: TrainState) -> tuple[int, TrainState]:
        """The last epoch with a complete checkpoint and its state; -1 and ``state`` when there is none."""
        epoch = self.manager.latest_step()
        if epoch is None:
            self._write_rows([])
            return -1, state
        like = {"variables": _variables(state), "optimizer": state.optimizer}
        args = ocp.args.Composite(**{name: ocp.args.StandardRestore(value) for name, value in like.items()})
        found = self.manager.restore(epoch, args=args)
        self._write_rows([row for row in runs.read_metrics(self.path) if row["epoch"] <= epoch])
        return epoch, TrainState(**found["variables"], optimizer=found["optimizer"])

    def save(self, epoch: int, state: TrainState) -> None:
        """Write a checkpoint; it counts only once it is complete."""
        items = {"variables": _variables(state), "optimizer": state.optimizer}
        # The next step donates these buffers, and orbax writes in the background: hand it copies.
        items = jax.tree.map(jnp.copy, items)
        args = ocp.args.Composite(**{name: ocp.args.StandardSave(value) for name, value in items.items()})
        self.manager.save(epoch, args=args)

    def log(self, row: dict[str, float]) -> None:
        """Append an epoch to metrics.csv."""
        with open(self.path / runs.METRICS, "a", newline="") as file:
            csv.DictWriter(file, COLUMNS, lineterminator="\n").writerow(row)

    def _write_rows(self, rows: Sequence[dict[str, float]]) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        _replace(self.path / runs.METRICS, text.getvalue())


def train(config: Config, out: str | Path, *, resume: bool = False, progress: bool | None = None) -> runs.Run:
    """Train a network, or go on where its training stopped; the weights are the same to the bit either way.

    Args:
        config: What to train.
        out: The run folder.
        resume: Whether a run that is in the folder is to be continued.
        progress: True or False for a progress bar; None for one on terminals.

    Returns:
        The run, as `jaxscape.load_run` reads it.

    Raises:
        ValueError: The folder holds a run already, and it is not to be resumed or has other options.
    """
    train_split, test_split = datasets.load(config.dataset, config.data_dir)
    folder = RunFolder(Path(out), config, resume)
    model = runs.build_model(dataclasses.asdict(config), train_split)
    graphdef, *parts = nnx.split(model, nnx.Param, nnx.BatchStat)
    params, batch_stats = map(nnx.to_pure_dict, parts)
    examples = len(train_split.labels)
    optimizer = make_optimizer(config, -(-examples // config.batch_size))
    step = make_step(graphdef, optimizer)
    loss_fn = runs.classification_loss(graphdef, {})
    train_split, test_split = jax.device_put((train_split, test_split))
    done, state = folder.restore(TrainState(params, batch_stats, optimizer.init(params)))
    with _bar(config, done, progress) as bar:
        for epoch in range(done + 1, config.epochs + 1):
            start = time.perf_counter()
            for rows in epoch_batches(config, epoch, examples) if epoch else ():
                state = step(state, train_split, rows)
            row = {"epoch": epoch, "lr": config.rate_in(epoch), **evaluate(loss_fn, state, train_split, test_split)}
            row["seconds"] = round(time.perf_counter() - start, 3)
            folder.log(row)
            if epoch % config.save_every == 0 or epoch == config.epochs:
                folder.save(epoch, state)
            bar.write(_told(row, config.epochs))
            bar.update(bool(epoch))
    folder.manager.close()
    return runs.load_run(folder.path)


def _bar(config: Config, done: int, progress: bool | None) -> tqdm:
    disable = None if progress is None else not progress
    return tqdm(total=config.epochs, initial=max(done, 0), unit="epoch", desc=config.arch, disable=disable)


def _told(row: dict[str, float], epochs: int) -> str:
    return (
        f"epoch {row['epoch']:3d}/{epochs}  lr {row['lr']:.0e}  train loss {row['train_loss']:.4g} "
        f"error {row['train_error']:.2f} %  test loss {row['test_loss']:.4g} error {row['test_error']:.2f} %  "
        f"{row['seconds']:.1f} s"
    )


def _variables(state: TrainState) -> dict[str, Params]:
    return {"params": state.params, "batch_stats": state.batch_stats}


def _replace(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    new = path.with_name(f".{path.name}.new")
    new.write_text(text)
    new.replace(path)


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("jax", "flax", "optax", "orbax-checkpoint")}


def parse(argv: Sequence[str] | None = None) -> tuple[Config, Path, bool]:
    """The options of the command line."""
    default = Config()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", choices=models.names(), default=default.arch)
    parser.add_argument("--noshort", action="store_true", help="without shortcuts")
    parser.add_argument("--dataset", choices=tuple(datasets.LOADERS), default=default.dataset)
    parser.add_argument("--data-dir", metavar="DIR", help="where the data set's files are")
    parser.add_argument("--optimizer", choices=tuple(OPTIMIZERS), default=default.optimizer)
    parser.add_argument("--lr", type=float, help="initial learning rate (default: sgd 0.1, adam 0.001)")
    parser.add_argument("--batch-size", type=int, default=default.batch_size)
    parser.add_argument("--weight-decay", type=float, default=default.weight_decay)
    parser.add_argument("--momentum", type=float, default=default.momentum, help="of sgd, Nesterov's")
    parser.add_argument("--epochs", type=int, default=default.epochs)
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("--save-every", type=int, default=default.save_every, metavar="EPOCHS")
    parser.add_argument("--out", metavar="RUN", help="the run folder (default: runs/ARCH[_noshort]_DATASET)")
    parser.add_argument("--resume", action="store_true", help="go on with the run in the folder, if there is one")
    options = vars(parser.parse_args(argv))
    out, resume = options.pop("out"), options.pop("resume")
    config = Config(**options)
    name = f"{config.arch}{'_noshort' if config.noshort else ''}_{config.dataset}"
    return config, Path(out or Path("runs") / name), resume


def main(argv: Sequence[str] | None = None) -> int:
    """Train; 0, or 2 after a mistake in what was asked, told in one line."""
    try:
        config, out, resume = parse(argv)
        run = train(config, out, resume=resume)
    except (ValueError, OSError, ImportError) as error:
        print(f"train.py: error: {error}", file=sys.stderr)
        return 2
    print(f"{trees.size(run.params):,} parameters, {len(run.checkpoints)} checkpoints in {run.path}")
    print(f"draw it: jaxscape surface {run.path}; jaxscape line {run.path}; jaxscape plot --help")
    return 0


if __name__ == "__main__":
    sys.exit(main())
