"""The points and the quads of a surface: what a VTK file and a mesh have in common."""

import numpy as np


def points_and_quads(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The finite points of a surface, and the cells whose four corners are all finite.

    Args:
        x: Ascending coordinates of the columns.
        y: Ascending coordinates of the rows.
        z: Heights, shape ``(len(y), len(x))``; NaN: no point.

    Returns:
        Points, shape ``(points, 3)``, x varies fastest. Quads, shape ``(quads, 4)``: the numbers of the corners,
        counterclockwise seen from above, so that normals point up.
    """
    there = np.isfinite(z)
    columns, rows = np.meshgrid(x, y)
    points = np.stack([columns[there], rows[there], z[there]], axis=-1)
    numbers = np.cumsum(there).reshape(z.shape) - 1
    corners = [(slice(None, -1), slice(None, -1)), (slice(None, -1), slice(1, None))]
    corners += [(slice(1, None), slice(1, None)), (slice(1, None), slice(None, -1))]
    whole = np.logical_and.reduce([there[corner] for corner in corners])
    return points, np.stack([numbers[corner][whole] for corner in corners], axis=-1)
