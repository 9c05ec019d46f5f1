"""Surfaces and volumes as VTK files, for ParaView and other programs."""

from pathlib import Path

import numpy as np
import xarray as xr

from jaxscape.arguments import checked
from jaxscape.export._files import target, write
from jaxscape.export._heights import Path3D, heights, path_on, raised
from jaxscape.export._quads import points_and_quads
from jaxscape.export._xml import data_array, document, group
from jaxscape.plot._field import pick

_HEIGHT, _STEP = "zvalue", "step"
_NO_PATH = Path3D(np.empty(0), np.empty(0), np.empty(0), np.empty(0), np.empty(0, int))
_EVEN = 1e-9  # relative to the spacing: rounding of linspace is far smaller


@checked
def vtk(
    result: xr.Dataset, path: str | Path, *, metric: str = "loss", clip: float | None = None, log: bool = False
) -> Path:
    """Write a surface, or a volume, as a VTK file that ParaView opens.

    A surface becomes ``.vtp`` (PolyData): a point ``(alpha, beta, z)`` for each finite value, and a quad for each cell
    of the grid whose four corners are finite. The height is ``z = min(value, clip)``, and ``ln(z + 0.1)`` with ``log``,
    as h52vtp.py of the original tool (Li et al. 2018) has it. Unlike there, grids need not be square.

    - Point data: ``zvalue``, the height; every variable of the result over the same axes by its own name, neither
      clipped nor logarithmic (accuracy and error in percent); ``step``.
    - Cell data: ``averaged zvalue``, the mean height of the corners.
    - Field data: ``nonfinite_points``, how many values of the metric are NaN or infinite. These points are left out.

    The path of a result of `jaxscape.trajectory` becomes a polyline at the heights of ``in_plane_loss``, if the metric
    is the loss. ``step`` is the number of the checkpoint there, and -1 on the surface. A checkpoint that is not finite
    is left out and divides the line. ParaView's filter Tube makes it thick.

    A volume, a result over three axes, becomes ``.vtr`` (RectilinearGrid, any spacing) or ``.vti`` (ImageData, even
    spacing), with the same point data. There NaN and infinite values are NaN, counted in ``nonfinite_points``.

    All numbers are float64.

    >>> import tempfile
    >>> axes = {"alpha": [-1.0, 0.0, 1.0], "beta": [0.0, 2.0]}
    >>> result = xr.Dataset({"loss": (("alpha", "beta"), np.ones((3, 2)))}, axes)
    >>> vtk(result, Path(tempfile.mkdtemp()) / "surface.vtp", clip=10.0, log=True).name
    'surface.vtp'

    Args:
        result: A result over two or three axes, with any spacing and order of the coordinates.
        path: The file. Its suffix is ``.vtp`` for two axes, ``.vtr`` or ``.vti`` for three.
        metric: The variable that is the height.
        clip: The largest height, before the logarithm: higher values become a plateau, as ``--zmax`` of the original.
            None: no limit.
        log: Whether the height is ``ln(z + 0.1)``.

    Returns:
        The path.

    Raises:
        ValueError: The suffix does not fit the number of axes, the result does not have the metric, it has neither two
            nor three axes, no value is finite, ``log`` is True with a height of -0.1 or less, or the axes of a ``.vti``
            are not evenly spaced.
        TypeError: An argument is of another type.
    """
    path = target(path, ".vtp", ".vtr", ".vti")
    array = pick(result, metric)
    if array.ndim not in (2, 3) or "seed" in array.dims:
        cure = "pass one repeat: result.isel(seed=0)" if "seed" in array.dims else "pass a slice: result.isel(...)"
        raise ValueError(f"result has the dimensions {array.dims}, expected two or three axes; {cure}.")
    suffixes = (".vtp",) if array.ndim == 2 else (".vtr", ".vti")
    target(path, *suffixes)
    content = _poly_data(result, metric, clip, log) if array.ndim == 2 else _volume(result, array, path, clip, log)
    return write(path, content)


