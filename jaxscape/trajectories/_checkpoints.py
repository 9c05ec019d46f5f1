"""The forms in which a caller may pass the checkpoints of a path; each becomes a sequence or iterator of params.

The first rule that fits is used:

1. A str or a path-like object names a folder of orbax checkpoints.
2. An iterator is read once.
3. A sequence holds params, one entry for each checkpoint. A NamedTuple does not count as a sequence: it is a pytree.
   A list or tuple can also be ONE pytree stacked by `lax.scan`. It counts as such only if ``like`` (the origin of the
   path) has the same leaves without the leading axis. A list that could be both counts as a sequence.
4. An array, and any other pytree (a dict, a NamedTuple, an NNX state, a dataclass), is a stacked pytree: each leaf has
   one additional leading axis, and all these axes have the same length.
5. A function without arguments returns an iterator of params. Any other iterable gives one as well.
"""

import operator
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from jaxscape import trees
from jaxscape.trajectories._orbax import read_folder
from jaxscape.trajectories._sequences import Lazy, Repeated
from jaxscape.types import Params

_EXPECTED = (
    "expected a sequence of params in the order of training, params stacked by lax.scan (each leaf with one more "
    "leading axis), a run's `checkpoints`, a folder of orbax checkpoints, or a function that makes an iterator"
)


def as_checkpoints(checkpoints: Any, like: Params | None = None, name: str = "checkpoints") -> Iterable[Params]:
    """Params in the order of training, for a caller that reads them once.

    Args:
        checkpoints: The value that the caller passed; the docstring of this module lists the forms.
        like: Params with the same leaves as the checkpoints; None: none are known.
        name: The name of the caller's argument, for the messages.

    Returns:
        An iterable of params. None of them is checked yet.

    Raises:
        TypeError: ``checkpoints`` has none of these forms, or a leaf of a stacked pytree is not an array.
        ValueError: Stacked leaves have no common leading axis, a list mixes params of several shapes, a dict has
            integers as keys, all entries hold the same arrays, or a folder has no readable orbax checkpoints.
        FileNotFoundError: There is no such folder.
        ImportError: A folder needs orbax, which is not installed.
    """
    path = _recognized(checkpoints, like, name)
    return iter(path) if isinstance(path, Repeated) and path is not checkpoints else path


def as_path(checkpoints: Any, like: Params | None = None, name: str = "checkpoints") -> Sequence[Params]:
    """Params in the order of training, for a caller that reads them several times.

    Args:
        checkpoints: The value that the caller passed; the docstring of this module lists the forms.
        like: Params with the same leaves as the checkpoints; None: none are known.
        name: The name of the caller's argument, for the messages.

    Returns:
        A sequence of params. None of them is checked yet.

    Raises:
        TypeError: ``checkpoints`` has none of these forms, it is an iterator, which can be read only once, or a leaf
            of a stacked pytree is not an array.
        ValueError: Stacked leaves have no common leading axis, a list mixes params of several shapes, a dict has
            integers as keys, all entries hold the same arrays, or a folder has no readable orbax checkpoints.
        FileNotFoundError: There is no such folder.
        ImportError: A folder needs orbax, which is not installed.
    """
    path = _recognized(checkpoints, like, name)
    if isinstance(path, Iterator):
        raise TypeError(
            f"{name} is a {type(checkpoints).__name__}, which can be read only once, but the path is read several "
            "times. Pass a function that makes a new one, e.g. `lambda: (read(step) for step in steps)`; or a list of "
            "all, if they fit in memory."
        )
    return path


def _recognized(checkpoints: Any, like: Params | None, name: str) -> Any:
    """Recognize the form by the rules of this module; return an iterator or a sequence of params."""
    if isinstance(checkpoints, str | os.PathLike):
        return read_folder(checkpoints, like, name)
    if isinstance(checkpoints, Iterator):
        return checkpoints
    if isinstance(checkpoints, Sequence) and not hasattr(checkpoints, "_fields"):  # a NamedTuple has _fields
        return _as_sequence(checkpoints, like, name)
    if hasattr(checkpoints, "shape") or not jax.tree_util.all_leaves([checkpoints]):
        return _as_stacked(checkpoints, like, name)
    if callable(checkpoints):
        return Repeated(checkpoints, name)
    if isinstance(checkpoints, Iterable):
        return Repeated(checkpoints.__iter__, name)
    raise TypeError(f"{name} is {type(checkpoints).__name__}, {_EXPECTED}.")


