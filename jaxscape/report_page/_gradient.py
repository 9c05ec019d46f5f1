"""The gradient at the center, and whether the loss depends on its batch: what a page computes itself."""

from typing import NamedTuple

import jax
import numpy as np

from jaxscape import checks
from jaxscape.curvature import loss_and_gradient, one_mesh
from jaxscape.objective import Objective
from jaxscape.report_page._content import Problem
from jaxscape.subspace import Subspace


class Slope(NamedTuple):
    """What is measured at the center.

    Attributes:
        loss: The mean loss over all of the data; NaN where it is no mean.
        norm: The norm of its gradient in all leaves; NaN where the loss is no mean.
        is_mean: Whether the loss is a mean over the examples, which does not depend on the batches.
        statistics: How many running statistics of batch norm the loss keeps fixed; None: it does not say.
    """

    loss: float
    norm: float
    is_mean: bool
    statistics: int | None


def slope_at(problem: Problem) -> Slope:
    """Measure the gradient, by one pass over the data.

    Args:
        problem: Params, loss_fn and data.

    Returns:
        The measurement.

    Raises:
        ValueError: Params, loss_fn or data are wrong, as `jaxscape.hvp` says.
        TypeError: They are of another type.
    """
    params = checks.as_params(problem.params)
    objective = Objective.of(problem.loss_fn, params, problem.data)
    subspace = Subspace.of(params, None)
    fixed = getattr(problem.loss_fn, "running_statistics", None)
    statistics = None if fixed is None else len(fixed)
    try:
        for term in objective.terms:
            term.check.verdict()
    except ValueError:  # what is wrong otherwise was raised when the loss was traced
        return Slope(np.nan, np.nan, False, statistics)
    loss, gradient = loss_and_gradient(objective, params, subspace, None, one_mesh(None))(params)
    norm = float(np.linalg.norm(np.asarray(jax.device_get(gradient), np.float64)))
    return Slope(loss, norm, True, statistics)
