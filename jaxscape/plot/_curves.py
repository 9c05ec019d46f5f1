"""Curves: the loss along a line, and the history of a training run."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from jaxscape.arguments import checked
from jaxscape.interpolation import place_of
from jaxscape.levels import FRACTIONS
from jaxscape.plot._field import axis_label, metric_label, missing_points, pick
from jaxscape.plot._scale import choose
from jaxscape.plot._several import Results, named
from jaxscape.plot._style import add_note, count_note, join_notes, new_axes, style

_LEFT, _RIGHT = "tab:blue", "tab:red"  # the paper's colours of loss and accuracy
_DASHES = ("-", "--", ":", "-.")
_SPLITS = ("train", "test")
_COLUMNS = ("epoch", "lr", "train_loss", "train_error", "test_loss", "test_error")


@checked
def line(
    results: Results,
    ax: Axes | None = None,
    *,
    metric: str = "loss",
    log: bool | None = None,
    loss_max: float | None = None,
) -> Axes:
    """A metric along one direction, with a band of two standard errors (paper figures 2 and 3).

    If a result has the accuracy, it is drawn against a second axis on the right; otherwise the error, if there is one.

    Args:
        results: A result over one dimension; or several: a mapping from label to result, for example
            ``{"train": ..., "test": ...}``, or a list. The labels of a list are ``attrs["title"]`` of its results, or
            their indices if these titles are missing or repeat.
        ax: The axes to draw into; None: a new figure.
        metric: The variable on the left axis.
        log: Whether the left axis is logarithmic; None: it is if the values span more than a factor of 50.
        loss_max: The top of the left axis; points above it are counted. None: all points are shown.

    Returns:
        The left axes.

    Raises:
        ValueError: There are no results, a result is not 1-D or does not have the metric, or an option does not fit
            the values.
        TypeError: ``results`` is not a result, a mapping or a list of results.
    """
    curves = named(results)
    arrays = {name: _one_dimensional(result, metric) for name, result in curves.items()}
    scale = choose([array.values for array in arrays.values()], metric, None, log, loss_max)
    first = next(iter(curves.values()))
    titles = {str(result.attrs.get("title", "")) for result in curves.values()}
    with style():
        ax = new_axes() if ax is None else ax
        ax.set(xlabel=axis_label(first, next(iter(arrays.values())).dims[0]))
        ax.set_title(titles.pop() if len(titles) == 1 else "")
        ax.set_ylabel(metric_label(metric), color=_LEFT)
        ax.tick_params(axis="y", colors=_LEFT, which="both")
        if scale.log and any((array.values > 0).any() for array in arrays.values()):  # zeros alone have no logarithm
            ax.set_yscale("log")
        for dashes, result in zip(_cycle(len(curves)), curves.values(), strict=True):
            _curve(ax, result, metric, _LEFT, dashes)
        if loss_max is not None:
            ax.set_ylim(top=loss_max)
        _right_axis(ax, curves, metric)
        if len(curves) > 1:
            ax.legend(handles=[_key(d, name) for d, name in zip(_cycle(len(curves)), curves, strict=True)])
        add_note(ax, join_notes(*(_line_note(name, curves[name], array, loss_max) for name, array in arrays.items())))
    return ax


@checked
def band(
    results: Results,
    ax: Axes | None = None,
    *,
    metric: str = "loss",
    log: bool | None = None,
    loss_max: float | None = None,
) -> Axes:
    """Repeats of a line with several seeds: their mean, one standard deviation around it, and each (paper figure 16).

    Args:
        results: A result of ``surface(..., num_seeds=...)`` over one dimension; or several results over one dimension
            and the same coordinates, a list or a mapping.
        ax: The axes to draw into; None: a new figure.
        metric: The variable to draw.
        log: Whether the axis is logarithmic; None: it is if the values span more than a factor of 50. Then the mean is
            that of the values, as on a linear axis.
        loss_max: The top of the axis; points above it are counted. None: all points are shown.

    Returns:
        The axes.

    Raises:
        ValueError: There is no result, a result is not 1-D or does not have the metric, their coordinates differ, or an
            option does not fit the values.
        TypeError: ``results`` is not a result, a mapping or a list of results.
    """
    curves = named(results)
    arrays = {name: _one_dimensional(result, metric) for name, result in curves.items()}
    first, *others = arrays.values()
    dim = first.dims[0]
    if any(array.dims != first.dims or not np.array_equal(array[dim], first[dim]) for array in others):
        raise ValueError("results have other coordinates; expected repeats over the same grid.")
    scale = choose([array.values for array in arrays.values()], metric, None, log, loss_max)
    values = np.stack([array.values for array in arrays.values()])
    with style(), np.errstate(all="ignore"):
        ax = new_axes() if ax is None else ax
        ax.set(xlabel=axis_label(next(iter(curves.values())), dim), ylabel=metric_label(metric))
        ax.set_title(str(next(iter(curves.values())).attrs.get("title", "")))
        if scale.log and (values > 0).any():
            ax.set_yscale("log")
        mean = values.mean(0)
        for row in values:
            ax.plot(first[dim], np.where(np.isfinite(row), row, np.nan), color=_LEFT, lw=0.5, alpha=0.5)
        ax.plot(first[dim], np.where(np.isfinite(mean), mean, np.nan), color=_LEFT, lw=1.4)
        label = "1 repeat, no band"
        if len(values) > 1:
            deviation = values.std(0, ddof=1)
            lower = np.maximum(mean - deviation, mean / 10) if ax.get_yscale() == "log" else mean - deviation
            ax.fill_between(first[dim], lower, mean + deviation, color=_LEFT, alpha=0.2, lw=0)
            label = f"{len(values)} repeats, mean and one standard deviation"
        ax.legend(handles=[_key("-", label, _LEFT)])
        if loss_max is not None:
            ax.set_ylim(top=loss_max)
        add_note(ax, join_notes(*(_line_note(name, curves[name], array, loss_max) for name, array in arrays.items())))
    return ax


@checked
def interpolation(
    results: Results,
    ax: Axes | None = None,
    *,
    log: bool | None = None,
    loss_max: float | None = None,
) -> Axes:
    """The loss (left) and the accuracy (right) between two minimizers, dotted lines at both (paper figure 2).

    The title has the error of both minimizers under the last result.

    Args:
        results: A result of `jaxscape.interpolate`; or several: a mapping from label to result, the first solid and
            the second dashed: ``{"train": ..., "test": ...}``, or a list, as in `line`.
        ax: The axes to draw into; None: a new figure.
        log: Whether the left axis is logarithmic; None: it is if the values span more than a factor of 50.
        loss_max: The top of the left axis; points above it are counted. None: all points are shown.

    Returns:
        The left axes.

    Raises:
        ValueError: As in `line`, or a result has another dimension than ``alpha``.
        TypeError: As in `line`.
    """
    curves = named(results)
    for name, result in curves.items():
        if _one_dimensional(result, "loss").dims != ("alpha",):
            raise ValueError(f"result {name!r} has no dimension alpha, expected one of js.interpolate.")
    ax = line(curves, ax, log=log, loss_max=loss_max)
    name, last = list(curves.items())[-1]
    ends = [last.isel(alpha=place) for end in (0.0, 1.0) if (place := place_of(last, end)) is not None]
    with style():
        if legend := ax.get_legend():
            legend.set_loc("upper center")  # between the minimizers, where the accuracy is low
        for end in ends:
            ax.axvline(float(end.alpha), color="0.6", ls=":", lw=0.8, zorder=0)
        ax.set_xlabel(r"$\alpha$: $(1-\alpha)\,\theta_a+\alpha\,\theta_b$")
        if "accuracy" in last and len(ends) == 2:
            errors = " and ".join(f"{100 * (1 - float(end.accuracy)):.2f} %" for end in ends)
            title = f"{last.attrs.get('title', '')}\n{name} error {errors}".replace("  ", " ").strip()
            ax.set_title(title)
    return ax


@checked
def training_curves(metrics: Mapping[str, Any] | Iterable[Mapping[str, Any]], ax: Axes | None = None) -> Axes:
    """Loss (left, logarithmic) and error (right, percent) over the epochs, with the drops of the learning rate.

    A dotted vertical line marks each epoch whose learning rate is at most half of the rate in the previous record.

    Args:
        metrics: A mapping from name to column, or one record for each epoch. The names are ``epoch``, ``lr``,
            ``train_loss``, ``train_error``, ``test_loss`` and ``test_error``; errors are in percent. Only ``epoch``
            and one loss are required. A single value may be missing (None or ""), for an epoch without evaluation.
        ax: The axes to draw into; None: a new figure.

    Returns:
        The left axes.

    Raises:
        ValueError: There are no records, no ``epoch``, or no loss.
    """
    columns = _columns(metrics)
    if "epoch" not in columns or not {"train_loss", "test_loss"} & columns.keys() or not len(columns["epoch"]):
        raise ValueError(
            f"metrics has the columns {sorted(columns)}, expected records with 'epoch' and 'train_loss' or 'test_loss'."
        )
    epochs = columns["epoch"]
    with style():
        ax = new_axes() if ax is None else ax
        ax.set(xlabel="epoch", yscale="log")
        _history(ax, columns, "loss", _LEFT, "loss")
        if {"train_error", "test_error"} & columns.keys():
            right = _twin(ax)
            _history(right, columns, "error", _RIGHT, "error (%)")
            right.set_ylim(bottom=0)
        rates = columns.get("lr", np.ones(len(epochs)))
        drops = epochs[1:][rates[1:] <= 0.5 * rates[:-1]]
        for epoch in drops:
            ax.axvline(epoch, color="0.6", ls=":", lw=0.8, zorder=0)
        keys = [_key(dashes, s) for s, dashes in zip(_SPLITS, _DASHES, strict=False) if f"{s}_loss" in columns]
        keys += [_key(":", "learning rate drops", "0.6")] * bool(len(drops))
        ax.legend(handles=keys, loc="upper right")  # falling curves leave this corner free
        add_note(ax, join_notes(*(_history_note(columns, name) for name in ("train_loss", "test_loss"))))
    return ax


def _one_dimensional(result: xr.Dataset, metric: str) -> xr.DataArray:
    array = pick(result, metric)
    if array.ndim != 1:
        raise ValueError(
            f"result has the dimensions {array.dims}, expected one; draw it with js.plot.contour(result), "
            f"or a line of it, e.g. result.sel({array.dims[-1]}=0, method='nearest')."
        )
    return array


def _key(dashes: str, label: str, colour: str = "0.3") -> Line2D:
    return Line2D([], [], color=colour, ls=dashes, lw=1.2, label=label)


def _twin(ax: Axes) -> Axes:
    """Add an axis on the right. It is drawn first, so that the legend of the left axes covers the curves of both."""
    right = ax.twinx()
    ax.set_zorder(right.get_zorder() + 1)
    ax.patch.set_visible(False)
    return right


def _cycle(count: int) -> list[str]:
    return [_DASHES[i % len(_DASHES)] for i in range(count)]


def _curve(ax: Axes, result: xr.Dataset, metric: str, colour: str, dashes: str) -> None:
    """Draw one curve with its band, and crosses on the upper edge where the curve is not finite."""
    array = pick(result, metric)
    x, y = array[array.dims[0]].values, array.values
    finite, computed = np.isfinite(y), ~missing_points(result, array)
    ax.plot(x, np.where(finite, y, np.nan), color=colour, ls=dashes, lw=1.2)
    if f"{metric}_stderr" in result:
        error = (100 if metric in FRACTIONS else 1) * pick(result, f"{metric}_stderr").values
        band = np.where(finite & np.isfinite(error), error, np.nan)
        # On a logarithmic axis a band that reaches zero has no lower edge: one decade below the curve is shown.
        lower = np.maximum(y - 2 * band, y / 10) if ax.get_yscale() == "log" else y - 2 * band
        ax.fill_between(x, lower, y + 2 * band, color=colour, alpha=0.2, lw=0)
    edge = ax.get_xaxis_transform()  # x in data, y in fractions of the axes
    bad = computed & ~finite
    if bad.any():  # nothing drawn beyond the axes has no extent, and the layout of several axes collapses
        ax.plot(x[bad], np.ones(bad.sum()), "x", color=colour, ms=4, transform=edge, clip_on=False)


def _right_axis(ax: Axes, curves: Mapping[str, xr.Dataset], metric: str) -> None:
    """Draw the accuracy, or if no result has it the error, against a second axis on the right."""
    shown = next((m for m in FRACTIONS if m != metric and any(m in r for r in curves.values())), None)
    if shown is None:
        return
    right = _twin(ax)
    for dashes, result in zip(_cycle(len(curves)), curves.values(), strict=True):
        if shown in result:
            _curve(right, result, shown, _RIGHT, dashes)
    right.set_ylim(0, 103)  # a curve at 100 % stays visible
    right.set_ylabel(metric_label(shown), color=_RIGHT)
    right.tick_params(axis="y", colors=_RIGHT)


def _line_note(name: str, result: xr.Dataset, array: xr.DataArray, loss_max: float | None) -> str:
    values, missing = array.values, missing_points(result, array)
    notes = [count_note(~np.isfinite(values) & ~missing, "not finite"), count_note(missing, "not computed yet")]
    if loss_max is not None:
        notes.append(count_note(np.isfinite(values) & (values > loss_max), f"above {loss_max:g}"))
    text = ", ".join(filter(None, notes))
    return f"{name}: {text}" if name and text else text


def _columns(metrics: Mapping[str, Any] | Iterable[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Columns of numbers; a value that was not measured (None or "") becomes a masked entry."""
    if not isinstance(metrics, Mapping):
        several = isinstance(metrics, Iterable) and getattr(metrics, "shape", None) != ()
        records: list[Any] = list(metrics) if several else [metrics]
        for record in records:
            if not isinstance(record, Mapping):
                kind = type(record).__name__
                raise TypeError(f"metrics holds {kind}, expected a dict for each epoch, or a dict of columns.")
        names = dict.fromkeys(name for record in records for name in record)
        metrics = {name: [record.get(name) for record in records] for name in names}
    return {name: _numbers(values) for name, values in metrics.items() if name in _COLUMNS}


def _numbers(values: Any) -> np.ndarray:
    missing = [value is None or (isinstance(value, str) and not value.strip()) for value in values]
    return np.ma.array([0.0 if m else float(v) for m, v in zip(missing, values, strict=True)], mask=missing)


def _history(ax: Axes, columns: Mapping[str, np.ndarray], quantity: str, colour: str, label: str) -> None:
    """Draw the train and the test curve of one quantity; an epoch without a value has no point."""
    for split, dashes in zip(_SPLITS, _DASHES, strict=False):
        values = columns.get(f"{split}_{quantity}")
        if values is not None:
            measured = ~np.ma.getmaskarray(values)
            ax.plot(columns["epoch"][measured], values[measured], color=colour, ls=dashes, lw=1.2)
    ax.set_ylabel(label, color=colour)
    ax.tick_params(axis="y", colors=colour, which="both")


def _history_note(columns: Mapping[str, np.ndarray], name: str) -> str:
    values = np.ma.compressed(columns.get(name, np.ma.array([])))
    note = count_note(~np.isfinite(values), "not finite")
    return f"{name.replace('_', ' ')}: {note}" if note else ""
