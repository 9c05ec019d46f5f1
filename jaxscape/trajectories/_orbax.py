"""Params from a folder of orbax checkpoints, read one at a time.

Two layouts can be read: the layout of `CheckpointManager` (``FOLDER/STEP/ITEM``, where the name of a step may have a
prefix), and folders of steps that a `Checkpointer` has written (``FOLDER/STEP``). Arrays are restored on the host,
whatever devices they were saved from.
"""

import json
import os
import re
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxscape.arguments import check_path
from jaxscape.shards import is_cut
from jaxscape.trajectories._sequences import Lazy
from jaxscape.types import Params

_ITEMS = ("params", "state", "default", "pytree")  # the first of these that exists is read; orbax v1 writes "pytree"
_PICK = "[ocp.StandardCheckpointer().restore(path)['NAME'] for path in paths]"


@dataclass(frozen=True)
class Saved(Lazy):
    """The params of a folder of checkpoints.

    Attributes:
        steps: The numbers of the steps, ascending.
    """

    steps: tuple[int, ...] = ()

    def __repr__(self) -> str:
        return f"<{len(self)} checkpoints, steps {self.steps[0]} to {self.steps[-1]}>"


def checkpoints(folder: str | os.PathLike[str], *, like: Params | None = None) -> Saved:
    """The params in a folder of orbax checkpoints, a sequence that reads one at a time when it is asked for it.

    `jaxscape.pca_directions`, `jaxscape.project` and `jaxscape.trajectory` take it, and the folder itself, too. It is
    for everything else: the last params for a surface, every tenth for a line, the steps for an axis of a plot.

    >>> import tempfile
    >>> import orbax.checkpoint as ocp
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with ocp.CheckpointManager(folder) as manager:
    ...         for step in (0, 10, 20):
    ...             _ = manager.save(step, args=ocp.args.StandardSave({"w": jnp.full(2, float(step))}))
    ...         manager.wait_until_finished()
    ...     path = checkpoints(folder)
    ...     print(path, path[-1]["w"].tolist(), [params["w"][0].item() for params in path[::2]])
    <3 checkpoints, steps 0 to 20> [20.0, 20.0] [0.0, 20.0]

    Args:
        folder: In any form that `etils.epath` can read, e.g. ``gs://...``: that of a `CheckpointManager`
            (``FOLDER/STEP/ITEM``), or one with a folder for each step (``FOLDER/STEP``, also with a prefix:
            ``ckpt_100``). Of several items the first of ``params``, ``state``, ``default`` and ``pytree`` is read; of a
            train state the entry ``params``.
        like: Params with the same leaves, for the structure, since orbax keeps names and arrays alone: without it an
            NNX state comes back as nested dicts. Where its leaves are cut over devices, those of the checkpoints are
            read in the same parts.

    Returns:
        A sequence of params, NumPy arrays or leaves cut as in ``like``, in the order of the steps; ``.steps`` has
        their numbers.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: The folder has no checkpoints, is that of a run of train.py or of one step, its steps have several
            prefixes, or a step has none of the items above.
        TypeError: A leaf of the last checkpoint is not floating.
        ImportError: orbax is not installed.
    """
    check_path(folder, "folder")
    return read_folder(folder, like, "folder")


def read_folder(folder: str | os.PathLike[str], like: Params | None, name: str) -> Saved:
    """Return the params in a folder of checkpoints, in the order of their steps.

    If a step has several items, the first of ``params``, ``state``, ``default`` and ``pytree`` is read. If the saved
    pytree has the entry ``params`` and other entries (a train state: params, opt_state, step), only this entry is
    read, unless ``like`` has the leaves of the whole pytree. The params get the structure of ``like``, since orbax
    saves names and arrays only: without ``like`` an NNX state is restored as nested dicts.

    Args:
        folder: The path of the folder, in any form that `etils.epath` can read, e.g. ``gs://...``.
        like: Params with the same leaves as the checkpoints; None: none are known.
        name: The name of the caller's argument, for the messages.

    Returns:
        A sequence of params.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: The folder has no checkpoints, it is the folder of a run of train.py or of a single step, its steps
            have several prefixes, or a step has none of the items above.
        TypeError: A leaf of the last checkpoint is not floating.
        ImportError: orbax is not installed.
    """
    try:
        import orbax.checkpoint  # noqa: F401
        from etils import epath
    except ImportError as error:
        raise ImportError(
            f"{name} is the folder {os.fspath(folder)!r}: to read checkpoints from it `pip install orbax-checkpoint` "
            f"({error})."
        ) from error
    path = epath.Path(folder).expanduser().resolve()
    if not path.is_dir():
        raise FileNotFoundError(f"{name} is {os.fspath(folder)!r}, but there is no such folder.")
    _refuse_run(path, name)
    steps = _steps(path, name)
    items = [_item(folder, name) for folder in steps.values()]
    _chosen(items[-1], like, name)
    return Saved(len(items), lambda index: _read(items[index], like, name), tuple(steps))


