"""Products with the Hessian, or with the Gauss-Newton matrix, of the mean loss over all of the data.

The Hessian's is the derivative of the gradient along a vector (forward over reverse, Pearlmutter 1994). At one point
the gradient is linearized once and the linear function kept, where memory allows: then a product takes 6 convolutions
for each of the network instead of 8. On a CPU the batches are driven from the host, since gradients of convolutions are
slow in loops there; on other devices, and inside a transform, by a loop on the device.
"""

import functools
import os
from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from jaxscape import engine, trees
from jaxscape.convolution import compiler_options, fast_convolutions
from jaxscape.data import num_examples
from jaxscape.layout import Layout
from jaxscape.types import Data, LossFn, Params

ModelFn = Callable[[Params, Data], Array]
OutputLossFn = Callable[[Array, Data], Array]
Matvec = Callable[[Float[Array, " n"]], Float[Array, " n"]]
Stack = tuple[Data, Array | np.ndarray]
"""Batches (devices, batches, batch, ...), and the weight of each example, or of a batch where the loss is its mean."""

_CACHED = 2**25  # bytes of a batch's linear function on a CPU: of 32x32 pixels 8 images, of 8x8 64 (ResNet-20) are best
_MEMORY = 0.25  # of the free memory, that linear functions may take
_EVERYWHERE, _BY_EXAMPLES = PartitionSpec(), PartitionSpec(engine.DATA_AXIS)


class Form(Hashable, Protocol):
    """A quadratic form of a batch at a point: what is computed once, and the product with a vector."""

    def prepare(self, layout: Layout, params: Params, batch: Data, weights: Array) -> Any:
        """What does not depend on the vector, a pytree."""

    def apply(self, prepared: Any, tangents: list[Array]) -> list[Array]:
        """The product, in the free leaves."""


class Hessian(NamedTuple):
    """The Hessian of the loss, in the free leaves."""

    loss_fn: LossFn

    def prepare(self, layout: Layout, params: Params, batch: Data, weights: Array) -> Any:
        """The gradient, linearized."""
        inside, outside = layout.split(params)
        loss_fn = fast_convolutions(engine.in_precision(self.loss_fn, "float32"))

        def total(inside: list[Array]) -> Array:
            value = loss_fn(layout.join(inside, outside), batch)
            return _weighted(value["loss"] if isinstance(value, Mapping) else value, weights)

        return jax.linearize(jax.grad(total), inside)[1]

    def apply(self, prepared: Any, tangents: list[Array]) -> list[Array]:
        """The derivative of the gradient."""
        return prepared(tangents)


class GaussNewton(NamedTuple):
    """``J^T H J``: J the Jacobian of the outputs, H the Hessian of the loss in the outputs."""

    model_fn: ModelFn
    loss_fn: OutputLossFn

    def prepare(self, layout: Layout, params: Params, batch: Data, weights: Array) -> Any:
        """The model and the gradient of the loss, linearized."""
        inside, outside = layout.split(params)
        model_fn = fast_convolutions(engine.in_precision(lambda p, b: self.model_fn(p, b), "float32"))
        outputs, model = jax.linearize(lambda inside: model_fn(layout.join(inside, outside), batch), inside)
        loss = jax.linearize(jax.grad(lambda y: _weighted(self.loss_fn(y, batch), weights)), outputs)[1]
        return model, loss

    def apply(self, prepared: Any, tangents: list[Array]) -> list[Array]:
        """Along the model, along the gradient of the loss, and back."""
        model, loss = prepared
        return jax.linear_transpose(model, tangents)(loss(model(tangents)))[0]


def _weighted(losses: Array, weights: Array) -> Array:
    """The weighted sum; a padded example, of weight 0, adds nothing whatever its loss."""
    return jnp.sum(jnp.where(weights > 0, losses * weights, 0))


Total = list[Array]
"""A sum over batches: the free leaves, each with an axis of devices; XLA adds to them in place, not so to a vector."""


class Programs(NamedTuple):
    """The compiled parts of a product."""

    prepare: Callable[[Params, Stack], Any]
    apply: Callable[[Any, Array, Total], Total]
    direct: Callable[[Params, Stack, Array, Total], Total]
    inside: Callable[[Params, Stack, Array, Total], Total]  # direct, as part of a larger computation


