"""The mean of a loss over data, as everything else sees it: traced, weighted, in one or several terms."""

import functools
import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jax.sharding import PartitionSpec
from jaxtyping import Array

from jaxscape import trees
from jaxscape.convolution import compiler_options
from jaxscape.meshes import without_mesh
from jaxscape.objective._batches import cached_examples, even_size, num_examples, rows_of
from jaxscape.objective._check import Check, check_is_mean
from jaxscape.objective._jaxpr import Identity, depends_on
from jaxscape.objective._passes import Passes, recut
from jaxscape.objective._placement import example_axes
from jaxscape.objective._stream import Stream
from jaxscape.objective._terms import metrics_of, split_terms
from jaxscape.objective._trace import PRECISIONS, Computation, Traced, abstract, is_traced, trace
from jaxscape.shards import gather, mesh_of_shards, specs_of
from jaxscape.types import Data, LossFn, Params

WEIGHT = "weight"
"""The metric that weighs the examples."""


class Term:
    """One mean over data of its own: ``sum_i w_i * loss_i / sum_i w_i``.

    Attributes:
        name: ``""`` where the objective has no other term.
        data: Arrays with a common leading example axis; of a stream the first ones.
        passes: Those over a stream; None: all data are in memory.
        per_example: For each metric whether the loss gives it per example (True) or as the mean of a batch (False).
        weighted: Whether the loss gives weights.
        canonical: Examples in the batch whose trace identifies the loss.
        mesh: The one that params are cut over; None: they are whole.
        check: Whether the loss is a mean over its examples, see `check_is_mean`. What computes with the term asks for
            the verdict before it gives a result.
    """

    def __init__(self, name: str, loss_fn: LossFn, params: Params, data: Data, compute_dtype: str | None) -> None:
        """Trace the loss and check what it gives; nothing is computed.

        Args:
            name: ``""`` where the objective has no other term.
            loss_fn: As in `Objective.of`.
            params: A pytree of floating arrays.
            data: Arrays with a common leading example axis, a stream, or None.
            compute_dtype: As in `Objective.of`.

        Raises:
            ValueError: A metric has a wrong shape, ``"loss"`` is missing, or the data have no common example axis.
            TypeError: A metric is no real number; or the data are a stream and params are cut over several processes.
        """
        self.name, argument = name, f"data[{name!r}]" if name else "data"
        self.check = Check()
        self.passes = Passes(data, argument) if isinstance(data, Stream) else None
        self.data = np.zeros((1, 0)) if data is None else self.passes.sample if self.passes else data
        rows = num_examples(self.data, argument)
        self._argument = f"loss_fn[{name!r}]" if name else "loss_fn"
        self._no_data = data is None
        self._function: Callable[[Params, Data], dict[str, Array]] = functools.partial(
            metrics_of, loss_fn, self._argument, data is None
        )
        self._params, self._compute_dtype = abstract(params), compute_dtype
        self.mesh = mesh_of_shards(params)
        if self.mesh is not None and self.passes and jax.process_count() > 1:
            raise TypeError(
                f"{argument} is a js.Stream, but params are cut over devices of several processes, which evaluate each "
                "batch together; expected arrays, or one process."
            )
        self._specs = specs_of(params), PartitionSpec(example_axes(self.mesh))
        self._traced: dict[int, Traced] = {}
        # The first trials on a CPU begin with as many, so that one trace serves; fewer than 8 would check little.
        size = int(np.clip(cached_examples(self.data), 8, 128))
        self.canonical = size if self.passes else even_size(rows, size)  # of a stream whatever its batches
        shapes = self.traced(self.canonical).computation.shapes
        self.weighted = WEIGHT in shapes
        self.per_example = {name: bool(shape.ndim) for name, shape in shapes.items() if name != WEIGHT}

    @property
    def examples(self) -> int:
        """The number of all examples; that of a stream is known after a pass, which is made where none was."""
        return int(self.passes.totals.counts.sum()) if self.passes else num_examples(self.data)

    @property
    def sample(self) -> "Term":
        """The same loss of examples in memory: all of them, or the first ones of a stream."""
        return self.with_data(self.data) if self.passes else self

    def parts(self, rows: int | None = None) -> Iterator["Term"]:
        """The same loss of examples in memory, part by part: itself, or each batch of a pass over a stream.

        Args:
            rows: So many examples of a stream in each part but the last; None: the batches as they come.

        Yields:
            Terms.
        """
        if self.passes is None:
            yield self
        else:
            yield from map(self.with_data, self.passes if rows is None else recut(self.passes, rows))

    def traced(self, batch_size: int) -> Traced:
        """The loss of a batch of this size: ``computation(constants, params, batch)`` -> a dict of metrics."""
        if batch_size not in self._traced:
            operands = self._params, self.batch_like(batch_size)
            options: dict[str, Any] = {"compute_dtype": self._compute_dtype, "mesh": self.mesh}
            traced = trace(self._function, *operands, specs=self._specs, **options)
            self._check_shapes(traced.computation.shapes, batch_size)
            self._traced[batch_size] = traced
        return self._traced[batch_size]

    def batch_like(self, batch_size: int) -> Data:
        """Shapes and dtypes of a batch."""
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct((batch_size, *x.shape[1:]), x.dtype), abstract(self.data))

    def mean(self, params: Params, batch: Data) -> Array:
        """The mean loss of a batch, ``sum w l / sum w``, as part of a larger computation."""
        metrics = self._function(params, batch)
        loss, weights = metrics["loss"], metrics.get(WEIGHT)
        if weights is None:
            return jnp.mean(loss)
        total = jnp.sum(weights)
        return jnp.sum(weights * loss) / jnp.where(total > 0, total, 1)  # a batch without weight says nothing

    def with_data(self, data: Data) -> "Term":
        """The same loss of other examples: fewer, or in another order."""
        other = object.__new__(Term)
        other.__dict__.update(self.__dict__)
        for cached in ("total_weight", "data_fingerprint"):
            other.__dict__.pop(cached, None)
        other.data, other.passes = data, None
        return other

    def only(self, metrics: Collection[str]) -> "Term":
        """The same term with some of its metrics: the others are not computed."""
        if set(metrics) >= set(self.per_example):
            return self
        other = object.__new__(Term)
        other.__dict__.update(self.__dict__)
        other.__dict__.pop("fingerprints", None)
        names, function = {*metrics, WEIGHT}, self._function
        other._function = lambda params, batch: {k: v for k, v in function(params, batch).items() if k in names}
        other._traced = {}
        other.per_example = {name: each for name, each in self.per_example.items() if name in names}
        return other

    @functools.cached_property
    def total_weight(self) -> float:
        """The sum of all weights, or the number of examples where there are none.

        Raises:
            ValueError: The weights depend on params, so that there is no one sum; or their sum is not positive.
        """
        if not self.weighted:
            return float(self.examples)
        total = sum(part._sum_of_weights() for part in self.parts())
        total = float(gather(np.array(total)).sum()) if self.passes else total
        if not 0 < total < np.inf:
            raise ValueError(f"{self._argument} returned weights whose sum is {total}; expected a positive number.")
        return total

    def _sum_of_weights(self) -> float:
        computation, constants = self.traced(self.canonical)
        program, used = _weights_of_batch(computation)
        if any(used[len(constants) :][: len(jax.tree.leaves(self._params))]):
            raise ValueError(
                f"{self._argument} returned weights that depend on params; expected weights of the examples alone for "
                "curvature and for rtol. Compute the weights before the call, and pass them in data."
            )
        total = 0.0
        for start in range(0, self.examples, self.canonical):  # the last batch is filled up
            rows = np.arange(start, start + self.canonical)
            batch = rows_of(self.data, np.minimum(rows, self.examples - 1))
            operands = [*constants, *jax.tree.leaves((self._params, batch))]
            needed = [x for x, use in zip(operands, used, strict=True) if use]
            with without_mesh():
                weights = program(jax.device_put(needed, jax.local_devices()[0]))  # they may be tied to other devices
            total += float(np.sum(np.asarray(weights, np.float64)[rows < self.examples]))
        return total

    @functools.cached_property
    def rules(self) -> Identity | None:
        """The identity of the second derivative, where the user's own derivative rules take part in it; else None.

        The identity of the loss alone does not see such rules.
        """
        computation, constants = self.traced(self.canonical)
        if not computation.identity.has_rules:
            return None

        def product(constants: Any, params: Params, batch: Data) -> Any:
            gradient = jax.grad(lambda p: jnp.sum(computation(constants, p, batch)["loss"]))
            return jax.jvp(gradient, (params,), (params,))[1]

        try:
            operands = abstract(constants), self._params, self.batch_like(self.canonical)
            traced = trace(product, *operands, mesh=self.mesh)
        except Exception:  # noqa: BLE001  # no derivative: then no curvature is taken, and no rule takes part
            return None
        identity = traced.computation.identity
        return identity._replace(digest=traced.fingerprint())

    @functools.cached_property
    def fingerprints(self) -> dict[str, str]:
        """For each metric a hash of what it computes and it closes over; of the loss of derivative rules, too."""
        traced, weight = self.traced(self.canonical), [WEIGHT] if self.weighted else []
        hashes = {name: f"{self.name} {traced.fingerprint_of([name, *weight])}" for name in self.per_example}
        if self.rules and "loss" in hashes:
            hashes["loss"] += f" {self.rules.digest}"
        return hashes

    @functools.cached_property
    def data_fingerprint(self) -> str:
        """A hash of the data."""
        return self.passes.totals.fingerprint if self.passes else trees.fingerprint(self.data)

    def _check_shapes(self, shapes: Mapping[str, jax.ShapeDtypeStruct], batch_size: int) -> None:
        for name, shape in shapes.items():
            if self._no_data and shape.ndim:
                raise ValueError(
                    f"{self._argument} returned {shape.shape} for {name!r} without data; expected a scalar, (). Take "
                    "the mean, or pass as data the arrays that it is to be the mean over."
                )
            if shape.shape not in ((), (batch_size,)) or (name == WEIGHT and not shape.ndim and not self._no_data):
                raise ValueError(
                    f"{self._argument} returned {shape.shape} for {name!r} on a batch of {batch_size} examples; "
                    f"expected ({batch_size},), the value of each example"
                    + ("." if name == WEIGHT else ", or () for the batch mean. Reduce over every axis but the first.")
                )
            if not any(jnp.issubdtype(shape.dtype, kind) for kind in (jnp.floating, jnp.integer, jnp.bool_)):
                raise TypeError(f"{self._argument} returned {shape.dtype} for {name!r}; expected real numbers.")


