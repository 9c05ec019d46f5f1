"""What a user calls a loss: a function, or several, and what each gives for a batch."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxscape.arguments import blamed
from jaxscape.types import Data, LossFn, Params


def split_terms(loss_fn: Any, data: Any, name: str = "loss_fn") -> dict[str, tuple[Any, Any]]:
    """The functions and data of all terms, by their names.

    Args:
        loss_fn: A function, or a mapping of functions.
        data: What goes with it.
        name: What the caller's argument is called, for the message.

    Returns:
        ``{"": (loss_fn, data)}`` where there is one term without a name.

    Raises:
        ValueError: Both are mappings, with other names.
        TypeError: A function is none, or the data of several terms are no mapping.
    """
    if not isinstance(loss_fn, Mapping):
        _check_callable(loss_fn, name)
        return {"": (loss_fn, data)}
    if not loss_fn:
        raise ValueError(f"{name} is an empty dict, expected a function, or one for each term.")
    if not isinstance(data, Mapping):
        raise TypeError(
            f"data is {type(data).__name__}, but {name} has the terms {', '.join(map(repr, loss_fn))}; expected a dict "
            "with the data of each term."
        )
    if set(loss_fn) != set(data):
        raise ValueError(
            f"{name} has the terms {sorted(map(str, loss_fn))}, data has {sorted(map(str, data))}; expected the same."
        )
    for term, function in loss_fn.items():
        if not isinstance(term, str) or not term:
            raise TypeError(f"{name} has a term named {term!r}, expected a string that is not empty.")
        _check_callable(function, f"{name}[{term!r}]")
    return {term: (function, data[term]) for term, function in loss_fn.items()}


def _check_callable(function: Any, name: str) -> None:
    if not callable(function):
        raise TypeError(
            f"{name} is {type(function).__name__}, expected a function of (params, batch), or a dict of such functions."
        )


def metrics_of(loss_fn: LossFn, name: str, no_data: bool, params: Params, batch: Data) -> dict[str, Array]:
    """The metrics that a loss gives for a batch.

    Args:
        loss_fn: The loss.
        name: What the caller's argument is called, for the message.
        no_data: Whether the loss is called with None in place of the batch.
        params: A pytree of floating arrays.
        batch: Examples.

    Returns:
        A dict of arrays with the key ``"loss"``.

    Raises:
        ValueError: There is no loss in it.
        TypeError: Something in it is no real number, or has no name.
    """
    shapes = None if no_data else jax.tree.map(lambda x: f"{x.dtype}{list(x.shape)}", batch)
    with blamed(name, f"with params and a batch of data, {shapes}{_hint(batch)}"):
        value = loss_fn(params, None if no_data else batch)
    if not isinstance(value, Mapping):
        value = {"loss": value}
    for key, metric in value.items():
        if not isinstance(key, str):
            raise TypeError(f"{name} returned a dict with the key {key!r}; expected names, which are strings.")
        if not hasattr(metric, "dtype") and not isinstance(metric, bool | int | float):
            raise TypeError(f"{name} returned {type(metric).__name__} for {key!r}; expected an array of real numbers.")
    if "loss" not in value:
        raise ValueError(f"{name} returned a dict with the keys {sorted(value)}; expected one named 'loss'.")
    return {key: jnp.asarray(metric) for key, metric in value.items()}


def _hint(batch: Data) -> str:
    """What a batch looks like that was made of a list of batches."""
    forms = [str(jax.tree.map(lambda x: x.shape[1:], part)) for part in batch] if isinstance(batch, list) else []
    if len(forms) < 2 or len(set(forms)) > 1 or not isinstance(batch[0], list | tuple | dict):
        return ""
    return ". Where data is a list of batches, pass js.Stream(data)"
