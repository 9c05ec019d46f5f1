"""Results on disk while they are made: every finished block, so that a killed run goes on where it stopped.

A zarr group with one array for each variable and a mask of what is done. A block is a chunk, a file that zarr writes
beside its place and renames; the mask is written last, so what it says is there is there in full.
"""

import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import zarr
from jax.experimental import multihost_utils


class Store:
    """The rows of a result, in blocks, each written once.

    Attributes:
        done: Whether each row has been written.
    """

    def __init__(
        self,
        path: str | Path,
        recipe: Mapping[str, Any],
        rows: int,
        block: int,
        like: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Open the store of a recipe, or make it: all processes together, the first of them before the others.

        Args:
            path: A folder.
            recipe: What the numbers depend on; values that JSON can hold.
            rows: Of the whole result.
            block: Rows that are written at a time.
            like: The variables, if they are known: where several processes write, none may have to make them.

        Raises:
            ValueError: The folder holds something else, or the store of another recipe; the message says what differs.
        """
        self._lock, self._block = threading.Lock(), block
        wanted = json.loads(json.dumps({**recipe, "rows": rows, "block": block}))
        try:
            if not jax.process_index():
                self._open(Path(path), wanted, like or {})
        finally:
            _together("made")  # the others open what the first has made; what it refused, they refuse too
        if jax.process_index():
            self._open(Path(path), wanted, like or {})
        _together("seen")  # none writes before all have seen what is done

    def _open(self, path: Path, wanted: dict[str, Any], like: Mapping[str, np.ndarray]) -> None:
        if path.exists() and not (path / "zarr.json").exists():
            raise ValueError(f"store {path} exists and is no zarr folder; name another path.")
        self._group: Any = zarr.open_group(path, mode="a")
        recipe: Any = self._group.attrs.setdefault("recipe", wanted)
        differ = [name for name in {**wanted, **recipe} if wanted.get(name) != recipe.get(name)]
        if differ:
            pairs = "; ".join(f"{name} is {recipe.get(name)!r} there and {wanted.get(name)!r} here" for name in differ)
            raise ValueError(f"store {path} holds another result: {pairs}. Name another path, or remove it.")
        if "done" not in self._group:
            shape, chunks = (wanted["rows"],), (self._block,)
            self._group.create_array("done", shape=shape, chunks=chunks, dtype=bool, fill_value=False)
        self.done: np.ndarray = np.asarray(self._group["done"])
        self._make(like)

    def _make(self, like: Mapping[str, np.ndarray]) -> None:
        for name, value in like.items():
            if name not in self._group:
                shape, chunks = (len(self.done), *value.shape[1:]), (self._block, *value.shape[1:])
                self._group.create_array(name, shape=shape, chunks=chunks, dtype=value.dtype)

    def write(self, rows: slice, values: Mapping[str, np.ndarray]) -> None:
        """Keep one block.

        Args:
            rows: A whole block.
            values: An array for each variable, the rows along its first axis.
        """
        with self._lock:  # creating arrays from several threads
            self._make(values)
            for name, value in values.items():
                self._group[name][rows] = value
            self._group["done"][rows] = True
            self.done[rows] = True

    def read(self) -> dict[str, np.ndarray]:
        """All variables, in full, when all processes have written; rows that are not done are zero."""
        _together("written")
        columns = {name: array[:] for name, array in self._group.arrays() if name != "done"}
        _together("read")  # only then may one of them remove the folder
        return columns


def _together(what: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"store {what}")
