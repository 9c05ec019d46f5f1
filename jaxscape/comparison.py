"""The same minimizers under several normalizations of the directions, on one scale (paper figures 3, 11, 12 and 13)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import xarray as xr

from jaxscape import checks, trees
from jaxscape.arguments import checked
from jaxscape.directions import Directions, random_directions
from jaxscape.grid import Grid
from jaxscape.normalize import check_norm
from jaxscape.surfaces import surface
from jaxscape.types import Data, FilterAxis, Ignore, LossFn, Norm, Params

_COMMON = ("seed", "ignore", "filter_axis", "direction_key", "jax_version", "jaxscape_version", "platform")


@checked
def normalizations(
    minimizers: Mapping[str, Params],
    loss_fn: LossFn | Mapping[str, LossFn],
    data: Data,
    *,
    norms: Sequence[Norm | None] = (None, "layer", "filter"),
    grid: Grid | None = None,
    ignore: Ignore = "bias_norm",
    filter_axis: FilterAxis = None,
    seed: int = 0,
    store: str | Path | None = None,
    **options: Any,
) -> xr.Dataset:
    """The loss around several minimizers, along the same random directions under several normalizations.

    It shows what the normalization does to a comparison: without one, minimizers with larger weights look flatter,
    whatever their function is (paper section 4). All pictures have the same entries of noise, those of ``seed``.

    Directions without normalization are scaled by one factor for all minimizers: their mean length, over the
    minimizers, is that of the filter-normalized ones. So a coordinate means a displacement of the same length for all
    minimizers there, and one relative to the weights elsewhere.

    >>> import jax.numpy as jnp
    >>> def loss(p, x):
    ...     return x * ((p["w1"] @ p["w2"] - 1) ** 2).sum()
    >>> a = {"w1": jnp.ones((2, 3)) / 3, "w2": jnp.ones((3, 2))}
    >>> b = {"w1": a["w1"] / 9, "w2": 9 * a["w2"]}  # the same function
    >>> result = normalizations({"a": a, "b": b}, loss, jnp.ones(4), grid=Grid.line(-1, 1, 5), progress=False)
    >>> filtered, plain = (result.loss.sel(norm=norm) for norm in ("filter", "none"))
    >>> bool(abs(filtered[0] - filtered[1]).max() < 1e-5), bool(abs(plain[0] - plain[1]).max() < 1e-5)
    (True, False)

    Args:
        minimizers: Params by name, all with the same leaves: pytrees of floating arrays. Of runs pass
            ``run.variables``, so that each keeps its own running statistics.
        loss_fn: As in `surface`, for all of them.
        data: As in `surface`.
        norms: The normalizations, as in `random_directions`.
        grid: As in `surface`; by default 401 points of a line over [-1, 1].
        ignore: Which leaves are not perturbed, as in `random_directions`.
        filter_axis: Which axes index the filters, as in `random_directions`.
        seed: Of the directions.
        store: A folder where every finished block is kept, as in `surface`, in a folder for each picture.
        **options: Further options of `surface`, such as ``rtol`` and ``batch_size``.

    Returns:
        The variables of `surface` with the dimensions ``norm`` and ``minimizer`` before those of the grid; the
        normalization None is ``"none"``. ``nonfinite_points`` and ``center_loss`` are over the same two dimensions.
        `plot.compare` draws it: a line for each minimizer, or a surface for each minimizer in a row for each norm.

    Raises:
        ValueError: There is no minimizer or no norm, a norm is unknown or comes twice, or minimizers differ in their
            leaves; or as in `surface`.
        TypeError: ``minimizers`` is no mapping; an option is unknown; or as in `surface`.
    """
    if not isinstance(minimizers, Mapping):
        raise TypeError(f"minimizers is {type(minimizers).__name__}, expected a mapping from names to params.")
    if isinstance(norms, str) or not isinstance(norms, Sequence):
        raise TypeError(f"norms is {norms!r}, expected a list of norms, such as [None, 'layer', 'filter'].")
    if not minimizers or not norms:
        raise ValueError(f"{'norms' if minimizers else 'minimizers'} is empty, expected at least one.")
    for norm in norms:
        check_norm(norm, "an entry of norms")
    if len(set(norms)) < len(norms):
        raise ValueError(f"norms is {list(norms)}, expected each norm once.")
    checks.check_count(seed, "seed", 0)
    first = checks.as_params(next(iter(minimizers.values())), "minimizers")
    params = {str(name): checks.like(first, own, f"minimizers[{name!r}]") for name, own in minimizers.items()}
    if len(params) < len(minimizers):
        raise ValueError(f"minimizers has the names {list(minimizers)}, which are not all different as text.")
    for name, instead in (
        ("directions", "random ones of seed"),
        ("norm", "norms"),
        ("num_seeds", "a call for each seed"),
    ):
        if name in options:
            raise TypeError(f"{name} is no option of js.normalizations, expected {instead}.")
    grid = Grid.line(-1, 1, 401) if grid is None else grid
    if not isinstance(grid, Grid):
        raise TypeError(f"grid is {type(grid).__name__}, expected a js.Grid.")
    draw: dict[str, Any] = {"num": len(grid.shape), "ignore": ignore, "filter_axis": filter_axis}
    length = np.mean([_lengths(random_directions(seed, own, norm="filter", **draw)) for own in params.values()])
    rows = []
    for norm in norms:
        row = []
        for name, own in params.items():
            directions = random_directions(seed, own, norm=norm, **draw)
            if norm is None:
                directions = _scaled(directions, float(length / _lengths(directions).mean()))
            folder = None if store is None else Path(store) / f"{norm or 'none'}_{name}.zarr"
            row.append(surface(own, loss_fn, data, directions=directions, grid=grid, store=folder, **options))
        rows.append(xr.concat(row, dim=xr.Variable("minimizer", list(params)), combine_attrs="drop"))
        for attribute in ("center_loss", "nonfinite_points"):
            rows[-1][attribute] = ("minimizer", [result.attrs[attribute] for result in row])
    result = xr.concat(rows, dim=xr.Variable("norm", [norm or "none" for norm in norms]), combine_attrs="drop")
    attrs = {name: row[0].attrs[name] for name in _COMMON if name in row[0].attrs}
    return result.assign_attrs({**attrs, "seed": seed, "unnormalized_length": float(length)})


def _lengths(directions: Directions) -> np.ndarray:
    return np.array([float(trees.norm(direction)) for direction in directions])


def _scaled(directions: Directions, factor: float) -> Directions:
    basis = jax.tree.map(lambda x: x * np.asarray(factor, x.dtype), directions.basis)
    return Directions(basis, directions.rules, (*directions.recipe, ("scaled", f"{factor:.6g}")))
