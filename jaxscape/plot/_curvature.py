"""Curvature: the smallest and the largest eigenvalue of the Hessian over a plane, and the density of eigenvalues."""

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxscape.arguments import checked
from jaxscape.plot._field import SIGNED, field
from jaxscape.plot._several import Results, named
from jaxscape.plot._style import add_note, new_axes, number, style
from jaxscape.plot._surfaces import compare, heatmap

_DECADES = 6  # decades of the density that are shown below its peak; smaller values are rounding of the quadrature
_NAMED = 6  # outliers that have a label


@checked
def eigenvalue_map(
    result: Results,
    ax: Axes | None = None,
    *,
    signed: bool = False,
    ratio_max: float | None = None,
) -> Axes | Figure:
    """The convexity of the loss over a plane (paper figure 7): the ratio ``abs(min / max)`` of the eigenvalues.

    A ratio near 0 means that negative curvatures are small compared with the positive ones. A dot marks a point whose
    eigenvalues did not converge.

    Args:
        result: The result of `jaxscape.eigenvalue_map`; or several results, drawn side by side on one scale: a
            mapping from title to result, or a list. The titles of a list are ``attrs["title"]`` of its results, or
            their indices if these titles are missing or repeat.
        ax: The axes for a single result; None: a new figure.
        signed: Whether to draw ``min / max`` with its sign: blue where it is negative (the Hessian is indefinite), red
            where it is positive.
        ratio_max: The largest ratio that the colours show; larger ratios are counted. None: the colours span all
            ratios.

    Returns:
        The axes; for several results, the figure.

    Raises:
        ValueError: The result is not a map of eigenvalues over a plane, ``ratio_max`` is not positive, or ``ax`` is
            given for several results.
        TypeError: ``result`` is not a result, a mapping or a list of results.
    """
    several, maps = not isinstance(result, xr.Dataset), named(result, "result")
    if several and ax is not None:
        raise ValueError("ax is given for several maps; draw one at a time into axes.")
    if ratio_max is not None and not ratio_max > 0:
        raise ValueError(f"ratio_max is {ratio_max}, expected a positive number.")
    for dataset in maps.values():
        if "min_eigenvalue" not in dataset or "max_eigenvalue" not in dataset:
            raise ValueError(
                f"result has the variables {sorted(map(str, dataset.data_vars))}, expected those of js.eigenvalue_map."
            )
    metric = SIGNED if signed else "ratio"
    if signed:
        maps = {
            t: dataset.assign({SIGNED: dataset.min_eigenvalue / dataset.max_eigenvalue}) for t, dataset in maps.items()
        }
    values = np.concatenate([field(dataset, metric).z.ravel() for dataset in maps.values()])
    levels = _levels(values, signed, ratio_max)
    if several:
        return compare(maps, "heatmap", metric=metric, levels=levels, log=False)
    return heatmap(maps[""], ax, metric=metric, levels=levels, log=False)


def _levels(values: np.ndarray, signed: bool, top: float | None) -> np.ndarray:
    """Round levels from 0 to the largest value; if signed, from minus to plus the largest absolute value."""
    finite = np.abs(values[np.isfinite(values)])
    end = top or (float(finite.max()) if finite.size and finite.max() > 0 else 1.0)
    if not top:
        unit = 10.0 ** np.floor(np.log10(end))
        end = next(m for m in (1, 2, 5, 10) if end <= m * unit * (1 + 1e-12)) * unit
    return np.linspace(-end if signed else 0.0, end, 11)


