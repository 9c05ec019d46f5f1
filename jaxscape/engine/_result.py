"""What an evaluation gives."""

from typing import NamedTuple

import numpy as np

from jaxscape.engine._program import Load


class Estimate(NamedTuple):
    """One metric at many points.

    Attributes:
        mean: Mean over the examples, shape ``(points,)``, float64.
        stderr: Its standard error; None if loss_fn gives batch means only.
    """

    mean: np.ndarray
    stderr: np.ndarray | None


class Evaluation(NamedTuple):
    """All metrics at many points.

    Attributes:
        metrics: An `Estimate` by name.
        num_examples: How many examples were evaluated at each point, shape ``(points,)``.
        load: How many examples and points went side by side in the end.
    """

    metrics: dict[str, Estimate]
    num_examples: np.ndarray
    load: Load
