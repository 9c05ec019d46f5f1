"""Which axes of a kernel index its filters, read from names and shapes.

A filter is one output neuron: all weights that lead to it. The axes of filters are found in this order:

1. A bias or a normalization parameter (`jaxscape.normalize`): each entry is a filter.
2. A layer that Equinox defines, by its class.
3. Layers stacked along the first axis, where `read_leaves` sees it: that axis, and each layer's own.
4. An embedding, by the last word of the leaf's name: all axes but the last, so that the vector of a token is a filter.
   A depthwise convolution: its last two axes.
5. The bias of the same module has one entry for each output neuron, so the filters' axes have its lengths. Where one
   choice of axes fits, it is certain; kernels of attention and of stacked layers show themselves in this way.
6. Without a bias, the table `LAYOUTS`, by name of leaf and module and by rank. Axes in front of a layout are stacked
   layers and index filters too.
7. Else the convention: the last axis; in Equinox, and for HuggingFace's leaves ``weight``, the first: these come from
   a state dict and have PyTorch's layouts.

By default, without a library, all names are known but Equinox's and PyTorch's ``weight``. What is not certain is in
`Filters.assumption`.
"""

import itertools
import re
from typing import NamedTuple

from jaxscape.normalize._bias_norm import WEIGHTS, reason_to_ignore
from jaxscape.normalize._names import Leaf
from jaxscape.types import Library


class Layout(NamedTuple):
    """The axes of a kernel, by name.

    Attributes:
        libraries: Where it holds; None: by default.
        name: Pattern of the leaf's name.
        module: Pattern of its module's name or class.
        axes: One letter for each axis: ``o`` indexes filters, ``i`` does not; ``s`` stands for the spatial axes of a
            convolution, as many as its name says (``Conv2d``), else as the rank leaves; ``*`` for any number of o.
        beside: Modules that must stand beside its own.
    """

    libraries: tuple[Library | None, ...]
    name: str
    module: str
    axes: str
    beside: frozenset[str] = frozenset()


TABLES: tuple[Library | None, ...] = (None, "flax", "haiku", "keras", "huggingface")
HEADS: tuple[Library | None, ...] = (None, "flax", "keras")
ATTENTION = frozenset({"query", "key", "value"})

EXCEPTIONS = (
    Layout(TABLES, r"(.*_)?embeddings?", r".*", "*i"),
    Layout(TABLES, r"kernel|w", r"(.*_)?depthwise_?conv([123]_?d)?", "soo"),
    Layout(TABLES, r"depthwise_kernel", r".*", "soo"),
)
"""Layouts that hold whatever the bias says: it has no entry for each of these filters."""

LAYOUTS = (
    Layout(HEADS, r"kernel", r"query|key|value", "ioo", ATTENTION),  # (in, heads, dim)
    Layout(HEADS, r"kernel", r"out|attention_output", "iio", ATTENTION),  # (heads, dim, out)
    Layout((None, "haiku", "keras"), r"kernel|w", r"(.*_)?conv[123]_?d_transpose", "soi"),
    Layout(("huggingface",), r"kernel", r"c_attn|q_attn|c_fc|c_proj", "oi"),  # FlaxConv1D of GPT-2 is (out, in)
    Layout(("huggingface",), r"weight", r"c_attn|q_attn|c_fc|c_proj", "io"),  # Conv1D of GPT-2 is (in, out)
    Layout(TABLES, r"kernel|w", r"(.*_)?conv.*", "sio"),
    Layout(TABLES, r"kernel|w", r"(?!.*(einsum|general))(.*_)?(dense|linear)", "io"),
    Layout(("huggingface",), r"kernel", r"(?!projection|patch_embedding).*", "io"),
    Layout(("equinox",), r"weight", r"(.*_)?conv(_transpose)?([123]_?d)?", "ois"),
    Layout(("equinox",), r"weight", r"(.*_)?(linear|embedding)", "oi"),
    Layout(("equinox",), r"weight_ih|weight_hh", r".*", "oi"),
)


class Filters(NamedTuple):
    """Which axes of a leaf index its filters.

    Attributes:
        axes: In ``range(rank)``, ascending; the norm of a filter runs over all the others.
        assumption: What neither name nor shape settles, or empty.
    """

    axes: tuple[int, ...]
    assumption: str = ""


