"""Surfaces as triangle meshes, for 3-D printing, rendering and modelling programs."""

from pathlib import Path

import numpy as np
import xarray as xr

from jaxscape.arguments import checked
from jaxscape.export._files import target, write
from jaxscape.export._heights import raised
from jaxscape.export._quads import points_and_quads

_TRIANGLE = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])


@checked
def mesh(
    result: xr.Dataset,
    path: str | Path,
    *,
    metric: str = "loss",
    clip: float | None = None,
    log: bool = False,
    z_scale: float = 1.0,
) -> Path:
    """Write a surface as a mesh of triangles, in the format of the suffix: OBJ or binary STL.

    The vertices are ``(alpha, beta, z_scale * z)``. As `vtk` has it, ``z = min(value, clip)``, and with ``log``
    ``z = ln(min(value, clip) + 0.1)``. Each cell of the grid is two triangles, counterclockwise seen from above: their
    normals point up. Points that are NaN or infinite are left out, and so are all cells that touch one. The mesh is an
    open surface, without a base.

    An OBJ file has each vertex once, in float64. An STL file has float32, and the unit normal of each triangle.

    >>> import tempfile
    >>> axes = {"alpha": [-1.0, 0.0, 1.0], "beta": [0.0, 2.0]}
    >>> result = xr.Dataset({"loss": (("alpha", "beta"), np.ones((3, 2)))}, axes)
    >>> file = mesh(result, Path(tempfile.mkdtemp()) / "surface.obj", z_scale=0.1)
    >>> file.read_text().splitlines()[1:3]
    ['v -1.0 0.0 0.1', 'v 0.0 0.0 0.1']

    Args:
        result: A surface over two axes, with any spacing and order of the coordinates.
        path: The file. Its suffix is ``.obj`` or ``.stl``.
        metric: The variable that is the height.
        clip: The largest height, before the logarithm and the scale; None: no limit.
        log: Whether the height is ``ln(z + 0.1)``.
        z_scale: What each height is multiplied with, in units of the axes for one unit of the height; positive.

    Returns:
        The path.

    Raises:
        ValueError: The suffix is another, the result is not 2-D or does not have the metric, no cell has four finite
            corners, ``log`` is True with a height of -0.1 or less, ``z_scale`` is not positive, or a number is too
            large for the float32 of an STL file.
        TypeError: An argument is of another type.
    """
    path = target(path, ".obj", ".stl")
    surface, z = raised(result, metric, clip, log)
    points, quads = points_and_quads(surface.x, surface.y, z_scale * z)
    if not len(quads):
        raise ValueError(
            f"result has no cell with four finite values of {metric!r}: {surface.bad.sum()} of {z.size} points are not "
            "finite; there is no surface to write."
        )
    triangles = np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]], axis=1).reshape(-1, 3)
    return write(path, (_obj if path.suffix.lower() == ".obj" else _stl)(points, triangles))


def _obj(points: np.ndarray, triangles: np.ndarray) -> bytes:
    used, corners = np.unique(triangles, return_inverse=True)  # a point between NaN has no cell
    lines = ["# a loss surface: x = alpha, y = beta, z = height"]
    lines += [f"v {x!r} {y!r} {z!r}" for x, y, z in points[used].tolist()]
    lines += [f"f {a} {b} {c}" for a, b, c in (corners.reshape(-1, 3) + 1).tolist()]
    return ("\n".join(lines) + "\n").encode()


def _stl(points: np.ndarray, triangles: np.ndarray) -> bytes:
    largest = np.abs(points).max()
    if largest > np.finfo(np.float32).max:
        raise ValueError(
            f"the surface reaches {largest:.3g}, more than the float32 of an STL file holds; pass clip or log."
        )
    corners = points[triangles]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    rows = np.zeros(len(triangles), _TRIANGLE)
    rows["normal"] = normals / np.linalg.norm(normals, axis=1, keepdims=True)
    rows["corners"] = corners
    # Readers take a file that begins with the word "solid" for the text format.
    return b"binary STL of a loss surface".ljust(80) + np.array([len(rows)], "<u4").tobytes() + rows.tobytes()
