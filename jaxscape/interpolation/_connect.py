"""Curves of low loss between two minimizers, trained with any optimizer of optax (Garipov et al. 2018)."""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from tqdm.auto import tqdm

from jaxscape import checks, trees
from jaxscape.arguments import blamed, checked
from jaxscape.convolution import compiler_options, fast_convolutions
from jaxscape.interpolation._curve import Curve, Kind, check_kind, corner_weights
from jaxscape.interpolation._statistics import each_term, policy_of, statistics_function, with_statistics_of
from jaxscape.objective import Objective, refuse_inside_transform, refuse_stream, rows_of, trace
from jaxscape.types import Data, LossFn, Params


@checked
def connect(
    params_a: Params,
    params_b: Params,
    loss_fn: LossFn | Mapping[str, LossFn],
    data: Data,
    optimizer: Any,
    *,
    kind: Kind = "bezier",
    num_steps: int = 1000,
    batch_size: int = 128,
    statistics: Literal["interpolate", "reestimate"] | Callable[[Params, Data], Params] = "interpolate",
    seed: int = 0,
    progress: bool | None = None,
) -> Curve:
    """Train a curve of low loss between two minimizers (Garipov et al. 2018, section 3).

    The control point minimizes the mean loss over the curve, ``E_t L(curve(t))`` with t uniform in [0, 1]: each step
    draws one t and one batch. It begins in the middle between both minimizers, which do not change. Then
    `interpolate` with ``curve=`` gives the loss along the curve, and `loss_barrier` its barrier.

    >>> import jax.numpy as jnp, optax
    >>> from jaxscape import interpolate
    >>> def ring(p, x):
    ...     return ((p**2).sum() - 1) ** 2 + 0 * x
    >>> a, b, data = jnp.array([-1.0, 0.0]), jnp.array([0.8, 0.6]), jnp.ones(4)
    >>> curve = connect(a, b, ring, data, optax.adam(0.05), num_steps=300, progress=False)
    >>> line = [interpolate(a, b, ring, data, curve=c, progress=False).loss for c in (None, curve)]
    >>> float(line[0].sel(alpha=0.5)) > 0.8, float(line[1].sel(alpha=0.5)) < 0.1
    (True, True)

    Args:
        params_a: Params at t = 0.
        params_b: Params at t = 1.
        loss_fn: As in `interpolate`.
        data: As in `interpolate`.
        optimizer: An optimizer of optax, or another object with ``init(params)`` and
            ``update(gradient, state, params)``.
        kind: ``"bezier"`` or ``"polygon"``, as in `Curve`.
        num_steps: Steps of the optimizer.
        batch_size: Examples in a step; of several terms, of each.
        statistics: What becomes of running statistics, which are never trained.

            ``"interpolate"``: the control point has the mean of both minimizers'.

            ``"reestimate"``: each step takes the statistics of its batch, as training does, and its gradient goes
            through them, also where they are under `jax.lax.stop_gradient`; then pass the same to `interpolate`. It
            needs the loss_fn of `load_run`, or a function ``statistics(params, batch)`` as there.
        seed: Of the points and batches.
        progress: True or False for a progress bar; None for one on terminals and in notebooks.

    Returns:
        The curve; its ``losses`` has the loss of each step, NaN where it was not finite.

    Raises:
        ValueError: The leaves of params_a and params_b differ, ``kind`` or ``statistics`` is unknown or does not fit
            the loss, ``num_steps`` or ``batch_size`` is not positive; or params, data or loss_fn are wrong, as
            `surface` says.
        TypeError: ``optimizer`` has no ``init`` and ``update``; or as in `surface`.
    """
    refuse_inside_transform("js.connect")
    a = checks.as_params(params_a, "params_a")
    b = checks.like(a, params_b, "params_b")
    check_kind(kind)
    for name, count in (("num_steps", num_steps), ("batch_size", batch_size)):
        checks.check_count(count, name)
    checks.check_count(seed, "seed", 0)
    if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        raise TypeError(f"optimizer is {type(optimizer).__name__}, expected one of optax, e.g. optax.adam(1e-3).")
    if isinstance(statistics, str) and statistics == "frozen":
        raise ValueError("statistics is 'frozen', expected one of interpolate, reestimate, or a function.")
    refuse_stream(data, "js.connect")
    for term in Objective.of(loss_fn, a, data).terms:
        term.check.verdict()
    if policy_of(statistics, loss_fn, a, None) == "reestimate":
        function = statistics_function(statistics, loss_fn)

        def of_batch(params: Params, batch: Data) -> Params:
            with blamed("statistics", "with params and a batch of data"):
                computation, constants = trace(function, params, batch)
            # flax.nnx stops the gradients of running statistics: the curve would follow no gradient of its loss.
            return computation.without_stops()(constants, params, batch)

        loss_fn = each_term(loss_fn, lambda f: lambda p, batch: f(trees.overlay(p, of_batch(p, batch)), batch))
    objective = Objective.of(loss_fn, a, data, check=False)  # with the statistics of a batch it is no mean

    def step(
        control: Params, state: Any, ends: tuple[Params, Params], weights: Array, batches: list[Data]
    ) -> tuple[Params, Any, Array]:
        def loss(control: Params) -> Array:
            point = jax.tree.map(lambda *corners: _combined(weights, corners), ends[0], control, ends[1])
            means = [term.mean(point, batch) for term, batch in zip(objective.terms, batches, strict=True)]
            return jnp.sum(jnp.stack(means))

        value, gradient = fast_convolutions(jax.value_and_grad(fast_convolutions(loss)))(control)
        gradient = with_statistics_of(jax.tree.map(jnp.zeros_like, gradient), gradient)
        with blamed("optimizer.update", "with a gradient, a state and params"):
            updates, state = optimizer.update(gradient, state, control)
        moved = jax.tree.map(lambda x, u: (x + u).astype(x.dtype), control, updates)
        return with_statistics_of(control, moved), state, value

    step = jax.jit(step, compiler_options=compiler_options(jax.default_backend()))
    rng = np.random.default_rng(seed)
    # In bfloat16 a step of the optimizer would be rounded away.
    ends = [jax.tree.map(lambda x: x.astype(trees.working_dtype(x)), end) for end in (a, b)]
    control, losses = jax.tree.map(lambda x, y: x / 2 + y / 2, *ends), []
    state = optimizer.init(control)
    for _ in tqdm(range(num_steps), desc="curve", unit="step", disable=None if progress is None else not progress):
        weights = corner_weights(kind, rng.uniform(size=1))[0]
        batches = [_batch(term.data, term.examples, batch_size, rng) for term in objective.terms]
        control, state, value = step(control, state, (a, b), weights, batches)
        losses.append(value)
    control = jax.tree.map(lambda c, x, y: c.astype(jnp.promote_types(x.dtype, y.dtype)), control, a, b)
    return Curve(control, kind, np.array(losses, np.float64))


def _combined(weights: Array, corners: tuple[Array, ...]) -> Array:
    dtype = trees.working_dtype(corners[0])
    total = sum(w.astype(dtype) * x.astype(dtype) for w, x in zip(weights, corners, strict=True))
    return total.astype(corners[0].dtype)


def _batch(data: Data, examples: int, batch_size: int, rng: np.random.Generator) -> Data:
    """Some examples, drawn without replacement."""
    return rows_of(data, np.sort(rng.choice(examples, min(batch_size, examples), replace=False)))
