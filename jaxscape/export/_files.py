"""The file that a call writes, and the optional packages that it needs."""

import importlib
import os
from pathlib import Path
from typing import Any

from jaxscape.files import replace_file


def target(path: Any, *suffixes: str) -> Path:
    """Check that a path has one of the suffixes that a function writes.

    Args:
        path: What the caller passed.
        *suffixes: The suffixes, in lower case and with the dot.

    Returns:
        The path.

    Raises:
        TypeError: It is no path.
        ValueError: It has another suffix.
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"path is {type(path).__name__}, expected the path of a file.")
    path = Path(path)
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"path is {path.name!r}, expected a name that ends with {' or '.join(suffixes)}.")
    return path


def write(path: Path, content: bytes) -> Path:
    """Write a file in one step, in a folder that is made if it is missing; return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, content)
    return path


def optional(module: str) -> Any:
    """Import a module of an optional package.

    Args:
        module: The name of the module.

    Returns:
        The module.

    Raises:
        ImportError: It is not installed; the message says what to install.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ImportError(
            f'this needs {package}, which is not installed: `pip install "jax-losscape[export]"`.'
        ) from error
