"""Lines of the verdict that curvature, the gradient, and all results together answer."""

from collections.abc import Mapping

import numpy as np
import xarray as xr

from jaxscape.plot._field import missing_points, pick
from jaxscape.report_page._gradient import Slope
from jaxscape.report_page._line import Line, Question

GRADIENT = Question(
    "gradient",
    "Is the gradient at the center small?",
    "g is the norm of the gradient of the mean loss in all parameters. One step along it with the rate 1 / lambda_max "
    "lowers a quadratic loss by at least g^2 / (2 lambda_max): that, divided by the loss, is measured. Good: at most "
    "0.01.",
)
BENDS_DOWN = Question(
    "bends_down",
    "Does the loss bend down in some direction?",
    "-lambda_min / lambda_max of the full Hessian at the point of the map that is nearest to the center; 0 where "
    "lambda_min is positive. Good: at most 0.01, the tolerance of the eigenvalues.",
)
HIDDEN = Question(
    "hidden",
    "How much of the curvature does the plane show?",
    "plane_max_eigenvalue / max_eigenvalue, the largest curvature within the plane over that of all directions, at the "
    "point of the map that is nearest to the center. Good: at least 0.5. Random planes show an average of the "
    "eigenvalues (paper, section 6), so a small number is what to expect of them.",
)
CONVERGED = Question(
    "converged",
    "Did all eigenvalues converge?",
    "Points of the map whose residuals exceed the tolerance. Good: none.",
)
FINITE = Question(
    "finite",
    "Are all points finite?",
    "Points of all results whose loss, or eigenvalue, is NaN or infinite; those that are not computed yet are counted "
    "too. Good: none.",
)
BATCH = Question(
    "batch",
    "Is the loss free of the batch?",
    "Whether the loss of an example stays the same in batches of other sizes and examples: proven from what loss_fn "
    "computes, or tried on at most 128 examples. 1: it does. Good: 1.",
)


def curvature_lines(maps: Mapping[str, xr.Dataset], place: str) -> list[Line]:
    """The lines that a map of eigenvalues answers.

    Args:
        maps: Those of a run, by their names; the first is judged.
        place: What a command calls the run.

    Returns:
        A line for each question.
    """
    cure = f"jaxscape hessian {place}"
    if not maps:
        return [question.not_measured(cure) for question in (BENDS_DOWN, HIDDEN, CONVERGED)]
    result = next(iter(maps.values()))
    point = nearest(result)
    low, high = float(point.min_eigenvalue), float(point.max_eigenvalue)
    return [_bends_down(point, low, high), _hidden(point, high, cure), _converged(result)]


def nearest(result: xr.Dataset) -> xr.Dataset:
    """The point of a map that is nearest to the center."""
    first, second = (result[dim] ** 2 for dim in result.ratio.dims)
    return result.isel((first + second).argmin(...))


def _at(point: xr.Dataset) -> str:
    coords = [float(point[name]) for name in ("alpha", "beta") if name in point.coords]
    return "" if not any(coords) else f" at ({', '.join(f'{value:.3g}' for value in coords)})"


def _bends_down(point: xr.Dataset, low: float, high: float) -> Line:
    if not (np.isfinite([low, high]).all() and high > 0):
        return BENDS_DOWN.only_told(f"eigenvalues {low:.4g} to {high:.4g}{_at(point)}", None)
    ratio = max(0.0, -low / high)
    answer = f"eigenvalues {low:.4g} to {high:.4g}{_at(point)}"
    cure = "The center is a saddle, or training has not ended."
    return BENDS_DOWN.answered(answer, ratio, good=ratio <= 0.01, cure=cure)


def _hidden(point: xr.Dataset, high: float, cure: str) -> Line:
    if "plane_max_eigenvalue" not in point:
        return HIDDEN.not_measured(cure)
    within = float(point.plane_max_eigenvalue)
    if not (np.isfinite([within, high]).all() and high > 0):
        return HIDDEN.only_told(f"{within:.4g} in the plane, {high:.4g} in all directions{_at(point)}", None)
    ratio = within / high
    answer = f"{100 * ratio:.3g} %: {within:.4g} in the plane, {high:.4g} in all directions{_at(point)}"
    cure = "The plane of the top eigenvectors (js.top_eigenpairs) shows more."
    return HIDDEN.answered(answer, ratio, good=ratio >= 0.5, cure=cure)


