"""What a caller names, as contents of a page: folders of runs, runs in memory, and results in memory."""

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import xarray as xr

from jaxscape.report_page._content import Content, Problem, by_seed, kind_of
from jaxscape.runs import METRICS, read_table
from jaxscape.sweep import load

_PROBLEM = ("params", "loss_fn", "data")
_TABLE = "sharpness.csv"
_KNOWN = "a surface, a line, a trajectory, an eigenvalue map or a spectral density"


def contents(runs: Any, *, gradient: bool) -> list[Content]:
    """Read what a page shows.

    Args:
        runs: As in `jaxscape.report`.
        gradient: Whether runs in memory keep what their gradient is measured of.

    Returns:
        The content of each run, in the order of the argument, with distinct titles.

    Raises:
        ValueError: There is no run, a title repeats, a folder has nothing to show, or a result is of no kind.
        TypeError: A run is of another type.
    """
    found = [_content(title, run, gradient) for title, run in _titled(runs).items()]
    if not found:
        raise ValueError("runs is empty, expected at least one run.")
    return found


def _titled(runs: Any) -> dict[str, Any]:
    """Runs by their titles: those of a mapping; else the names of the folders, or the folders if names repeat."""
    if isinstance(runs, Mapping) and not isinstance(runs, xr.Dataset):
        return {str(title): run for title, run in runs.items()}
    entries = list(runs) if isinstance(runs, list | tuple) else [runs]
    places = []
    for i, run in enumerate(entries):
        name = f"runs[{i}]" if isinstance(runs, list | tuple) else "runs"
        if isinstance(run, Mapping | xr.Dataset):
            raise TypeError(
                f"{name} is {type(run).__name__}, which has no title; expected {{title: {{name: result}}}}."
            )
        places.append(_place(run, name))
    names = [place.resolve().name for place in places]
    titles = names if len(set(names)) == len(names) else list(map(str, places))
    if len(set(titles)) < len(titles):
        raise ValueError(f"runs has {titles}, expected each run once.")
    return dict(zip(titles, entries, strict=True))


def _place(run: Any, name: str) -> Path:
    if not isinstance(run, str | os.PathLike) and not all(hasattr(run, part) for part in ("path", *_PROBLEM)):
        raise TypeError(
            f"{name} is {type(run).__name__}, expected the folder of a run, a run of js.load_run, or, in "
            "{title: results}, a mapping of names to results."
        )
    return Path(getattr(run, "path", run))


def _content(title: str, run: Any, gradient: bool) -> Content:
    name = f"runs[{title!r}]"
    if isinstance(run, xr.Dataset):
        raise TypeError(f"{name} is Dataset, expected a mapping of names to results: {{title: {{name: result}}}}.")
    if isinstance(run, Mapping):
        return _in_memory(title, run, name, gradient)
    place = _place(run, name)
    content = _in_folder(title, place)
    if isinstance(run, str | os.PathLike):
        if not place.is_dir():
            raise ValueError(f"{name} is {place}, which is no folder; expected the folder of a run, with its results.")
        if not (content.results or content.metrics or content.left_out or content.sharpness is not None):
            raise ValueError(f"{name} is {place}, which has neither results (*.zarr) nor {METRICS}; name another.")
        return content
    problem = Problem(run.params, run.loss_fn, run.data) if gradient else None
    metrics = getattr(run, "metrics", content.metrics)
    return Content(title, content.results, metrics, content.sharpness, problem, content.place, content.left_out)


def _in_folder(title: str, place: Path) -> Content:
    """All results in the folder of a run; a file that cannot be read or shown is named."""
    results: dict[str, xr.Dataset] = {}
    left_out = []
    for path in sorted(place.glob("*.zarr")):
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", UserWarning)
                result = load(path)
        except (ValueError, OSError) as error:
            left_out.append(f"{path.name} cannot be read: {error}")
            continue
        left_out += [str(warning.message) for warning in caught]
        shown = by_seed(path.stem, result)
        if any(kind_of(each) is None for each in shown.values()):
            left_out.append(f"{path.name} is not shown: it is not {_KNOWN}.")
        else:
            results |= shown
    sharpness = _table(place / _TABLE) if (place / _TABLE).is_file() else None
    if sharpness is None and (place / _TABLE).is_file():
        left_out.append(f"{_TABLE} is not shown: it is no table of measures with their values.")
    metrics = read_table(place / METRICS)
    return Content(title, results, metrics, sharpness, place=str(place), left_out=tuple(left_out))


def _table(path: Path) -> pd.DataFrame | None:
    """The table of `jaxscape.sharpness` in a file; None: it is another."""
    try:
        table = pd.read_csv(path, index_col="measure")
        return table.astype({"value": float})
    except (ValueError, KeyError):
        return None


def _in_memory(title: str, parts: Mapping[Any, Any], name: str, gradient: bool) -> Content:
    """The results that a caller passed, each checked."""
    results: dict[str, xr.Dataset] = {}
    for key, value in parts.items():
        if isinstance(value, xr.Dataset):
            shown = by_seed(str(key), value)
            if any(kind_of(each) is None for each in shown.values()):
                raise ValueError(
                    f"{name}[{key!r}] has the variables {sorted(map(str, value.data_vars))}, expected {_KNOWN}."
                )
            results |= shown
        elif key not in ("metrics", "sharpness", *_PROBLEM):
            raise TypeError(
                f"{name}[{key!r}] is {type(value).__name__}, expected a Dataset; other keys are 'metrics', "
                "'sharpness', 'params', 'loss_fn' and 'data'."
            )
    sharpness = parts.get("sharpness")
    if not isinstance(sharpness, pd.DataFrame | None):
        raise TypeError(f"{name}['sharpness'] is {type(sharpness).__name__}, expected the table of js.sharpness.")
    if sharpness is not None and "value" not in sharpness:
        columns = sorted(map(str, sharpness.columns))
        raise ValueError(f"{name}['sharpness'] has the columns {columns}, expected 'value' among them.")
    there = [part for part in _PROBLEM if part in parts]
    if there and len(there) < len(_PROBLEM):
        raise ValueError(f"{name} has {' and '.join(there)} alone, expected 'params', 'loss_fn' and 'data' together.")
    problem = Problem(*(parts[part] for part in _PROBLEM)) if there and gradient else None
    return Content(title, results, _metrics(parts.get("metrics", []), name), sharpness, problem)


def _metrics(metrics: Any, name: str) -> list[dict[str, float]]:
    records = metrics if isinstance(metrics, list | tuple) else None
    if records is None or not all(isinstance(record, Mapping) and "epoch" in record for record in records):
        raise TypeError(f"{name}['metrics'] is no list of records with the key 'epoch', as run.metrics has them.")
    return [dict(record) for record in records]
