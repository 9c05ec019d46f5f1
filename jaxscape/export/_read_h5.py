"""Surface files of the original tool, read as results."""

import os
import warnings
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xarray as xr

from jaxscape.arguments import checked
from jaxscape.export._files import optional
from jaxscape.export._h5_names import EIGENVALUES, SPLITS, Stored, of_split
from jaxscape.grid import Grid

Fastest = Literal["x", "y"]
_SAME = 0.02  # of the two eigenvalues, whose tolerance is 0.01 in the original


@checked
def read_h5(
    path: str | Path, *, split: Literal["train", "test"] = "train", fastest: Fastest | None = None
) -> xr.Dataset:
    """Read a surface file of tomgoldstein/loss-landscape; the pictures of `jaxscape.plot` draw the result.

    The original's plot_surface.py makes arrays of the shape ``(nx, ny)`` and fills them by flat index, in the order of
    ``np.meshgrid(xcoordinates, ycoordinates)``, whose shape is ``(ny, nx)``. So x varies fastest, whatever the shape::

        value at (x[i], y[j]) = stored.ravel()[j * nx + i]

    - On a square grid that is ``stored[j, i]``: rows run over y. Nothing is ambiguous.
    - On any other grid the stored shape and the order do not fit together, and the original's own programs cannot draw
      the file. The rule above puts each value where it was computed. But a fork that stores ``stored[i, j]`` at
      ``(x[i], y[j])`` has the same shape, and the file does not say which: a warning says so, unless ``fastest`` does.
    - The shape ``(ny, nx)``, as `h5` writes it, has rows over y; the rule reads it right.

    A value of -1 marks a point that was never computed (of the eigenvalues: -1 of ``max_eig`` and 1 of ``min_eig``).
    It is read as NaN, and counted. NaN in the file is a computed value.

    The eigenvalues are those of the file. The original adds the Hessians of all batches without a division, so they
    are the number of batches times those of the mean loss; their ratio is not affected. Where its smallest eigenvalue
    is above 0.02 times the largest one, its search finds the largest one a second time: points where both are equal
    within 2 % are not ``converged``, and the pictures mark them.

    Checkpoints of the original (``.t7``) are read by ``js.runs.import_torch_state_dict``, which runs no code of the
    file.

    >>> import h5py, tempfile
    >>> path = Path(tempfile.mkdtemp()) / "surface.h5"
    >>> with h5py.File(path, "w") as file:  # of a computation that was stopped before its last point
    ...     file["xcoordinates"] = file["ycoordinates"] = [0.0, 1.0]
    ...     file["train_loss"] = [[0.1, 0.2], [0.3, -1.0]]
    >>> result = read_h5(path)
    >>> result.loss.sel(alpha=1.0, beta=0.0).item(), result.attrs["missing_points"]
    (0.2, 1)

    Args:
        path: The file.
        split: Whose losses and accuracies to read: ``"train"`` or ``"test"``.
        fastest: Which coordinate varies fastest in the stored numbers: ``"x"`` as in the original; ``"y"`` where
            ``stored[i, j]`` is at ``(x[i], y[j])``. None: ``"x"``, with a warning where that is not certain.

    Returns:
        A Dataset over ``alpha`` (xcoordinates) and, of a surface, ``beta`` (ycoordinates), float64. It has those of
        these variables that the file has:

        - ``loss``;
        - ``accuracy``, a fraction: the file has percent;
        - ``min_eigenvalue``, ``max_eigenvalue``, and if both are there ``ratio``, ``abs(min / max)``, and
          ``converged``;
        - ``done``, only if points are missing: whether all the other variables are there.

        ``attrs["dir_file"]`` is the name of the file of directions, ``attrs["source"]`` the name of this file, and
        ``attrs["missing_points"]`` the number of points where a variable is missing (0: none). If the file has losses,
        ``attrs["nonfinite_points"]`` counts those that were computed and are NaN or infinite.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no HDF5 file, it has no ``xcoordinates`` or none of the variables, coordinates repeat or are
            not finite, the shape of a variable does not fit the coordinates, or an argument is none of the choices.
        TypeError: ``path`` is no path.
        ImportError: h5py is not installed: ``pip install "jax-losscape[export]"``.

    Warns:
        UserWarning: The grid is not square, and the order of the numbers is not certain.
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"path is {type(path).__name__}, expected the path of a file.")
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}, expected 'train' or 'test'.")
    if fastest not in ("x", "y", None):
        raise ValueError(f"fastest is {fastest!r}, expected 'x', 'y' or None.")
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"path {path} not found; expected a surface file of the original tool.")
    names = of_split(split) | EIGENVALUES
    content = _content(path, ("dir_file", "xcoordinates", "ycoordinates", *names))
    grid = _grid(content, path)
    stored = {name: content[name] for name in names if name in content}
    if not stored:
        raise ValueError(f"{path} has the datasets {content['']}, expected one or more of {list(names)}.")
    arrays = {name: _ordered(values, grid, f"{name!r} of {path}", fastest) for name, values in stored.items()}
    if fastest is None:
        _warn_of_order(stored, grid, path)
    return _dataset(arrays, _masks(arrays, names), grid, names, content, path)


def _content(path: Path, names: tuple[str, ...]) -> dict[str, Any]:
    """The datasets of a file that have one of the names; the names of all its entries at ``""``."""
    package: Any = optional("h5py")
    try:
        with package.File(path, "r") as file:
            there = {name: file[name][()] for name in names if isinstance(file.get(name), package.Dataset)}
            return {"": sorted(file), **there}
    except OSError as error:
        raise ValueError(f"{path} is no HDF5 file that can be read: {error}") from error


def _grid(content: dict[str, Any], path: Path) -> Grid:
    if "xcoordinates" not in content:
        raise ValueError(f"{path} has the datasets {content['']}, expected 'xcoordinates' among them.")
    axes = [content[name] for name in ("xcoordinates", "ycoordinates") if name in content]
    try:
        return Grid(tuple(axes))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} has coordinates that are no grid: {error}") from error


def _ordered(values: np.ndarray, grid: Grid, name: str, fastest: Fastest | None) -> np.ndarray:
    """The values with the shape of the grid: ``[i, j]`` is at ``(x[i], y[j])``."""
    if values.shape not in (grid.shape, grid.shape[::-1]):
        raise ValueError(
            f"{name} has the shape {values.shape}, expected {grid.shape} or {grid.shape[::-1]} by its coordinates."
        )
    values = values.astype(float)
    return values.ravel().reshape(grid.shape) if fastest == "y" else values.ravel().reshape(grid.shape[::-1]).T


def _warn_of_order(stored: dict[str, np.ndarray], grid: Grid, path: Path) -> None:
    unclear = [name for name, values in stored.items() if values.shape == grid.shape != grid.shape[::-1]]
    if unclear:
        warnings.warn(
            f"{path}: {', '.join(unclear)} of a grid that is not square have the shape {grid.shape}; they are read as "
            "the original tool wrote them, x fastest. If another program wrote the file, value [i, j] may be at "
            "(x[i], y[j]): then pass fastest='y'. Pass fastest='x' if the original wrote it.",
            stacklevel=4,
        )


def _masks(arrays: dict[str, np.ndarray], names: dict[str, Stored]) -> dict[str, np.ndarray]:
    """Where each array was never computed."""
    masks = {name: values == names[name].missing for name, values in arrays.items()}
    if set(EIGENVALUES) <= set(masks):  # one alone may have the value
        both = masks["min_eig"] & masks["max_eig"]
        masks |= dict.fromkeys(EIGENVALUES, both)
    return masks


def _dataset(
    arrays: dict[str, np.ndarray],
    masks: dict[str, np.ndarray],
    grid: Grid,
    names: dict[str, Stored],
    content: dict[str, Any],
    path: Path,
) -> xr.Dataset:
    variables: dict[str, Any] = {}
    for name, values in arrays.items():
        variable, factor, _, long_name = names[name]
        variables[variable] = grid.names, np.where(masks[name], np.nan, values) / factor, {"long_name": long_name}
    result = xr.Dataset(variables, dict(zip(grid.names, grid.axes, strict=True)))
    if {"min_eigenvalue", "max_eigenvalue"} <= set(variables):
        smallest, largest = result.min_eigenvalue, result.max_eigenvalue
        ratio = abs(smallest / largest).assign_attrs(long_name="abs(min / max) eigenvalue")
        result = result.assign(ratio=ratio, converged=abs(largest - smallest) > _SAME * abs(largest))
    missing = np.logical_or.reduce(list(masks.values()))
    directions = content.get("dir_file", b"")
    text = directions.decode(errors="replace") if isinstance(directions, bytes) else str(directions)
    result.attrs = {"dir_file": text, "source": path.name, "missing_points": int(missing.sum())}
    if "loss" in result:
        computed = ~next(mask for name, mask in masks.items() if names[name].variable == "loss")
        result.attrs["nonfinite_points"] = int((computed & ~np.isfinite(result.loss.values)).sum())
    return result.assign(done=(grid.names, ~missing)) if missing.any() else result