@functools.lru_cache(maxsize=32)
def _programs(form: Any, layout: Layout, mesh: Mesh) -> Programs:
    def prepare(params: Params, stack: Stack) -> Any:
        return jax.tree.map(lambda x: x[None], _each(lambda batch: form.prepare(layout, params, *batch), _own(stack)))

    def add(prepared: Any, vector: Array, total: Total) -> Total:
        image = fast_convolutions(form.apply)(prepared, layout.leaves(vector))
        return [t + x.astype(t.dtype)[None] for t, x in zip(total, image, strict=True)]

    def apply(prepared: Any, vector: Array, total: Total) -> Total:
        return _sum(lambda total, one: add(one, vector, total), _own(prepared), total)

    def direct(params: Params, stack: Stack, vector: Array, total: Total) -> Total:
        return _sum(lambda total, batch: add(form.prepare(layout, params, *batch), vector, total), _own(stack), total)

    def on_devices(function: Callable[..., Any], specs: tuple[PartitionSpec, ...]) -> Any:
        return jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=_BY_EXAMPLES, check_vma=False)

    every, by = _EVERYWHERE, _BY_EXAMPLES
    jit = functools.partial(jax.jit, compiler_options=compiler_options())
    inside = on_devices(direct, (every, by, every, by))
    return Programs(
        jit(on_devices(prepare, (every, by))),
        jit(on_devices(apply, (by, every, by)), donate_argnums=2),
        jit(inside, donate_argnums=3),
        inside,
    )


def _own(stack: Any) -> Any:
    """What a device has, without the axis of devices."""
    return jax.tree.map(lambda x: x[0], stack)


def _each(function: Callable[[Any], Any], stack: Any) -> Any:
    """The function of each batch; outside of a loop when there is one."""
    if len(jax.tree.leaves(stack)[0]) == 1:
        return jax.tree.map(lambda x: x[None], function(jax.tree.map(lambda x: x[0], stack)))
    return lax.map(function, stack)


def _sum(add: Callable[[Total, Any], Total], stack: Any, total: Total) -> Total:
    """The total with what each batch adds."""
    if len(jax.tree.leaves(stack)[0]) == 1:
        return add(total, jax.tree.map(lambda x: x[0], stack))
    return lax.scan(lambda total, one: (add(total, one), None), total, stack)[0]


class Product:
    """Products at any point of a function, its data in place on the devices.

    Attributes:
        layout: The leaves that it is taken in.
        batch_size: Examples of each device at a time.
    """

    def __init__(
        self,
        form: Form,
        layout: Layout,
        data: Data,
        *,
        per_example: bool,
        batch_size: int,
        mesh: Mesh,
        linearize: bool | None = None,
    ) -> None:
        """Put the data in place; nothing is compiled yet.

        Args:
            form: The Hessian or another form.
            layout: The leaves that it is taken in.
            data: Arrays with a common leading example axis.
            per_example: Whether the loss is one for each example; else the mean of a batch.
            batch_size: Examples of each device at a time, at most.
            mesh: The devices, along an axis ``"data"``.
            linearize: Whether linear functions are kept; None: where memory allows.
        """
        self.layout, self.batch_size, self._mesh, self._linearize = layout, batch_size, mesh, linearize
        with jax.ensure_compile_time_eval():  # within a transform too, data is data
            self._stacks = _stacks(data, batch_size, mesh.size, per_example, layout.dtype)
        self._run = _programs(form, layout, mesh)

    def at(self, params: Params) -> Matvec:
        """The product at a point, with flat vectors; from the host or inside a transform.

        Args:
            params: The point.

        Returns:
            ``v -> H v``, on the first device of the mesh.
        """
        if _is_traced(params):
            return functools.partial(self._inside, params)
        params = engine.place(params, NamedSharding(self._mesh, _EVERYWHERE))
        prepared = [self._run.prepare(params, stack) for stack in self._placed] if self._keeps(params) else None

        def product(vector: Array) -> Array:
            if _is_traced(vector):
                return self._inside(params, vector)
            vector = engine.place(vector, NamedSharding(self._mesh, _EVERYWHERE))
            total = self._zeros()
            for i, stack in enumerate(self._placed):
                if prepared is None:
                    total = self._run.direct(params, stack, vector, total)
                else:
                    total = self._run.apply(prepared[i], vector, total)
            return self._reduce(total).addressable_data(0)

        return product

    def _inside(self, params: Params, vector: Array) -> Array:
        """The product as part of a larger computation."""
        total = self._nothing()
        for stack in self._on_device:
            total = self._run.inside(params, stack, vector, total)
        return self._joined(total)

    def _keeps(self, params: Params) -> bool:
        if self._linearize is not None:
            return self._linearize
        shapes = [jax.eval_shape(self._run.prepare, params, stack) for stack in self._placed[-2:]]
        sizes = [_bytes(shape) for shape in shapes]
        kept = sizes[0] * (len(self._placed) - 1) + sizes[-1]
        weights = len(self._placed) * self._mesh.size * self.layout.size * self.layout.dtype.itemsize
        # Each linear function holds the weights once more: where they are most of it, it takes much and saves little.
        return 4 * weights <= kept <= _MEMORY * _free_bytes(self._mesh)

    @functools.cached_property
    def _on_device(self) -> list[Stack]:
        with jax.ensure_compile_time_eval():
            return [engine.place(stack, NamedSharding(self._mesh, _BY_EXAMPLES)) for stack in self._stacks]

    @functools.cached_property
    def _placed(self) -> list[Stack]:
        """Stacks that are driven from the host: of one batch each on a CPU."""
        if self._mesh.devices.flat[0].platform != "cpu":
            return self._on_device
        ones = [
            jax.tree.map(lambda x, i=i: x[:, i : i + 1], stack)
            for stack in self._stacks
            for i in range(stack[1].shape[1])
        ]
        return [engine.place(one, NamedSharding(self._mesh, _BY_EXAMPLES)) for one in ones]

    def _nothing(self) -> Total:
        shapes = zip(self.layout.shapes, self.layout.free, strict=True)
        return [jnp.zeros((self._mesh.size, *shape), self.layout.dtype) for shape, free in shapes if free]

    def _joined(self, total: Total) -> Array:
        return self.layout.flatten([x.sum(0) for x in total])

    @functools.cached_property
    def _zeros(self) -> Callable[[], Total]:
        return jax.jit(self._nothing, out_shardings=NamedSharding(self._mesh, _BY_EXAMPLES))

    @functools.cached_property
    def _reduce(self) -> Callable[[Total], Array]:
        return jax.jit(self._joined, out_shardings=NamedSharding(self._mesh, _EVERYWHERE))


