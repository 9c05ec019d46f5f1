"""What an evaluation gives."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxscape.engine._program import Load


class Estimate(NamedTuple):
    """One metric at many points.

    Attributes:
        mean: Mean over the examples, shape ``(points,)``, float64.
        stderr: Its standard error; None if the loss gives batch means only.
    """

    mean: np.ndarray
    stderr: np.ndarray | None


class Evaluation(NamedTuple):
    """All metrics at many points.

    Attributes:
        metrics: An `Estimate` by name.
        num_examples: How many examples were evaluated at each point, shape ``(points,)``.
        loads: For each term by name, how many examples and points went side by side in the end.
    """

    metrics: dict[str, Estimate]
    num_examples: np.ndarray
    loads: dict[str, Load]


def add_terms(evaluations: Mapping[str, Evaluation]) -> Evaluation:
    """The sum of several terms: ``loss``, and each metric of a term as ``metric_term``.

    The terms are means over data of their own, so the variances of their losses add up.

    Args:
        evaluations: By the names of the terms; one with the name ``""`` is alone, and given back.

    Returns:
        The evaluation of the sum.
    """
    if "" in evaluations:
        return evaluations[""]
    losses = [each.metrics["loss"] for each in evaluations.values() if "loss" in each.metrics]
    metrics = {"loss": _sum(losses)} if len(losses) == len(evaluations) else {}
    for term, evaluation in evaluations.items():
        metrics |= {f"{name}_{term}": estimate for name, estimate in evaluation.metrics.items()}
    examples = np.sum([evaluation.num_examples for evaluation in evaluations.values()], axis=0)
    loads = {term: evaluation.loads[term] for term, evaluation in evaluations.items()}
    return Evaluation(metrics, examples, loads)


def _sum(losses: Sequence[Estimate]) -> Estimate:
    errors = [loss.stderr for loss in losses if loss.stderr is not None]
    with np.errstate(all="ignore"):  # infinite losses of opposite signs
        mean = np.sum([loss.mean for loss in losses], axis=0)
        stderr = np.sqrt(np.sum(np.square(errors), axis=0)) if len(errors) == len(losses) else None
    return Estimate(mean, stderr)
