"""Files that survive a crash: text that is replaced in one step, and the lock of a folder that one process writes."""

import json
import os
import socket
import threading
import time
import uuid
import warnings
from pathlib import Path
from typing import Any

import psutil

LOCK = ".lock"
BEAT = 15.0  # seconds between two signs of life of a lock
_held: set[Path] = set()  # by this process
SILENCE = 120.0  # seconds without a sign of life after which the lock of another machine counts as left behind


def replace_text(path: Path, text: str) -> None:
    """Write text to a file as `replace_file` does.

    Args:
        path: The file; its folder exists.
        text: What it is to hold.
    """
    replace_file(path, text.encode())


def replace_file(path: Path, content: bytes) -> None:
    """Write a file in one step: a reader, and a run after a crash, see the old contents or the new ones.

    Args:
        path: The file; its folder exists.
        content: What it is to hold.
    """
    new = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.new")
    try:
        with new.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


class FolderLock:
    """The right of one process to write into a folder; a file ``.lock`` in it names the process.

    A process that is killed leaves the file behind. Who comes next takes it over with a warning: at once where the
    machine is the same and has no such process any more; from another machine when the file has shown no sign of life
    for `SILENCE` seconds.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> with FolderLock(folder):
    ...     [path.name for path in folder.iterdir()]
    ['.lock']
    >>> list(folder.iterdir())
    []
    """

    def __init__(self, folder: Path, file: str = LOCK) -> None:
        """Name the folder; `acquire`, or a ``with`` statement, takes the lock.

        Args:
            folder: What is locked.
            file: The path of the lock within it; its folder exists when the lock is taken.
        """
        self.folder, self._path = folder, folder / file
        self._text = ""
        self._released = threading.Event()

    def __enter__(self) -> "FolderLock":
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            ValueError: Another process writes into the folder; the message says which.
            OSError: The folder cannot be written.

        Warns:
            UserWarning: The lock was left behind by a process that is gone.
        """
        self._text = json.dumps(_this_process())
        while not self._create():
            holder = _read(self._path)
            if holder is None:
                continue  # released in between
            if _is_alive(self._path, holder):
                raise ValueError(
                    f"{self.folder} is being written by {_named(holder)}; wait until it is done, stop it, or name "
                    "another folder."
                )
            self._take_over(holder)
        self._released.clear()
        _held.add(self._path.resolve())
        threading.Thread(target=self._beat, daemon=True, name="jaxscape lock").start()

    def check(self) -> None:
        """Make sure, before a write, that the lock is still this process's.

        Raises:
            OSError: The file is gone or another process's, as after a long suspension of this one.
        """
        holder = _read(self._path)
        if holder != self._text:
            who = "is gone" if holder is None else f"belongs to {_named(holder)}"
            raise OSError(f"the lock {self._path} {who}: this process no longer writes into {self.folder}.")

    def release(self) -> None:
        """Give the lock back; twice does no harm."""
        self._released.set()
        _held.discard(self._path.resolve())
        if self._text and _read(self._path) == self._text:
            self._path.unlink(missing_ok=True)
        self._text = ""

    def _create(self) -> bool:
        """Make the file with its contents in one step, unless there is one."""
        new = self._path.with_name(f"{LOCK}.{uuid.uuid4().hex[:8]}.new")
        try:
            new.write_text(self._text)
            try:
                os.link(new, self._path)
            except FileExistsError:
                return False
            except OSError:  # a file system without hard links
                try:
                    descriptor = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
                except FileExistsError:
                    return False
                with os.fdopen(descriptor, "w") as file:
                    file.write(self._text)
            return True
        finally:
            new.unlink(missing_ok=True)

    def _take_over(self, holder: str) -> None:
        """Remove a lock that was left behind, unless another process was quicker."""
        aside = self._path.with_name(f"{LOCK}.{uuid.uuid4().hex[:8]}.old")
        try:
            self._path.rename(aside)
        except FileNotFoundError:
            return
        taken = _read(aside)
        if taken != holder:  # a live process took it over between our look and our rename: give it back
            try:
                os.link(aside, self._path)
            except OSError:
                aside.rename(self._path)
                return
        else:
            warnings.warn(
                f"{self.folder} was left locked by {_named(holder)}, which is gone; going on with what it finished.",
                stacklevel=2,
            )
        aside.unlink(missing_ok=True)

    def _beat(self) -> None:
        text = self._text
        while not self._released.wait(BEAT):
            try:
                if _read(self._path) != text:
                    return
                os.utime(self._path)
            except OSError:
                return


def _this_process() -> dict[str, Any]:
    return {"host": _host(), "pid": os.getpid(), "started": psutil.Process().create_time()}


def _host() -> str:
    """The machine and, on Linux, which of its boots: names of containers repeat."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return f"{socket.gethostname()} {boot.read_text().strip() if boot.exists() else ''}"


def _read(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace")
    except FileNotFoundError:
        return None


def _holder(text: str) -> dict[str, Any] | None:
    try:
        holder = json.loads(text)
        return {"host": str(holder["host"]), "pid": int(holder["pid"]), "started": float(holder["started"])}
    except (ValueError, KeyError, TypeError):
        return None


def _named(text: str) -> str:
    holder = _holder(text)
    if holder is None:
        return "an unknown process"
    started = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(holder["started"]))
    return f"process {holder['pid']} on {holder['host'].split(' ')[0]}, started {started}"


def _is_alive(path: Path, text: str) -> bool:
    """Whether the process that a lock names still runs; of another machine, whether the lock shows signs of life."""
    holder = _holder(text)
    if holder == _this_process():
        return path.resolve() in _held  # else left by a call that failed
    if holder is not None and holder["host"] == _host():
        try:
            return abs(psutil.Process(holder["pid"]).create_time() - holder["started"]) < 2
        except psutil.NoSuchProcess:
            return False
        except psutil.AccessDenied:
            return True
    try:
        first = path.stat().st_mtime
        end = time.monotonic() + SILENCE
        while time.monotonic() < end:
            time.sleep(min(1.0, SILENCE / 10))
            if path.stat().st_mtime != first:
                return True
    except FileNotFoundError:
        return False
    return False
