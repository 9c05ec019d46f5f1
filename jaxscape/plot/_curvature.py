"""Curvature: both ends of the Hessian's spectrum over a plane, and the density of its eigenvalues."""

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxscape.plot._field import SIGNED, field
from jaxscape.plot._several import Results, named
from jaxscape.plot._style import add_note, new_axes, number, style
from jaxscape.plot._surfaces import compare, heatmap

_DECADES = 6  # of the density that are shown below its peak: under them is the rounding of the quadrature
_NAMED = 6  # outliers that have a label


def eigenvalue_map(
    result: Results,
    ax: Axes | None = None,
    *,
    signed: bool = False,
    ratio_max: float | None = None,
) -> Axes | Figure:
    """How convex the loss is at every point of a plane (paper figure 7): ``abs(min / max)`` eigenvalue, or signed.

    Near 0 the negative curvatures are small beside the positive ones. Points that did not converge have a dot.

    Args:
        result: What `jaxscape.eigenvalue_map` gave; or title -> result, or a list of results (whose
            titles are ``attrs["title"]``, or else the places in the list, from 0 on), drawn side by side on one scale.
        ax: Where to draw one result; None: a new figure.
        signed: Draw ``min / max`` instead, blue where it is negative (the Hessian is indefinite), red where positive.
        ratio_max: The end of the colours; larger ratios are counted. None: all are spanned.

    Returns:
        The axes; of several results the figure.

    Raises:
        ValueError: The result is no map of eigenvalues over a plane, ``ratio_max`` is not positive, or axes were given
            for several results.
        TypeError: This is no result, mapping or list of results.
    """
    several, maps = not isinstance(result, xr.Dataset), named(result, "result")
    if several and ax is not None:
        raise ValueError("ax is given for several maps; draw one at a time into axes.")
    if ratio_max is not None and not ratio_max > 0:
        raise ValueError(f"ratio_max is {ratio_max}, expected a positive number.")
    for one in maps.values():
        if "min_eigenvalue" not in one or "max_eigenvalue" not in one:
            raise ValueError(
                f"result has the variables {sorted(map(str, one.data_vars))}, expected those of js.eigenvalue_map."
            )
    metric = SIGNED if signed else "ratio"
    if signed:
        maps = {t: one.assign({SIGNED: one.min_eigenvalue / one.max_eigenvalue}) for t, one in maps.items()}
    values = np.concatenate([field(one, metric).z.ravel() for one in maps.values()])
    levels = _levels(values, signed, ratio_max)
    if several:
        return compare(maps, "heatmap", metric=metric, levels=levels, log=False)
    return heatmap(maps[""], ax, metric=metric, levels=levels, log=False)


def _levels(values: np.ndarray, signed: bool, top: float | None) -> np.ndarray:
    """Round levels from 0, or on both sides of it."""
    finite = np.abs(values[np.isfinite(values)])
    end = top or (float(finite.max()) if finite.size and finite.max() > 0 else 1.0)
    if not top:
        unit = 10.0 ** np.floor(np.log10(end))
        end = next(m for m in (1, 2, 5, 10) if end <= m * unit * (1 + 1e-12)) * unit
    return np.linspace(-end if signed else 0.0, end, 11)


def spectrum(result: xr.Dataset, ax: Axes | None = None, *, outliers: int = 3) -> Axes:
    """The density of the Hessian's eigenvalues on a logarithmic scale, with two standard errors.

    Ticks under the curve are the Ritz values of all probes, longer the more weight they have. The outliers are named:
    the largest and, if it is negative, the smallest Ritz value, and those next to them that stand apart by more than
    three widths of the density's Gaussians.

    Args:
        result: What `jaxscape.spectral_density` gave.
        ax: Where to draw; None: a new figure.
        outliers: How many are named at each end, at most.

    Returns:
        The axes.

    Raises:
        ValueError: The result is no density, or ``outliers`` is negative.
    """
    if "density" not in result or "ritz_value" not in result:
        raise ValueError(
            f"result has the variables {sorted(map(str, result.data_vars))}, expected those of js.spectral_density."
        )
    if outliers < 0:
        raise ValueError(f"outliers is {outliers}, expected at least 0.")
    at, density, error = (result[name].values for name in ("eigenvalue", "density", "density_stderr"))
    nodes, weights = result.ritz_value.values.ravel(), result.ritz_weight.values.ravel()
    with style():
        ax = new_axes() if ax is None else ax
        ax.set(xlabel=r"eigenvalue $\lambda$", ylabel="density", yscale="log", title=str(result.attrs.get("title", "")))
        if not np.isfinite(density).any() or not density.max() > 0:
            add_note(ax, "the density is not finite")
            return ax
        top = float(np.nanmax(density))
        floor = 10.0 ** np.floor(np.log10(max(top * 10.0**-_DECADES, 0.1 / (result.attrs["num_params"] * np.ptp(at)))))
        shown = np.maximum(density, floor)
        ax.plot(at, shown, color="tab:blue", lw=1.2)
        ax.fill_between(
            at,
            np.maximum(density - 2 * error, floor),
            np.maximum(density + 2 * error, floor),
            color="tab:blue",
            alpha=0.2,
            lw=0,
        )
        room = 0.04 * np.ptp(at)  # for the labels of both ends
        ax.set(xlim=(at[0] - room, at[-1] + room), ylim=(floor, 10 * top))
        lengths = 0.01 + 0.05 * np.clip(1 + np.log10(np.maximum(weights, 1e-12)) / 6, 0, 1)
        ax.vlines(nodes, 0, lengths, color="0.35", lw=0.5, transform=ax.get_xaxis_transform())
        named = _outliers(nodes, weights, float(result.attrs["sigma"]), outliers)
        for value in named:
            height = float(np.interp(value, at, shown))
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


def _outliers(nodes: np.ndarray, weights: np.ndarray, sigma: float, most: int) -> list[float]:
    """Clusters of Ritz values at the ends, apart from the rest by more than three widths; their weighted means."""
    order = np.argsort(nodes)
    nodes, weights = nodes[order], np.maximum(weights[order], 1e-300)
    groups = np.split(np.arange(len(nodes)), 1 + np.flatnonzero(np.diff(nodes) > 3 * sigma))
    bulk = int(np.argmax([weights[group].sum() for group in groups]))
    centers = [float(np.average(nodes[group], weights=weights[group])) for group in groups]
    centers[0], centers[-1] = float(nodes[0]), float(nodes[-1])  # the ends themselves: no mean hides them
    if len(groups) == 1:
        centers, bulk = [float(nodes[0]), 0.0, float(nodes[-1])], 1
    above = centers[:bulk:-1] or [float(nodes[-1])]
    below = [value for value in centers[:bulk] or [float(nodes[0])] if value < 0]
    return sorted({*below[:most], *above[:most]})
