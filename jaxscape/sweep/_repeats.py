"""The same sweep with several seeds: one result with a dimension of seeds, and how far the repeats are apart."""

from collections.abc import Sequence

import numpy as np
import xarray as xr

_OF_ONE_SEED = ("seed", "direction_key", "seconds", "nonfinite_points")


def repeats(results: Sequence[xr.Dataset], seeds: Sequence[int]) -> xr.Dataset:
    """Join results that differ by their seeds.

    Args:
        results: One for each seed, over the same grid.
        seeds: The seeds.

    Returns:
        All variables with a leading dimension ``seed``; ``spread`` over the grid, the standard deviation of the loss
        over the seeds (denominator n - 1; NaN for one seed, and where a loss is not finite); the attributes that are
        common, and ``mean_spread``, the mean of ``spread`` over the grid relative to that of the mean loss, over the
        points where both are finite.
    """
    joined = xr.concat(results, dim=xr.Variable("seed", np.asarray(seeds)), combine_attrs="drop")
    spread = joined.loss.std("seed", ddof=1, skipna=False) if len(seeds) > 1 else joined.loss.mean("seed") * np.nan
    mean = joined.loss.mean("seed", skipna=False)
    finite = np.isfinite(spread.values) & np.isfinite(mean.values)
    total = float(mean.values[finite].sum())
    share = float(spread.values[finite].sum()) / total if total > 0 else np.nan
    joined["spread"] = spread.assign_attrs(long_name="standard deviation of the loss over the seeds")
    common = {name: value for name, value in results[0].attrs.items() if name not in _OF_ONE_SEED}
    sums = {name: sum(result.attrs[name] for result in results) for name in ("seconds", "nonfinite_points")}
    return joined.assign_attrs({**common, **sums, "mean_spread": share})
