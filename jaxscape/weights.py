"""The weights themselves: their histograms, and their norms during a training (paper figures 2 and 10)."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import xarray as xr

from jaxscape import checks, trees
from jaxscape.arguments import checked
from jaxscape.normalize import reasons_to_ignore
from jaxscape.runs import NORMS, Run, read_table
from jaxscape.types import Ignore, Params

ALL = "all"
"""The name of all leaves together."""


@checked
def weight_histogram(params: Params, *, bins: int | Sequence[float] = 201, ignore: Ignore = "bias_norm") -> xr.Dataset:
    """Histograms of the weights, of each leaf and of all (paper figure 2 c and f); `plot.weight_histogram` draws them.

    >>> import jax.numpy as jnp
    >>> result = weight_histogram({"w": jnp.array([[-1.0, 0.0], [0.1, 1.0]])}, bins=[-1, -0.5, 0.5, 1])
    >>> result["count"].sel(leaf="all").values.tolist(), result.weight.values.tolist()
    ([1, 2, 1], [-0.75, 0.0, 0.75])

    Args:
        params: Any pytree of floating arrays.
        bins: How many bins, from minus to plus the largest magnitude; or their edges, ascending. Pass the same edges
            for results that are subtracted.
        ignore: Which leaves are left out: ``"bias_norm"``, biases and normalization parameters; None, none; or a
            predicate on (path, leaf).

    Returns:
        A Dataset over ``leaf``, the path of each leaf after ``"all"``, and ``weight``, the middles of the bins:
        ``count``, how many weights are in each bin; ``left`` and ``right``, its edges; over ``leaf``: ``size``,
        ``norm``, ``outside``, how many weights are beyond the edges, and ``nonfinite``, how many are NaN or infinite.

    Raises:
        ValueError: ``bins`` is not positive, has less than two edges, or they do not ascend; every leaf is ignored; or
            params is empty.
        TypeError: A leaf of params is not floating.
    """
    params = checks.as_params(params)
    reasons = reasons_to_ignore(params, ignore)
    leaves = {
        name: np.asarray(leaf, np.float64).ravel()
        for name, leaf, reason in zip(trees.leaf_names(params), jax.tree.leaves(params), reasons, strict=True)
        if reason is None
    }
    if not leaves:
        raise ValueError(f"ignore is {ignore!r}, which leaves no leaf of params; expected at least one.")
    leaves = {ALL: np.concatenate(list(leaves.values())), **leaves}
    edges = _edges(bins, leaves[ALL])
    finite = {name: values[np.isfinite(values)] for name, values in leaves.items()}
    counts = np.stack([np.histogram(values, edges)[0] for values in finite.values()])
    sizes = np.array([values.size for values in leaves.values()])
    nonfinite = sizes - [values.size for values in finite.values()]
    return xr.Dataset(
        {
            "count": (("leaf", "weight"), counts),
            "left": ("weight", edges[:-1]),
            "right": ("weight", edges[1:]),
            "size": ("leaf", sizes),
            "norm": ("leaf", [float(np.linalg.norm(values)) for values in leaves.values()]),
            "outside": ("leaf", sizes - nonfinite - counts.sum(1)),
            "nonfinite": ("leaf", nonfinite),
        },
        {"leaf": list(leaves), "weight": (edges[:-1] + edges[1:]) / 2},
    )


def _edges(bins: int | Sequence[float], weights: np.ndarray) -> np.ndarray:
    if isinstance(bins, int | np.integer):
        checks.check_count(bins, "bins")
        finite = np.abs(weights[np.isfinite(weights)])
        largest = float(finite.max(initial=0)) or 1.0
        return np.linspace(-largest, largest, int(bins) + 1)
    try:
        edges = np.asarray(bins, np.float64)
    except (TypeError, ValueError):
        edges = np.zeros(0)
    if edges.ndim != 1 or len(edges) < 2 or not (np.diff(edges) > 0).all():
        raise ValueError(f"bins is {bins!r}, expected a number of bins, or at least two ascending edges.")
    return edges


@checked
def weight_norms(source: Run | Sequence[Params]) -> xr.Dataset:
    """The Euclidean norms of the weights during a training (paper figures 2 and 10); `plot.weight_norms` draws them.

    >>> import jax.numpy as jnp
    >>> result = weight_norms([{"w": jnp.array([3.0, 4.0])}, {"w": jnp.array([0.0, 1.0])}])
    >>> result.norm.sel(leaf="all").values.tolist()
    [5.0, 1.0]

    Args:
        source: A run of `load_run`, whose table ``weight_norms.csv`` is read; or checkpoints of any training, params of
            one structure.

    Returns:
        A Dataset with ``norm`` over ``epoch`` and ``leaf``, the path of each leaf after ``"all"``; of a run with the
        coordinate ``iteration``, steps of the optimizer, over ``epoch``. Of checkpoints ``epoch`` is their number.

    Raises:
        ValueError: The run has no norms, there is no checkpoint, or the leaves of the checkpoints differ.
        TypeError: ``source`` is neither, or a leaf is not floating.
    """
    if isinstance(source, Run):
        rows = read_table(source.path / NORMS)
        if not rows:
            raise ValueError(f"{source.path} has no {NORMS}; expected a run of train.py, or pass its checkpoints.")
        names = [name for name in rows[0] if name != "epoch"]
        result = _norms([[row[name] for name in names] for row in rows], names, [row["epoch"] for row in rows])
        steps = -(-len(source.data.labels) // source.config.get("batch_size", len(source.data.labels)))
        return result.assign_coords(iteration=("epoch", steps * result.epoch.values))
    if isinstance(source, str | bytes) or not isinstance(source, Sequence):
        raise TypeError(f"source is {type(source).__name__}, expected a run of js.load_run, or a list of params.")
    if not source:
        raise ValueError("source is empty, expected at least one checkpoint.")
    first = checks.as_params(source[0], "source[0]")
    table = []
    for i, params in enumerate(source):
        leaves = jax.tree.leaves(checks.like(first, params, f"source[{i}]"))
        norms = [float(trees.norm(leaf)) for leaf in leaves]
        table.append([float(np.linalg.norm(norms)), *norms])
    return _norms(table, [ALL, *trees.leaf_names(first)], range(len(table)))


def _norms(table: Any, names: Sequence[str], epochs: Any) -> xr.Dataset:
    return xr.Dataset({"norm": (("epoch", "leaf"), table)}, {"epoch": list(epochs), "leaf": list(names)})