def _is_traced(tree: Any) -> bool:
    return any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(tree))


def _stacks(data: Data, batch_size: int, shares: int, per_example: bool, dtype: Any) -> list[Stack]:
    """The data as batches of one size, the last of them padded with examples of weight 0.

    Where the loss is the mean of a batch no batch may be padded: what is left over is computed by every device alike.

    Returns:
        One stack, or two of different batch sizes.
    """
    examples = num_examples(data)
    if per_example:
        batches, sizes = engine.stack_batches(data, batch_size, shares)
        width = jax.tree.leaves(batches)[0].shape[1]
        weights = (np.arange(width) < sizes[:, None]) / examples
        return [_deal((batches, weights.astype(dtype)), shares)]
    batch_size = min(batch_size, max(examples // shares, 1))
    cut = examples - examples % (batch_size * shares)
    stacks = []
    for part, size, copies in ((slice(cut), batch_size, 1), (slice(cut, None), examples - cut, shares)):
        rows = jax.tree.map(lambda x, part=part: np.asarray(x)[part], data)
        if not len(jax.tree.leaves(rows)[0]):
            continue
        tiled = jax.tree.map(lambda x, copies=copies: np.concatenate([x] * copies), rows)
        batches, sizes = engine.stack_batches(tiled, size, shares)
        stacks.append(_deal((batches, (sizes / (copies * examples)).astype(dtype)), shares))
    return stacks


def _deal(stack: Stack, shares: int) -> Stack:
    """Batches to devices."""
    return jax.tree.map(lambda x: x.reshape(shares, len(x) // shares, *x.shape[1:]), stack)


def _bytes(tree: Any) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _free_bytes(mesh: Mesh) -> int:
    """Of all devices of this process in the mesh; those of a CPU share its memory."""
    stats = [device.memory_stats() for device in mesh.local_devices]
    if all(stats):
        return sum(s["bytes_limit"] - s["bytes_in_use"] for s in stats)
    pages = "SC_AVPHYS_PAGES" if "SC_AVPHYS_PAGES" in os.sysconf_names else "SC_PHYS_PAGES"
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf(pages) * len(stats) // jax.local_device_count()


def choose_batch_size(form: Form, layout: Layout, params: Params, data: Data, per_example: bool) -> int:
    """Examples of each device at a time: as many as a CPU's cache holds the linear function of, or 512 elsewhere.

    Args:
        form: The quadratic form.
        layout: The leaves that it is taken in.
        params: A point.
        data: Arrays with a common leading example axis.
        per_example: Whether the loss is one for each example.

    Returns:
        A power of two.
    """
    if jax.default_backend() != "cpu":
        return 512
    some = min(8, num_examples(data))
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct((some, *np.shape(x)[1:]), x.dtype), data)
    weights = jax.ShapeDtypeStruct((some,) if per_example else (), layout.dtype)
    prepared = jax.eval_shape(functools.partial(form.prepare, layout), params, batch, weights)
    each = max(_bytes(prepared) - trees.size(params) * layout.dtype.itemsize, some) / some
    return int(2 ** np.clip(np.round(np.log2(_CACHED / each)), 3, 9))


def hashable(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, or one that calls it, with a hash: such a one is compiled anew each time."""
    return function if isinstance(function, Hashable) else lambda *args: function(*args)
