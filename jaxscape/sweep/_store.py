"""Results on disk while they are made: what is finished stays, whatever ends the process.

A store is a zarr group that anybody can open: an array for each variable over the axes of the grid, NaN where a point
is missing, and ``done``, which points are there. Each chunk carries a checksum (crc32c) and is replaced in one step;
``done`` is written last. The group's ``zarr.json`` is the last file that is written when a store is made: it makes the
folder a store, and holds what the numbers depend on.
"""

import contextlib
import dataclasses
import os
import shutil
import threading
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxscape.files import LOCK, FolderLock, replace_file
from jaxscape.peers import watched_peers
from jaxscape.sweep._extend import extend, obstacles, recover, remove_smaller
from jaxscape.sweep._layout import DONE, Layout, ranges_of, stored_layout
from jaxscape.sweep._manifest import (
    MANIFEST,
    OWN,
    Manifest,
    damaged_nodes,
    difference,
    mend_nodes,
    nodes_below,
    plain,
    read_manifest,
    write_manifest,
)

_MESSAGE = 4096  # bytes of an error that the first process sends to the others


class Store:
    """The rows of a result, in a folder.

    Use it in a ``with`` statement: it locks the folder for this process, or for all processes of a
    ``jax.distributed`` run.

    Attributes:
        path: The folder.
        layout: Where each row is.
        done: Whether each row is there.
    """

    def __init__(
        self,
        path: str | Path,
        recipe: Mapping[str, Any],
        layout: Layout,
        long_names: Mapping[str, str] = MappingProxyType({}),
        attrs: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        """Describe a store; nothing is read or written before it is entered.

        Args:
            path: A folder.
            recipe: What the numbers depend on, beside the grid and the variables; values that JSON can hold.
            layout: Where each row is.
            long_names: What a variable is, for plots.
            attrs: Attributes of the result as far as they are known; values that JSON can hold.
        """
        self.path, self.layout = Path(os.path.realpath(path)), layout  # of a link: a larger store takes its place
        axes = dict(zip(layout.grid.names, layout.grid.axes, strict=True))
        kinds = {name: [str(kind), more] for name, (kind, more) in layout.kinds.items()}
        recipe = {**recipe, "grid": axes, "variables": kinds, "rows": layout.rows}
        self._manifest = Manifest(plain(recipe), plain(attrs), layout.chunk)
        self._long_names = long_names
        self._contents = layout.empty()
        self._watching = contextlib.ExitStack()
        self._writing, self._folder_lock = threading.Lock(), FolderLock(self.path, f"{OWN}/{LOCK}")

    @property
    def done(self) -> np.ndarray:
        """Whether each row is there."""
        return self._contents.columns[DONE]

    @property
    def there(self) -> Mapping[str, np.ndarray]:
        """For each variable, in which rows it is there: those that are done; more, if the store got a variable."""
        return self._contents.there

    @property
    def complete(self) -> bool:
        """Whether `finish` was called."""
        return self._manifest.complete

    @property
    def notes(self) -> Mapping[str, Any]:
        """What `note` has written."""
        return self._manifest.notes

    def __enter__(self) -> "Store":
        """Open the folder, or make it: all processes together, the first of them before the others.

        Returns:
            The store, with all rows that are there.

        Raises:
            ValueError: The folder holds something else, or the store of another recipe, the message says what differs;
                or another process writes into it.
            OSError: The folder cannot be written.

        Warns:
            UserWarning: Something in the folder is damaged or missing; its rows are not done.
        """
        try:
            _first(self._open)
            if jax.process_index():
                self._read()
            together("seen")  # none writes before all have seen what is done
        except BaseException:
            self._folder_lock.release()
            raise
        self._watching.enter_context(watched_peers(self._kept))
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self._watching.__exit__(kind, error, trace)
        self._folder_lock.release()
        if error is not None and not isinstance(error, Exception):  # Ctrl-C, and what a signal raises
            error.add_note(self._kept())

    def write(self, rows: slice | np.ndarray, values: Mapping[str, np.ndarray]) -> None:
        """Keep rows.

        Args:
            rows: Which ones: a slice or their numbers. No other process writes the shares that they are in.
            values: An array for each variable that they lack, these rows along its first axis.
        """
        with self._writing:  # one thread at a time
            if not jax.process_index():
                self._folder_lock.check()
            columns, written = self._contents.columns, np.zeros(self.layout.rows, bool)
            written[rows] = True
            shares = [share for share in self.layout.shares if written[share].any()]
            for name, value in values.items():
                columns[name][rows] = value
                self.layout.write(self.path, name, shares, columns[name])
            self.mark(rows)
            self.layout.write(self.path, DONE, shares, columns[DONE])

    def mark(self, rows: slice | np.ndarray) -> None:
        """Take rows for done that another process writes.

        Args:
            rows: Which ones.
        """
        for mask in (self.done, *self._contents.there.values()):
            mask[rows] = True

    def write_file(self, name: str, content: bytes) -> None:
        """Write a file of the folder in one step.

        Args:
            name: Its path in the folder.
            content: What it is to hold.
        """
        with self._writing:
            self._folder_lock.check()
            (self.path / name).parent.mkdir(exist_ok=True)
            replace_file(self.path / name, content)

    def note(self, **notes: Any) -> None:
        """Keep something that does not belong to the recipe.

        Args:
            **notes: Values that JSON can hold.
        """
        self._rewrite(notes={**self.notes, **plain(notes)})

    def finish(self, attrs: Mapping[str, Any]) -> Mapping[str, Any]:
        """Keep the attributes of the result, when all rows are done; those of a complete store stay.

        Args:
            attrs: Values that JSON can hold.

        Returns:
            The attributes of the result.
        """
        if not self.complete:
            self._rewrite(attrs=plain(attrs), complete=True, earlier={})
        return self._manifest.attrs

    def read(self) -> dict[str, np.ndarray]:
        """All variables, in full, when all processes have written."""
        together("written")
        if jax.process_count() > 1:
            self._read()
        together("read")  # only then may one of them remove the folder
        return {name: column for name, column in self._contents.columns.items() if name != DONE}

    def _kept(self) -> str:
        points = int(np.prod(self.layout.grid.shape))
        done = self.done[:points]
        partly = int((~done & np.any([mask[:points] for mask in self.there.values()], axis=0)).sum())
        more = f", and what was there before of {partly} others" if partly else ""
        return f"{done.sum()} of {points} points are kept in {self.path}{more}; the same call goes on from there."

    def _rewrite(self, **changes: Any) -> None:
        self._manifest = dataclasses.replace(self._manifest, **changes)
        if not jax.process_index():
            self._folder_lock.check()
            write_manifest(self.path, self._manifest)

    def _open(self) -> None:
        recover(self.path)
        if self._checked() is None:
            (self.path / OWN).mkdir(parents=True, exist_ok=True)
        self._folder_lock.acquire()
        remove_smaller(self.path)
        manifest = self._checked()  # the process before may have finished while this one took the lock
        if manifest is None:
            self._make()
        else:
            recipe, attrs, layout = self._manifest.recipe, self._manifest.attrs, self.layout
            self._use(manifest)
            if difference(manifest, recipe):
                larger = dataclasses.replace(self._manifest, recipe=recipe, attrs=attrs, chunk=layout.chunk)
                extend(self.path, self._manifest, self._contents, larger, layout, self._long_names)
                self._use(self._stored())

    def _checked(self) -> Manifest | None:
        """What the folder says of itself; None where it is free."""
        manifest = read_manifest(self.path)
        if manifest is None:
            self._check_free()
            return None
        if differs := "; ".join(obstacles(manifest, self._manifest.recipe, self.layout).values()):
            raise ValueError(f"store {self.path} holds another result: {differs}. Name another path, or remove it.")
        return manifest

    def _check_free(self) -> None:
        """Refuse a folder that holds anything but what a process leaves that is killed while it makes a store."""
        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise ValueError(f"store {self.path} is a file; expected a folder, or a path where there is nothing yet.")
        known = {*self.layout.kinds, *self.layout.grid.names, OWN}
        for entry in self.path.iterdir():
            if entry.name not in known and not entry.name.startswith(".zarr.json."):
                raise ValueError(f"store {self.path} exists and is no zarr folder; name another path.")

    def _make(self) -> None:
        lost = any((self.path / name / "c").exists() for name in self.layout.kinds)
        if lost:
            warnings.warn(f"store {self.path} has lost {MANIFEST}; what it held is computed anew.", stacklevel=2)
        for entry in (*self.path.iterdir(), *(self.path / OWN).iterdir()):
            if entry.is_dir() and entry.name != OWN:
                shutil.rmtree(entry)
        self.layout.create(self.path, self._long_names)
        self._manifest = dataclasses.replace(self._manifest, nodes=nodes_below(self.path))
        write_manifest(self.path, self._manifest)

    def _use(self, manifest: Manifest) -> None:
        self._manifest = manifest
        damaged = damaged_nodes(self.path, manifest)
        mend_nodes(self.path, manifest, damaged)
        damaged += stored_layout(manifest).mend_axes(self.path)
        self._read()
        damaged += self._contents.damaged
        self._forget_damaged()
        if damaged:
            warnings.warn(
                f"store {self.path}: {len(damaged)} files are damaged or missing ({', '.join(damaged[:3])}"
                f"{', ...' if len(damaged) > 3 else ''}); what they held is computed anew.",
                stacklevel=2,
            )

    def _read(self) -> None:
        self._manifest = self._stored()
        self.layout = stored_layout(self._manifest)
        self._contents = self.layout.read_all(self.path, self._manifest)

    def _stored(self) -> Manifest:
        manifest = read_manifest(self.path)
        if manifest is None:
            raise ValueError(f"store {self.path} is gone: somebody has removed it while it was written.")
        return manifest

    def _forget_damaged(self) -> None:
        """Say on disk, too, which rows damage has taken: a file that is written anew has fill values in the others."""
        columns, there, damaged = self._contents
        if damaged:
            shares = [s for s in self.layout.shares if any(self.layout.place(n, s)[2] in damaged for n in columns)]
            self._rewrite(earlier={name: ranges_of(mask & ~self.done) for name, mask in there.items()})
            self.layout.write(self.path, DONE, shares, self.done)
            for name, column in columns.items():  # so that anybody can read the rest
                self.layout.write(
                    self.path, name, [s for s in shares if self.layout.place(name, s)[2] in damaged], column
                )


def together(what: str) -> None:
    """Wait until all processes are here.

    Args:
        what: What they have done, for a message.
    """
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"store {what}")


def _first(function: Callable[[], None]) -> None:
    """Let the first process do something; what it refuses, all refuse."""
    if jax.process_count() == 1:
        return function()
    refused: Exception | None = None
    if not jax.process_index():
        try:
            function()
        except (ValueError, OSError) as error:
            refused = error
    text = str(refused or "").encode()[:_MESSAGE]
    message = np.frombuffer(text.ljust(_MESSAGE, b"\0"), np.uint8)
    message = np.asarray(multihost_utils.broadcast_one_to_all(message)).astype(np.uint8)
    if refused:
        raise refused
    if text := message.tobytes().rstrip(b"\0"):
        raise ValueError(text.decode(errors="replace"))
    return None
