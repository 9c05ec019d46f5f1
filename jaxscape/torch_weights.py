"""Weights trained with PyTorch, converted for the networks of `models`, to plot published minimizers of the paper."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxscape.types import Params

# Patterns for the names of modules in the paper's PyTorch code, and the names in `models`, tried in this order.
_MODULES = (
    (r"^layer(\d+)\.(\d+)\b", lambda m: f"stage{m[1]}_block{int(m[2]) + 1}"),
    (r"^dense(\d+)\.(\d+)\b", lambda m: f"block{m[1]}_layer{int(m[2]) + 1}"),
    (r"^trans(\d+)\b", lambda m: f"transition{m[1]}"),
    (r"^(conv|bn)1$", lambda m: m[1]),  # the stem, which has only one of each
    (r"\bshortcut\.0$", lambda m: "shortcut.conv"),
    (r"\bshortcut\.1$", lambda m: "shortcut.norm"),
    (r"\bbn(\d*)$", lambda m: f"norm{m[1]}"),
    (r"^fc\.0$", lambda m: "hidden"),
    (r"^fc\.1$", lambda m: "hidden_norm"),
    (r"^(linear|classifier)$", lambda m: "head"),
)
_STATISTICS = {"running_mean": "mean", "running_var": "var"}


def import_torch_state_dict(path: str | Path) -> dict[str, Params]:
    """Read a state dict of one of the paper's PyTorch networks as params of the network of the same name in `models`.

    The file has the names and layouts of tomgoldstein/loss-landscape. A dict with the key ``"state_dict"``, and names
    that start with ``"module."``, are accepted too. No code in the file is run: PyTorch reads it with
    ``weights_only``.

    >>> variables = import_torch_state_dict("model_300.t7")  # doctest: +SKIP
    >>> model = models.create("resnet56")  # doctest: +SKIP
    >>> nnx.update(model, variables["params"], variables["batch_stats"])  # doctest: +SKIP

    Args:
        path: A file written by ``torch.save``; or by safetensors, if its suffix is ``.safetensors``.

    Returns:
        ``{"params": ..., "batch_stats": ...}``, dicts of dicts of arrays.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file holds no state dict, or a state dict of another network; the message names the tensor.
        ImportError: PyTorch or safetensors is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"weights {path} not found; expected a file of torch.save or safetensors.")
    state = _read(path)
    state = state.get("state_dict", state)
    tensors = {name.removeprefix("module."): np.asarray(value) for name, value in state.items()}
    tensors = {name: x for name, x in tensors.items() if not name.endswith("num_batches_tracked")}
    layers = _vgg_layers(tensors)
    variables: dict[str, Any] = {"params": {}, "batch_stats": {}}
    for name, x in tensors.items():
        module, _, kind = name.rpartition(".")
        target = variables["batch_stats" if kind in _STATISTICS else "params"]
        for part in (layers.get(module) or _module(module, name)).split("."):
            target = target.setdefault(part, {})
        target.update([_leaf(kind, x, name)])
    if "hidden" in variables["params"]:
        _reorder_hidden(variables["params"])
    return variables


def _read(path: Path) -> Mapping[str, Any]:
    """Read a file of tensors by its suffix."""
    if path.suffix == ".safetensors":
        from safetensors.numpy import load_file

        return load_file(path)
    try:
        import torch
    except ImportError as error:
        raise ImportError(f"reading {path} needs PyTorch: `pip install torch`, or save it as .safetensors.") from error
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # many types: a broken archive, or an archive that holds more than tensors
        raise ValueError(f"{path} is no file of weights that can be read safely: {error}") from error
    if not isinstance(state, Mapping):
        raise ValueError(f"{path} holds {type(state).__name__}, expected a state dict.")
    return state


def _module(module: str, name: str) -> str:
    """The name in `models` of a module of the paper's code."""
    if module.startswith("features."):
        raise ValueError(f"{name!r} is no layer of vgg9; expected convolutions and batch norms in turn.")
    known = False
    for pattern, replacement in _MODULES:
        module, count = re.subn(pattern, replacement, module)
        known = known or bool(count)
    if not known:
        raise ValueError(f"{name!r} is in none of the paper's networks; expected names like 'layer1.0.conv1.weight'.")
    return module


def _vgg_layers(tensors: Mapping[str, np.ndarray]) -> dict[str, str]:
    """The names of VGG's layers ``features.N``: in their order conv1, norm1, conv2, norm2, ..."""
    weights = [
        (int(name.split(".")[1]), x.ndim) for name, x in tensors.items() if re.match(r"features\.\d+\.weight", name)
    ]
    names: dict[str, str] = {}
    layer = 0
    for index, rank in sorted(weights):
        layer += rank == 4
        names[f"features.{index}"] = f"{'conv' if rank == 4 else 'norm'}{layer}"
    return names


def _leaf(kind: str, x: np.ndarray, name: str) -> tuple[str, Any]:
    """The flax name of a tensor, and the tensor in flax's layout: HWIO for convolutions, (in, out) for matrices."""
    if kind in _STATISTICS:
        return _STATISTICS[kind], jnp.asarray(x)
    if kind == "bias":
        return "bias", jnp.asarray(x)
    if kind != "weight" or x.ndim not in (1, 2, 4):
        raise ValueError(f"{name!r} of shape {x.shape} is neither a weight nor a statistic of the paper's networks.")
    order = {1: (0,), 2: (1, 0), 4: (2, 3, 1, 0)}[x.ndim]
    return ("scale" if x.ndim == 1 else "kernel"), jnp.asarray(x.transpose(order))


def _reorder_hidden(params: Params) -> None:
    """Reorder the inputs of VGG's hidden layer: channels are first in PyTorch and last in `models`."""
    kernel = params["hidden"]["kernel"]
    channels = max((name for name in params if re.fullmatch(r"conv\d+", name)), key=lambda name: int(name[4:]))
    width = params[channels]["kernel"].shape[-1]
    params["hidden"]["kernel"] = (
        kernel.reshape(width, -1, kernel.shape[-1]).transpose(1, 0, 2).reshape(-1, kernel.shape[-1])
    )
