"""The command line's application: every command is a function that returns its numbers."""

import functools
import inspect
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any, NamedTuple

import typer

Command = Callable[..., dict[str, Any]]

app = typer.Typer(
    name="jaxscape",
    help="Measure and draw the loss landscape of a training run, or of any package.module:function.",
    epilog="Exit status: 0; 2 if the arguments or a file are wrong; 1 for another error; 130 or 143 after Ctrl-C or "
    "SIGTERM. Results and pictures go to files, progress to standard error, and what was found to standard output.",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)

_COMMON: dict[str, Any] = {
    "as_json": Annotated[bool, typer.Option("--json", help="Print what was found as one line of JSON.")],
    "debug": Annotated[bool, typer.Option("--debug", help="Print the traceback of an error.")],
}
_DISTRIBUTED: dict[str, Any] = {
    "distributed": Annotated[
        bool, typer.Option("--distributed", help="One of several processes: `srun jaxscape ... --distributed`.")
    ],
}


class Call(NamedTuple):
    """A command line that was understood.

    Attributes:
        run: What runs the command; it returns its numbers by name.
        as_json: Whether standard output is one line of JSON.
        debug: Whether tracebacks are printed.
        distributed: Whether this is one of several processes.
    """

    run: Callable[[], dict[str, Any]]
    as_json: bool
    debug: bool
    distributed: bool


def command(example: str, *, distributed: bool = False) -> Callable[[Command], Command]:
    """Make a function a command; its parameters become options, its docstring the help.

    Args:
        example: A command line, for the help.
        distributed: Whether several processes may run it together.

    Returns:
        A decorator that gives the function back as it is.
    """

    def register(function: Command) -> Command:
        common = {**_COMMON, **(_DISTRIBUTED if distributed else {})}
        signature = inspect.signature(function)
        extra = [
            inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=a) for n, a in common.items()
        ]

        @functools.wraps(function)
        def understood(**arguments: Any) -> Call:
            flags = {name: arguments.pop(name, False) for name in ("as_json", "debug", "distributed")}
            return Call(functools.partial(function, **arguments), **flags)

        parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in signature.parameters.values()]
        understood.__signature__ = inspect.Signature([*parameters, *extra])  # type: ignore[attr-defined]
        understood.__annotations__ = {p.name: p.annotation for p in (*parameters, *extra)}
        del understood.__wrapped__
        app.command(function.__name__, epilog=f"Example: {example}")(understood)
        return function

    return register


def understood(argv: Sequence[str]) -> Call | int:
    """Parse a command line.

    Args:
        argv: The arguments.

    Returns:
        The call; or the exit status where there is nothing to run: help was asked for, or the line is malformed, which
        standard error says in one line.
    """
    try:
        result = app(list(argv), prog_name="jaxscape", standalone_mode=False)
    except Exception as error:
        if not hasattr(error, "format_message"):  # typer has these classes from click or, since 0.26, of its own
            raise
        context = getattr(error, "ctx", None)
        if not argv and context is not None:
            print(context.get_help(), file=sys.stderr)
            return 2
        path = context.command_path if context is not None else "jaxscape"
        message = " ".join(error.format_message().split())
        print(f"{path}: error: {message} (see {path} --help)", file=sys.stderr)
        return 2
    return result if isinstance(result, Call) else 0
