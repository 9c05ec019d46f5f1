"""What a page shows of a run: its results by their kinds."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pandas as pd
import xarray as xr


class Problem(NamedTuple):
    """Where the gradient is measured.

    Attributes:
        params: The center of the results.
        loss_fn: As in `jaxscape.surface`.
        data: As in `jaxscape.surface`.
    """

    params: Any
    loss_fn: Any
    data: Any


@dataclass(frozen=True)
class Content:
    """The results of a run.

    Attributes:
        title: What the page calls it.
        results: Datasets by their names, e.g. ``"surface"``; each is of a kind of `kind_of`.
        metrics: A record for each epoch.
        sharpness: The table of `jaxscape.sharpness`; None: there is none.
        problem: What the gradient is measured of; None: it is not.
        place: The folder, as a command names it; empty: the results are in memory.
        left_out: Why a file is not shown, a line for each.
    """

    title: str
    results: Mapping[str, xr.Dataset]
    metrics: list[dict[str, float]] = field(default_factory=list)
    sharpness: pd.DataFrame | None = None
    problem: Problem | None = None
    place: str = ""
    left_out: tuple[str, ...] = ()

    def of(self, *kinds: str) -> dict[str, xr.Dataset]:
        """The results of some kinds, by their names; the one that has the name of its kind comes first."""
        found = {name: result for name, result in self.results.items() if kind_of(result) in kinds}
        return dict(sorted(found.items(), key=lambda item: item[0] not in kinds))


def kind_of(result: xr.Dataset) -> str | None:
    """What a result is, by its variables.

    Args:
        result: Any Dataset.

    Returns:
        ``"trajectory"``, ``"spectrum"``, ``"hessian"`` (a map of eigenvalues over a plane), ``"line"`` or
        ``"surface"``; None: nothing that a page can show.
    """
    if {"coordinates", "in_plane_loss", "loss"} <= set(result.data_vars):
        return "trajectory"
    if {"density", "eigenvalue"} <= set(result.variables):
        return "spectrum"
    if {"min_eigenvalue", "max_eigenvalue", "ratio"} <= set(result.data_vars):
        return "hessian" if result.ratio.ndim == 2 else None
    if "loss" in result.data_vars:
        return {1: "line", 2: "surface"}.get(result.loss.ndim)
    return None


def by_seed(name: str, result: xr.Dataset) -> dict[str, xr.Dataset]:
    """A result by its name; the repeats of ``surface(..., num_seeds=...)`` are as many results."""
    if "seed" not in result.dims:
        return {name: result}
    single = result.drop_vars("spread", errors="ignore")
    repeats = {int(seed): single.sel(seed=seed).drop_vars("seed") for seed in result.seed.values}
    return {f"{name}, seed {seed}": repeat.assign_attrs(seed=seed) for seed, repeat in repeats.items()}
