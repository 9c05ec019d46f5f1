"""The specification of the networks of train.py, which are known by the shapes of their leaves."""

import functools
import importlib
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxscape import trees
from jaxscape.alignment._spec import Spec, derived
from jaxscape.runs import BUILDER
from jaxscape.types import Params

_SIDES = (32, 28, 16, 8, 64)  # of images: the leaves of VGG-9 depend on them


def spec_of_network(params: Params) -> Spec | None:
    """The specification of a network of train.py.

    Args:
        params: Its weights, with or without running statistics.

    Returns:
        As `permutation_spec` gives it; None if it is none of these networks.
    """
    shapes = trees.named_shapes(params)
    key = tuple(sorted(shapes.items()))
    if key not in _found:
        _found[key] = _search(shapes)
    spec = _found[key]
    return spec and Spec({path: spec.axes[path] for path in shapes}, spec.sizes)


_found: dict[Any, Spec | None] = {}


def _search(shapes: Mapping[str, tuple[int, ...]]) -> Spec | None:
    head = shapes.get("['head']['kernel']", ())
    stem = next((shapes[name] for name in ("['conv']['kernel']", "['conv1']['kernel']") if name in shapes), ())
    if len(stem) != 4 or len(head) != 2:
        return None
    # The first number in a name counts the layers: all kernels but those of shortcuts.
    depth = str(sum(name.endswith("['kernel']") and "['shortcut']" not in name for name in shapes))
    module, _, function = BUILDER.partition(":")
    try:
        from flax import nnx

        models = importlib.import_module(module)
    except ImportError:
        return None
    for name in (name for name in models.names() if re.findall(r"\d+", name)[0] == depth):
        for options in _options(name, stem[3]):
            side = options.pop("side", 8)
            image = (side, side, stem[2])
            build = functools.partial(
                getattr(models, function), name, num_classes=head[1], image_shape=image, **options
            )
            graphdef, *states = nnx.split(nnx.eval_shape(build), nnx.Param, nnx.BatchStat)
            weights, statistics = map(nnx.to_pure_dict, states)
            variables = trees.overlay(weights, statistics)
            needed, known = map(trees.named_shapes, (weights, variables))  # statistics may be missing
            if needed.items() <= shapes.items() <= known.items():

                def network(variables: Params, images: Any, graphdef: Any = graphdef) -> Any:
                    return nnx.merge(graphdef, variables)(images)

                return derived(network, variables, jax.ShapeDtypeStruct((2, *image), jnp.float32))
    return None


def _options(name: str, stem: int) -> list[dict[str, Any]]:
    """The options of a network that its leaves depend on, for a stem of this width."""
    if name == "vgg9":
        return [{"side": side} for side in _SIDES]
    if not name.startswith("resnet"):  # wide ones are found as those that are widened
        return [{}] if name == "densenet121" else []
    widths = sorted({max(stem // base, 1) for base in (16, 64)})
    return [{"shortcuts": shortcuts, "width": width} for width in widths for shortcuts in (True, False)]
