"""The run-time check of the package's shapes: `pytest --jaxtyping-packages` puts `checked` onto every function."""

import typing
from collections.abc import Callable
from typing import Any

from beartype import beartype
from jaxtyping import AbstractArray, PRNGKeyArray

_KEYS = typing.get_args(PRNGKeyArray)


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """Check the annotations with shapes, and no other: a caller's mistake is for the package itself to name."""
    hints = function.__annotations__
    function.__annotations__ = {name: hint for name, hint in hints.items() if _has_shape(hint)}
    return beartype(function)


def _has_shape(hint: Any) -> bool:
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return True
    parts = typing.get_args(hint)
    return not any(part in _KEYS for part in parts) and any(map(_has_shape, parts))
