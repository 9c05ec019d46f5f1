"""When one of several processes dies, the others end soon, and say what is kept and how to go on.

JAX itself ends them too, after 100 s and with a C++ stack trace. Here each process shows a sign of life every `BEAT`
seconds in the key-value store of ``jax.distributed``, and looks for those of the others. When the first process dies,
which holds that store, JAX aborts the others at once: then a small process beside each of them says the line.
"""

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

BEAT = 2.0  # seconds between two signs of life
SILENCE = 18.0  # seconds without one, after which a process counts as dead
_PREFIX, _LEFT = "jaxscape/alive", "left"

Kept = Callable[[], str]
"""What is kept, in words."""

_watches: list["_Watch"] = []


@contextlib.contextmanager
def watched_peers(kept: Kept) -> Iterator[None]:
    """Watch the other processes of a ``jax.distributed`` run, while something is computed together.

    When one of them dies, this process prints one line and ends with status 1. With one process nothing is done.

    Args:
        kept: What is kept, and how to go on, in a sentence; asked for when a process has died.

    Raises:
        JaxRuntimeError: What is computed failed, and all processes are alive.
    """
    client = _client()
    if jax.process_count() == 1 or client is None:
        yield
        return
    if _watches:  # a call within a call: the inner one knows more
        outer, _watches[0].kept = _watches[0].kept, kept
        try:
            yield
        finally:
            _watches[0].kept = outer
        return
    watch = _Watch(client, kept)
    _watches.append(watch)
    try:
        yield
    except jax.errors.JaxRuntimeError:  # a collective that fails since a process has died
        watch.wait_for_verdict()
        raise
    finally:
        _watches.remove(watch)
        watch.leave()


class _Watch:
    """The thread that shows signs of life and looks for those of others."""

    def __init__(self, client: Any, kept: Kept) -> None:
        self.kept = kept
        self._client, self._left = client, threading.Event()
        self._seen: dict[int, tuple[str, float]] = {}
        self._witness = _witness() if jax.process_index() else None
        threading.Thread(target=self._run, daemon=True, name="jaxscape peers").start()

    def leave(self) -> None:
        """End the thread: this process is no longer to be watched."""
        self._left.set()
        if self._witness is not None:
            self._witness.communicate("\n")  # the last line is empty: all is well
        with contextlib.suppress(Exception):  # the store is gone with the first process
            self._show(_LEFT)

    def wait_for_verdict(self) -> None:
        """Wait until it is clear whether a process has died: then this one ends here."""
        start = time.monotonic()
        while time.monotonic() < start + SILENCE + 3 * BEAT:
            time.sleep(BEAT / 2)
            if self._seen and all(since > start + BEAT for _, since in self._seen.values()):
                return  # all show signs of life

    def _run(self) -> None:
        count, failed_since = 0, None
        while not self._left.wait(BEAT):
            count += 1
            self._tell_witness()
            try:
                self._show(str(count))
                signs = dict(self._client.key_value_dir_get(_PREFIX))
                failed_since = None
            except Exception:  # noqa: BLE001  # the store, which the first process holds, does not answer
                failed_since = failed_since or time.monotonic()
                if time.monotonic() - failed_since > SILENCE:
                    self._end(0)
                continue
            self._look({int(name.rpartition("/")[2]): sign for name, sign in signs.items()})

    def _tell_witness(self) -> None:
        if self._witness is not None and self._witness.stdin is not None:
            number = f"{jax.process_index()} of {jax.process_count()}"
            line = f"jaxscape: process {number} was ended, as all are when process 0 is gone. {self.kept()}"
            with contextlib.suppress(OSError, ValueError):  # it has ended
                self._witness.stdin.write(f"{line}\n")
                self._witness.stdin.flush()

    def _show(self, sign: str) -> None:
        self._client.key_value_set(f"{_PREFIX}/{jax.process_index()}", sign, allow_overwrite=True)

    def _look(self, signs: dict[int, str]) -> None:
        now = time.monotonic()
        for index, sign in signs.items():
            if sign == _LEFT or index == jax.process_index():
                self._seen.pop(index, None)
            elif self._seen.get(index, ("", 0.0))[0] != sign:
                self._seen[index] = sign, now
            elif now - self._seen[index][1] > SILENCE:
                self._end(index)

    def _end(self, index: int) -> None:
        line = f"jaxscape: process {index} of {jax.process_count()} is gone, so this one ends. {self.kept()}"
        print(line, file=sys.stderr, flush=True)
        os._exit(1)  # a regular exit waits for the dead


_WITNESS = """
import sys
last = ""
for line in sys.stdin:
    last = line
if last.strip():
    print(last, end="", file=sys.stderr)
"""


def _witness() -> subprocess.Popen[str]:
    """A process that says the last line that it was told, when this one ends without saying that all is well."""
    return subprocess.Popen([sys.executable, "-ISc", _WITNESS], stdin=subprocess.PIPE, text=True)


def _client() -> Any:
    """The key-value store of ``jax.distributed``; None where this version of JAX has another one."""
    try:
        from jax._src.distributed import global_state

        return global_state.client
    except (ImportError, AttributeError):
        return None
