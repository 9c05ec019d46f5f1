"""What a folder of results says of itself, so that what is read back is right or refused.

A folder holds a zarr group. Its subgroup ``jaxscape`` has what is not for everybody: ``manifest.json``, with the
attributes of the result, the metadata of its arrays and what the numbers depend on, all under a digest. The group's own
``zarr.json`` repeats the attributes and the metadata (as zarr's consolidated metadata), and can be mended from it.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jaxscape.files import replace_text

FORMAT = 2
OWN = "jaxscape"
MANIFEST, NODE = f"{OWN}/manifest.json", "zarr.json"


@dataclass(frozen=True)
class Manifest:
    """What a folder says of itself.

    Attributes:
        recipe: What the numbers depend on; empty for a result that no call goes on with.
        attrs: The attributes of the result.
        chunk: Points that share a file.
        nodes: The contents of each ``zarr.json`` below the folder, by the path of its array or group.
        notes: What may change without changing the numbers' meaning.
        complete: Whether every row is there, and the attributes are those of the result.
        earlier: For each variable of a store before it was extended: ranges of rows, ``[first, last + 1]``, where it is
            there, though others may not be.
    """

    recipe: dict[str, Any] = field(default_factory=dict)
    attrs: dict[str, Any] = field(default_factory=dict)
    chunk: int = 0
    nodes: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    complete: bool = False
    earlier: dict[str, list[list[int]]] = field(default_factory=dict)


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values as JSON gives them back: tuples as lists, NumPy's numbers as Python's."""

    def default(value: Any) -> Any:
        if isinstance(value, np.generic | np.ndarray):
            return value.tolist()
        raise TypeError(f"{value!r} is {type(value).__name__}, which JSON cannot hold.")

    return json.loads(json.dumps(dict(values), default=default))


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write what a folder says of itself, and the group's ``zarr.json``, each in one step.

    Args:
        path: The folder; its subgroup ``jaxscape`` exists.
        manifest: What it says of itself.
    """
    body = dataclasses.asdict(manifest) | {"format": FORMAT}
    replace_text(path / MANIFEST, json.dumps({"digest": _digest(body), "manifest": body}, indent=1))
    replace_text(path / NODE, json.dumps(_group(manifest), indent=1))


def read_manifest(path: Path) -> Manifest | None:
    """Read what a folder says of itself.

    Args:
        path: A folder.

    Returns:
        What it says; None where there is nothing yet.

    Raises:
        ValueError: The file is damaged, or of another version; the message names it.
        ForeignError: The folder holds a zarr group that jaxscape did not make.
    """
    file = path / MANIFEST
    if not file.exists():
        if (path / NODE).exists():
            raise ForeignError(f"{path} holds a zarr group without {MANIFEST}: it is none of jaxscape's.")
        return None
    try:
        contents = json.loads(file.read_text())
        body = contents["manifest"]
        whole = contents["digest"] == _digest(body)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is damaged ({error}), and with it what {path} holds. Remove the folder.") from error
    if not whole:
        raise ValueError(f"{file} is damaged: its contents do not have its digest. Remove the folder.")
    if body.pop("format") != FORMAT:
        raise ValueError(f"{file} has a format that another version of jaxscape wrote; use that, or remove the folder.")
    return Manifest(**body)


class ForeignError(ValueError):
    """A zarr group that jaxscape did not make."""


def nodes_below(path: Path) -> dict[str, Any]:
    """The contents of each ``zarr.json`` below a folder, by the path of its array or group."""
    files = sorted(file for file in path.rglob(NODE) if file.parent != path)
    return {file.parent.relative_to(path).as_posix(): json.loads(file.read_text()) for file in files}


def damaged_nodes(path: Path, manifest: Manifest) -> list[str]:
    """The ``zarr.json`` files of a folder that are missing, or are not what the manifest says."""
    names = [name for name, node in _nodes(manifest).items() if _digest(_contents(path / name)) != _digest(node)]
    # a store is killed between its manifest and the file of the folder itself; a result is renamed when whole
    older = manifest.recipe and isinstance(_contents(path / NODE), dict)
    return [name for name in names if name != NODE or not older]


def mend_nodes(path: Path, manifest: Manifest, names: Sequence[str]) -> None:
    """Write ``zarr.json`` files anew.

    Args:
        path: The folder.
        manifest: What it says of itself.
        names: The files, as `damaged_nodes` gives them; that of the folder itself is always written.
    """
    for name in {*names, NODE}:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        replace_text(path / name, json.dumps(_nodes(manifest)[name], indent=2))


def make_own_group(path: Path) -> None:
    """Make the subgroup ``jaxscape`` of a folder; what is in it stays."""
    (path / OWN).mkdir(parents=True, exist_ok=True)
    replace_text(path / OWN / NODE, json.dumps({"attributes": {}, "zarr_format": 3, "node_type": "group"}))


def _nodes(manifest: Manifest) -> dict[str, Any]:
    return {f"{name}/{NODE}": node for name, node in manifest.nodes.items()} | {NODE: _group(manifest)}


def _group(manifest: Manifest) -> dict[str, Any]:
    return {
        "attributes": manifest.attrs,
        "zarr_format": 3,
        "node_type": "group",
        "consolidated_metadata": {"kind": "inline", "must_understand": False, "metadata": manifest.nodes},
    }


def difference(manifest: Manifest, recipe: Mapping[str, Any]) -> dict[str, str]:
    """What differs between the recipe of a folder and another one: by name, in words."""
    there, here = manifest.recipe, plain(recipe)
    names = [name for name in {**here, **there} if there.get(name) != here.get(name)]
    return {name: f"{name} is {_brief(there.get(name))} there and {_brief(here.get(name))} here" for name in names}


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:40]}...{text[-15:]}"


def _contents(file: Path) -> Any:
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):
        return None


def _digest(body: Any) -> str:
    return hashlib.blake2b(json.dumps(body, sort_keys=True).encode(), digest_size=16).hexdigest()
