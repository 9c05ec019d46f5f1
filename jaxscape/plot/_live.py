"""A picture that is drawn again while a surface is computed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import xarray as xr

from jaxscape.plot._style import check_format, save
from jaxscape.plot._surfaces import contour, contourf, heatmap, surface3d

_KINDS = {"contour": contour, "contourf": contourf, "heatmap": heatmap, "surface3d": surface3d}


def live(kind: str = "contour", *, path: str | Path | None = None, **options: Any) -> Callable[[xr.Dataset], None]:
    """A picture for ``surface(..., refine=..., preview=live())``: each round of points draws it again.

    >>> surface(params, loss_fn, data, refine="contours", preview=live("contourf"))  # doctest: +SKIP

    Args:
        kind: The picture: ``"contour"``, ``"contourf"``, ``"heatmap"`` or ``"surface3d"``.
        path: A file that is written each time; None: the output of the notebook's cell.
        **options: Arguments of the function named by ``kind``, such as ``metric``, ``log`` or ``hatch``.

    Returns:
        A function of a result.

    Raises:
        ValueError: The kind is unknown, the file has no format of a picture, or there is neither a file nor a notebook.
    """
    if kind not in _KINDS:
        raise ValueError(f"kind is {kind!r}, expected one of {sorted(_KINDS)}.")
    if path is not None:
        check_format(Path(path))
    elif not _in_notebook():
        raise ValueError("path is missing: there is no notebook to draw in; pass a file, e.g. path='preview.png'.")
    outputs: list[Any] = []

    def show(result: xr.Dataset) -> None:
        figure = _KINDS[kind](result, **options).figure.figure
        evaluated = f"{result.attrs['evaluated_points']} of {result.loss.size} points evaluated"
        figure.suptitle(evaluated, fontsize=8, color="0.3")
        if path is not None:
            save(figure, path)
        elif outputs:
            outputs[0].update(figure)
        else:
            from IPython.display import display

            outputs.append(display(figure, display_id=True))
        plt.close(figure)

    return show


def _in_notebook() -> bool:
    try:
        from IPython import get_ipython
    except ImportError:
        return False
    return hasattr(get_ipython(), "kernel")
