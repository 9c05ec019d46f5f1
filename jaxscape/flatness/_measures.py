"""The measures of a point, each with its definition and source."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy
from jaxtyping import Array

from jaxscape import trees
from jaxscape.engine import evaluate
from jaxscape.flatness._ascent import Region, largest_loss
from jaxscape.flatness._batches import rise_of_batches
from jaxscape.flatness._notes import joined, not_finite, rounded
from jaxscape.flatness._problem import Problem
from jaxscape.linalg import Operator
from jaxscape.normalize import filters_of_leaves, reasons_to_ignore
from jaxscape.objective import Objective
from jaxscape.types import Data, LossFn, Params


class Row(NamedTuple):
    """What a measure gives.

    Attributes:
        value: Its value; NaN where it has none.
        stderr: Its standard error; NaN where nothing in it is random.
        note: What a reader must know to trust it.
    """

    value: float
    stderr: float = math.nan
    note: str = ""


class Measure(NamedTuple):
    """How a measure is computed.

    Attributes:
        run: It computes it.
        definition: The formula.
        source: Where it is from.
        options: The options of the call that it depends on.
        needs: ``"examples"``, the loss of each example; ``"one term"``; ``"preconditioner"``; or nothing.
    """

    run: Callable[[Problem], Row]
    definition: str
    source: str
    options: tuple[str, ...] = ()
    needs: str = ""


def _keskar(problem: Problem) -> Row:
    extent = problem.options.epsilon * (jnp.abs(problem.weights) + 1)
    largest, note = _largest(problem, extent, Region(box=True))
    center = problem.center[0]
    if not center > -1:
        note = joined(note, f"1 + L(w) is {1 + center:.3g}, not positive")
    return Row(100 * (largest - center) / (1 + center) if center != -1 else math.nan, note=note)


def _worst_case_adaptive(problem: Problem) -> Row:
    largest, note = _largest(problem, problem.options.rho * jnp.abs(problem.weights), Region(box=False))
    return Row(largest - problem.center[0], note=note)


def _largest(problem: Problem, extent: Array, region: Region) -> tuple[float, str]:
    """The largest loss at ``params + extent * u`` for u in the region."""

    def in_units(loss: float, gradient: Array) -> tuple[Array, Array]:
        return jnp.asarray(loss, extent.dtype), gradient * extent

    start = region.random(problem.key, extent.shape, extent.dtype)
    num_steps = problem.options.num_steps
    loss, nonfinite = largest_loss(
        lambda u: in_units(*problem.at(extent * u)), in_units(*problem.center), start, region, num_steps
    )
    largest, center = float(loss), problem.center[0]
    return largest, joined(
        not_finite(nonfinite, num_steps, "points of the ascent"), rounded(largest - center, center, extent.dtype)
    )


def _m_sharpness(problem: Problem) -> Row:
    rises, losses, nonfinite = rise_of_batches(problem)
    mean = _mean(rises, f"{nonfinite} points of the ascents are not finite" if nonfinite else "")
    return mean._replace(note=joined(mean.note, rounded(mean.value, float(np.mean(losses)), problem.weights.dtype)))


def _average_case_adaptive(problem: Problem) -> Row:
    rho = problem.options.rho
    center, losses = _sampled(
        problem, jax.tree.map(lambda x: rho * jnp.abs(x.astype(trees.working_dtype(x))), problem.params)
    )
    mean = _mean(losses - center)
    return mean._replace(note=joined(mean.note, rounded(mean.value, center, problem.weights.dtype)))


def _low_pass(problem: Problem) -> Row:
    sigma = problem.options.sigma
    scale = jax.tree.map(lambda x: jnp.full(x.shape, sigma, trees.working_dtype(x)), problem.params)
    return _mean(_sampled(problem, scale)[1])


def _sampled(problem: Problem, scale: Params) -> tuple[float, np.ndarray]:
    losses = np.concatenate(list(problem.losses_at_random(scale)))
    return losses[0], losses[1:]


def _mean(values: np.ndarray, note: str = "") -> Row:
    """The mean of a sample, of which every value counts: one that is not finite makes the mean so."""
    note = note or not_finite(int(np.sum(~np.isfinite(values))), len(values), "losses")
    with np.errstate(invalid="ignore"):
        stderr = np.std(values, ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return Row(float(np.mean(values)), float(stderr), note)


def _lambda_max(problem: Problem) -> Row:
    return _largest_eigenvalue(problem.hessian, problem)


def _preconditioned_lambda_max(problem: Problem) -> Row:
    scale = jax.tree.map(lambda x: 1 / jnp.sqrt(x.astype(trees.working_dtype(x))), problem.options.preconditioner)
    like = problem.subspace.embed(problem.weights)
    times = jax.jit(lambda a, b: jax.tree.map(lambda x, y: x * y.astype(x.dtype), a, b))
    return _largest_eigenvalue(Operator.of(lambda v: times(problem.hessian(times(v, scale)), scale), like), problem)


def _largest_eigenvalue(operator: Operator, problem: Problem) -> Row:
    pair = operator.top_eigenpairs(1, "LA", key=problem.key, progress=False)
    note = "" if pair.converged[0] else f"not converged, the residual is {float(pair.residuals[0]):.1e}"
    return Row(float(pair.eigenvalues[0]), note=note)


def _trace(problem: Problem) -> Row:
    estimate = problem.hessian.trace(num_matvecs=max(problem.options.num_samples, 6), key=problem.key, progress=False)
    return Row(float(estimate.trace), float(estimate.stderr))


def _critical(problem: Problem) -> Row:
    center, gradient = problem.center
    update = problem.options.update
    along = -gradient if update is None else problem.subspace.extract(update)  # what is ignored is not displaced
    direction = problem.subspace.embed(along)
    slope = _slope(gradient, along)
    if not slope < 0:
        return Row(math.nan, note="the loss does not fall along the update")

    def rise(step: float) -> float:
        here, there = problem.losses_along(direction, np.array([0.0, step]))
        return there - here if np.isfinite(there) else abs(here) + 1  # what overflows has risen

    step = (abs(center) or 1.0) / -slope  # it would reach zero if the loss fell on as it does here
    rises = rise(step) > 0
    for _ in range(60):
        other = step / 2 if rises else step * 2
        if (rise(other) > 0) != rises:
            low, high = sorted((step, other))
            root = float(scipy.optimize.brentq(rise, low, high, rtol=1e-4))
            return Row(2 / root, note=rounded(slope * root / 4, center, gradient.dtype))  # the depth of a parabola
        step = other
    return Row(math.nan, note="the loss falls at no step") if rises else Row(0.0, note="the loss rises at no step")


def _slope(a: Array, b: Array) -> float:
    """The inner product, where float32 cannot hold the products of entries."""
    scales = [float(jnp.max(jnp.abs(x), initial=0)) or 1.0 for x in (a, b)]
    return float(jnp.vdot(a / scales[0], b / scales[1])) * scales[0] * scales[1]


def _relative_flatness(problem: Problem) -> Row:
    names = trees.leaf_names(problem.params)
    filters = filters_of_leaves(problem.params, problem.options.filter_axis)
    reasons = reasons_to_ignore(problem.params, "bias_norm")
    axes = [
        part.axes if free and reason is None and leaf.ndim > 1 and problem.options.layer in (None, name) else None
        for name, part, reason, free, leaf in zip(
            names, filters, reasons, problem.subspace.free, jax.tree.leaves(problem.params), strict=True
        )
    ]
    if not any(own is not None for own in axes):
        return Row(math.nan, note="no leaf is a kernel that is displaced")
    draw = jax.jit(lambda key: _neuron_vector(key, problem.params, axes))
    samples = []
    for i in range(problem.options.num_samples):
        v = draw(jax.random.fold_in(problem.key, i))
        samples.append(float(trees.dot(v, problem.hessian(v))))
    return _mean(np.array(samples))


def _neuron_vector(key: Any, params: Params, axes: Iterable[tuple[int, ...] | None]) -> Params:
    """``(W g) z^T`` of each kernel W, a row for each neuron, with g and z random signs."""
    leaves = []  # the quadratic form with H has the mean sum_ss' <w_s, w_s'> Tr H_ss', as E g g^T = E z z^T = 1
    for i, (w, own) in enumerate(zip(jax.tree.leaves(params), axes, strict=True)):
        w = w.astype(trees.working_dtype(w))
        if own is None:
            leaves.append(jnp.zeros_like(w))
            continue
        inputs = tuple(axis for axis in range(w.ndim) if axis not in own)
        shape = [1 if axis in own else size for axis, size in enumerate(w.shape)]
        g, z = jax.random.rademacher(jax.random.fold_in(key, i), (2, *shape), w.dtype)
        leaves.append(jnp.sum(w * g, axis=inputs, keepdims=True) * z)
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


def _fisher_rao(problem: Problem) -> Row:
    weights = problem.subspace.embed(problem.weights)
    squared = _squared_derivative(problem.loss_fn, weights)
    objective = Objective.of(squared, problem.params, problem.data, compute_dtype="float32", check=False)
    basis = jax.tree.map(lambda x: jnp.zeros((1, *x.shape), x.dtype), weights)
    load = (problem.options.batch_size, None)
    result = evaluate(
        objective, problem.params, basis, np.zeros((1, 1)), load=load, mesh=problem.options.mesh, progress=False
    ).metrics["loss"]
    return Row(float(result.mean[0]), float(result.stderr[0]) if result.stderr is not None else math.nan)


def _squared_derivative(loss_fn: LossFn, along: Params) -> LossFn:
    """The square of the derivative of each example's loss along a vector."""

    def squared(params: Params, batch: Data) -> Any:
        along_params = jax.tree.map(lambda x, p: x.astype(p.dtype), along, params)
        metrics, tangents = jax.jvp(lambda p: loss_fn(p, batch), (params,), (along_params,))
        if not isinstance(metrics, Mapping):
            return square(tangents)
        return {"loss": square(tangents["loss"]), **({"weight": metrics["weight"]} if "weight" in metrics else {})}

    def square(x: Array) -> Array:
        return x.astype(trees.working_dtype(x)) ** 2

    return squared


