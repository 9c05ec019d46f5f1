"""The call of the user: all measures of a point in one table."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np
import pandas as pd
from jax.sharding import Mesh
from jaxtyping import PRNGKeyArray
from tqdm.auto import tqdm

from jaxscape import checks, trees
from jaxscape.arguments import checked
from jaxscape.checks import as_key
from jaxscape.flatness._measures import MEASURES, Row
from jaxscape.flatness._problem import Options, Problem
from jaxscape.normalize import filters_of_leaves, reasons_to_ignore, warn_of_doubts
from jaxscape.objective import as_batch_size, has_stream, refuse_inside_transform
from jaxscape.sweep import inputs, provenance
from jaxscape.types import Data, FilterAxis, Ignore, LossFn, Params


@checked
def sharpness(
    params: Params,
    loss_fn: LossFn | Mapping[str, LossFn],
    data: Data,
    *,
    measures: Sequence[str] | None = None,
    rho: float = 0.05,
    epsilon: float = 1e-3,
    sigma: float = 0.01,
    num_samples: int = 100,
    num_steps: int = 20,
    m: int = 128,
    layer: str | None = None,
    preconditioner: Params | None = None,
    update: Params | None = None,
    filter_axis: FilterAxis = None,
    key: PRNGKeyArray | int = 0,
    ignore: Ignore = None,
    batch_size: int | Literal["auto"] = "auto",
    mesh: Mesh | None = None,
    check: bool = True,
    progress: bool | None = None,
) -> pd.DataFrame:
    """Measures of how sharp a minimizer is, a row each.

    A smaller value says that the loss changes less around params. It does not say that the network generalizes better:
    on modern networks the correlation can have either sign (Andriushchenko et al. 2023). Compare only values of the
    same loss, data and options. When the weights of a ReLU network are rescaled so that its function stays the same
    (Dinh et al. 2017), ``worst_case_adaptive``, ``average_case_adaptive``, ``relative_flatness`` and ``fisher_rao``
    stay the same, too; all others change. For ``relative_flatness`` the factor must be the same for all neurons of a
    layer.

    With w the params and L the mean loss over all of the data:

    - ``keskar``: ``100 (max L(w + d) - L(w)) / (1 + L(w))`` over the box ``abs(d_i) <= epsilon (abs(w_i) + 1)``
      (Keskar et al. 2017).
    - ``worst_case_adaptive``: ``max L(w + d) - L(w)`` over the ball ``norm(d / abs(w)) <= rho``, the Euclidean norm
      (Kwon et al. 2021).
    - ``average_case_adaptive``: ``E L(w + rho abs(w) x) - L(w)``, x standard normal (Andriushchenko et al. 2023).
    - ``m_sharpness``: the mean over batches B of m examples of ``max L_B(w + d) - L_B(w)`` over the ball
      ``norm(d) <= rho`` (Foret et al. 2021).
    - ``lambda_max``, ``trace``: the largest eigenvalue and the trace of the Hessian H.
    - ``preconditioned_lambda_max``: the largest eigenvalue of ``P^-1 H`` (Cohen et al. 2024).
    - ``critical``: ``2 / s``, s the smallest step found with ``L(w + s u) > L(w)`` along the update u; for a quadratic
      loss and ``u = -gradient`` it is ``g H g / g g`` (Kalra et al. 2026).
    - ``relative_flatness``: ``sum_ss' <w_s, w_s'> Tr H_ss'`` over the neurons s of a layer (Petzka et al. 2021).
    - ``fisher_rao``: the mean over examples of ``<w, grad L_i(w)>^2`` (Liang et al. 2019).
    - ``low_pass``: ``E L(w + sigma x)``, x standard normal (Bisla et al. 2022): a loss, not a difference.

    The maxima come from projected gradient ascent that begins at one random point: they are lower bounds.

    >>> import jax.numpy as jnp
    >>> def loss(p, x):
    ...     return x * (2 * p["a"] ** 2 + 0.5 * p["b"] ** 2)
    >>> params = {"a": jnp.float32(0), "b": jnp.float32(1)}
    >>> table = sharpness(params, loss, jnp.ones(3), measures=["lambda_max", "trace"], progress=False)
    >>> table.value.round(3).to_dict()
    {'lambda_max': 4.0, 'trace': 5.0}

    Args:
        params: Any pytree of floating arrays, taken in at least float32. Running statistics in it are not displaced.
        loss_fn: ``loss_fn(params, batch)`` -> the loss of each example, shape ``(batch,)``; a dict with the key
            ``"loss"``, and ``"weight"`` for weighted examples; or a scalar, the mean of the batch. A dict of such
            functions, with a dict of data: the sum of their means.
        data: Arrays with a common leading example axis, e.g. ``(images, labels)``, or a `jaxscape.Stream` of batches;
            None for a loss without data.
        measures: Their names; None: all for which there is what they need.
        rho: Radius of both adaptive measures (relative to the weights) and of m-sharpness (absolute).
        epsilon: Half the width of the box of ``keskar``, relative to ``abs(w) + 1``.
        sigma: Standard deviation of the noise of ``low_pass``, absolute.
        num_samples: Random displacements; products with the Hessian for ``trace`` (at least 6) and
            ``relative_flatness``; and batches of ``m_sharpness``, at most.
        num_steps: Evaluations of an ascent.
        m: Examples in a batch of ``m_sharpness``, at most.
        layer: Path of the kernel for ``relative_flatness``, as ``jax.tree_util.keystr`` gives it; None: the sum over
            all kernels of rank 2 and more.
        preconditioner: The diagonal of P, a pytree like params of positive numbers, for Adam ``sqrt(nu) + eps``.
        update: The direction u of ``critical``, a pytree like params; None: minus the gradient.
        filter_axis: Which axes of a kernel index its neurons, for ``relative_flatness``; as in `random_directions`.
        key: A JAX random key, or an integer seed; each measure draws the same whatever others are asked for.
        ignore: Which leaves are not displaced: None, none of them; ``"bias_norm"``, biases and normalization
            parameters; or a predicate on (path, leaf).
        batch_size: Examples in one call of loss_fn, at most; ``"auto"``: as is fastest.
        mesh: The devices; by default all of all processes.
        check: Whether to find out if the loss is a mean over examples: by its jaxpr, or by at most 128 examples, twice.
        progress: True or False for a progress bar; None for one on terminals and in notebooks.

    Returns:
        A table indexed by ``measure``: ``value``; ``stderr``, the standard error over random displacements (or batches,
        or examples), NaN where nothing is random; and ``note``, what one must know to trust the value, such as an
        eigenvalue that did not converge. A value that is not finite, or negative, stays as it is.

        ``table.attrs`` says how it was made; ``table.attrs["measures"]`` has for each measure its ``definition``,
        ``source`` and options.

    Raises:
        ValueError: A name is unknown, an option is out of its range, a measure that is asked for lacks what it needs,
            ``layer`` is no kernel; or params, data or loss_fn are wrong, as `surface` says.
        TypeError: A leaf of params is not floating, or an option is of another type.
    """
    refuse_inside_transform("js.sharpness")
    # In bfloat16 most of a small displacement would be rounded away.
    params = jax.tree.map(lambda x: x.astype(trees.working_dtype(x)), checks.as_params(params))
    if sigma is None:
        raise TypeError("sigma is None, expected a positive number.")
    checks.check_mesh(mesh)
    key = as_key(key)
    preconditioner = _checked_preconditioner(params, preconditioner)
    update = None if update is None else checks.like(params, update, "update")
    kernels = [name for name, shape in trees.named_shapes(params).items() if len(shape) > 1]
    if layer is not None and layer not in kernels:
        raise ValueError(f"layer is {layer!r}, expected the path of a kernel: {', '.join(kernels)}.")
    options = Options(
        rho=float(rho),
        epsilon=float(epsilon),
        sigma=float(sigma),
        num_samples=num_samples,
        num_steps=num_steps,
        m=m,
        layer=layer,
        preconditioner=preconditioner,
        update=update,
        filter_axis=filter_axis,
        ignore=ignore,
        batch_size=as_batch_size(batch_size),
        mesh=mesh,
        check=check,
    )
    problem = Problem(params, loss_fn, data, options)
    names = _names(measures, problem)
    if "relative_flatness" in names:
        reasons, filters = reasons_to_ignore(params, "bias_norm"), filters_of_leaves(params, filter_axis)
        warn_of_doubts(params, "filter", ignore, filter_axis, reasons, filters)
    for term in problem.objective.terms:
        term.check.verdict()
    rows: dict[str, Row] = {}
    bar = tqdm(names, unit="measure", disable=None if progress is None else not progress)
    for name in bar:
        bar.set_description(name)
        problem.key = jax.random.fold_in(key, list(MEASURES).index(name))
        rows[name] = MEASURES[name].run(problem)
    table = pd.DataFrame.from_dict(rows, orient="index", columns=Row._fields).rename_axis("measure")
    table.attrs = {
        **provenance(inputs(problem.objective, params, ()), params),
        "measures": {name: _described(name, options) for name in names},
    }
    return table


def _names(measures: Sequence[str] | None, problem: Problem) -> list[str]:
    """The measures to compute; those that are asked for must be possible."""
    lacking = {name: lack for name, measure in MEASURES.items() if (lack := _lack(measure.needs, problem))}
    if measures is None:
        return [name for name in MEASURES if name not in lacking]
    if isinstance(measures, str) or not isinstance(measures, Sequence):
        raise TypeError(f"measures is {measures!r}, expected a list of names, of {', '.join(MEASURES)}.")
    for name in measures:
        if name not in MEASURES:
            raise ValueError(f"measures has {name!r}, expected names of {', '.join(MEASURES)}.")
        if name in lacking:
            raise ValueError(f"measures has {name!r}, which {lacking[name]}.")
    return list(dict.fromkeys(measures))


def _lack(needs: str, problem: Problem) -> str:
    """What a measure lacks, in words; empty if nothing."""
    if needs == "examples" and not problem.per_example:
        return "needs a loss_fn of one term that returns the loss of each example"
    if needs == "one term" and not problem.one_term:
        return "needs a loss_fn of one term"
    if needs == "one term" and has_stream(problem.data):
        return "draws examples by their numbers: it needs data in memory, not a js.Stream"
    if needs == "preconditioner" and problem.options.preconditioner is None:
        return "needs preconditioner="
    return ""


def _described(name: str, options: Options) -> dict[str, Any]:
    measure = MEASURES[name]
    own = {option: getattr(options, option) for option in measure.options}
    return {"definition": measure.definition, "source": measure.source, **own}


def _checked_preconditioner(params: Params, preconditioner: Params | None) -> Params | None:
    if preconditioner is None:
        return None
    preconditioner = checks.like(params, preconditioner, "preconditioner")
    for path, leaf in jax.tree_util.tree_leaves_with_path(preconditioner):
        if not (np.isfinite(leaf).all() and (np.asarray(leaf) > 0).all()):
            raise ValueError(f"preconditioner{jax.tree_util.keystr(path)} has entries that are not positive numbers.")
    return preconditioner
