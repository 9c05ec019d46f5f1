"""The arrays of a folder: zarr is imported when the first one is opened, since its import takes 0.15 s."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


def codecs() -> tuple[Any, Any]:
    """How chunks are written; the checksum is of what stands in the file."""
    from zarr.codecs import Crc32cCodec, ZstdCodec

    return ZstdCodec(), Crc32cCodec()


def create_array(
    path: Path,
    dims: tuple[str, ...] | None,
    shape: tuple[int, ...],
    chunks: tuple[int, ...],
    kind: np.dtype,
    attrs: Mapping[str, Any],
) -> Any:
    """Make an array, in the place of one that is there."""
    import zarr

    return zarr.create_array(
        path,
        shape=shape,
        chunks=chunks,
        dtype=kind,
        fill_value=fill(kind),
        dimension_names=dims,
        attributes=dict(attrs),
        compressors=codecs(),
        config={"write_empty_chunks": True},
        overwrite=True,
    )


def open_array(path: Path, *, write: bool = False) -> Any:
    """Open an array."""
    import zarr

    # Of an array that is opened zarr would leave out chunks that are all NaN, or all 0.
    with zarr.config.set({"array.write_empty_chunks": True}):
        return zarr.open_array(path, mode="r+" if write else "r", zarr_format=3)


def whole_array(path: Path) -> Any:
    """The values of an array; None if it cannot be read."""
    try:
        return np.asarray(open_array(path)[:])
    except Exception:  # noqa: BLE001  # zarr has no common class for what is broken
        return None


def fill(kind: np.dtype) -> Any:
    """What stands where nothing is written."""
    return np.dtype(kind).type(np.nan if np.issubdtype(kind, np.floating) else 0)
