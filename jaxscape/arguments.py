"""The options of public calls, checked by their names before anything else: each has one meaning everywhere."""

import contextlib
import functools
import inspect
import os
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

import numpy as np

from jaxscape import checks
from jaxscape.meshes import without_mesh

P = ParamSpec("P")
R = TypeVar("R")
Rule = Callable[[Any, str], None]
MOST = 2**31 - 1  # of anything that is counted


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Refuse options of a wrong type or range by name, and run the function outside of the user's mesh.

    Args:
        function: A public function.

    Returns:
        The function.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            if name in RULES:
                RULES[name](value, name)
        with without_mesh():
            return function(*args, **kwargs)

    return wrapped


def count(least: int, *, optional: bool = False) -> Rule:
    """A rule for integers from ``least`` on."""

    def rule(value: Any, name: str) -> None:
        if value is None and optional:
            return
        checks.check_count(value, name, least)
        if value > MOST:
            raise ValueError(f"{name} is {value}, expected at most {MOST}.")

    return rule


def number(*, optional: bool = False, positive: bool = False) -> Rule:
    """A rule for finite real numbers."""

    def rule(value: Any, name: str) -> None:
        if value is None and optional:
            return
        if isinstance(value, int) and abs(value) > 2**63:
            raise ValueError(f"{name} has more than 63 bits, expected a smaller number.")
        expected = f"a {'positive' if positive else 'finite'} number{' or None' if optional else ''}"
        if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
            raise TypeError(f"{name} is {_brief(value)}, expected {expected}.")
        if not abs(float(value)) < np.inf or (positive and not float(value) > 0):
            raise ValueError(f"{name} is {value}, expected {expected}.")

    return rule


def of_type(kinds: tuple[type, ...], expected: str, *, optional: bool = False) -> Rule:
    """A rule for values of some types."""

    def rule(value: Any, name: str) -> None:
        if not isinstance(value, kinds) and not (value is None and optional):
            raise TypeError(f"{name} is {_brief(value)}, expected {expected}{' or None' if optional else ''}.")

    return rule


def one_of(*choices: str) -> Rule:
    """A rule for names out of a few."""
    expected = f"{', '.join(map(repr, choices[:-1]))} or {choices[-1]!r}"

    def rule(value: Any, name: str) -> None:
        if value not in choices:
            raise ValueError(f"{name} is {_brief(value)}, expected {expected}.")

    return rule


def check_path(value: Any, name: str) -> None:
    """Check that a value can be the path of a folder.

    Args:
        value: What the caller passed.
        name: What the caller's argument is called, for the message.

    Raises:
        TypeError: It is no path.
        ValueError: It is empty.
    """
    if not isinstance(value, str | os.PathLike):
        raise TypeError(f"{name} is {_brief(value)}, expected the path of a folder.")
    if not str(value):
        raise ValueError(f"{name} is empty, expected the path of a folder.")


def _store(value: Any, name: str) -> None:
    if value is not None:
        check_path(value, name)


def _ignore(value: Any, name: str) -> None:
    if value is not None and not isinstance(value, str) and not callable(value):
        raise TypeError(f"{name} is {_brief(value)}, expected 'bias_norm', None, or a predicate on (path, leaf).")


@contextlib.contextmanager
def blamed(name: str, called: str) -> Iterator[None]:
    """Say which of the caller's functions has raised what passes here.

    Args:
        name: What the caller's argument is called.
        called: How it was called, in words.
    """
    try:
        yield
    except Exception as error:
        error.add_note(f"{name} raised this, called {called}.")
        raise


def _filter_axis(value: Any, name: str) -> None:
    if isinstance(value, bool) or not (value is None or isinstance(value, int | str) or callable(value)):
        raise TypeError(f"{name} is {_brief(value)}, expected an axis, the name of a library, a function, or None.")


def _function(value: Any, name: str) -> None:
    if not callable(value):
        raise TypeError(f"{name} is {_brief(value)}, expected a function.")


def _points(value: Any, name: str) -> None:
    for each in value if isinstance(value, tuple | list) else [value]:
        count(1)(each, name)


def _axes(value: Any, name: str) -> None:
    if value is not None and not hasattr(value, "get_xlim"):
        raise TypeError(f"{name} is {_brief(value)}, expected matplotlib Axes to draw into, or None for a new figure.")


def _brief(value: Any) -> str:
    text = repr(value) if isinstance(value, str | bytes | int | float | complex | None) else type(value).__name__
    return text if len(text) <= 60 else f"{text[:57]}..."


_FLAG = of_type((bool, np.bool_), "True or False")
_CHOICE = of_type((bool, np.bool_), "True, False", optional=True)
_TEXT = of_type((str,), "a name")
RULES: dict[str, Rule] = {
    **dict.fromkeys(("num", "k", "num_matvecs", "columns", "every", "num_projections", "dpi"), count(1)),
    "basis": one_of("device", "bfloat16", "host"),
    "keep": one_of("differences", "projections"),
    **dict.fromkeys(("subset", "max_matvecs", "max_basis", "num_seeds"), count(1, optional=True)),
    "outliers": count(0),
    **dict.fromkeys(("tol", "rho", "epsilon", "level", "z_scale"), number(positive=True)),
    "sigma": number(positive=True, optional=True),
    "num_samples": count(2),  # one has no spread
    **dict.fromkeys(("num_steps", "m"), count(1)),
    "margin": number(),
    **dict.fromkeys(("loss_max", "ratio_max", "clip"), number(optional=True)),
    **dict.fromkeys(("check", "signed", "layers", "timed", "gradient"), _FLAG),
    **dict.fromkeys(("progress", "linearize", "log", "lazy"), _CHOICE),
    **dict.fromkeys(("metric", "method", "which", "kind", "call", "center", "name", "leaf", "against"), _TEXT),
    "layer": of_type((str,), "the path of a kernel", optional=True),
    "compute_dtype": of_type((str,), "the name of a precision", optional=True),
    "store": _store,
    "ignore": _ignore,
    "matvec": _function,
    "function": _function,
    "points": _points,
    "filter_axis": _filter_axis,
    "norm": of_type((str,), "the name of a norm", optional=True),
    "ax": _axes,
}
