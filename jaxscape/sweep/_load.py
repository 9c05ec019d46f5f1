"""Results on disk, complete or not: written so that damage is found, and read only after a look for it."""

import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from jaxscape.arguments import check_path
from jaxscape.sweep._arrays import codecs, open_array
from jaxscape.sweep._extend import found
from jaxscape.sweep._grid import to_dataset
from jaxscape.sweep._layout import DONE, stored_layout
from jaxscape.sweep._manifest import (
    ForeignError,
    Manifest,
    damaged_nodes,
    make_own_group,
    nodes_below,
    plain,
    read_manifest,
    write_manifest,
)


def load(path: str | Path) -> xr.Dataset:
    """Read a stored result, complete or not, into memory.

    >>> import tempfile, jax.numpy as jnp, jaxscape as js
    >>> folder = Path(tempfile.mkdtemp()) / "line.zarr"
    >>> loss = lambda params, x: (x @ params) ** 2
    >>> _ = js.surface(jnp.ones(2), loss, jnp.eye(2), directions=[jnp.ones(2)], grid=js.Grid.line(-1, 1, 3),
    ...                store=folder)
    >>> js.load(folder).loss.values.tolist()
    [0.0, 1.0, 4.0]

    Args:
        path: A folder that was given as ``store=`` to a call, also while it is being written; or a ``.zarr`` folder
            that the command line wrote.

    Returns:
        The Dataset that the call gives; of `jaxscape.trajectory` its surface, without the path. Where points are
        missing it is NaN; then it has the variable ``done``, and ``attrs["missing_points"]`` is their number.

    Raises:
        FileNotFoundError: There is nothing at this path.
        ValueError: The folder holds no result, or a file of it is damaged so that nothing can be read; the message
            names the file.

    Warns:
        UserWarning: Files of some points are damaged or missing: these points count as missing.
    """
    check_path(path, "path")
    path = found(Path(os.path.realpath(path)))
    if not path.exists():
        raise FileNotFoundError(f"path {path} not found; expected a result: the store= of a call, or a .zarr folder.")
    try:
        manifest = read_manifest(path) if path.is_dir() else None
    except ForeignError:
        return _opened(path)  # by xarray alone, without checksums
    if manifest is None:
        raise ValueError(f"{path} is no result; expected a folder that was the store= of a call, or a .zarr folder.")
    return _of_store(path, manifest) if manifest.recipe else _of_result(path, manifest)


def save(result: xr.Dataset, path: str | Path) -> None:
    """Write a result to a folder, with a checksum for each file; an earlier result is replaced by the whole new one.

    Args:
        result: Any Dataset.
        path: The folder.
    """
    path = Path(os.path.realpath(path))
    new, old = (path.with_name(f".{path.name}.{state}") for state in ("new", "old"))
    shutil.rmtree(new, ignore_errors=True)
    try:
        encoding = {name: {"compressors": codecs(), "chunks": result[name].shape} for name in result.variables}
        result.drop_attrs(deep=False).to_zarr(
            new, mode="w", consolidated=False, encoding=encoding, zarr_format=3, write_empty_chunks=True
        )
        make_own_group(new)
        write_manifest(new, Manifest(attrs=plain(result.attrs), nodes=nodes_below(new), complete=True))
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    if path.exists():
        shutil.rmtree(old, ignore_errors=True)
        path.rename(old)
    new.rename(path)
    shutil.rmtree(old, ignore_errors=True)


def _of_store(path: Path, manifest: Manifest) -> xr.Dataset:
    """The rows of a store that are there."""
    layout = stored_layout(manifest)
    grid, nodes = layout.grid, {name: manifest.nodes[name]["attributes"] for name in layout.kinds}
    columns, rows_there, damaged = layout.read_all(path, manifest)
    damaged += damaged_nodes(path, manifest)
    if damaged:
        warnings.warn(
            f"{path}: {len(damaged)} files are damaged or missing ({', '.join(damaged[:3])}"
            f"{', ...' if len(damaged) > 3 else ''}); their points count as missing. The call that wrote it mends it.",
            stacklevel=3,
        )
    num = int(np.prod(grid.shape))
    done = columns.pop(DONE)
    missing = int((~done[:num]).sum())
    names = {name: attrs["long_name"] for name, attrs in nodes.items() if "long_name" in attrs}
    result = to_dataset({name: column[:num] for name, column in columns.items()}, grid, names)
    result.attrs = {**manifest.attrs, "missing_points": missing} if missing else dict(manifest.attrs)
    if not missing:
        return result
    masks = {name: xr.DataArray(mask[:num].reshape(grid.shape), dims=grid.names) for name, mask in rows_there.items()}
    finished = xr.DataArray(done[:num].reshape(grid.shape), dims=grid.names)
    return result.assign({**{name: result[name].where(mask) for name, mask in masks.items()}, DONE: finished})


def _of_result(path: Path, manifest: Manifest) -> xr.Dataset:
    """A result that was saved whole: nothing of it may be missing."""
    for name in damaged_nodes(path, manifest):
        raise ValueError(f"{path / name} is damaged or missing. Compute the result anew.")
    for name, node in manifest.nodes.items():
        if node["node_type"] != "array":
            continue
        array: Any = open_array(path / name)
        file = path / name / "/".join(["c", *("0" for _ in array.shape)])
        try:
            if not file.is_file():
                raise FileNotFoundError("it is missing")
            array[...]
        except Exception as error:  # zarr has no common class for what is broken
            raise ValueError(f"{file} is damaged ({error}). Compute the result anew.") from error
    return _opened(path, consolidated=True).assign_attrs(manifest.attrs)


def _opened(path: Path, *, consolidated: bool = False) -> xr.Dataset:
    try:
        return xr.open_zarr(path, consolidated=consolidated).load()
    except Exception as error:  # zarr and xarray have no common class for what is broken
        raise ValueError(f"{path} is no result that xarray can read: {error}") from error
