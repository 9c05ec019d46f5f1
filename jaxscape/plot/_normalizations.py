"""Minimizers side by side under several normalizations (paper figures 3, 11, 12 and 13)."""

import matplotlib.pyplot as plt
import xarray as xr
from matplotlib.figure import Figure

from jaxscape.arguments import checked
from jaxscape.plot._curves import line
from jaxscape.plot._field import pick
from jaxscape.plot._scale import choose
from jaxscape.plot._style import style
from jaxscape.plot._surfaces import Kind, compare


@checked
def normalizations(
    result: xr.Dataset,
    kind: Kind = "contour",
    *,
    metric: str = "loss",
    log: bool | None = None,
    loss_max: float | None = None,
) -> Figure:
    """All minimizers under each normalization, on one scale.

    Args:
        result: A result of `jaxscape.normalizations`.
        kind: The picture of each plane, as in `compare`; lines share one axes for each normalization.
        metric: The variable to draw.
        log: Whether the scale is logarithmic; None: it is if the values span more than a factor of 50.
        loss_max: Larger values are cut off and counted. None: all values are shown.

    Returns:
        A new figure: of lines, an axes for each normalization; of planes, a row for each.

    Raises:
        ValueError: The result has no dimensions ``norm`` and ``minimizer``; or as in `line` and `compare`.
        TypeError: It is no result.
    """
    if not isinstance(result, xr.Dataset):
        raise TypeError(f"result is {type(result).__name__}, expected the Dataset of js.normalizations.")
    missing = {"norm", "minimizer"} - set(result.dims)
    if missing:
        raise ValueError(f"result has no dimension {sorted(missing)[0]}, expected one of js.normalizations.")
    norms, minimizers = (list(map(str, result[name].values)) for name in ("norm", "minimizer"))
    results = {norm: {name: result.sel(norm=norm, minimizer=name, drop=True) for name in minimizers} for norm in norms}
    if pick(result, metric).ndim > 3:
        panels = {f"{name}, {_title(norm)}": one for norm, own in results.items() for name, one in own.items()}
        return compare(panels, kind, metric=metric, log=log, loss_max=loss_max, columns=len(minimizers))
    arrays = [pick(one, metric).values for own in results.values() for one in own.values()]
    scale = choose(arrays, metric, None, log, loss_max)
    with style():
        figure, grid = plt.subplots(
            1, len(norms), figsize=(3.2 * len(norms) + 0.6, 3.4), layout="constrained", squeeze=False, sharey=True
        )
    axes = list(grid.flat)
    for ax, (norm, own) in zip(axes, results.items(), strict=True):
        titled = {name: one.assign_attrs(title=_title(norm)) for name, one in own.items()}
        line(titled, ax, metric=metric, log=scale.log, loss_max=loss_max)
    if legend := axes[0].get_legend():  # one below all axes, where it covers no curve
        columns = min(len(minimizers), 4)
        figure.legend(legend.legend_handles, minimizers, loc="outside lower center", ncols=columns)
    for i, ax in enumerate(axes):
        if i:
            ax.set_ylabel("")
        if legend := ax.get_legend():
            legend.remove()
    for right in figure.axes[len(axes) : -1]:
        right.set_ylabel("")
        right.tick_params(labelright=False)
    return figure


def _title(norm: str) -> str:
    return "no normalization" if norm == "none" else f"{norm} normalization"
