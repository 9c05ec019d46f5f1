"""The time that a call takes."""

import time
from collections.abc import Callable
from typing import Any


def seconds(run: Callable[[], Any]) -> tuple[float, Any]:
    """The seconds that a call took, and its result."""
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result
