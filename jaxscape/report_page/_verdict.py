"""The verdict on a run: what its results say about themselves."""

from jaxscape.report_page._content import Content
from jaxscape.report_page._gradient import Slope
from jaxscape.report_page._line import Line
from jaxscape.report_page._other_lines import curvature_lines, finite_line, nearest, slope_lines
from jaxscape.report_page._plane_lines import plane_lines


def verdict(content: Content, clip: float | None, slope: Slope | None) -> list[Line]:
    """Answer every question about a run; a number that no result has is not measured.

    Args:
        content: The results.
        clip: The largest height of the pictures; None: no limit.
        slope: What was measured at the center; None: nothing was.

    Returns:
        The lines, in the order of the page.
    """
    maps, place = content.of("hessian"), content.place or "RUN"
    lowest, level, span, border, clipped, errors, seeds = plane_lines(content.of("surface"), clip, place)
    gradient, batch = slope_lines(slope, _lambda_max(content), content.place)
    bends_down, hidden, converged = curvature_lines(maps, place)
    finite = finite_line(content.results, place)
    center = [lowest, level, gradient, bends_down]
    return [*center, span, border, clipped, seeds, errors, batch, hidden, finite, converged]


def _lambda_max(content: Content) -> float | None:
    """The largest eigenvalue at the center, of a map or of the measures of sharpness."""
    for result in content.of("hessian").values():
        return float(nearest(result).max_eigenvalue)
    if content.sharpness is not None and "lambda_max" in content.sharpness.index:
        return float(content.sharpness.value["lambda_max"])
    return None
