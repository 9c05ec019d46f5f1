"""Where the records of a path are kept: in memory, or as files of a folder, which survive a crash."""

import io
import json
import uuid
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxscape.files import replace_file, replace_text
from jaxscape.shards import gather


class Record(NamedTuple):
    """What is kept of a point of a path.

    Attributes:
        step: The step of training.
        row: This process's part of the difference from the first point, in 16 bits; or projections of it.
        scales: What the leaves of the difference are multiplied by.
        values: Numbers by name.
    """

    step: int
    row: np.ndarray
    scales: np.ndarray
    values: dict[str, float]


class Memory(list[Record]):
    """Records in memory."""

    def numbers(self) -> list[tuple[int, dict[str, float]]]:
        """The step and the values of each record."""
        return [(record.step, record.values) for record in self]

    def drop(self, start: int) -> None:
        """Drop all records from a place on."""
        del self[start:]


class Folder(Sequence[Record]):
    """Records as files, one for each record and process, written in one step each.

    A record exists once every process has written its file.
    """

    def __init__(self, path: Path, recipe: Mapping[str, Any]) -> None:
        """Open a folder, or make it.

        Args:
            path: The folder.
            recipe: What all records rest on, in JSON's types.

        Raises:
            ValueError: The folder holds records that rest on something else, or is damaged.
        """
        self.path, self._process, self._owner = path, jax.process_index(), ""
        path.mkdir(parents=True, exist_ok=True)
        file = path / "path.json"
        if file.exists():
            try:
                found = dict(json.loads(file.read_text()))
            except (ValueError, TypeError):
                raise ValueError(f"{file} is damaged; pass another folder.") from None
            for name, value in recipe.items():
                if found.get(name) != value:
                    raise ValueError(
                        f"folder {path} holds a path with {name} {_brief(found.get(name))}, but here it is "
                        f"{_brief(value)}; pass another folder, or the same options and params like the first ones."
                    )
        there = sorted(path.glob(f"record-*.{self._process}.npz"))
        count = 0
        while self._file(count).exists():
            count += 1
        lost = self._file(count) if count < len(there) else None
        lost = file if there and not file.exists() else lost
        if lost:
            raise ValueError(f"folder {path} has {len(there)} records but lacks {lost.name}; pass another folder.")
        if self._process == 0 and not file.exists():
            replace_text(file, json.dumps(recipe, indent=1))
        self._count = int(gather(np.array(count)).min())

    def start(self, row: Callable[[], np.ndarray]) -> np.ndarray:
        """The first point: that of the folder, or, where it has none yet, the one that a function gives."""
        file = self.path / f"start.{self._process}.npy"
        if not file.exists():
            if self._count:
                raise ValueError(f"folder {self.path} has records but lacks {file.name}; pass another folder.")
            replace_file(file, _as_bytes(row()))
        return np.load(file)

    def append(self, record: Record) -> None:
        """Write a record.

        Args:
            record: The record.

        Raises:
            ValueError: Another recorder has begun to write into the folder.
        """
        owner = self.path / f"owner.{self._process}"
        if not self._owner:  # the first record since it was opened: a recorder that is only read owns nothing
            self._owner = uuid.uuid4().hex
            replace_text(owner, self._owner)
        if owner.read_text() != self._owner:
            raise ValueError(f"folder {self.path} has records of another Recorder since; use one for each folder.")
        content = io.BytesIO()
        values = json.dumps({"step": record.step, "values": record.values})
        np.savez(content, row=record.row, scales=record.scales, values=np.array(values))
        replace_file(self._file(self._count), content.getvalue())
        self._count += 1

    def drop(self, start: int) -> None:
        """Delete all records from a place on, the last first."""
        while self._file(self._count).exists():  # of a crash, where another process had not written its part
            self._count += 1
        for i in reversed(range(start, self._count)):
            self._file(i).unlink()
        self._count = start

    def numbers(self) -> list[tuple[int, dict[str, float]]]:
        """The step and the values of each record."""
        return [self._numbers(i) for i in range(len(self))]

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        places = range(self._count)[index]
        return self._read(places) if isinstance(places, int) else [self._read(i) for i in places]

    def _read(self, index: int) -> Record:
        step, values = self._numbers(index)
        row, scales = self._arrays(index, "row", "scales")
        return Record(step, row, scales, values)

    def _numbers(self, index: int) -> tuple[int, dict[str, float]]:
        found = json.loads(str(*self._arrays(index, "values")))
        return found["step"], found["values"]

    def _arrays(self, index: int, *names: str) -> list[np.ndarray]:
        file = self._file(index)
        try:
            with np.load(file) as arrays:
                return [arrays[name] for name in names]
        except (ValueError, KeyError, zipfile.BadZipFile):
            raise ValueError(
                f"{file} is damaged; delete it and all records after it, or pass another folder."
            ) from None

    def _file(self, index: int) -> Path:
        return self.path / f"record-{index:06d}.{self._process}.npz"


def _as_bytes(array: np.ndarray) -> bytes:
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


def _brief(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 200 else f"{text[:197]}..."
