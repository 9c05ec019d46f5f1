"""The folder of a run: config, metrics and checkpoints, complete after every epoch; the first process writes."""

import contextlib
import csv
import dataclasses
import importlib.metadata
import io
import json
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from jaxscape import runs
from jaxscape.files import FolderLock, replace_text
from jaxscape.run_checkpoints import (
    CHECKPOINTS,
    STEPS,
    checkpoint_manager,
    epoch_checkpoints,
    read_item,
    to_vector,
    write_digests,
)
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
            ValueError: The folder holds a run, and ``resume`` is False or the run has other options; it has checkpoints
                that nothing describes; or another process trains in it.
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
        elif (path / CHECKPOINTS).exists():
            raise ValueError(
                f"out is {path}, which has checkpoints but no {runs.CONFIG}: nothing says what they were trained with. "
                "Name another --out, or move them away."
            )
        path.mkdir(parents=True, exist_ok=True)
        self._lock = FolderLock(path)
        if self.writes:
            self._lock.acquire()
        try:
            self._open(config, exists, writer)
        except BaseException:
            self._lock.release()
            raise

    def _open(self, config: Config, exists: bool, writer: Any) -> None:
        if self.writes and not exists:  # before any checkpoint: a folder with checkpoints always says what they are
            contents = dataclasses.asdict(config) | {"versions": _versions()}
            replace_text(self.path / runs.CONFIG, json.dumps(contents, indent=2) + "\n")
        self._config = config
        self.manager = checkpoint_manager(self.path / CHECKPOINTS)
        self.steps = checkpoint_manager(self.path / STEPS) if config.save_steps else None
        self._waiting = dict[str, jax.Array]()
        self._writer = writer
        self.board: Any = None

    def _check_same(self, config: Config) -> None:
        previous = runs.read_config(self.path)
        for name, value in dataclasses.asdict(config).items():
            if previous.get(name, getattr(Config, name)) != value:
                raise ValueError(
                    f"{name} is {value!r}, but the run in {self.path} was started with {previous.get(name)!r}; "
                    "resume it with its own options, or start another one elsewhere with --out."
                )

    def restore(self, state: TrainState) -> tuple[int, TrainState]:
        """Restore the newest checkpoint of this run that is whole; those that are not are moved to ``skipped``.

        Args:
            state: A state with the shapes and dtypes of the checkpoint.

        Returns:
            The epoch and the state of the checkpoint; -1 and ``state`` if there is no checkpoint.

        Warns:
            UserWarning: A checkpoint is damaged, or of no epoch of this run.
        """
        last, restored = -1, state
        for epoch in sorted(self.manager.all_steps(), reverse=True):
            try:
                restored = self._restored(epoch, state)
            except ValueError as error:
                self._skip(epoch, error)
            else:
                last = epoch
                break
        for name in (runs.METRICS, runs.NORMS) if self.writes else ():
            rows = [row for row in runs.read_table(self.path / name) if row["epoch"] <= last]
            _write_rows(self.path / name, rows)
        if self._writer and self.writes:
            self.board = self._writer(str(self.path / "tensorboard"), purge_step=None if last < 0 else last + 1)
        return last, restored

    def _restored(self, epoch: int, state: TrainState) -> TrainState:
        if epoch > self._config.epochs:
            raise ValueError(f"the run has {self._config.epochs} epochs")
        items = {"variables": _variables(state), "optimizer": state.optimizer}
        restored = {name: read_item(self.path, epoch, name, like) for name, like in items.items()}
        return TrainState(**restored["variables"], optimizer=restored["optimizer"])

    def _skip(self, epoch: int, error: Exception) -> None:
        """Move a checkpoint away: orbax saves no epoch before it."""
        multihost_utils.sync_global_devices("every process has read the checkpoint")
        folder = self.path / CHECKPOINTS / str(epoch)
        if self.writes:
            away = self.path / "skipped" / str(epoch)
            shutil.rmtree(away, ignore_errors=True)
            away.parent.mkdir(exist_ok=True)
            folder.rename(away)
            warnings.warn(
                f"the checkpoint {folder} is skipped, and moved to {away.parent}: {' '.join(str(error).split())[:300]}",
                stacklevel=4,
            )
        multihost_utils.sync_global_devices("the checkpoint is moved")
        self.manager.reload()

    def save(self, epoch: int, state: TrainState) -> None:
        """Write a checkpoint, after the steps before it; an incomplete checkpoint is ignored."""
        self._write_steps()
        if self.steps:
            self.steps.wait_until_finished()
        items = {"variables": _variables(state), "optimizer": state.optimizer}
        # On the host, since the next step donates these buffers while orbax still writes in the background. Of arrays
        # on 8 devices orbax would slice each into 8 parts: 1.5 s for a ResNet-8, on 2 cores.
        items = jax.tree.map(np.array, items)  # copies, where `jax.device_get` may share memory on a CPU
        if self.writes:
            write_digests(self.path, CHECKPOINTS, epoch, items)
        args = ocp.args.Composite(**{name: ocp.args.StandardSave(value) for name, value in items.items()})
        self.manager.save(epoch, args=args)

    def save_step(self, step: int, state: TrainState, first: Params) -> None:
        """Save the weights of a step; a resumed run skips steps that it has saved before, since they are the same."""
        if self.steps is None or (self.steps.latest_step() or 0) >= step:
            return
        self._waiting[str(step)] = _vector(_variables(state), first, self._config.steps_dtype)
        if sum(vector.nbytes for vector in self._waiting.values()) >= _TOGETHER:
            self._write_steps()

    def _write_steps(self) -> None:
        if self.steps and self._waiting:
            last = max(map(int, self._waiting))
            if self.writes:
                write_digests(self.path, STEPS, last, self._waiting)
            self.steps.save(last, args=ocp.args.Composite(variables=ocp.args.StandardSave(self._waiting)))
            self._waiting = {}

    def newest(self) -> int | None:
        """The epoch of the newest checkpoint, when all are written."""
        self.manager.wait_until_finished()
        return self.manager.latest_step()

    def without_rows(self, last: int) -> Iterator[tuple[int, dict[str, Params]]]:
        """The checkpoints up to an epoch that lack a row in a table, say since its line was cut by a crash.

        Args:
            last: The epoch.

        Returns:
            An iterator over the epoch and the variables of each.
        """
        tables = [{row["epoch"] for row in runs.read_table(self.path / name)} for name in (runs.METRICS, runs.NORMS)]
        multihost_utils.sync_global_devices("every process has read the tables")
        checkpoints = epoch_checkpoints(self.path)
        for index, epoch in enumerate(checkpoints.epochs):
            if epoch <= last and not all(epoch in table for table in tables):
                yield int(epoch), {"batch_stats": {}, **checkpoints.variables(index)}

    def log(self, tables: Mapping[str, Mapping[str, float]]) -> None:
        """Write the row of an epoch into each table of the run, and to TensorBoard if it is used.

        Args:
            tables: The rows, by the names of the tables.
        """
        if not self.writes:
            return
        for name, row in tables.items():
            path = self.path / name
            if self.board is not None:
                for column in row.keys() - {"epoch"}:
                    self.board.add_scalar(f"{path.stem}/{column}", row[column], row["epoch"])
            rows = runs.read_table(path)
            if rows and rows[-1]["epoch"] < row["epoch"]:
                with open(path, "a", newline="") as file:
                    csv.DictWriter(file, [*row], lineterminator="\n").writerow(row)
            else:
                others = [other for other in rows if other["epoch"] != row["epoch"]]
                _write_rows(path, sorted([*others, row], key=lambda row: row["epoch"]))

    def close(self) -> None:
        """Write the waiting steps, wait until everything is written, and give the folder back."""
        try:
            self._write_steps()
            self.manager.close()
            if self.steps:
                self.steps.close()
            if self.board:
                self.board.close()
        finally:
            self._lock.release()

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None:
            return self.close()
        with contextlib.suppress(Exception):  # what ended the training is what the user must see
            self.close()
        if not isinstance(error, Exception):  # Ctrl-C, and what a signal raises
            epochs = epoch_checkpoints(self.path).epochs
            kept = f"the checkpoints up to epoch {epochs[-1]}" if epochs else "no checkpoint yet"
            error.add_note(f"{self.path} keeps {kept}.")
        return None


def _write_rows(path: Path, rows: Sequence[Mapping[str, float]]) -> None:
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, [*rows[0]], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    replace_text(path, text.getvalue())


_vector = jax.jit(to_vector, static_argnames="dtype")


def _variables(state: TrainState) -> dict[str, Params]:
    return {"params": state.params, "batch_stats": state.batch_stats}


def _summary_writer() -> Any:
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise ImportError("--tensorboard needs tensorboardX: `pip install -e .[tensorboard]`.") from error
    return SummaryWriter


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("jax", "flax", "optax", "orbax-checkpoint")}
