"""Curves: the loss along a line, and the history of a training run."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from jaxscape.plot._field import FRACTIONS, axis_label, metric_label, pick
from jaxscape.plot._scale import choose
from jaxscape.plot._several import Results, named
from jaxscape.plot._style import add_note, count_note, join_notes, new_axes, style

_LEFT, _RIGHT = "tab:blue", "tab:red"  # loss and accuracy, as the paper draws its lines
_DASHES = ("-", "--", ":", "-.")
_SPLITS = ("train", "test")
_COLUMNS = ("epoch", "lr", "train_loss", "train_error", "test_loss", "test_error")


def line(
    results: Results,
    ax: Axes | None = None,
    *,
    metric: str = "loss",
    log: bool | None = None,
    loss_max: float | None = None,
) -> Axes:
    """A metric along one direction, with a band of two standard errors (paper figures 2 and 3).

    Accuracy, or else error, is drawn against a second axis on the right when a result has it.

    Args:
        results: A result over one dimension; or label -> result, e.g. ``{"train": ..., "test": ...}``; or a list of
            results, whose labels are ``attrs["title"]``, or else the places in the list, from 0 on.
        ax: Where to draw; None: a new figure.
        metric: The variable on the left axis.
        log: A logarithmic left axis; None: if the values span more than a factor of 50.
        loss_max: The top of the left axis; points above it are counted. None: all are shown.

    Returns:
        The left axes.

    Raises:
        ValueError: There are no results, one is not 1-D or has no such metric, or an option does not fit the values.
        TypeError: This is no result, mapping or list of results.
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
        if scale.log:
            ax.set_yscale("log")
        for dashes, result in zip(_cycle(len(curves)), curves.values(), strict=True):
            _curve(ax, result, metric, _LEFT, dashes)
        if loss_max is not None:
            ax.set_ylim(top=loss_max)
        _right_axis(ax, curves, metric)
        if len(curves) > 1:
            ax.legend(handles=[_key(d, name) for d, name in zip(_cycle(len(curves)), curves, strict=True)])
        add_note(ax, join_notes(*(_line_note(name, array, loss_max) for name, array in arrays.items())))
    return ax


def training_curves(metrics: Mapping[str, Any] | Iterable[Mapping[str, Any]], ax: Axes | None = None) -> Axes:
    """Loss (left, logarithmic) and error (right, percent) by epoch, with the drops of the learning rate.

    A dotted vertical line marks each epoch whose learning rate is at most half of that of the record before.

    Args:
        metrics: Columns by name, or a record per epoch: ``epoch``, ``lr``, ``train_loss``, ``train_error``,
            ``test_loss``, ``test_error``, errors in percent. All but ``epoch`` and one loss may be missing; so may
            single values (None or ""), for epochs that were not evaluated.
        ax: Where to draw; None: a new figure.

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
        ax.legend(handles=keys, loc="upper right")  # where falling curves leave room
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
    """An axis on the right, drawn first, so that the legend of the left axes covers the curves of both."""
    right = ax.twinx()
    ax.set_zorder(right.get_zorder() + 1)
    ax.patch.set_visible(False)
    return right


def _cycle(count: int) -> list[str]:
    return [_DASHES[i % len(_DASHES)] for i in range(count)]


def _curve(ax: Axes, result: xr.Dataset, metric: str, colour: str, dashes: str) -> None:
    """One curve with its band; crosses on the upper edge where it is not finite."""
    array = pick(result, metric)
    x, y = array[array.dims[0]].values, array.values
    good = np.isfinite(y)
    ax.plot(x, np.where(good, y, np.nan), color=colour, ls=dashes, lw=1.2)
    if f"{metric}_stderr" in result:
        error = (100 if metric in FRACTIONS else 1) * pick(result, f"{metric}_stderr").values
        band = np.where(good & np.isfinite(error), error, np.nan)
        # On a logarithmic axis a band that reaches zero has no lower edge: a decade of it is shown.
        lower = np.maximum(y - 2 * band, y / 10) if ax.get_yscale() == "log" else y - 2 * band
        ax.fill_between(x, lower, y + 2 * band, color=colour, alpha=0.2, lw=0)
    edge = ax.get_xaxis_transform()  # x in data, y in fractions of the axes
    ax.plot(x[~good], np.ones((~good).sum()), "x", color=colour, ms=4, transform=edge, clip_on=False)


def _right_axis(ax: Axes, curves: Mapping[str, xr.Dataset], metric: str) -> None:
    """Accuracy, or else error, of the results that have it."""
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


def _line_note(name: str, array: xr.DataArray, loss_max: float | None) -> str:
    values = array.values
    notes = [count_note(~np.isfinite(values), "not finite")]
    if loss_max is not None:
        notes.append(count_note(np.isfinite(values) & (values > loss_max), f"above {loss_max:g}"))
    text = ", ".join(filter(None, notes))
    return f"{name}: {text}" if name and text else text


def _columns(metrics: Mapping[str, Any] | Iterable[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Columns of numbers; what was not measured (None, "") becomes a masked entry."""
    if not isinstance(metrics, Mapping):
        records = list(metrics)
        names = dict.fromkeys(name for record in records for name in record)
        metrics = {name: [record.get(name) for record in records] for name in names}
    return {name: _numbers(values) for name, values in metrics.items() if name in _COLUMNS}


def _numbers(values: Any) -> np.ndarray:
    missing = [value is None or (isinstance(value, str) and not value.strip()) for value in values]
    return np.ma.array([0.0 if m else float(v) for m, v in zip(missing, values, strict=True)], mask=missing)


def _history(ax: Axes, columns: Mapping[str, np.ndarray], what: str, colour: str, label: str) -> None:
    """Train and test curve of one quantity; epochs without a value are left out, not bridged by zeros."""
    for split, dashes in zip(_SPLITS, _DASHES, strict=False):
        values = columns.get(f"{split}_{what}")
        if values is not None:
            there = ~np.ma.getmaskarray(values)
            ax.plot(columns["epoch"][there], values[there], color=colour, ls=dashes, lw=1.2)
    ax.set_ylabel(label, color=colour)
    ax.tick_params(axis="y", colors=colour, which="both")


def _history_note(columns: Mapping[str, np.ndarray], name: str) -> str:
    values = np.ma.compressed(columns.get(name, np.ma.array([])))
    note = count_note(~np.isfinite(values), "not finite")
    return f"{name.replace('_', ' ')}: {note}" if note else ""