@checked
def spectrum(result: xr.Dataset, ax: Axes | None = None, *, outliers: int = 3) -> Axes:
    """The density of the Hessian's eigenvalues on a logarithmic scale, with a band of two standard errors.

    Ticks under the curve are the Ritz values of all probes; a tick is longer if its Ritz value has more weight. The
    outliers are labelled with their values. Outliers are the largest Ritz value, the smallest one if it is negative,
    and those next to them that are separated by more than three widths of the density's Gaussians.

    Args:
        result: The result of `jaxscape.spectral_density`.
        ax: The axes to draw into; None: a new figure.
        outliers: The largest number of outliers that are labelled at each end.

    Returns:
        The axes.

    Raises:
        ValueError: The result is not a spectral density, or ``outliers`` is negative.
        TypeError: The result is no Dataset.
    """
    if not isinstance(result, xr.Dataset):
        raise TypeError(f"result is {type(result).__name__}, expected the Dataset of js.spectral_density.")
    if "density" not in result or "ritz_value" not in result:
        raise ValueError(
            f"result has the variables {sorted(map(str, result.data_vars))}, expected those of js.spectral_density."
        )
    if outliers < 0:
        raise ValueError(f"outliers is {outliers}, expected at least 0.")
    eigenvalues, density, error = (result[name].values for name in ("eigenvalue", "density", "density_stderr"))
    nodes, weights = result.ritz_value.values.ravel(), result.ritz_weight.values.ravel()
    with style():
        ax = new_axes() if ax is None else ax
        ax.set(xlabel=r"eigenvalue $\lambda$", ylabel="density", yscale="log", title=str(result.attrs.get("title", "")))
        if not np.isfinite(density).any() or not density.max() > 0:
            add_note(ax, "the density is not finite")
            return ax
        top = float(np.nanmax(density))
        floor = 10.0 ** np.floor(
            np.log10(max(top * 10.0**-_DECADES, 0.1 / (result.attrs["num_params"] * np.ptp(eigenvalues))))
        )
        shown = np.maximum(density, floor)
        ax.plot(eigenvalues, shown, color="tab:blue", lw=1.2)
        ax.fill_between(
            eigenvalues,
            np.maximum(density - 2 * error, floor),
            np.maximum(density + 2 * error, floor),
            color="tab:blue",
            alpha=0.2,
            lw=0,
        )
        room = 0.04 * np.ptp(eigenvalues)  # space for the labels at both ends
        ax.set(xlim=(eigenvalues[0] - room, eigenvalues[-1] + room), ylim=(floor, 10 * top))
        lengths = 0.01 + 0.05 * np.clip(1 + np.log10(np.maximum(weights, 1e-12)) / 6, 0, 1)
        ax.vlines(nodes, 0, lengths, color="0.35", lw=0.5, transform=ax.get_xaxis_transform())
        outlier_values = _outliers(nodes, weights, float(result.attrs["sigma"]), outliers)
        for value in outlier_values:
            height = float(np.interp(value, eigenvalues, shown))
            ax.annotate(
                number(float(f"{value:.3g}")),
                (value, height),
                (0, 12),
                "data",
                "offset points",
                size=7.5,
                ha="center",
                arrowprops={"arrowstyle": "-", "lw": 0.5, "color": "0.4"},
            )
        probes, products = result.sizes["probe"], result.sizes["ritz"]
        add_note(ax, f"{probes} probes of {products} products, width {number(result.attrs['sigma'])}")
    return ax


def _outliers(nodes: np.ndarray, weights: np.ndarray, sigma: float, limit: int) -> list[float]:
    """The weighted means of the clusters of Ritz values at both ends; more than three widths separate two clusters."""
    order = np.argsort(nodes)
    nodes, weights = nodes[order], np.maximum(weights[order], 1e-300)
    groups = np.split(np.arange(len(nodes)), 1 + np.flatnonzero(np.diff(nodes) > 3 * sigma))
    bulk = int(np.argmax([weights[group].sum() for group in groups]))
    centers = [float(np.average(nodes[group], weights=weights[group])) for group in groups]
    centers[0], centers[-1] = float(nodes[0]), float(nodes[-1])  # at the ends the extreme Ritz values, not the means
    if len(groups) == 1:
        centers, bulk = [float(nodes[0]), 0.0, float(nodes[-1])], 1
    above = centers[:bulk:-1] or [float(nodes[-1])]
    below = [value for value in centers[:bulk] or [float(nodes[0])] if value < 0]
    return sorted({*below[:limit], *above[:limit]})
