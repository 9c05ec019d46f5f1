"""The command line: ``jaxscape surface|line|interpolate|hessian|trajectory|plot|report``; each calls the library."""

import sys
from collections.abc import Sequence
from typing import NoReturn

import jax

from jaxscape.cli._parser import make_parser
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
    args = make_parser().parse_args(argv)

    def command() -> int:
        if getattr(args, "distributed", False):
            use_all_cores()
            jax.distributed.initialize()
        args.command(args)
        return 0

    return run_command("jaxscape", ["jaxscape", *argv], command, debug=args.debug)


def run() -> NoReturn:
    """Run the command of the process, and end the process."""
    keep_compiled_programs()
    leave(main())