def _as_sequence(checkpoints: Sequence[Params], like: Params | None, name: str) -> Sequence[Params]:
    """Return the sequence; check a list or a tuple before any compute, since all its entries are in memory."""
    if not isinstance(checkpoints, list | tuple):
        return checkpoints
    if like is not None and _stacks(checkpoints, like):
        return _slices(checkpoints, len(jax.tree.leaves(checkpoints)[0]))
    if len(checkpoints) > 1 and all(_same_arrays(checkpoints[0], entry) for entry in checkpoints[1:]):
        raise ValueError(
            f"{name}: all {len(checkpoints)} checkpoints are equal, since they hold the same arrays. "
            "`nnx.state(model)` aliases the live module, which changes in place: copy each when it is taken, e.g. "
            "`jax.tree.map(jnp.copy, nnx.state(model))`."
        )
    count = _common_length(checkpoints)
    for i, entry in enumerate(checkpoints if count is not None else ()):
        if not _alike(entry, checkpoints[0]):
            raise ValueError(
                f"{name}[{i}] has leaves of the shapes {_shapes(entry)}, but {name}[0] has {_shapes(checkpoints[0])}: "
                f"expected one pytree for each checkpoint, all alike. If {name} is one pytree that lax.scan has "
                f"stacked {count} times, pass `[jax.tree.map(lambda x: x[i], stacked) for i in range({count})]`."
            )
    return checkpoints


def _as_stacked(stacked: Any, like: Params | None, name: str) -> Lazy:
    """Check a stacked pytree, and return its slices along the leading axis, one for each checkpoint."""
    leaves = jax.tree_util.tree_leaves_with_path(stacked)
    kind = type(stacked).__name__
    if not leaves:
        raise TypeError(f"{name} is {kind} without leaves, {_EXPECTED}.")
    for path, leaf in leaves:
        if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
            leaf_name = jax.tree_util.keystr(path)
            raise TypeError(f"{name}{leaf_name} is {type(leaf).__name__}, but {name} is a {kind}: {_EXPECTED}.")
    count = _common_length(stacked)
    if count is None:
        shapes = ", ".join(f"{jax.tree_util.keystr(path)} {tuple(leaf.shape)}" for path, leaf in leaves[:4])
        raise ValueError(
            f"{name} is one {kind} whose leaves have no common leading axis ({shapes}{', ...' * (len(leaves) > 4)}): "
            f"{_EXPECTED}. Of a dict of checkpoints pass `list({name}.values())`."
        )
    if isinstance(stacked, dict) and _by_step(stacked) and not (like is not None and _stacks(stacked, like)):
        raise ValueError(
            f"{name} is a dict of {len(stacked)} integers to pytrees that are all alike; of checkpoints by their step "
            f"pass `list({name}.values())`, of one stacked pytree "
            f"`[jax.tree.map(lambda x: x[i], {name}) for i in range({count})]`."
        )
    return _slices(stacked, count)


def _slices(stacked: Any, count: int) -> Lazy:
    return Lazy(count, lambda i: jax.tree.map(lambda leaf: leaf[i], stacked))


def _stacks(tree: Any, like: Params) -> bool:
    """Whether a pytree has the leaves of ``like``, each with one additional leading axis of common length."""
    count = _common_length(tree)
    if count is None:
        return False
    return trees.named_shapes(tree) == {name: (count, *shape) for name, shape in trees.named_shapes(like).items()}


def _common_length(tree: Any) -> int | None:
    """The length of the leading axis of all leaves; None: the leaves have no leading axis of the same length."""
    shapes = _shapes(tree)
    lengths = {shape[:1] for shape in shapes}
    return shapes[0][0] if len(lengths) == 1 and () not in lengths else None


def _by_step(tree: dict[Any, Any]) -> bool:
    """Whether a dict looks like checkpoints by their step: its keys are integers, its values have the same leaves."""
    first, *others = tree.values()
    return bool(others) and all(isinstance(key, int) for key in tree) and all(_alike(first, other) for other in others)


def _same_arrays(a: Any, b: Any) -> bool:
    """Whether two pytrees have the identical array objects as leaves, at least one."""
    first, second = jax.tree.leaves(a), jax.tree.leaves(b)
    return len(first) == len(second) > 0 and all(map(operator.is_, first, second))


def _alike(a: Any, b: Any) -> bool:
    """Whether two pytrees have leaves of the same names and shapes, in any order."""
    return trees.named_shapes(a) == trees.named_shapes(b)


def _shapes(tree: Any) -> list[tuple[int, ...]]:
    return [np.shape(leaf) for leaf in jax.tree.leaves(tree)]