def _steps(path: Any, name: str) -> dict[int, Any]:
    """The folders of complete steps by number, sorted; a step that orbax is still writing has another name."""
    if (path / "_METADATA").exists():
        raise ValueError(f"{name} is {path}, one checkpoint; expected a folder of several, e.g. {path.parent}.")
    names = [re.fullmatch(r"(\w*?)(\d+)", entry.name) for entry in path.iterdir() if entry.is_dir()]
    steps = sorted((int(match[2]), match[1], match[0]) for match in names if match)
    prefixes = sorted({prefix for _, prefix, _ in steps})
    if not steps:
        entries = ", ".join(sorted(entry.name for entry in path.iterdir())[:6]) or "nothing"
        raise ValueError(
            f"{name} is the folder {path}, which has no orbax checkpoints; expected folders of steps, e.g. 0, 100 or "
            f"ckpt_100, but it has: {entries}."
        )
    if len(prefixes) > 1:
        raise ValueError(
            f"{name} is the folder {path}, whose steps have the prefixes {prefixes}; expected one of them."
        )
    return {number: path / step for number, _, step in steps}


def _item(step: Any, name: str) -> Any:
    """The folder with the pytree of a step."""
    if (step / "_METADATA").exists():
        return step
    items = {entry.name: entry for entry in step.iterdir() if (entry / "_METADATA").exists()}
    if len(items) == 1:
        return next(iter(items.values()))
    for item in _ITEMS:
        if item in items:
            return items[item]
    saved = sorted(items) or sorted(entry.name for entry in step.iterdir())
    raise ValueError(
        f"{name} has the step {step} with {saved}, expected a pytree saved by orbax, or one of the items "
        f"{', '.join(_ITEMS)}; pick another yourself, e.g. {_PICK}."
    )


def _chosen(item: Any, like: Params | None, name: str) -> tuple[Any, bool]:
    """Choose the part of a saved pytree that is read, and check that all its leaves are floating.

    Returns:
        The metadata of this part, and whether it is the entry ``params`` of the saved pytree.

    Raises:
        TypeError: A leaf of this part is not floating.
    """
    import orbax.checkpoint as ocp

    tree = ocp.PyTreeCheckpointHandler().metadata(item).tree
    inside = isinstance(tree, dict) and "params" in tree and len(tree) > 1
    if inside and like is not None and _names(tree) == _names(like):
        inside = False
    chosen = tree["params"] if inside else tree
    for path, leaf in jax.tree_util.tree_leaves_with_path(chosen):
        dtype = getattr(leaf, "dtype", None)
        if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
            entries = f" of the entries {sorted(tree)}" if isinstance(tree, dict) else ""
            raise TypeError(
                f"{name} has the leaf {jax.tree_util.keystr(path)} of {dtype or type(leaf).__name__} in {item}, but "
                "every leaf must be a floating array. Save params alone, or as the entry 'params' beside the others; "
                f"or pick them{entries} yourself, e.g. {_PICK}."
            )
    return chosen, inside


def _read(item: Any, like: Params | None, name: str) -> Params:
    """Read the params of one checkpoint to the host; nothing else of the checkpoint is read."""
    import orbax.checkpoint as ocp

    chosen, inside = _chosen(item, like, name)
    item_tree = {"params": chosen} if inside else chosen
    cut = {} if like is None else dict(zip(_simple(like), jax.tree.leaves(like), strict=True))

    def how(path: Any, _: Any) -> Any:
        name = jax.tree_util.keystr(path[1:] if inside else path, simple=True, separator="/")
        if is_cut(cut.get(name)):  # each process reads its own parts
            return ocp.ArrayRestoreArgs(sharding=cut[name].sharding)
        return ocp.RestoreArgs(restore_type=np.ndarray)

    where = jax.tree_util.tree_map_with_path(how, item_tree)
    args = ocp.args.PyTreeRestore(item=item_tree, restore_args=where, partial_restore=True)
    restored = ocp.PyTreeCheckpointHandler().restore(item, args=args)
    params = restored["params"] if inside else restored
    if like is None or _names(params) != _names(like):
        return params
    return jax.tree.unflatten(jax.tree.structure(like), _in_order(params, like))


def _in_order(params: Params, like: Params) -> list[Any]:
    """The leaves of params in the order of ``like``; the two orders can differ, since dicts are sorted by key."""
    leaves = dict(zip(_simple(params), jax.tree.leaves(params), strict=True))
    return [leaves[path] for path in _simple(like)]


def _simple(tree: Any) -> list[str]:
    """The path of each leaf as names joined by slashes, whatever the types of the containers are."""
    paths = jax.tree_util.tree_leaves_with_path(tree)
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths]


def _names(tree: Any) -> list[str]:
    return sorted(_simple(tree))


def _refuse_run(path: Any, name: str) -> None:
    """Refuse the folder of a run of train.py, or of its checkpoints: `js.load_run` reads these."""
    for folder in (path, path.parent):
        try:
            config = json.loads((folder / "config.json").read_text())
        except (OSError, ValueError):
            continue
        if isinstance(config, dict) and {"arch", "noshort", "dataset", "seed"} <= config.keys():
            raise ValueError(
                f"{name} is {path}, of a run of train.py; pass js.load_run({str(folder)!r}) to js.trajectory, or its "
                "`checkpoints`."
            )