def filters_of(leaf: Leaf, library: Library | None) -> Filters:
    """The axes that index the filters of a leaf, by name and shape (the module's list).

    Args:
        leaf: Its description.
        library: Whose names and layouts to go by; None: any, and the last axis for what has no known name.

    Returns:
        The axes, and what was assumed.
    """
    rank = len(leaf.shape)
    if reason_to_ignore(leaf) is not None:
        return Filters(tuple(range(rank)))
    by_class = _first(LAYOUTS, leaf._replace(module=""), library) if leaf.kind else None
    if by_class and not by_class.assumption:
        return by_class
    if leaf.layers and rank > 2:
        axes, assumption = filters_of(leaf.inside_layers(), library)
        return Filters((0, *(a + 1 for a in axes)), assumption)
    if exception := _first(EXCEPTIONS, leaf, library):
        return exception
    named = _first(LAYOUTS, leaf, library)
    convention = 0 if _is_output_first(leaf, library) else rank - 1
    if by_bias := _fit_bias(leaf, named, convention, library):
        return by_bias
    return named or Filters((convention,), "" if rank == 2 else f"the {'last' if convention else 'first'} axis")


def _fit_bias(leaf: Leaf, named: Filters | None, convention: int, library: Library | None) -> Filters | None:
    """The axes that have the lengths of the bias; None if there is no bias, or none that decides."""
    fits = _axes_of_bias(leaf)
    if named and _long(named.axes, leaf) in fits:
        return Filters(named.axes)
    usual = [axes for axes in fits if convention in axes or leaf.shape[convention] == 1]
    if usual and convention == 0:
        return Filters(usual[0])  # the bias has the kernel's first axes, whichever others fit as well
    if usual:
        axes = usual[0]  # of several, which need equal lengths, the one with layers in front
        if leaf.shape[convention] == 1:
            axes = tuple(sorted({*axes, convention}))
        return Filters(axes, f"the first of {len(usual)} choices that fit the bias" if len(usual) > 1 else "")
    return Filters(fits[0]) if library is not None and len(fits) == 1 else None


def looks_output_first(leaf: Leaf) -> bool:
    """Whether a kernel seems to be (out, in), as in Equinox and PyTorch: by its bias, else by the name ``weight``.

    Args:
        leaf: Its description.

    Returns:
        True if its first axis rather than its last one indexes the output.
    """
    fits = _axes_of_bias(leaf)
    last = any(len(leaf.shape) - 1 in axes for axes in fits)
    first = any(0 in axes and len(leaf.shape) - 1 not in axes for axes in fits)
    return first if first != last else leaf.name in ("weight", "weight_ih", "weight_hh")


def _is_output_first(leaf: Leaf, library: Library | None) -> bool:
    return library == "equinox" or (library == "huggingface" and "weight" in leaf.name.split("_"))


def _long(axes: tuple[int, ...], leaf: Leaf) -> tuple[int, ...]:
    """Without axes of length 1, which make no difference."""
    return tuple(a for a in axes if leaf.shape[a] > 1)


def _axes_of_bias(leaf: Leaf) -> list[tuple[int, ...]]:
    """Every choice of axes that have the lengths of the bias of the same module, axes of length 1 left out."""
    bias = next((leaf.siblings[name] for name in ("bias", "biases", "b") if name in leaf.siblings), None)
    if bias is None or leaf.name not in WEIGHTS or len(bias) >= len(leaf.shape):
        return []
    lengths = tuple(n for n in bias if n > 1)
    choices = itertools.combinations(_long(tuple(range(len(leaf.shape))), leaf), len(lengths))
    return [axes for axes in choices if lengths and tuple(leaf.shape[a] for a in axes) == lengths]


def _first(layouts: tuple[Layout, ...], leaf: Leaf, library: Library | None) -> Filters | None:
    """What the first layout that fits says."""
    for layout in layouts:
        if library in layout.libraries and re.fullmatch(layout.name, leaf.name) and layout.beside <= leaf.neighbours:
            for word in (leaf.kind, leaf.module) if leaf.kind else (leaf.module,):
                if re.fullmatch(layout.module, word) and (filters := _expand(layout.axes, leaf, word)):
                    return filters
    return None


def _expand(axes: str, leaf: Leaf, word: str) -> Filters | None:
    """A layout on a leaf; None if it has too few axes, or if a head of attention would have no input."""
    rank = len(leaf.shape)
    named = re.search(r"conv(?:_transpose)?([123])_?d(?:_|$)", word)
    others = rank - len(axes) + 1
    spatial = int(named[1]) if named else others
    letters = axes.replace("s", "i" * spatial).replace("*", "o" * others)
    layers = rank - len(letters)
    if layers < 0 or (axes == "ioo" and leaf.shape[layers] == 1):  # a convolution of 1 by 1 that is called query
        return None
    filters = (*range(layers), *(layers + i for i, letter in enumerate(letters) if letter == "o"))
    assumption = ""
    if layers and word != leaf.kind:
        assumption = "axis 0 is stacked layers" if layers == 1 else f"axes 0 to {layers - 1} are stacked layers"
    elif "s" in axes and not named and spatial > 1 and leaf.layers is None:
        assumption = "no stacked layers"
    return Filters(filters, assumption)
