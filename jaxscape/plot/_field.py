"""The values and coordinates that a picture of a result shows, and the labels of its axes."""

from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from jaxscape.levels import FRACTIONS

# Variables of an eigenvalue map, which may not have converged; the signed ratio is negative where the Hessian is
# indefinite.
SIGNED = "signed_ratio"
_EIGENVALUES = ("min_eigenvalue", "max_eigenvalue", "ratio", SIGNED)
_LABELS = {
    "min_eigenvalue": r"$\lambda_{\min}$",
    "max_eigenvalue": r"$\lambda_{\max}$",
    "ratio": r"$|\lambda_{\min} / \lambda_{\max}|$",
    SIGNED: r"$\lambda_{\min} / \lambda_{\max}$",
}
_GREEK = {"alpha": r"$\alpha$", "beta": r"$\beta$"}
_RANK = {"alpha": 0, "beta": 1}  # the axes of a volume follow: axis2, axis3, ...


class Field(NamedTuple):
    """A 2-D result in the form that matplotlib expects: rows run over y, columns over x, both ascending.

    Attributes:
        x: Coordinates of the columns.
        y: Coordinates of the rows.
        z: Values, shape ``(len(y), len(x))``, NaN where the result is not finite.
        labels: The labels of x, y and z.
        title: The title of the picture, or empty.
        metric: The name of the variable that the values belong to.
        unconverged: A mask like z, true where the values are eigenvalues that did not reach the tolerance.
        missing: A mask like z, true where the result, read from an incomplete store, has no value yet.
        interpolated: A mask like z, true where an adaptive grid has no evaluated point.
    """

    x: np.ndarray
    y: np.ndarray
    z: np.ndarray
    labels: tuple[str, str, str]
    title: str
    metric: str
    unconverged: np.ndarray
    missing: np.ndarray
    interpolated: np.ndarray

    @property
    def bad(self) -> np.ndarray:
        """A mask, true where z is not finite."""
        return ~np.isfinite(self.z)

    @property
    def nonfinite(self) -> np.ndarray:
        """A mask, true where z was computed and is not finite."""
        return self.bad & ~self.missing


def field(result: xr.Dataset, metric: str) -> Field:
    """Take one metric of a result over a plane.

    Args:
        result: A surface.
        metric: One of its variables.

    Returns:
        The field to draw.

    Raises:
        ValueError: The result is not 2-D, is too small, or does not have the metric.
    """
    array = pick(result, metric)
    if array.ndim == 1:
        raise ValueError(
            f"result has the dimension {array.dims[0]!r} only, expected two; draw it with js.plot.line(result)."
        )
    if array.ndim > 2:
        slices = ", ".join(f"{dim}=0" for dim in array.dims[2:])
        raise ValueError(
            f"result has the dimensions {array.dims}, expected two; draw a slice, e.g. result.isel({slices})."
        )
    if min(array.shape) < 2:
        raise ValueError(
            f"result has {array.shape[0]} x {array.shape[1]} points, expected at least 2 x 2 to draw a surface."
        )
    dim_x, dim_y = array.dims
    z = np.where(np.isfinite(array.values), array.values, np.nan).T  # result[i, j] is at x = alpha[i], y = beta[j]
    labels = (axis_label(result, dim_x), axis_label(result, dim_y), metric_label(metric))
    unconverged = np.zeros(z.shape, bool)
    if metric in _EIGENVALUES and "converged" in result:
        unconverged = np.isfinite(z) & (pick(result, "converged").values.T == 0)
    title = str(result.attrs.get("title", ""))
    missing = missing_points(result, array).T
    interpolated = np.zeros(z.shape, bool)
    if "evaluated" in result and set(result.evaluated.dims) == set(array.dims):
        interpolated = (pick(result, "evaluated").values.T == 0) & ~missing
    x, y = (array[dim].values for dim in array.dims)
    return Field(x, y, z, labels, title, metric, unconverged, missing, interpolated)


def missing_points(result: xr.Dataset, array: xr.DataArray) -> np.ndarray:
    """Where an incomplete result has no value yet: a mask like an array that `pick` gave."""
    if "done" not in result or set(result.done.dims) != set(array.dims):
        return np.zeros(array.shape, bool)
    return (pick(result, "done").values == 0) & np.isnan(array.values)  # in a row that is not done some may be there


def pick(result: xr.Dataset, metric: str) -> xr.DataArray:
    """Take one variable, in the units of the picture, with dimensions in canonical order and ascending coordinates.

    Args:
        result: A result over any number of dimensions.
        metric: One of its variables.

    Returns:
        The variable.

    Raises:
        ValueError: The result does not have the variable, or the variable has no dimension.
        TypeError: The result is no Dataset.
    """
    if not isinstance(result, xr.Dataset):
        raise TypeError(
            f"result is {type(result).__name__}, expected the whole Dataset of a call, and metric= for the variable."
        )
    if metric not in result.data_vars:
        raise ValueError(
            f"metric is {metric!r}, expected one of the result's variables {sorted(map(str, result.data_vars))}."
        )
    array = result[metric].astype(float)
    if not array.ndim:
        raise ValueError(f"result has no dimension left in {metric!r}; expected a line or a surface.")
    array = array.transpose(*sorted(array.dims, key=lambda dim: _RANK.get(str(dim), 2))).sortby(list(array.dims))
    return 100 * array if metric in FRACTIONS else array


def axis_label(result: xr.Dataset, dim: Any) -> str:
    """The label of one dimension: its symbol, and the kind of its direction if the result's attrs name it."""
    symbol = _GREEK.get(dim, str(dim))
    kind = result.attrs.get("directions", "")
    if kind == "PCA" and "explained_variance_ratio" in result and dim in _RANK:
        share = float(result.explained_variance_ratio[_RANK[dim]])
        return f"{('1st', '2nd')[_RANK[dim]]} PC component: {100 * share:.1f} %"  # the paper's label
    if "axis_labels" in result.attrs and dim in _RANK:
        return str(result.attrs["axis_labels"]).split(" | ")[_RANK[dim]]
    if kind != "random":
        return f"{symbol} ({kind})" if kind else symbol
    norm = str(result.attrs.get("norm", "None"))
    which = _RANK[dim] + 1 if dim in _RANK else int(str(dim).removeprefix("axis")) + 1
    return f"{symbol} (random direction {which}{'' if norm == 'None' else f', {norm}-normalized'})"


def metric_label(metric: str) -> str:
    """The metric with its unit."""
    return f"{metric} (%)" if metric in FRACTIONS else _LABELS.get(metric, metric.replace("_", " "))
