"""Which leaves are biases and normalization parameters, read from whole names and from shapes.

The first line that fits decides; names are those of `jaxscape.normalize`.

==========================================  =====================================================================
leaf                                        it is one if
==========================================  =====================================================================
any                                         its rank is at most 1
bias, biases, bias_n, bias_ih, bias_hh      always
b                                           its rank is below that of the w beside it, or its module is "bias"
scale, offset                               its shape is (1, .., C, .., 1), as in Haiku's batch normalization
scale, gamma, weight; offset, beta          a leaf of the other group (or a bias) beside it has its very shape
these, and mean, var, running_mean, ..      its module is a normalization, and none of the others has another shape
scale, gamma, offset, beta                  it stacks vectors of layers: `read_leaves` says how that is seen
==========================================  =====================================================================

A module is a normalization if its name is ``..norm``, ``..normalization``, ``ln``, ``bn`` or ``gn``, with a number or a
place (``ln_f``, ``layernorm_before``) at most behind it, unless its class is known to be another layer. None of these
is one: a matrix ``biased_kernel`` or ``w_scale``, the ``kernel`` of ``norm_proj``, ``scale_net`` or ``layer_norm``.
"""

import re
from collections import defaultdict

from jaxscape.normalize._names import Leaf, describe
from jaxscape.types import Params

WEIGHTS = ("kernel", "w", "weight", "weights")
BIASES = ("bias", "biases", "bias_n", "bias_ih", "bias_hh")
SCALES = ("scale", "gamma", "weight")
OFFSETS = ("bias", "offset", "beta")
STATISTICS = ("mean", "var", "running_mean", "running_var", "moving_mean", "moving_variance")

PLACE = r"(_(f|pre|post|before|after|in|out|first|last|final))?"
NORMALIZATION = rf"(.*_)?([a-z]*norms?|[a-z]*normalization|lns?|bns?|gns?)(\dd)?{PLACE}"
OTHER_LAYER = r".*(linear|dense|conv|embed|attention|cell).*"


def read_leaves(params: Params) -> list[Leaf]:
    """Describe all leaves, and tell which ones are stacked layers.

    The vectors of a normalization have rank 1. Where they have rank 2 in some part of the tree, and all leaves of that
    part have first axes of one length, that axis indexes layers, stacked by a scan or a vmap. Each leaf goes by the
    smallest part around it that holds a normalization.

    >>> import jax.numpy as jnp
    >>> stack = {"mlp": {"wi": jnp.ones((3, 4, 8))}, "norm": {"scale": jnp.ones((3, 4))}}
    >>> [leaf.layers for leaf in read_leaves({"blocks": stack})]
    [1, 1]

    Args:
        params: Any pytree of arrays.

    Returns:
        One description for each leaf, in order, with ``layers`` filled in where it can be known.
    """
    leaves = describe(params)
    lengths: dict[tuple[str, ...], set[tuple[int, ...]]] = defaultdict(set)
    ranks: dict[tuple[str, ...], set[int]] = defaultdict(set)
    for leaf in leaves:
        for part in _parts_around(leaf):
            lengths[part].add(leaf.shape[:1])
            if leaf.name in (*SCALES, *OFFSETS) and _is_normalization(leaf) and leaf.shape[:1] != (1,):
                ranks[part].add(len(leaf.shape))

    def layers(leaf: Leaf) -> int | None:
        part = next((part for part in _parts_around(leaf) if ranks[part]), None)
        if part is None or ranks[part] == {1}:
            return None if part is None else 0
        return 1 if ranks[part] == {2} and len(lengths[part]) == 1 else None

    return [leaf._replace(layers=layers(leaf)) for leaf in leaves]


def _parts_around(leaf: Leaf) -> list[tuple[str, ...]]:
    """Paths of the parts of the tree that hold a leaf, the smallest one first."""
    return [leaf.path[:depth] for depth in reversed(range(len(leaf.path)))]


def reason_to_ignore(leaf: Leaf) -> str | None:
    """Why a leaf counts as a bias or a normalization parameter (the table above).

    Args:
        leaf: Its description.

    Returns:
        The reason, or None for a weight.
    """
    if len(leaf.shape) <= 1:
        return "rank <= 1"
    if leaf.name in BIASES or _is_short_bias(leaf):
        return "bias (by name)"
    if leaf.name in ("scale", "offset") and leaf.shape[0] == 1 and sum(n > 1 for n in leaf.shape) <= 1:
        return "normalization (by name and shape)"
    others = OFFSETS if leaf.name in SCALES else SCALES if leaf.name in OFFSETS else ()
    beside = [leaf.siblings[name] for name in others if name in leaf.siblings]
    if leaf.shape in beside:
        return "normalization (by name and shape)"
    if leaf.name in (*SCALES, *OFFSETS, *STATISTICS) and not beside and _is_normalization(leaf):
        return "normalization (by name)"
    if leaf.layers == 1 and len(leaf.shape) == 2 and leaf.name in ("scale", "gamma", "offset", "beta"):
        return "normalization (by name, in stacked layers)"
    return None


def is_named_like_ignored(leaf: Leaf) -> bool:
    """Whether a leaf has the name of a bias or a normalization parameter, whatever its module and shape.

    Args:
        leaf: Its description.

    Returns:
        True for names such as ``scale``, ``beta`` or ``position_bias``, and for a ``b`` beside a ``w``.
    """
    names = {"scale", "gamma", "offset", "beta"}
    is_short = leaf.name == "b" and any(name in leaf.siblings for name in WEIGHTS)
    return leaf.name in names or is_short or leaf.name.split("_")[-1] in ("bias", "biases")


def _is_short_bias(leaf: Leaf) -> bool:
    weights = [leaf.siblings[name] for name in WEIGHTS if name in leaf.siblings]
    return leaf.name == "b" and (leaf.module == "bias" or any(len(leaf.shape) < len(w) for w in weights))


def _is_normalization(leaf: Leaf) -> bool:
    if re.fullmatch(OTHER_LAYER, leaf.kind):
        return False
    return any(re.fullmatch(NORMALIZATION, word) for word in (leaf.kind, leaf.module))