@functools.lru_cache(maxsize=64)
def _weights_of_batch(computation: Computation) -> tuple[Callable[[list[Any]], Array], list[bool]]:
    """The compiled weights of a batch, and which operands of the loss they need."""
    jaxpr, used = depends_on(computation.jaxpr, [sorted(computation.shapes).index(WEIGHT)])
    function = core.jaxpr_as_fun(core.ClosedJaxpr(jaxpr, ()))
    return jax.jit(lambda operands: function(*operands)[0], compiler_options=compiler_options()), used


class Objective:
    """The sum of one or more means over data, at any point like the params that it was traced with.

    Attributes:
        terms: Each a mean over its own data.
        compute_dtype: What the loss computes in.
    """

    def __init__(self, terms: tuple[Term, ...], compute_dtype: str | None) -> None:
        """Join terms; `of` makes them."""
        self.terms, self.compute_dtype = terms, compute_dtype

    @classmethod
    def of(
        cls,
        loss_fn: LossFn | Mapping[str, LossFn],
        params: Params,
        data: Data,
        *,
        compute_dtype: str | None = None,
        check: bool = True,
        batch_size: int | None = None,
    ) -> "Objective":
        """Trace a loss over data.

        Args:
            loss_fn: ``loss_fn(params, batch)`` -> the loss of each example, shape ``(batch,)``; a dict of such vectors
                with the key ``"loss"``, and with ``"weight"`` if the examples have weights; or a scalar, the mean of
                the batch. A mapping of such functions: several terms.
            params: A pytree of floating arrays, where the check is made.
            data: Arrays with a common leading example axis, or a stream; a mapping of such for several terms; None: no
                data.
            compute_dtype: ``"float32"``, ``"tensorfloat32"`` or ``"bfloat16"``; None: as JAX is configured.
            check: Whether to find out if the loss is a mean over examples, as `check_is_mean` does. The verdict is that
                of `Term.check`.
            batch_size: Examples in one call of loss_fn, at most, that the caller asked for.

        Returns:
            The objective.

        Raises:
            ValueError: loss_fn gives a wrong shape or lacks ``"loss"``; the terms of loss_fn and data differ; the data
                have no common example axis; or compute_dtype is unknown.
            TypeError: loss_fn is no function, or gives something that is no real number.
        """
        if compute_dtype is not None and compute_dtype not in PRECISIONS:
            raise ValueError(f"compute_dtype is {compute_dtype!r}, expected None or one of {', '.join(PRECISIONS)}.")
        parts = split_terms(loss_fn, data)
        objective = cls(
            tuple(Term(name, f, params, part, compute_dtype) for name, (f, part) in parts.items()), compute_dtype
        )
        if check and not is_traced((params, data)):
            for term in objective.terms:
                term.check = check_is_mean(term.sample, params, batch_size)
        return objective

    def only(self, metrics: Collection[str]) -> "Objective":
        """The same objective with some of its `metrics`: the others are not computed.

        Args:
            metrics: Names; ``loss`` of several terms stands for the loss of each.

        Returns:
            The objective.
        """
        terms = []
        for term in self.terms:
            own = [m for m in term.per_example if _joined(m, term) in metrics or (m == "loss" and "loss" in metrics)]
            terms += [term.only(own)] if own else []
        return Objective(tuple(terms), self.compute_dtype)

    @property
    def _has_parts(self) -> bool:
        return bool(self.terms[0].name)

    @property
    def metrics(self) -> list[str]:
        """The names of all means that an evaluation gives: of several terms ``loss``, and ``metric_term`` of each."""
        total = ["loss"] if self._has_parts and all("loss" in term.per_example for term in self.terms) else []
        return total + [_joined(name, term) for term in self.terms for name in term.per_example]

    @functools.cached_property
    def examples(self) -> int:
        """Of all terms."""
        return sum(term.examples for term in self.terms)

    @property
    def metrics_with_errors(self) -> list[str]:
        """Those of `metrics` that have a standard error: the loss gives them for each example."""
        total = ["loss"] if self._has_parts and all(term.per_example.get("loss") for term in self.terms) else []
        return total + [_joined(name, term) for term in self.terms for name, each in term.per_example.items() if each]

    @property
    def recipe(self) -> dict[str, Any]:
        """What its numbers depend on, one by one: hashes of the metrics, with what they close over, and of the data."""
        hashes = {_joined(name, term): _digest(text) for term in self.terms for name, text in term.fingerprints.items()}
        if self._has_parts:
            hashes["loss"] = _digest(*(term.fingerprints.get("loss", "") for term in self.terms))
        return {
            "loss_fn": hashes,
            "data": _digest(*(term.data_fingerprint for term in self.terms)),
            "compute_dtype": str(self.compute_dtype),
        }


def _joined(metric: str, term: Term) -> str:
    return f"{metric}_{term.name}" if term.name else metric


def _digest(*texts: str) -> str:
    return hashlib.blake2b("\n".join(texts).encode(), digest_size=16).hexdigest()
