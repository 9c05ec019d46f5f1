"""What a command measures: a run of train.py, or a problem of the user's own, named ``package.module:function``."""

import importlib
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jaxscape as js
from jaxscape.arguments import blamed

_PARTS = ("params", "loss_fn", "data", "test_data", "checkpoints", "name")


@dataclass(frozen=True)
class Problem:
    """A model, a loss and data of the user's own; it has the parts of a run that the commands use.

    Attributes:
        path: The folder for results.
        name: What pictures call it.
        params: A pytree of arrays.
        loss_fn: The loss, as `jaxscape.surface` takes it.
        data: The train data.
        test_data: The test data; None: there are none.
        checkpoints: The path of training, as `jaxscape.trajectory` takes it; None: there is none.
    """

    path: Path
    name: str
    params: Any
    loss_fn: Any
    data: Any
    test_data: Any = None
    checkpoints: Any = None


def load_target(target: str) -> Any:
    """The run in a folder, or the problem that a function returns.

    Args:
        target: A folder of train.py, or ``package.module:function``.

    Returns:
        A `jaxscape.runs.Run` or a `Problem`.

    Raises:
        ValueError: The module has no such function, what it returns has no params, loss_fn and data, or it ends the
            process.
        ImportError: There is no such module.
        TypeError: The function returns something else.
    """
    module, colon, function = target.partition(":")
    if not colon or os.path.exists(target) or not all(part.isidentifier() for part in module.split(".")):
        return js.load_run(target)
    where = os.getcwd()
    if where not in sys.path:
        sys.path.insert(0, where)  # as `python -m` has it: the command is in another folder
    try:
        make = getattr(importlib.import_module(module), function, None)
        if not callable(make):
            raise ValueError(
                f"{target}: module {module} has no function {function!r}; expected e.g. my_module:problem."
            )
        with blamed(target, "without arguments"):
            parts = make()
    except SystemExit as end:
        raise ValueError(f"{target} ends the process: it calls sys.exit({end.code!r}).") from None
    return _problem(parts, target)


def _problem(parts: Any, target: str) -> Problem:
    """The problem of what a function returned."""
    if isinstance(parts, tuple | list) and len(parts) in (3, 4):
        parts = dict(zip(_PARTS, parts, strict=False))
    if not isinstance(parts, Mapping):
        raise TypeError(
            f"{target} returns {type(parts).__name__}, expected (params, loss_fn, data), or these and test_data, or a "
            f"dict with the keys {', '.join(_PARTS)}."
        )
    missing = [name for name in _PARTS[:3] if name not in parts]
    unknown = sorted(set(parts) - set(_PARTS))
    if missing or unknown:
        word, names = ("lacks", missing) if missing else ("has the unknown keys", unknown)
        raise ValueError(f"{target} {word} {', '.join(map(str, names))}; expected the keys {', '.join(_PARTS)}.")
    folder = Path(target.replace(":", "."))
    return Problem(path=folder, **{"name": target.partition(":")[2], **parts})


def name_of(target: Any) -> str:
    """What pictures call a run or a problem."""
    if isinstance(target, Problem):
        return target.name
    return target.config["arch"] + (" without shortcuts" if target.config["noshort"] else "")


def data_of(target: Any, split: str) -> Any:
    """The train or the test data.

    Args:
        target: The run or problem.
        split: ``"train"`` or ``"test"``.

    Returns:
        The data.

    Raises:
        ValueError: There are no test data.
    """
    data = target.data if split == "train" else target.test_data
    if data is None and split == "test" and isinstance(target, Problem):
        raise ValueError(f"{target.name} has no test data; return a fourth part, test_data, or pass --split train.")
    return data


def splits_of(target: Any) -> list[str]:
    """The splits that there are."""
    lacks_test = isinstance(target, Problem) and target.test_data is None
    return ["train"] if lacks_test else ["train", "test"]


def config_of(target: Any) -> Mapping[str, Any]:
    """The options of a run; a problem has none."""
    return getattr(target, "config", {})
