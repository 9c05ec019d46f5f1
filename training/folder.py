"""Where a run is kept: config, metrics and checkpoints, complete after every epoch; the first process writes."""

import csv
import dataclasses
import importlib.metadata
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from jaxscape import runs
from jaxscape.checkpoints import CHECKPOINTS, STEPS, checkpoint_manager, to_vector
from jaxscape.types import Params
from training.config import Config
from training.step import TrainState

_TOGETHER = 2**26  # bytes of steps written at once: enough to hide the 40 ms of a save, little beside a network


class RunFolder:
    """A folder with config.json, metrics.csv, weight_norms.csv and checkpoints."""

    def __init__(self, path: Path, config: Config, resume: bool, tensorboard: bool = False) -> None:
        """Open a folder; refuse one that holds another run, or one of the same run without ``resume``.

        Raises:
            ValueError: The folder holds a run already, and it is not to be resumed or has other options.
            ImportError: The tables are wanted in TensorBoard too, and tensorboardX is not installed.
        """
        writer = _summary_writer() if tensorboard else None
        self.path = path
        self.writes = jax.process_index() == 0
        there = (path / runs.CONFIG).exists()
        multihost_utils.sync_global_devices("every process has looked at the run folder")
        if there and not resume:
            raise ValueError(f"out is {path}, which holds a run already; pass --resume to go on, or another --out.")
        if there:
            self._check_same(config)
        path.mkdir(parents=True, exist_ok=True)
        if self.writes and not there:
            kept = dataclasses.asdict(config) | {"builder": runs.BUILDER, "versions": _versions()}
            _replace(path / runs.CONFIG, json.dumps(kept, indent=2) + "\n")
        self.manager = checkpoint_manager(path / CHECKPOINTS)
        self.steps = checkpoint_manager(path / STEPS) if config.save_steps else None
        self._steps_dtype, self._waiting = config.steps_dtype, dict[str, jax.Array]()
        last = self.manager.latest_step()
        self.board: Any = None
        if writer and self.writes:
            self.board = writer(str(path / "tensorboard"), purge_step=None if last is None else last + 1)

    def _check_same(self, config: Config) -> None:
        before = runs.read_config(self.path)
        for name, value in dataclasses.asdict(config).items():
            if before.get(name, getattr(Config, name)) != value:
                raise ValueError(
                    f"{name} is {value!r}, but the run in {self.path} was started with {before.get(name)!r}; "
                    "resume it with its own options, or start another one elsewhere with --out."
                )

    def restore(self, state: TrainState) -> tuple[int, TrainState]:
        """The last epoch with a complete checkpoint and its state; -1 and ``state`` when there is none."""
        epoch = self.manager.latest_step()
        last = -1 if epoch is None else epoch
        for name in (runs.METRICS, runs.NORMS) if self.writes else ():
            rows = [row for row in runs.read_table(self.path / name) if row["epoch"] <= last]
            _write_rows(self.path / name, rows)
        if epoch is None:
            return -1, state
        like = {"variables": _variables(state), "optimizer": state.optimizer}
        args = ocp.args.Composite(**{name: ocp.args.StandardRestore(value) for name, value in like.items()})
        found = self.manager.restore(epoch, args=args)
        return epoch, TrainState(**found["variables"], optimizer=found["optimizer"])

    def save(self, epoch: int, state: TrainState) -> None:
        """Write a checkpoint, after the steps before it; it counts only once it is complete."""
        self._write_steps()
        if self.steps:
            self.steps.wait_until_finished()
        items = {"variables": _variables(state), "optimizer": state.optimizer}
        # The next step donates these buffers, and orbax writes in the background: hand it copies.
        items = jax.tree.map(jnp.copy, items)
        args = ocp.args.Composite(**{name: ocp.args.StandardSave(value) for name, value in items.items()})
        self.manager.save(epoch, args=args)

    def save_step(self, step: int, state: TrainState, first: Params) -> None:
        """Keep the weights within an epoch; what a run that was resumed has written before is the same."""
        if self.steps is None or (self.steps.latest_step() or 0) >= step:
            return
        self._waiting[str(step)] = _vector(_variables(state), first, self._steps_dtype)
        if sum(vector.nbytes for vector in self._waiting.values()) >= _TOGETHER:
            self._write_steps()

    def _write_steps(self) -> None:
        if self.steps and self._waiting:
            last = max(map(int, self._waiting))
            self.steps.save(last, args=ocp.args.Composite(variables=ocp.args.StandardSave(self._waiting)))
            self._waiting = {}

    def close(self) -> None:
        """Wait until all is written."""
        self._write_steps()
        self.manager.close()
        if self.steps:
            self.steps.close()
        if self.board:
            self.board.close()

    def log(self, name: str, row: Mapping[str, float]) -> None:
        """Append an epoch to a table of the run."""
        path = self.path / name
        if not self.writes:
            return
        for column, value in row.items() if self.board else ():
            if column != "epoch":
                self.board.add_scalar(f"{path.stem}/{column}", value, row["epoch"])
        if not path.exists() or not path.stat().st_size:
            _write_rows(path, [row])
        else:
            with open(path, "a", newline="") as file:
                csv.DictWriter(file, [*row], lineterminator="\n").writerow(row)


def _write_rows(path: Path, rows: Sequence[Mapping[str, float]]) -> None:
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, [*rows[0]], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    _replace(path, text.getvalue())


_vector = jax.jit(to_vector, static_argnames="dtype")


def _variables(state: TrainState) -> dict[str, Params]:
    return {"params": state.params, "batch_stats": state.batch_stats}


def _replace(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    new = path.with_name(f".{path.name}.new")
    new.write_text(text)
    new.replace(path)


def _summary_writer() -> Any:
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise ImportError("--tensorboard needs tensorboardX: `pip install -e .[tensorboard]`.") from error
    return SummaryWriter


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("jax", "flax", "optax", "orbax-checkpoint")}
