"""The coordinates of the points on a line, in a plane or in a volume at which the loss is evaluated."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MOST = 10_000_000  # points of an evenly spaced axis
Axis = tuple[float, float, int]


@dataclass(frozen=True, eq=False)
class Grid:
    """The Cartesian product of one or more axes of coordinates, in units of the directions.

    A grid may have any number of axes. Each axis may have any range, with or without 0, any spacing, any order and any
    length.

    >>> Grid((np.array([0.0, 0.5, 2.0]), np.array([-1.0, 1.0]))).shape
    (3, 2)

    Attributes:
        axes: One 1-D array for each direction.

    Raises:
        ValueError: There is no axis, or an axis has no points, is not 1-D, is not finite or repeats a point.
    """

    axes: tuple[np.ndarray, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.axes, tuple | list) and not (isinstance(self.axes, np.ndarray) and self.axes.ndim):
            raise TypeError(f"grid axes are {type(self.axes).__name__}, expected a tuple of arrays, one for each axis.")
        try:
            axes = tuple(np.asarray(axis, dtype=np.float64) for axis in self.axes)
        except (TypeError, ValueError) as error:
            raise TypeError(f"grid axes are no arrays of numbers: {error}.") from error
        if not axes:
            raise ValueError("grid has no axes; expected one array of coordinates for each direction.")
        for name, axis in zip(axis_names(len(axes)), axes, strict=True):
            if axis.ndim != 1 or not axis.size:
                raise ValueError(f"grid axis {name} has shape {axis.shape}, expected a 1-D array with a point or more.")
            if not np.isfinite(axis).all():
                raise ValueError(f"grid axis {name} has {(~np.isfinite(axis)).sum()} NaN or infinite points.")
            values, counts = np.unique(axis, return_counts=True)
            if len(values) < len(axis):
                raise ValueError(f"grid axis {name} repeats {values[counts > 1][0]}; expected each point once.")
        object.__setattr__(self, "axes", axes)

    @classmethod
    def line(cls, start: float = -1.0, stop: float = 1.0, num: int = 401) -> "Grid":
        """``num`` evenly spaced points from ``start`` to ``stop``, both included.

        >>> Grid.line(0, 1, 3).axes
        (array([0. , 0.5, 1. ]),)

        Args:
            start: The first coordinate.
            stop: The last coordinate.
            num: The number of points, a positive integer.

        Returns:
            A grid with one axis.

        Raises:
            ValueError: ``num`` is not a positive integer, or a coordinate is not finite or repeats.
        """
        return cls.plane((start, stop, num))

    @classmethod
    def plane(cls, *axes: Axis) -> "Grid":
        """Evenly spaced points along each axis, given as ``(start, stop, num)``.

        >>> Grid.plane((-1, 1, 51), (0, 2, 31)).shape
        (51, 31)

        Args:
            *axes: ``(start, stop, num)`` for each direction. Without arguments the grid has two axes with 51 points
                over [-1, 1] each.

        Returns:
            A grid with one axis for each triple.

        Raises:
            ValueError: An axis is not such a triple, ``num`` is not a positive integer, or a coordinate is not finite
                or repeats.
        """
        for axis in axes:
            numbers = isinstance(axis, tuple | list) and all(isinstance(x, int | float | np.number) for x in axis)
            if not numbers or len(axis) != 3 or not 1 <= axis[2] <= MOST or int(axis[2]) != axis[2]:
                raise ValueError(
                    f"grid axis {axis!r}: expected a tuple (start, stop, num) for each axis, with num a positive "
                    f"integer of at most {MOST}; of one axis alone js.Grid.line(start, stop, num)."
                )
            if not np.isfinite([float(end) for end in axis[:2]]).all():
                raise ValueError(f"grid axis {axis!r} has a NaN or infinite end; expected finite coordinates.")
        return cls(tuple(np.linspace(float(a), float(b), int(num)) for a, b, num in axes or ((-1.0, 1.0, 51),) * 2))

    @property
    def shape(self) -> tuple[int, ...]:
        """The number of points along each axis."""
        return tuple(len(axis) for axis in self.axes)

    @property
    def names(self) -> tuple[str, ...]:
        """The name of each axis: ``alpha``, ``beta``, ``axis2``, ``axis3``, ..."""
        return axis_names(len(self.axes))

    def points(self) -> np.ndarray:
        """The coordinates of all points, shape ``(prod(shape), axes)``; the last axis varies fastest."""
        return np.stack([c.ravel() for c in np.meshgrid(*self.axes, indexing="ij")], axis=-1)


def axis_names(num: int) -> tuple[str, ...]:
    """The dimension names of a result over ``num`` directions."""
    names: Sequence[str] = ("alpha", "beta", *(f"axis{k}" for k in range(2, num)))
    return tuple(names[:num])
