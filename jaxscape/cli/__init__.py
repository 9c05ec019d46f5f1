"""The command line: ``jaxscape surface|line|hessian|trajectory|plot|report``; each command calls the library."""

import sys
from collections.abc import Sequence

import jax

from jaxscape.cli._parser import make_parser
from jaxscape.objective import use_all_cores


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: The arguments; None: the arguments of the process.

    Returns:
        The exit status: 0, or 2 if the arguments are wrong; then one line on standard error says what is wrong.
    """
    args = make_parser().parse_args(argv)
    use_all_cores()
    try:
        if getattr(args, "distributed", False):
            jax.distributed.initialize()
        args.command(args)
    except (ValueError, OSError, ImportError) as error:
        print(f"jaxscape: error: {error}", file=sys.stderr)
        return 2
    return 0
