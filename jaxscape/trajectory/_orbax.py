"""Params from a folder of orbax checkpoints, read one at a time.

The layouts that are read: that of `CheckpointManager` (``FOLDER/STEP/ITEM``, a step named with or without a prefix),
and folders of steps that a `Checkpointer` has written (``FOLDER/STEP``). Arrays come to the host, whatever devices they
were saved from.
"""

import json
import os
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxscape.trajectory._sequences import Lazy
from jaxscape.types import Params

_ITEMS = ("params", "state", "default", "pytree")  # the first that a step has is read; the last is that of orbax v1
_PICK = "[ocp.StandardCheckpointer().restore(path)['NAME'] for path in paths]"


def read_folder(folder: str | os.PathLike[str], like: Params | None, name: str) -> Lazy:
    """The params in a folder of checkpoints, in the order of their steps.

    Of a step with several items the first of ``params``, ``state``, ``default`` and ``pytree`` is read. Of a pytree
    with the entry ``params`` beside others (a train state: params, opt_state, step) its params are read, and nothing
    else. Where ``like`` is known, it decides between the two, and gives the params its own structure: orbax keeps names
    and arrays only, so an NNX state comes back as nested dicts.

    Args:
        folder: Its path; whatever `etils.epath` reads, e.g. ``gs://...``.
        like: Params of the path, where they are known; None: they are not.
        name: What the caller's argument is called, for the messages.

    Returns:
        A sequence of params.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: It has no checkpoints, is the folder of a run of train.py or of one step, its steps have several
            prefixes, or a step has none of the items above.
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
    items = [_item(step, name) for step in _steps(path, name)]
    _chosen(items[-1], like, name)
    return Lazy(len(items), lambda index: _read(items[index], like, name))


def _steps(path: Any, name: str) -> list[Any]:
    """The folders of complete steps, by their numbers; those that orbax is still writing have other names."""
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
    return [path / step for *_, step in steps]


def _item(step: Any, name: str) -> Any:
    """The folder of a step's pytree."""
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
    """What is read of a pytree, as its metadata, and whether that is under ``params``; each leaf is floating."""
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
    """The params of one checkpoint, on the host; nothing else of it is read."""
    import orbax.checkpoint as ocp

    chosen, inside = _chosen(item, like, name)
    wanted = {"params": chosen} if inside else chosen
    to_host = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
    args = ocp.args.PyTreeRestore(item=wanted, restore_args=to_host, partial_restore=True)
    restored = ocp.PyTreeCheckpointHandler().restore(item, args=args)
    params = restored["params"] if inside else restored
    if like is None or _names(params) != _names(like):
        return params
    return jax.tree.unflatten(jax.tree.structure(like), _in_order(params, like))


def _in_order(params: Params, like: Params) -> list[Any]:
    """The leaves of params in the order of ``like``, which may be another one: dicts are sorted by their keys."""
    leaves = dict(zip(_simple(params), jax.tree.leaves(params), strict=True))
    return [leaves[path] for path in _simple(like)]


def _simple(tree: Any) -> list[str]:
    """The path of each leaf by names alone, whatever kinds of containers these are."""
    paths = jax.tree_util.tree_leaves_with_path(tree)
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths]


def _names(tree: Any) -> list[str]:
    return sorted(_simple(tree))


def _refuse_run(path: Any, name: str) -> None:
    """The folder of a run of train.py, or of its checkpoints, has a reader of its own."""
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
