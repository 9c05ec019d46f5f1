"""How well each metric is wanted, as the caller says it: a number for the loss, or a number for each metric by name."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

LARGEST = 2.0**1000


def as_tolerances(value: Any, name: str) -> dict[str, float]:
    """A tolerance for each metric that has one.

    >>> as_tolerances(0.01, "rtol"), as_tolerances({"accuracy": 0.02}, "rtol")
    ({'loss': 0.01}, {'accuracy': 0.02})

    Args:
        value: What the caller passed.
        name: The caller's argument.

    Returns:
        By the names of the metrics.

    Raises:
        ValueError: A tolerance is negative or not finite, or there is none.
        TypeError: A tolerance is no number, or a name no string.
    """
    if isinstance(value, Mapping) and not value:
        raise ValueError(f"{name} is an empty mapping, expected a tolerance for one metric at least.")
    entries = value.items() if isinstance(value, Mapping) else [("loss", value)]
    for metric, number in entries:
        entry = f"{name}[{metric!r}]" if isinstance(value, Mapping) else name
        if not isinstance(metric, str):
            raise TypeError(f"{name} has the key {metric!r}, expected the name of a metric.")
        if isinstance(number, bool) or not isinstance(number, int | float | np.number):
            raise TypeError(f"{entry} is {number!r}, expected a number, e.g. 0.01 for 1 %.")
        if not 0 <= number < LARGEST:
            raise ValueError(f"{entry} is {number!r}, expected a number of at least 0.")
    return {metric: float(number) for metric, number in entries}


def check_names_of(tolerances: Mapping[str, float], metrics: Iterable[str], name: str) -> None:
    """Refuse a tolerance for what is no metric.

    Args:
        tolerances: By the names of metrics.
        metrics: Those that there are.
        name: The caller's argument.

    Raises:
        ValueError: One of them is not there.
    """
    known = list(metrics)
    for metric in tolerances:
        if metric not in known:
            raise ValueError(f"{name} has {metric!r}, expected a metric of loss_fn: {', '.join(map(repr, known))}.")


def in_short(tolerances: Mapping[str, float]) -> float | dict[str, float]:
    """As a number if it is that of the loss alone.

    Args:
        tolerances: By the names of metrics.

    Returns:
        A number, or all of them.
    """
    return tolerances["loss"] if list(tolerances) == ["loss"] else dict(tolerances)


def are_smaller(new: Any, old: Any) -> bool:
    """Whether every metric that had a tolerance has one that is not larger.

    Args:
        new: As `in_short` gives it.
        old: The same of an earlier call.

    Returns:
        Whether what was computed for the earlier one serves the new one.
    """
    fine, coarse = (value if isinstance(value, Mapping) else {"loss": value} for value in (new, old))
    return all(metric in fine and fine[metric] <= number for metric, number in coarse.items())
