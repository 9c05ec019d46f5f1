"""The public function: runs and results as one page."""

from pathlib import Path
from typing import Any

from jaxscape.arguments import checked
from jaxscape.export._files import optional, target, write
from jaxscape.report_page._gradient import slope_at
from jaxscape.report_page._page import page
from jaxscape.report_page._sources import contents
from jaxscape.report_page._verdict import verdict


@checked
def report(
    runs: Any,
    path: str | Path = "report.html",
    *,
    title: str = "",
    clip: float | None = None,
    gradient: bool = True,
) -> Path:
    """Write one page that shows the results of runs side by side, and says how far to trust them.

    The page is one file of about 5 MB that holds the numbers and plotly.js; it works without a network. It shows what
    there is of: training curves, lines, surfaces in 3-D and as contours, paths of training (switched on and off),
    maps of eigenvalues, spectra, measures of sharpness, and the attrs that say how each result was made. All runs
    share the scales of a kind of picture.

    The verdict asks of each run, with L the loss and 0 the center: is the center the lowest point of the plane
    (``L(0) - min L``); is the plane level there; is the gradient g small (``g^2 / (2 lambda_max L(0))``); does the loss
    bend down (``-lambda_min / lambda_max``); does the range show the valley (the share of the area where
    ``L <= 2 L(0)``); is the border far above; how much is cut off; do seeds differ; how large are the error bars
    (``max stderr / (max L - min L)``); is the loss free of the batch; how much of the curvature does the plane show
    (``plane_max_eigenvalue / max_eigenvalue``; Li et al. 2018, section 6); are all points finite; did all eigenvalues
    converge. What no result answers is "not measured". docs/report.md explains each line.

    >>> import tempfile, jax.numpy as jnp, jaxscape as js
    >>> def loss_fn(params, x):
    ...     return x * (1 + (params ** 2).sum())
    >>> params, data = jnp.zeros(3), jnp.ones(4)
    >>> axes = [jnp.array([1.0, 0, 0]), jnp.array([0, 1.0, 0])]
    >>> surface = js.surface(params, loss_fn, data, directions=axes, grid=js.Grid.plane((-2, 2, 5), (-2, 2, 5)),
    ...                      progress=False)
    >>> results = {"surface": surface, "params": params, "loss_fn": loss_fn, "data": data}
    >>> report({"bowl": results}, Path(tempfile.mkdtemp()) / "bowl.html").name
    'bowl.html'

    Args:
        runs: A run, a list of them, or a mapping of titles to them. A run is

            - the folder that ``train.py`` and the commands have written: its ``*.zarr``, ``metrics.csv`` and
              ``sharpness.csv``;
            - a run of `jaxscape.load_run`: the same folder, and the gradient is measured;
            - only in ``{title: run}``, a mapping with results in memory: Datasets under names of your choice (the
              verdict judges ``"surface"`` and ``"hessian"`` first), ``"sharpness"``, a table, and ``"metrics"``,
              a list of records with ``epoch``, ``train_loss``, ``test_loss``, ``train_error``, ``test_error``
              (percent); and ``"params"``, ``"loss_fn"`` and ``"data"``, for the gradient.
        path: The file. Its suffix is ``.html`` or ``.htm``.
        title: The title of the page; empty: the titles of the runs.
        clip: The largest loss that surfaces show, higher ones become a plateau; None: no limit.
        gradient: Whether to measure the gradient, and whether the loss depends on the batch, of the runs that have
            params: one pass over the data.

    Returns:
        The path.

    Raises:
        ValueError: The suffix is another; there is no run, a title repeats, a folder has nothing to show, a Dataset is
            no result that a page shows, or params, loss_fn and data are not all there.
        TypeError: An argument, or a part of a run, is of another type.
        ImportError: plotly is not installed: ``pip install "jax-losscape[export]"``.
    """
    path = target(path, ".html", ".htm")
    if not isinstance(title, str):
        raise TypeError(f"title is {type(title).__name__}, expected a text.")
    optional("plotly")
    shown = contents(runs, gradient=gradient)
    slopes = [None if content.problem is None else slope_at(content.problem) for content in shown]
    verdicts = [verdict(content, clip, slope) for content, slope in zip(shown, slopes, strict=True)]
    heading = title or f"Loss landscapes: {', '.join(content.title for content in shown)}"
    return write(path, page(heading, shown, verdicts, clip).encode())