MEASURES = {
    "keskar": Measure(
        _keskar,
        "100 (max L(w + d) - L(w)) / (1 + L(w)), the maximum over abs(d_i) <= epsilon (abs(w_i) + 1); a lower bound",
        "Keskar et al. 2017, metric 2.1, by projected gradient ascent",
        ("epsilon", "num_steps"),
    ),
    "worst_case_adaptive": Measure(
        _worst_case_adaptive,
        "max L(w + d) - L(w) over norm(d / abs(w)) <= rho, Euclidean norm; a lower bound",
        "Kwon et al. 2021, equation 3; Andriushchenko et al. 2023, section 2",
        ("rho", "num_steps"),
    ),
    "average_case_adaptive": Measure(
        _average_case_adaptive,
        "E L(w + rho abs(w) x) - L(w), x standard normal",
        "Andriushchenko et al. 2023, section 2",
        ("rho", "num_samples"),
    ),
    "m_sharpness": Measure(
        _m_sharpness,
        "the mean over batches of m examples of max L_B(w + d) - L_B(w) over norm(d) <= rho; a lower bound",
        "Foret et al. 2021, section 4.2",
        ("rho", "m", "num_samples", "num_steps"),
        "one term",
    ),
    "lambda_max": Measure(_lambda_max, "the largest eigenvalue of the Hessian H", "Lanczos; Ghorbani et al. 2019"),
    "trace": Measure(_trace, "Tr H", "Hutch++, Meyer et al. 2021", ("num_samples",)),
    "preconditioned_lambda_max": Measure(
        _preconditioned_lambda_max,
        "the largest eigenvalue of P^-1 H, P the preconditioner",
        "Cohen et al. 2024",
        (),
        "preconditioner",
    ),
    "critical": Measure(
        _critical,
        "2 / s, s > 0 the smallest step found with L(w + s u) > L(w), u the update, by default minus the gradient",
        "Kalra et al. 2026 (arXiv 2601.16979)",
    ),
    "relative_flatness": Measure(
        _relative_flatness,
        "sum over neurons s, s' of <w_s, w_s'> Tr H_ss', of one layer, or summed over the kernels",
        "Petzka et al. 2021, definition 3",
        ("layer", "num_samples"),
    ),
    "fisher_rao": Measure(
        _fisher_rao,
        "the mean over examples of <w, grad L_i(w)>^2",
        "Liang et al. 2019, definition 2, with the labels of the data",
        (),
        "examples",
    ),
    "low_pass": Measure(
        _low_pass,
        "E L(w + sigma x), x standard normal: a loss, not a difference",
        "Bisla et al. 2022, equation 2",
        ("sigma", "num_samples"),
    ),
}