def _converged(result: xr.Dataset) -> Line:
    if "converged" not in result:
        return CONVERGED.only_told("the map does not say", None)
    finite = np.isfinite(result.min_eigenvalue.values) & np.isfinite(result.max_eigenvalue.values)
    count = int((finite & (result.converged.values == 0)).sum())
    answer = f"{count} of {finite.size} points did not" if count else f"all {finite.size} points did"
    return CONVERGED.answered(answer, count, good=count == 0, cure="A larger --max-matvecs or --tol lets them.")


def finite_line(results: Mapping[str, xr.Dataset], place: str) -> Line:
    """How many points of all results are not finite or not there.

    Args:
        results: Those of a run, by their names.
        place: What a command calls the run.

    Returns:
        The line.
    """
    total = bad = missing = 0
    for result in results.values():
        name = next((name for name in ("loss", "min_eigenvalue") if name in result), None)
        if name is not None:
            array = pick(result, name)
            there = ~missing_points(result, array)
            total, missing = total + array.size, missing + int((~there).sum())
            bad += int((there & ~np.isfinite(array.values)).sum())
    if not total:
        return FINITE.not_measured(f"jaxscape surface {place}")
    answer = f"{bad} of {total} points are not" if bad else f"all {total - missing} points are"
    answer += f"; {missing} are not computed yet" if missing else ""
    return FINITE.answered(
        answer,
        bad + missing,
        good=bad + missing == 0,
        cure="A smaller --range helps; a stopped call goes on where it is called again.",
    )


def slope_lines(slope: Slope | None, lambda_max: float | None, place: str) -> list[Line]:
    """The lines that the gradient and the check of the loss answer.

    Args:
        slope: What was measured at the center; None: nothing was.
        lambda_max: The largest eigenvalue of the Hessian at the center; None: it is not measured.
        place: The folder of the run; empty: the results are in memory.

    Returns:
        A line for each question.
    """
    if slope is None:
        cure = f"jaxscape report {place} --gradient" if place else "Give params, loss_fn and data to js.report."
        return [question.not_measured(cure) for question in (GRADIENT, BATCH)]
    return [_gradient(slope, lambda_max, place or "RUN"), _batch(slope)]


def _gradient(slope: Slope, lambda_max: float | None, place: str) -> Line:
    if not slope.is_mean:
        return GRADIENT.only_told("no number: the loss depends on the batch", None)
    norm = f"norm {slope.norm:.4g}, at the loss {slope.loss:.4g}"
    if not np.isfinite(slope.norm):
        return GRADIENT.answered(norm, slope.norm, good=False)
    if slope.norm == 0:
        return GRADIENT.answered(norm, 0.0, good=True)
    if lambda_max is None:
        return GRADIENT.only_told(f"{norm}; lambda_max is not measured", None, f"jaxscape hessian {place}")
    if not (np.isfinite(lambda_max) and lambda_max > 0 and slope.loss > 0):
        return GRADIENT.only_told(f"{norm}; lambda_max {lambda_max:.4g} gives no step", None)
    share = slope.norm**2 / (2 * lambda_max) / slope.loss
    answer = f"{norm}; a step along it can lower the loss by {100 * share:.3g} %"
    return GRADIENT.answered(
        answer, share, good=share <= 0.01, cure="The center is no minimum: training has not ended."
    )


def _batch(slope: Slope) -> Line:
    fixed = f"; {slope.statistics} running statistics stay fixed" if slope.statistics else ""
    answer = f"yes, a mean over the examples{fixed}" if slope.is_mean else f"no, it changes with the batch{fixed}"
    cure = "Use the network in evaluation mode: no dropout, batch norm with running statistics."
    return BATCH.answered(answer, float(slope.is_mean), good=slope.is_mean, cure=cure)
