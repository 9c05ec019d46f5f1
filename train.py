"""Train a network, and save everything that is needed to plot its loss landscape.

    python train.py --arch resnet56 --noshort --epochs 30 --lr 0.01
    python train.py --arch resnet110 --noshort --dataset cifar10-files --data-dir ~/data --precision bfloat16
    python train.py --preset paper-table1 --resume

Everything goes into the run folder (--out): config.json, metrics.csv and weight_norms.csv (a row per epoch),
checkpoints (orbax: epoch 0 is the initialization). `jaxscape surface RUN` draws it, `js.load_run(RUN)` reads it.
"""

import argparse
import dataclasses
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tqdm.auto import tqdm

import models
from jaxscape import datasets, runs, trees
from jaxscape.compilation import keep_compiled_programs
from jaxscape.engine import mean_metrics
from jaxscape.interrupts import leave, run_command
from jaxscape.objective import Objective, use_all_cores
from jaxscape.run_checkpoints import CHECKPOINTS, STEP_DTYPES
from jaxscape.types import LossFn, Params
from training.config import OPTIMIZERS, PRECISIONS, Config, make_optimizer
from training.folder import RunFolder
from training.presets import PRESETS
from training.step import TrainState, make_step, shared

__all__ = ["Config", "RunFolder", "TrainState", "make_optimizer", "make_step", "train"]


FLAGS = ("resume", "tensorboard", "list", "distributed", "debug")


class DivergedError(Exception):
    """A weight became NaN or infinite."""


def epoch_batches(config: Config, epoch: int, examples: int) -> Iterator[np.ndarray]:
    """The rows of each batch: every example once, in an order that depends only on seed and epoch.

    The last batch may be smaller.

    Args:
        config: The options of the run.
        epoch: The number of the epoch.
        examples: The number of examples.

    Returns:
        An iterator over the rows of the batches.
    """
    order = np.random.default_rng((config.seed, epoch)).permutation(examples)
    return (order[i : i + config.batch_size] for i in range(0, examples, config.batch_size))


def evaluate(
    loss_fn: LossFn, variables: Params, train: datasets.Split, test: datasets.Split, mesh: Mesh
) -> dict[str, float]:
    """The mean loss, and the error in percent, over all examples of each split, in evaluation mode."""
    row: dict[str, float] = {}
    for split, data in (("train", train), ("test", test)):
        # No check is needed: the networks of models/ in evaluation mode give a loss for each example.
        objective = Objective.of(loss_fn, variables, data, check=False)
        means = mean_metrics(objective, variables, mesh=mesh)
        row |= {f"{split}_loss": means["loss"], f"{split}_error": 100 * (1 - means["accuracy"])}
    return row


def weight_norms(params: Params) -> dict[str, float]:
    """The Euclidean norm of all weights together, and of each leaf."""
    names = trees.leaf_names(params)
    norms = [float(trees.norm(leaf)) for leaf in jax.tree.leaves(params)]
    return {"all": float(np.linalg.norm(norms)), **dict(zip(names, norms, strict=True))}


def train(
    config: Config,
    out: str | Path,
    *,
    resume: bool = False,
    progress: bool | None = None,
    tensorboard: bool = False,
) -> runs.Run:
    """Train a network, or resume its training; the weights are identical to the bit in both cases.

    Args:
        config: The options of the run.
        out: The run folder.
        resume: Whether to continue a run that exists in the folder.
        progress: True or False turns a progress bar on or off; None shows one on terminals.
        tensorboard: Whether to write the tables also to ``tensorboard`` in the run folder.

    Returns:
        The run, as `jaxscape.load_run` reads it.

    Raises:
        ValueError: The folder holds a run, and ``resume`` is False or the run has other options.
        ImportError: ``tensorboard`` is True and tensorboardX is not installed, or a package that the data set needs is
            not installed.
        DivergedError: A weight became NaN or infinite; the message names the last good checkpoint.
    """
    splits = runs.load_data(dataclasses.asdict(config))
    model = runs.build_model(dataclasses.asdict(config), splits[0])  # before anything is written: it may be a mistake
    with RunFolder(Path(out), config, resume, tensorboard) as folder:
        _train(config, folder, model, splits, progress if folder.writes else False)
    return runs.load_run(folder.path)


