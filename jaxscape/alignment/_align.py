"""The call of the user: one network, another one, and which axes can be permuted."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxscape import checks, trees
from jaxscape.alignment._match import indices, match, pieces_of, sizes_of
from jaxscape.alignment._networks import spec_of_network
from jaxscape.alignment._spec import Spec
from jaxscape.arguments import checked
from jaxscape.normalize import running_statistics
from jaxscape.objective import refuse_inside_transform
from jaxscape.types import Params


@checked
def align(a: Params, b: Params, spec: Spec | Mapping[str, Any] | None = None, *, seed: int = 0) -> Params:
    """Permute the hidden units of a network so that it is near to another one (Ainsworth et al. 2023, weight matching).

    Networks that differ by the order of their hidden units compute the same, but the loss on the line between them is
    high. The permutations maximize the inner product of all weights, ``sum_l <a_l, P b_l>``, one after another: each is
    a linear assignment, solved by SciPy, and they are repeated until none changes. This is a local maximum, the better
    one of two: from the order of b, and from a first match by each unit's sorted weights, which recovers a permuted
    copy of a. Another ``seed`` may give another maximum. Running statistics are permuted too, and have no say.

    >>> import jax.numpy as jnp
    >>> a = {"w1": jnp.array([[1.0, 2.0, 3.0]]), "w2": jnp.array([[1.0], [5.0], [7.0]])}
    >>> b = {"w1": jnp.array([[3.0, 1.0, 2.0]]), "w2": jnp.array([[7.0], [1.0], [5.0]])}
    >>> spec = {"['w1']": (None, "hidden"), "['w2']": ("hidden", None)}
    >>> align(a, b, spec)["w1"].tolist()
    [[1.0, 2.0, 3.0]]

    Args:
        a: The params that stay as they are.
        b: The params to permute, with the same leaves. Batch norm's running statistics belong to them, as in
            ``run.variables``; otherwise the statistics no longer fit.
        spec: Which axes have the same units. None: for the networks of ``models``, it is derived from their leaves. For
            any other network `permutation_spec` derives it from the computation; or it is a mapping from the path of
            each leaf, as ``jax.tree_util.keystr`` gives it, to a name or None for each axis, or what else `Spec` knows.
        seed: Of the order in which the permutations are improved.

    Returns:
        b with its units permuted: the same function, if the specification is right. `loss_barrier` of `interpolate`
        says what it brought.

    Raises:
        ValueError: The leaves of a and b differ; ``spec`` is None and the network is none of ``models``, or ``spec``
            does not fit the leaves or permutes nothing; a leaf is not finite.
        TypeError: A leaf is no floating array, or ``spec`` is no mapping.
    """
    refuse_inside_transform("js.align")
    a = checks.as_params(a, "a")
    b = checks.like(a, b, "b")
    checks.check_count(seed, "seed", 0)
    spec = _checked(spec, a)
    matched = []
    kinds = running_statistics(a)
    leaves = list(zip(trees.leaf_names(a), jax.tree.leaves(a), jax.tree.leaves(b), kinds, strict=True))
    for path, *pair, kind in leaves:
        x, y = (np.asarray(leaf, np.float64) for leaf in pair)
        for name, value in (("a", x), ("b", y)):
            if not np.isfinite(value).all():
                raise ValueError(f"{name}{path} has NaN or infinite entries, expected finite ones.")
        if kind is None:
            matched += pieces_of(x, y, spec.axes[path], spec.sizes)
    permutations = match(matched, spec.sizes, np.random.default_rng(seed))
    permuted = []
    for path, _, leaf, _ in leaves:
        weights = np.asarray(leaf)
        for place, (axis, size) in enumerate(zip(spec.axes[path], leaf.shape, strict=True)):
            if axis is not None:
                weights = weights.take(indices(axis, size, permutations, spec.sizes), place)
        permuted.append(jax.device_put(weights, leaf.sharding))
    return jax.tree.unflatten(jax.tree.structure(b), permuted)


def _checked(spec: Any, params: Params) -> Spec:
    """The specification of the caller, or that of the network."""
    if spec is None:
        spec = spec_of_network(params)
        if spec is None:
            raise ValueError(
                "spec is None, but params are those of no network of `models`; pass "
                "js.permutation_spec(function, params, inputs), or names for the axes of each leaf."
            )
    axes = spec.axes if isinstance(spec, Spec) else spec
    if not isinstance(axes, Mapping):
        raise TypeError(f"spec is {type(spec).__name__}, expected a mapping from the path of each leaf to its axes.")
    shapes = trees.named_shapes(params)
    missing, extra = (sorted(x) for x in (set(shapes) - set(axes), set(axes) - set(shapes)))
    if missing or extra:
        what = f"lacks {missing[0]}" if missing else f"has {extra[0]}, which params lack"
        raise ValueError(f"spec {what}; expected the leaves {', '.join(shapes)}.")
    for path, shape in shapes.items():
        own = axes[path]
        if not isinstance(own, tuple | list) or len(own) != len(shape) or not all(map(_is_axis, own)):
            raise ValueError(
                f"spec[{path!r}] is {own!r}, expected a name or None for each of {len(shape)} axes, or "
                "('product', ...) or ('sum', ...) of names and numbers."
            )
    known = spec.sizes if isinstance(spec, Spec) else {}
    for name, size in known.items():
        if not isinstance(size, int) or size < 1:
            raise ValueError(f"spec.sizes[{name!r}] is {size!r}, expected a positive integer.")
    sizes = sizes_of(axes, shapes, known)
    if not sizes:
        raise ValueError(
            "spec permutes no axis, so nothing can be aligned. Where it is derived from a loss that holds arrays of "
            "the network, such as running statistics, pass these in params: run.variables."
        )
    return Spec({path: tuple(own) for path, own in axes.items()}, dict(sizes))


def _is_axis(axis: Any, inside: bool = False) -> bool:
    """Whether something describes an axis; inside of a product or a sum a number does, and None does not."""
    if isinstance(axis, str):
        return bool(axis)
    if isinstance(axis, tuple):
        return len(axis) > 1 and axis[0] in ("product", "sum") and all(_is_axis(part, inside=True) for part in axis[1:])
    if inside:
        return isinstance(axis, int) and not isinstance(axis, bool) and axis > 0
    return axis is None
