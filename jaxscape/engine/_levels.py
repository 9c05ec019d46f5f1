"""Levels of a grid: a few points first, then points halfway between them, then halfway between those."""

from collections.abc import Sequence

import numpy as np

INTERVALS = {1: 4, 2: 2, 3: 2}  # of level 0 along each axis: 5 points on a line, 9 in a plane, 27 in a volume
AT_ONCE = 2**20  # distances


def levels(shape: Sequence[int]) -> np.ndarray:
    """The level of each point of a grid.

    Level 0 has both ends of each axis and points evenly between them; each further level halves the distance.

    >>> levels((9,))
    array([0, 1, 0, 1, 0, 1, 0, 1, 0])
    >>> levels((5, 5))
    array([[0, 1, 0, 1, 0],
           [1, 1, 1, 1, 1],
           [0, 1, 0, 1, 0],
           [1, 1, 1, 1, 1],
           [0, 1, 0, 1, 0]])

    Args:
        shape: The number of points along each axis.

    Returns:
        Whole numbers from 0 on, of this shape.
    """
    level = np.full(shape, -1)
    intervals, number = INTERVALS.get(len(shape), 1), 0
    while (level < 0).any():
        chosen = [np.unique(np.linspace(0, n - 1, min(n, intervals + 1)).round().astype(int)) for n in shape]
        block = np.ix_(*chosen)
        level[block] = np.where(level[block] < 0, number, level[block])
        intervals, number = 2 * intervals, number + 1
    return level


def nearest(points: np.ndarray, candidates: np.ndarray, k: int) -> np.ndarray:
    """The k candidates that are nearest to each point, nearest first.

    Args:
        points: Coordinates, shape ``(points, axes)``.
        candidates: Coordinates, shape ``(candidates, axes)``.
        k: At most so many.

    Returns:
        Numbers of candidates, shape ``(points, min(k, candidates))``.
    """
    size = max(1, AT_ONCE // len(candidates))
    parts = []
    for start in range(0, len(points), size):
        apart = sum((x[start : start + size, None] - y) ** 2 for x, y in zip(points.T, candidates.T, strict=True))
        parts.append(np.argsort(apart, axis=1, kind="stable")[:, :k])
    return np.concatenate(parts)
