"""Surfaces as files of the original tool, which its programs draw."""

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from jaxscape.arguments import checked
from jaxscape.export._files import optional, target, write
from jaxscape.export._h5_names import EIGENVALUES, Stored, of_split
from jaxscape.plot._field import missing_points, pick


@checked
def h5(result: xr.Dataset, path: str | Path, *, test: xr.Dataset | None = None) -> Path:
    """Write a line or a surface as a surface file of tomgoldstein/loss-landscape, for its plotting programs.

    ===================  ====================================================================================
    dataset              content
    ===================  ====================================================================================
    ``dir_file``         ``attrs["dir_file"]`` of the result, or an empty text
    ``xcoordinates``     ``alpha``, ascending
    ``ycoordinates``     ``beta``, ascending; only of a surface
    ``train_loss``       ``loss``
    ``train_acc``        ``100 * accuracy``
    ``min_eig``          ``min_eigenvalue`` (of the mean loss; the original's own are of the sum over its batches)
    ``max_eig``          ``max_eigenvalue``
    ``test_loss``        ``loss`` of ``test``; likewise ``test_acc``
    ===================  ====================================================================================

    All are float64. A surface has the shape ``(len(beta), len(alpha))``, rows over ``ycoordinates``: the shape that
    plot_2D.py and h52vtp.py draw, and the order in which plot_surface.py goes on. For grids that are not square the
    original itself writes the shape ``(len(alpha), len(beta))``, which its plot_2D.py cannot draw; see `read_h5`.
    h52vtp.py takes square grids only.

    Points of an incomplete result that were not computed yet are -1 (1 in ``min_eig``), as in the original. NaN and
    infinite values stay as they are. Other variables of the result are not written.

    >>> import h5py, tempfile
    >>> axes = {"alpha": [-1.0, 0.0, 1.0], "beta": [0.0, 2.0]}
    >>> result = xr.Dataset({"loss": (("alpha", "beta"), np.arange(6.0).reshape(3, 2))}, axes)
    >>> with h5py.File(h5(result, Path(tempfile.mkdtemp()) / "surface.h5")) as file:
    ...     file["train_loss"][:].tolist()
    [[0.0, 2.0, 4.0], [1.0, 3.0, 5.0]]

    Args:
        result: A result over one or two axes with ``loss``, ``accuracy``, ``min_eigenvalue`` or ``max_eigenvalue``.
        path: The file. Its suffix is ``.h5`` or ``.hdf5``.
        test: The result of the same grid with the test data; None: the file has no test losses.

    Returns:
        The path.

    Raises:
        ValueError: The suffix is another, a result has none of the variables above, the result has neither one nor two
            axes, or ``test`` has other coordinates.
        TypeError: An argument is of another type.
        ImportError: h5py is not installed: ``pip install "jax-losscape[export]"``.

    Warns:
        UserWarning: A computed value is -1 (1 of the smallest eigenvalue), which readers take for not computed.
    """
    path = target(path, ".h5", ".hdf5")
    arrays = _arrays(result, "result", of_split("train") | EIGENVALUES)
    first = next(iter(arrays.values()))
    if test is not None:
        others = _arrays(test, "test", of_split("test"))
        other = next(iter(others.values()))
        if other.dims != first.dims or any(not np.array_equal(other[dim], first[dim]) for dim in first.dims):
            raise ValueError("test has other coordinates than result; expected the same grid.")
        arrays |= others
    package: Any = optional("h5py")
    buffer = io.BytesIO()
    with package.File(buffer, "w") as file:
        file["dir_file"] = str(result.attrs.get("dir_file", ""))
        for name, dim in zip(("xcoordinates", "ycoordinates"), first.dims, strict=False):
            file[name] = first[dim].values.astype(float)
        for name, array in arrays.items():
            file[name] = array.values.T
    return write(path, buffer.getvalue())


def _arrays(result: xr.Dataset, argument: str, names: dict[str, Stored]) -> dict[str, xr.DataArray]:
    """The arrays of a file by their names, in its units."""
    if not isinstance(result, xr.Dataset):
        raise TypeError(f"{argument} is {type(result).__name__}, expected the whole Dataset of a call.")
    there = {name: stored for name, stored in names.items() if stored.variable in result}
    if not there:
        expected = ", ".join(repr(stored.variable) for stored in names.values())
        raise ValueError(
            f"{argument} has the variables {sorted(map(str, result.data_vars))}, expected one or more of {expected}."
        )
    arrays = {}
    for name, stored in there.items():  # no comprehension: the warning of `_array` counts the frames up to the caller
        arrays[name] = _array(result, argument, name, stored)
    return arrays


def _array(result: xr.Dataset, argument: str, name: str, stored: Stored) -> xr.DataArray:
    array = pick(result, stored.variable)  # with accuracy in percent, as a file has it
    if array.ndim > 2 or "seed" in array.dims:
        cure = "pass one repeat: result.isel(seed=0)" if "seed" in array.dims else "pass a slice: result.isel(...)"
        raise ValueError(f"{argument} has the dimensions {array.dims}, expected one or two axes; {cure}.")
    missing = missing_points(result, array)
    confused = int(((array.values == stored.missing) & ~missing).sum())
    if confused:
        warnings.warn(
            f"{confused} values of {stored.variable!r} are {stored.missing:g}, which means 'not computed' in {name!r}: "
            "readers of the file will take them for missing points.",
            stacklevel=5,
        )
    return array.copy(data=np.where(missing, stored.missing, array.values))
