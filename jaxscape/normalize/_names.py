"""What the leaves of a pytree are called: their own name, their module, its class, and the leaves beside them.

Neural-network libraries spell the same thing in many ways. A leaf ``kernel`` in a module ``Dense_0`` is
``["Dense_0"]["kernel"]`` in a Linen dict, ``["Dense_0"]["kernel"].value`` in an NNX state, ``"net/~/linear"`` and
``"w"`` in Haiku, ``"dense/kernel"`` in Keras and ``"layers.0.weight"`` in a PyTorch state dict. Here all of them become
words that `jaxscape.normalize` and `jaxscape.normalize` can compare as a whole.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax

from jaxscape.types import KeyPath, Params

Shape = tuple[int, ...]


class Leaf(NamedTuple):
    """A leaf as the rules see it.

    Attributes:
        path: The components of its path.
        name: The last component that is a word, in lower case: ``kernel``, ``bias``, ``w``.
        module: The component before it, in snake case without a final number: ``LayerNorm_0`` is ``layer_norm``;
            empty at the top.
        kind: The class of the object that holds the leaf, spelled like ``module``; empty in dicts, lists and tuples.
        shape: Of the leaf.
        siblings: Shapes of all leaves of its module by name, its own among them.
        neighbours: The modules beside its own, and its own.
        layers: How many axes in front index layers that are stacked by a scan or a vmap; None: not known.
    """

    path: tuple[str, ...]
    name: str
    module: str
    kind: str
    shape: Shape
    siblings: Mapping[str, Shape]
    neighbours: frozenset[str]
    layers: int | None = None

    def inside_layers(self) -> "Leaf":
        """The leaf of one layer, of a leaf that stacks several along its first axis."""
        siblings = {name: shape[1:] for name, shape in self.siblings.items()}
        return self._replace(shape=self.shape[1:], siblings=siblings, layers=0)


def describe(params: Params) -> list[Leaf]:
    """Read the names of all leaves.

    >>> import jax.numpy as jnp
    >>> (leaf,) = describe({"encoder": {"LayerNorm_0": {"scale": jnp.ones((3, 8))}}})
    >>> leaf.name, leaf.module, leaf.shape
    ('scale', 'layer_norm', (3, 8))

    Args:
        params: Any pytree of arrays.

    Returns:
        One description for each leaf, in order.
    """
    leaves = jax.tree.leaves(params)
    components = [_components(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    places = [_place(words) for words in components]
    siblings: dict[Any, dict[str, Shape]] = defaultdict(dict)
    neighbours: dict[Any, set[str]] = defaultdict(set)
    for (prefix, name, index), leaf in zip(places, leaves, strict=True):
        siblings[prefix, index][name] = leaf.shape
        neighbours[prefix[:-1]].update(prefix[-1:])
    kinds = _holders(jax.tree.structure(params))
    rows = zip(components, places, kinds, leaves, strict=True)
    return [
        Leaf(
            path=words,
            name=name,
            module=_module(prefix),
            kind=label(kind),
            shape=leaf.shape,
            siblings=siblings[prefix, index],
            neighbours=frozenset(neighbours[prefix[:-1]]),
        )
        for words, (prefix, name, index), kind, leaf in rows
    ]


def label(name: str) -> str:
    """Snake case without a final number: ``LayerNorm_0`` and ``layer_norm`` are the same word.

    >>> label("MultiHeadAttention_1"), label("Conv2D"), label("ln_1"), label("conv2d_3")
    ('multi_head_attention', 'conv2_d', 'ln', 'conv2d')

    Args:
        name: A component of a path, or the name of a class.

    Returns:
        The word.
    """
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()
    return re.sub(r"_?\d+$", "", spaced)


def _components(path: KeyPath) -> tuple[str, ...]:
    """Words and indices of a path, without the ``.value`` under which flax keeps the array of a variable."""
    keys = path[:-1] if len(path) > 1 and getattr(path[-1], "name", None) == "value" else path
    parts: list[str] = []
    for key in keys:
        content = next((getattr(key, field) for field in ("key", "name", "idx") if hasattr(key, field)), key)
        for part in content if isinstance(content, tuple) else (content,):  # tuples: flattened flax dicts
            parts += [word for word in re.split(r"[/.]", str(part)) if word not in ("", "~")]
    return tuple(parts)


def _place(components: tuple[str, ...]) -> tuple[tuple[str, ...], str, tuple[str, ...]]:
    """The modules of a leaf, its name, and the indices after it: ``biases[0]`` stands beside ``weights[0]``."""
    words = [i for i, component in enumerate(components) if not component.isdigit()]
    last = words[-1] if words else len(components)
    name = components[last].lower() if words else ""
    return components[:last], name, components[last + 1 :]


def _module(prefix: tuple[str, ...]) -> str:
    return next((label(component) for component in reversed(prefix) if not component.isdigit()), "")


def _holders(treedef: Any, kind: str = "") -> Iterator[str]:
    """For each leaf the class of the innermost object around it that is no dict, list or tuple."""
    node = treedef.node_data()
    if node is None:  # a leaf, or None, which has none
        yield from [kind] * treedef.num_leaves
    if node is not None and not issubclass(node[0], Mapping | list | tuple):
        kind = node[0].__name__
    for child in treedef.children():
        yield from _holders(child, kind)
