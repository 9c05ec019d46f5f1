"""The results for one picture: a mapping, a list, or a single result."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

Results = xr.Dataset | Mapping[str, xr.Dataset] | Sequence[xr.Dataset]


def named(results: Any, name: str = "results") -> dict[str, xr.Dataset]:
    """A dict from label to result, in the order of the argument.

    A single result has the label ``""``; one with a dimension ``seed`` is as many results. The labels of a list are
    ``attrs["title"]`` of its results, if all have a title and no two titles are equal; otherwise the labels are the
    indices, from ``"0"`` on.

    Args:
        results: The value that the caller passed.
        name: The name of the caller's argument, for the messages.

    Returns:
        A new dict.

    Raises:
        ValueError: There is no result.
        TypeError: ``results`` is not a result, a mapping or a list of results; the message names the wrong entry.
    """
    if isinstance(results, xr.Dataset) and "seed" in results.dims:
        return {f"seed {seed}": results.sel(seed=seed).drop_vars("seed") for seed in results.seed.values}
    if isinstance(results, xr.Dataset):
        return {"": results}
    if isinstance(results, Mapping):
        labelled = {str(label): result for label, result in results.items()}
    elif isinstance(results, Iterable) and not isinstance(results, str | bytes | xr.DataArray | np.ndarray):
        entries = list(results)
        titles = [str(getattr(result, "attrs", {}).get("title", "")) for result in entries]
        distinct = all(titles) and len(set(titles)) == len(titles)
        labels = titles if distinct else [str(i) for i in range(len(entries))]
        labelled = dict(zip(labels, entries, strict=True))
    else:
        raise TypeError(
            f"{name} is {type(results).__name__}, expected a Dataset, a list of them, or a mapping of labels to them."
        )
    if not labelled:
        raise ValueError(f"{name} is empty; expected at least one result.")
    for label, result in labelled.items():
        if not isinstance(result, xr.Dataset):
            raise TypeError(f"{name}[{label!r}] is {type(result).__name__}, expected a Dataset.")
    return labelled
