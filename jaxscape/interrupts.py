"""Commands that end in one line: Ctrl-C, SIGTERM, a caller's mistake, a full disk."""

import contextlib
import errno
import logging
import os
import shlex
import signal
import socket
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any, NoReturn

PATIENCE = 8.0  # seconds from a signal to the end of the process, at most
SIGNALS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM, on a command line.

    Attributes:
        number: Of the signal.
    """

    def __init__(self, number: int) -> None:
        """Keep the number of the signal."""
        super().__init__(SIGNALS[signal.Signals(number)])
        self.number = number


def run_command(name: str, again: Sequence[str], command: Callable[[], int], *, debug: bool = False) -> int:
    """Run a command; whatever ends it is one line on standard error.

    Ctrl-C and SIGTERM raise `Interrupted`; PATIENCE seconds later, or at a second one, the process ends. Notes of the
    exception (`BaseException.add_note`) say what is kept.

    Args:
        name: Of the program, in messages.
        again: The command and its arguments that go on after an interrupt.
        command: What runs; it returns the exit status.
        debug: Whether tracebacks are printed.

    Returns:
        The exit status: that of the command; 2 for a mistake of the caller's or of a file; 1 for any other error; 130
        or 143 after Ctrl-C or SIGTERM.
    """

    def show(message: Any, *_: Any, **__: Any) -> None:
        print(f"{name}: warning: {_one_line(message)}", file=sys.stderr)

    go_on = f"Go on with: {shlex.join(again)}"
    with (
        _signals(f"{name}: {{}}. What was finished is kept. {go_on}"),
        warnings.catch_warnings(),
        contextlib.nullcontext() if debug else _quiet(),
    ):
        warnings.showwarning = show
        try:
            return command()
        except KeyboardInterrupt as interrupt:
            number = getattr(interrupt, "number", signal.SIGINT)
            kept = " ".join(getattr(interrupt, "__notes__", []))
            line = f"{SIGNALS[signal.Signals(number)]}. {kept}".strip()
            _say(f"{name}: {line} {go_on}", debug)
            return 128 + number
        except (ValueError, TypeError, OSError, ImportError) as error:
            _say(f"{name}: error: {_described(error)}", debug)
            return 2
        except Exception as error:  # noqa: BLE001  # a fault of the program is one line too
            if "No space left" in str(error):
                _say(f"{name}: error: {_described(error)}", debug)
                return 2
            _say(f"{name}: failed: {type(error).__name__}: {_one_line(error)} (--debug shows where)", debug)
            return 1


def leave(status: int) -> NoReturn:
    """End the process; if it failed or was interrupted at once, whatever goes on in the background.

    Args:
        status: The exit status.
    """
    if status:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep background threads and loggers of other libraries from printing tracebacks.

    Orbax prints hundreds of lines when the disk is full. What matters of them reaches the command as an exception.
    """
    loggers = {logging.getLogger(name): logging.getLogger(name).level for name in ("absl", "asyncio")}
    of_threads, unraisable = threading.excepthook, sys.unraisablehook
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    threading.excepthook = lambda _: None
    sys.unraisablehook = lambda _: None
    try:
        yield
    finally:
        threading.excepthook, sys.unraisablehook = of_threads, unraisable
        for logger, level in loggers.items():
            logger.setLevel(level)


@contextlib.contextmanager
def _signals(late: str) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM raise `Interrupted`, and end the process where that does not happen soon.

    Args:
        late: What to print then, with a place for the name of the signal.
    """

    def again(number: int, _: FrameType | None) -> None:
        os._exit(128 + number)

    def first(number: int, _: FrameType | None) -> None:
        for other in SIGNALS:
            signal.signal(other, again)
        raise Interrupted(number)

    before: dict[int, Any] = {}
    try:
        with contextlib.suppress(ValueError):  # signals belong to the main thread
            before = {number: signal.signal(number, first) for number in SIGNALS}
        with _watched(late) if before else contextlib.nullcontext():
            yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _watched(late: str) -> Iterator[None]:
    """End the process PATIENCE seconds after a signal, or at the second one, from a thread of its own.

    Python calls a handler only between its own instructions: while XLA compiles, for a minute maybe, there are none.
    """
    receiver, sender = socket.socketpair()
    sender.setblocking(False)

    def heard() -> int:
        """The next signal of SIGNALS; 0 when the command is over."""
        while (number := int.from_bytes(receiver.recv(1))) and number not in SIGNALS:
            pass
        return number

    def watch() -> None:
        number = heard()
        receiver.settimeout(PATIENCE)
        with contextlib.suppress(TimeoutError):
            if not number or not heard():
                return
        print(late.format(SIGNALS[signal.Signals(number)]), file=sys.stderr, flush=True)
        os._exit(128 + number)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    before = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        sender.close()
        thread.join()
        receiver.close()


def _described(error: Exception) -> str:
    if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error):
        return f"the disk is full ({_one_line(error)}). What was finished is kept; make room, and run the same again."
    return _one_line(error)


def _one_line(error: BaseException) -> str:
    return " ".join(" ".join([str(error), *getattr(error, "__notes__", [])]).split())


def _say(line: str, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    print(line, file=sys.stderr)
