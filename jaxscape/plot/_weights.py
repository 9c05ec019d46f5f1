"""Pictures of the weights: histograms, and norms during a training (paper figures 2 and 10)."""

from typing import Literal

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from jaxscape.arguments import checked
from jaxscape.plot._several import Results, named
from jaxscape.plot._style import add_note, join_notes, new_axes, number, style

_MANY = 10  # labels that a legend can hold
_SHOWN = 0.999  # of the weights; a few large ones would leave most of the axis empty


@checked
def weight_histogram(results: Results, ax: Axes | None = None, *, leaf: str = "all", log: bool = False) -> Axes:
    """Histograms of the weights, one over the other, as densities (paper figure 2 c and f).

    Args:
        results: A result of `jaxscape.weight_histogram`; or several: a mapping from label to result, or a list.
        ax: The axes to draw into; None: a new figure.
        leaf: The path of the leaf, or ``"all"``.
        log: Whether the density is on a logarithmic axis.

    Returns:
        The axes, as wide as 99.9 % of the weights of each. The legend has the Euclidean norm of each; a note counts
        weights that are not shown.

    Raises:
        ValueError: There is no result, or it lacks the leaf or is no histogram.
        TypeError: ``results`` is not a result, a mapping or a list of results.
    """
    histograms = named(results)
    for name, result in histograms.items():
        if "count" not in result or "leaf" not in result.dims:
            raise ValueError(f"result {name!r} has no count over leaf, expected one of js.weight_histogram.")
        _check_leaf(result, leaf)
    notes = []
    owns = {name: result.sel(leaf=leaf) for name, result in histograms.items()}
    limit = max(map(_extent, owns.values()))
    with style():
        ax = new_axes() if ax is None else ax
        for i, (name, own) in enumerate(owns.items()):
            edges = np.append(own.left.values, own.right.values[-1])
            density = own["count"].values / max(int(own["size"]), 1) / np.diff(edges)
            label = f"{name}: norm {number(float(own.norm))}" if name else f"norm {number(float(own.norm))}"
            ax.stairs(density, edges, fill=True, color=f"C{i}", alpha=0.35)
            ax.stairs(density, edges, color=f"C{i}", lw=1.2, label=label)
            beyond = int(own["count"].values[_reach(own) > limit].sum())
            for count, what in (
                (beyond, f"beyond {number(limit)}"),
                (int(own.outside), "outside of the bins"),
                (int(own.nonfinite), "not finite"),
            ):
                notes.append(f"{name}: {count} of {int(own['size'])} weights {what}".lstrip(": ") if count else "")
        left, right = (
            min(float(own.left[0]) for own in owns.values()),
            max(float(own.right[-1]) for own in owns.values()),
        )
        ax.set_xlim(max(left, -limit), min(right, limit))
        ax.set(xlabel="weight", ylabel="density", title="" if leaf == "all" else leaf)
        if log:
            ax.set_yscale("log")
        else:
            ax.set_ylim(bottom=0)
        ax.legend()
        add_note(ax, join_notes(*notes))
    return ax


def _reach(own: xr.Dataset) -> np.ndarray:
    """The largest magnitude in each bin."""
    return np.maximum(np.abs(own.left.values), np.abs(own.right.values))


def _extent(own: xr.Dataset) -> float:
    """The magnitude up to which the histogram is shown."""
    reach = _reach(own)
    order = np.argsort(reach)
    counted = np.cumsum(own["count"].values[order])
    place = np.searchsorted(counted, _SHOWN * counted[-1])
    return float(reach[order][place]) if counted[-1] else float(reach.max())


@checked
def weight_norms(
    results: Results,
    ax: Axes | None = None,
    *,
    leaf: str = "all",
    against: Literal["epoch", "iteration"] = "epoch",
    layers: bool = False,
) -> Axes:
    """The Euclidean norm of the weights during a training (paper figures 2 b and e, and 10).

    Args:
        results: A result of `jaxscape.weight_norms`; or several: a mapping from label to result, or a list.
        ax: The axes to draw into; None: a new figure.
        leaf: The path of the leaf, or ``"all"``.
        against: ``"epoch"`` or ``"iteration"``, steps of the optimizer.
        layers: Whether each leaf of the one result is drawn, on a logarithmic axis, beside all of them together.

    Returns:
        The axes.

    Raises:
        ValueError: There is no result, it lacks the leaf or the iterations or has no norms, or ``layers`` comes with
            several results.
        TypeError: ``results`` is not a result, a mapping or a list of results.
    """
    curves = named(results)
    if against not in ("epoch", "iteration"):
        raise ValueError(f"against is {against!r}, expected 'epoch' or 'iteration'.")
    for name, result in curves.items():
        if "norm" not in result or result.norm.dims != ("epoch", "leaf"):
            raise ValueError(f"result {name!r} has no norm over epoch and leaf, expected one of js.weight_norms.")
        if against not in result.coords:
            raise ValueError(f"result {name!r} has no iterations; expected against='epoch' for checkpoints.")
        _check_leaf(result, leaf)
    if layers and len(curves) > 1:
        raise ValueError(f"layers is True with {len(curves)} results; expected one.")
    with style():
        ax = new_axes() if ax is None else ax
        if layers:
            _layers(ax, next(iter(curves.values())), against)
        for i, (name, result) in enumerate(curves.items()):
            label = name or ("all" if layers else None)
            colour = "black" if layers else f"C{i}"
            ax.plot(result[against], result.norm.sel(leaf=leaf), color=colour, lw=1.4, label=label)
        ax.set(xlabel=against, ylabel="norm of the weights", title="" if leaf == "all" else leaf)
        if len(curves) > 1 or layers:
            ax.legend()
    return ax


def _layers(ax: Axes, result: xr.Dataset, against: str) -> None:
    """Each leaf, the first one dark; of many only the first and the last are named."""
    names = [str(name) for name in result.leaf.values if name != "all"]
    colours = mpl.colormaps["viridis"](np.linspace(0, 0.9, len(names)))
    for i, (name, colour) in enumerate(zip(names, colours, strict=True)):
        shown = len(names) <= _MANY or i in (0, len(names) - 1)
        ax.plot(result[against], result.norm.sel(leaf=name), color=colour, lw=0.8, label=name if shown else None)
    if (result.norm.values > 0).any():
        ax.set_yscale("log")


def _check_leaf(result: xr.Dataset, leaf: str) -> None:
    if leaf not in result.leaf.values:
        names = ", ".join(map(str, result.leaf.values))
        raise ValueError(f"leaf is {leaf!r}, expected 'all' or one of: {names}.")
