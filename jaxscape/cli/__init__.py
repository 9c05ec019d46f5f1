"""The command line: ``jaxscape surface|line|interpolate|hessian|...``; each command calls the library."""

import contextlib
import json
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import jax
import numpy as np

from jaxscape.cli import _between, _export, _info, _measure, _sharpness, _show, _walk  # noqa: F401  # they add their commands
from jaxscape.cli._app import understood
from jaxscape.compilation import keep_compiled_programs
from jaxscape.interrupts import leave, run_command
from jaxscape.objective import use_all_cores


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: The arguments; None: the arguments of the process.

    Returns:
        The exit status: 0; 2 if the arguments or a file are wrong; 1 for another error; 130 or 143 after Ctrl-C or
        SIGTERM. Then one line on standard error says what is wrong, or what is kept and how to go on.
    """
    argv = sys.argv[1:] if argv is None else argv
    call = understood(argv)
    if isinstance(call, int):
        return call

    def command() -> int:
        if call.distributed:
            use_all_cores()
            jax.distributed.initialize()
        with contextlib.redirect_stdout(sys.stderr) if call.as_json else contextlib.nullcontext():
            numbers = call.run()
        if call.as_json and not jax.process_index():
            print(json.dumps(_plain(numbers)))
        return 0

    return run_command("jaxscape", ["jaxscape", *argv], command, debug=call.debug)


def run() -> NoReturn:
    """Run the command of the process, and end the process."""
    keep_compiled_programs()
    leave(main())


def _plain(value: Any) -> Any:
    """A value in JSON's types; a number that is not finite is null."""
    if isinstance(value, dict):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return value if isinstance(value, int | str | bool | None) else str(value)
