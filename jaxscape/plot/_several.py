"""Several results for one picture: a mapping, a list, or one alone."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import xarray as xr

Results = xr.Dataset | Mapping[str, xr.Dataset] | Sequence[xr.Dataset]


def named(results: Any, name: str = "results") -> dict[str, xr.Dataset]:
    """Label -> result, in the order given.

    A single result has the label ``""``. Those of a list are labelled by their ``attrs["title"]``, if all have one and
    no two are the same, and else by their places in the list, from ``"0"`` on.

    Args:
        results: What the caller passed.
        name: What the caller's argument is called, for the messages.

    Returns:
        A new dict.

    Raises:
        ValueError: There is no result.
        TypeError: This is no result, mapping or list of results; the message says which entry is none.
    """
    if isinstance(results, xr.Dataset):
        return {"": results}
    if isinstance(results, Mapping):
        labelled = {str(label): result for label, result in results.items()}
    elif isinstance(results, Iterable) and not isinstance(results, str | xr.DataArray):
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