def _poly_data(result: xr.Dataset, metric: str, clip: float | None, log: bool) -> bytes:
    surface, z = raised(result, metric, clip, log)
    points, quads = points_and_quads(surface.x, surface.y, z)
    there = np.isfinite(z)
    line = path_on(result, metric, clip, log) or _NO_PATH
    pieces = [len(points) + piece for piece in line.pieces()]
    point_data = {_HEIGHT: np.concatenate([points[:, 2], line.z])}
    for name, values in _variables(result, metric).items():
        along = line.loss if name == metric else np.full(len(line.z), np.nan)
        point_data[name] = np.concatenate([values.T[there], along])
    point_data[_STEP] = np.concatenate([np.full(len(points), -1), line.step])
    cell_data = [np.mean(point_data[_HEIGHT][cell]) for cell in pieces] + list(points[quads, 2].mean(axis=1))
    points = np.concatenate([points, np.stack(line[:3], axis=-1)])
    sizes = f'NumberOfPoints="{len(points)}" NumberOfLines="{len(pieces)}" NumberOfPolys="{len(quads)}"'
    body = "\n".join(
        [
            f'<Piece {sizes} NumberOfVerts="0" NumberOfStrips="0">',
            group("PointData", point_data, _HEIGHT),
            group("CellData", {"averaged zvalue": np.array(cell_data, float)}),
            f"<Points>{data_array('Points', points, 3)}</Points>",
            _cells("Lines", pieces),
            _cells("Polys", list(quads)),
            "</Piece>",
        ]
    )
    return document("PolyData", "", body, int(surface.bad.sum()))


def _volume(result: xr.Dataset, array: xr.DataArray, path: Path, clip: float | None, log: bool) -> bytes:
    z = heights(array.values, clip, log)
    axes = [array[dim].values.astype(float) for dim in array.dims]
    # x varies fastest in a VTK file, and the last axis in an array: the transpose has its order
    data = {_HEIGHT: z.T.ravel()}
    data |= {name: values.T.ravel() for name, values in _variables(result, str(array.name)).items()}
    extent = " ".join(f"0 {len(axis) - 1}" for axis in axes)
    piece = f'<Piece Extent="{extent}">\n{group("PointData", data, _HEIGHT)}\n<CellData/>\n'
    bad = int((~np.isfinite(array.values)).sum())
    if path.suffix.lower() == ".vti":
        spacing = " ".join(repr(_spacing(axis, dim)) for axis, dim in zip(axes, array.dims, strict=True))
        origin = " ".join(repr(float(axis[0])) for axis in axes)
        head = f' WholeExtent="{extent}" Origin="{origin}" Spacing="{spacing}"'
        return document("ImageData", head, f"{piece}</Piece>", bad)
    coordinates = "".join(data_array(str(dim), axis) for dim, axis in zip(array.dims, axes, strict=True))
    body = f"{piece}<Coordinates>{coordinates}</Coordinates>\n</Piece>"
    return document("RectilinearGrid", f' WholeExtent="{extent}"', body, bad)


def _variables(result: xr.Dataset, metric: str) -> dict[str, np.ndarray]:
    """The numeric variables over the axes of the metric, each an array with its dimensions in canonical order."""
    dims = set(result[metric].dims)
    names = [name for name, array in result.data_vars.items() if set(array.dims) == dims and array.dtype.kind in "biuf"]
    return {str(name): pick(result, str(name)).values for name in names if name not in (_HEIGHT, _STEP)}


def _cells(tag: str, cells: list[np.ndarray]) -> str:
    connectivity = np.concatenate([np.empty(0, int), *cells])
    offsets = np.cumsum([len(cell) for cell in cells], dtype=int)
    return group(tag, {"connectivity": connectivity, "offsets": offsets})


def _spacing(axis: np.ndarray, dim: object) -> float:
    steps = np.diff(axis)
    step = float((axis[-1] - axis[0]) / len(steps)) if len(steps) else 1.0
    if not np.allclose(steps, step, rtol=_EVEN, atol=0):
        raise ValueError(
            f"path ends with .vti, which needs even spacing; {dim} has steps from {steps.min():g} to {steps.max():g}. "
            "Write a .vtr file."
        )
    return step