def _train(
    config: Config,
    folder: RunFolder,
    model: nnx.Module,
    splits: tuple[datasets.Split, datasets.Split],
    progress: bool | None,
) -> None:
    graphdef, *parts = nnx.split(model, nnx.Param, nnx.BatchStat)
    params, batch_stats = map(nnx.to_pure_dict, parts)
    examples = len(splits[0].labels)
    steps_per_epoch = -(-examples // config.batch_size)
    optimizer = make_optimizer(config, steps_per_epoch)
    mesh = Mesh(np.array(jax.devices()), ("data",))
    step = make_step(graphdef, optimizer, config, mesh)
    loss_fn = runs.classification_loss(graphdef, {}, config.dataset, config.loss)
    everywhere = NamedSharding(mesh, PartitionSpec())
    first = jax.device_put({"params": params, "batch_stats": batch_stats}, everywhere)

    def rows_of(epoch: int, variables: Mapping[str, Params], start: float) -> dict[str, dict[str, float]]:
        whole = trees.overlay(variables["params"], variables["batch_stats"])
        metrics = {"epoch": epoch, "lr": config.rate_in(epoch), **evaluate(loss_fn, whole, *splits, mesh)}
        metrics["seconds"] = round(time.perf_counter() - start, 3)
        return {runs.METRICS: metrics, runs.NORMS: {"epoch": epoch, **weight_norms(variables["params"])}}

    last_epoch, state = folder.restore(TrainState(params, batch_stats, optimizer.init(params)))
    for epoch, variables in folder.without_rows(last_epoch):
        folder.log(rows_of(epoch, jax.device_put(variables, everywhere), time.perf_counter()))
    state, data = jax.device_put(jax.device_get((state, splits[0])), everywhere)
    with _bar(config, last_epoch, progress) as bar:
        for epoch in range(last_epoch + 1, config.epochs + 1):
            start = time.perf_counter()
            key = jax.random.fold_in(jax.random.key(config.seed), epoch)
            for i, rows in enumerate(epoch_batches(config, epoch, examples) if epoch else ()):
                state = step(state, data, shared(mesh, rows), jax.random.fold_in(key, i))
                count = (epoch - 1) * steps_per_epoch + i + 1
                if config.save_steps and count % config.save_steps == 0:
                    folder.save_step(count, state, first)
            tables = rows_of(epoch, {"params": state.params, "batch_stats": state.batch_stats}, start)
            folder.log(tables)
            if folder.writes:
                bar.write(_summary(tables[runs.METRICS], config.epochs))
            if not np.isfinite(tables[runs.NORMS]["all"]):
                raise DivergedError(
                    f"a weight became NaN or infinite in epoch {epoch}. The last good checkpoint, of epoch "
                    f"{folder.newest()}, is in {folder.path / CHECKPOINTS}; try a lower --lr, or --warmup."
                )
            if config.is_saved(epoch):
                folder.save(epoch, state)
            bar.update(bool(epoch))


def _bar(config: Config, last_epoch: int, progress: bool | None) -> tqdm:
    disable = None if progress is None else not progress
    return tqdm(total=config.epochs, initial=max(last_epoch, 0), unit="epoch", desc=config.arch, disable=disable)


def _summary(row: Mapping[str, float], epochs: int) -> str:
    """A row of the metrics as one line of text."""
    return (
        f"epoch {int(row['epoch']):3d}/{epochs}  lr {row['lr']:.0e}  train loss {row['train_loss']:.4g} "
        f"error {row['train_error']:.2f} %  test loss {row['test_loss']:.4g} error {row['test_error']:.2f} %  "
        f"{row['seconds']:.1f} s"
    )


def parser() -> argparse.ArgumentParser:
    """The options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,  # Config or a preset has the defaults
        epilog="Defaults: " + ", ".join(f"{n} {v}" for n, v in dataclasses.asdict(Config()).items() if v is not None),
    )
    network = parser.add_argument_group("network")
    network.add_argument("--arch", help=f"one of {', '.join(models.names())} (or a name for --builder)")
    network.add_argument(
        "--builder", metavar="MODULE:FUNCTION", help="of another network, called like models.create with --arch first"
    )
    network.add_argument("--noshort", action="store_true", help="without shortcuts")
    network.add_argument("--width", type=int, metavar="K", help="of a ResNet, K times as wide")
    data = parser.add_argument_group("data")
    data.add_argument("--dataset", choices=tuple(datasets.LOADERS))
    data.add_argument("--data-dir", metavar="DIR", help="where the data set's files are")
    data.add_argument(
        "--augment",
        action=argparse.BooleanOptionalAction,
        help="crop at random with 4 pixels around, and mirror (default: all but digits)",
    )
    data.add_argument("--label-noise", type=float, metavar="SHARE", help="of random training labels")
    training = parser.add_argument_group("training")
    training.add_argument("--loss", choices=tuple(runs.LOSSES))
    training.add_argument("--optimizer", choices=tuple(OPTIMIZERS))
    training.add_argument(
        "--lr", type=float, help="initial learning rate (default: sgd 0.1, deep and --noshort 0.01, adam 0.001)"
    )
    training.add_argument("--batch-size", type=int)
    training.add_argument("--accumulate", type=int, metavar="PARTS", help="of a batch, one after another")
    training.add_argument("--weight-decay", type=float)
    training.add_argument("--no-decay-norm", dest="decay_norm", action="store_false", help="none on biases and norms")
    training.add_argument("--momentum", type=float, help="of sgd, Nesterov's")
    training.add_argument("--epochs", type=int)
    training.add_argument("--warmup", type=int, metavar="EPOCHS", help="of a growing rate")
    training.add_argument("--precision", choices=PRECISIONS)
    training.add_argument("--seed", type=int)
    run = parser.add_argument_group("run")
    run.add_argument("--save-every", type=int, metavar="EPOCHS")
    run.add_argument("--save-steps", type=int, metavar="N", help="weights every N steps as well, for a path in detail")
    run.add_argument("--steps-dtype", choices=STEP_DTYPES, help="of these; 16 bits: differences from the start")
    run.add_argument("--out", metavar="RUN", help="the run folder (default: runs/ and what is not default)")
    run.add_argument("--resume", action="store_true", help="go on with the run in the folder, if there is one")
    run.add_argument(
        "--preset", choices=tuple(PRESETS), help="the paper's runs one after another; other options apply to each"
    )
    run.add_argument("--tensorboard", action="store_true", help="the tables for TensorBoard as well")
    run.add_argument("--distributed", action="store_true", help="one of several processes: `srun python train.py ...`")
    run.add_argument("--debug", action="store_true", help="print the traceback of an error")
    run.add_argument("--list", action="store_true", help="only say which runs there are and how far they got")
    return parser


def parse(argv: Sequence[str] | None = None) -> tuple[list[tuple[Config, Path]], set[str]]:
    """Parse the command line.

    Args:
        argv: The arguments; None: the arguments of the process.

    Returns:
        The options and the folder of each run; and the names of the flags in FLAGS that are set.
    """
    options = vars(parser().parse_args(argv))
    out, preset = (options.pop(name, None) for name in ("out", "preset"))
    flags = {name for name in FLAGS if options.pop(name, False)}
    configs = [dataclasses.replace(c, **options) for c in PRESETS[preset]] if preset else [Config(**options)]
    root = Path(out or "runs")
    paths = [root / folder_name(c) for c in configs] if preset or not out else [root]
    return list(zip(configs, paths, strict=True)), flags


def folder_name(config: Config) -> str:
    """The default name of a run folder: the architecture, the data set, and the options that are not default."""
    excluded = ("arch", "noshort", "dataset", "data_dir", "save_every", "save_steps", "steps_dtype")
    parts = [config.arch, *(["noshort"] if config.noshort else []), config.dataset]
    for name, value in dataclasses.asdict(config).items():
        if name not in excluded and value != getattr(Config, name):
            parts.append(f"{name}={value}")
    return "_".join(parts)


def status(path: Path, config: Config) -> str:
    """One line on the progress of a run: the metrics of its last epoch."""
    rows = runs.read_table(path / runs.METRICS)
    if not rows:
        return f"{path}: not begun"
    return f"{path}: {_summary(rows[-1], config.epochs)}"


def main(argv: Sequence[str] | None = None) -> int:
    """Train the runs of the command line.

    Args:
        argv: The arguments; None: the arguments of the process.

    Returns:
        The exit status: 0; 2 if the arguments or a file are wrong; 3 if a training diverged; 1 for another error; 130
        or 143 after Ctrl-C or SIGTERM. Then one line on standard error says what is wrong, or how to go on.
    """
    argv = sys.argv[1:] if argv is None else argv

    def command() -> int:
        configs, flags = parse(argv)
        use_all_cores()
        if "distributed" in flags:
            jax.distributed.initialize()
        for config, path in configs:
            if "list" in flags:
                print(status(path, config))
                continue
            try:
                run = train(config, path, resume="resume" in flags, tensorboard="tensorboard" in flags)
            except DivergedError as error:
                print(f"train.py: diverged: {error}", file=sys.stderr)
                return 3
            if jax.process_index():
                continue
            print(f"{trees.size(run.params):,} parameters, {len(run.checkpoints)} checkpoints in {run.path}")
            print(f"draw it: jaxscape surface {run.path}; jaxscape line {run.path}; jaxscape plot --help")
        return 0

    again = ["python", "train.py", *argv, *(["--resume"] if "--resume" not in argv else [])]
    return run_command("train.py", again, command, debug="--debug" in argv)


if __name__ == "__main__":
    keep_compiled_programs()
    leave(main())
