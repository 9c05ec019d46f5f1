"""The folder of a run: config, metrics and checkpoints, complete after every epoch; the first process writes."""

import csv
import dataclasses
import importlib.metadata
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from jaxscape import runs
from jaxscape.checkpoints import CHECKPOINTS, STEPS, checkpoint_manager, to_vector
from jaxscape.types import Params
from training.config import Config
from training.step import TrainState

_TOGETHER = 2**26  # bytes of steps in one save: large enough to hide its 40 ms, small compared with a training


class RunFolder:
    """The folder of a run, with config.json, metrics.csv, weight_norms.csv and checkpoints."""

    def __init__(self, path: Path, config: Config, resume: bool, tensorboard: bool = False) -> None:
        """Open or create a folder.

        Args:
            path: The path of the folder.
            config: The options of the run.
            resume: Whether a run in the folder may be continued.
            tensorboard: Whether the tables are also written for TensorBoard.

        Raises:
            ValueError: The folder holds a run, and ``resume`` is False or the run has other options.
            ImportError: ``tensorboard`` is True and tensorboardX is not installed.
        """
        writer = _summary_writer() if tensorboard else None
        self.path = path
        self.writes = jax.process_index() == 0
        exists = (path / runs.CONFIG).exists()
        multihost_utils.sync_global_devices("every process has looked at the run folder")
        if exists and not resume:
            raise ValueError(f"out is {path}, which holds a run already; pass --resume to go on, or another --out.")
        if exists:
            self._check_same(config)
        path.mkdir(parents=True, exist_ok=True)
        if self.writes and not exists:
            contents = dataclasses.asdict(config) | {"versions": _versions()}
            _replace(path / runs.CONFIG, json.dumps(contents, indent=2) + "\n")
        self.manager = checkpoint_manager(path / CHECKPOINTS)
        self.steps = checkpoint_manager(path / STEPS) if config.save_steps else None
        self._steps_dtype, self._waiting = config.steps_dtype, dict[str, jax.Array]()
        last = self.manager.latest_step()
        self.board: Any = None
        if writer and self.writes:
            self.board = writer(str(path / "tensorboard"), purge_step=None if last is None else last + 1)

    def _check_same(self, config: Config) -> None:
        previous = runs.read_config(self.path)
        for name, value in dataclasses.asdict(config).items():
            if previous.get(name, getattr(Config, name)) != value:
                raise ValueError(
                    f"{name} is {value!r}, but the run in {self.path} was started with {previous.get(name)!r}; "
                    "resume it with its own options, or start another one elsewhere with --out."
                )

    def restore(self, state: TrainState) -> tuple[int, TrainState]:
        """Restore the last complete checkpoint.

        Args:
            state: A state with the shapes and dtypes of the checkpoint.

        Returns:
            The epoch and the state of the checkpoint; -1 and ``state`` if there is no checkpoint.
        """
        epoch = self.manager.latest_step()
        last = -1 if epoch is None else epoch
        for name in (runs.METRICS, runs.NORMS) if self.writes else ():
            rows = [row for row in runs.read_table(self.path / name) if row["epoch"] <= last]
            _write_rows(self.path / name, rows)
        if epoch is None:
            return -1, state
        like = {"variables": _variables(state), "optimizer": state.optimizer}
        args = ocp.args.Composite(**{name: ocp.args.StandardRestore(value) for name, value in like.items()})
        restored = self.manager.restore(epoch, args=args)
        return epoch, TrainState(**restored["variables"], optimizer=restored["optimizer"])

    def save(self, epoch: int, state: TrainState) -> None:
        """Write a checkpoint, after the steps before it; an incomplete checkpoint is ignored."""
        self._write_steps()
        if self.steps:
            self.steps.wait_until_finished()
        items = {"variables": _variables(state), "optimizer": state.optimizer}
        # On the host, since the next step donates these buffers while orbax still writes in the background. Of arrays
        # on 8 devices orbax would slice each into 8 parts: 1.5 s for a ResNet-8, on 2 cores.
        items = jax.tree.map(np.array, items)  # copies, where `jax.device_get` may share memory on a CPU
        args = ocp.args.Composite(**{name: ocp.args.StandardSave(value) for name, value in items.items()})
        self.manager.save(epoch, args=args)

    def save_step(self, step: int, state: TrainState, first: Params) -> None:
        """Save the weights of a step; a resumed run skips steps that it has saved before, since they are the same."""
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
        """Write the waiting steps, and wait until everything is written."""
        self._write_steps()
        self.manager.close()
        if self.steps:
            self.steps.close()
        if self.board:
            self.board.close()

    def log(self, name: str, row: Mapping[str, float]) -> None:
        """Append the row of an epoch to a table of the run, and to TensorBoard if it is used."""
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
    """Write a file atomically: either the whole new text or nothing."""
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
