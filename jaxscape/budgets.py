"""What a call will take, before it starts: memory of each device, operations, and seconds."""

import functools
import math
import time
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxscape import checks, engine, trees
from jaxscape.arguments import checked
from jaxscape.convolution import compiler_options
from jaxscape.curvature import hvp, lowered_products
from jaxscape.directions import fit, random_directions
from jaxscape.engine import first_batch
from jaxscape.grid import Grid
from jaxscape.memory import free_bytes
from jaxscape.objective import Objective, Placement, Term, as_batch_size, even_size, refuse_inside_transform
from jaxscape.shards import is_cut, within
from jaxscape.types import Data, LossFn, Params

Call = Literal["surface", "eigenvalues"]


class Budget(NamedTuple):
    """What a call takes.

    Attributes:
        bytes: On each device, by what they are for.
        free: Bytes that each device has left.
        flop: Floating-point operations of all points or products together, as XLA counts them.
        work: How many points, or products with the Hessian.
        seconds: From one timed point or product; None: nothing was timed.
        cure: What to do where it does not fit; empty where it does.
    """

    bytes: dict[str, int]
    free: int
    flop: float
    work: int
    seconds: float | None
    cure: str

    @property
    def total(self) -> int:
        """All bytes on each device."""
        return sum(self.bytes.values())

    @property
    def fits(self) -> bool:
        """Whether each device has so much left."""
        return self.total <= self.free

    def __str__(self) -> str:
        lines = [f"{name:12} {_gigabytes(size)}" for name, size in self.bytes.items()]
        lines += [f"{'together':12} {_gigabytes(self.total)} of {_gigabytes(self.free).strip()} free on each device"]
        lines += [f"{'work':12} {self.flop:10.3g} FLOP, {self.work} times {self.flop / max(self.work, 1):.3g}"]
        if self.seconds is not None:
            lines += [f"{'time':12} {self.seconds:10.3g} s"]
        return "\n".join([*lines, *([self.cure] if self.cure else [])])


@checked
def estimate(
    params: Params,
    loss_fn: LossFn | Mapping[str, LossFn],
    data: Data,
    *,
    call: Call = "surface",
    grid: Grid | None = None,
    lazy: bool | None = None,
    max_basis: int = 40,
    max_matvecs: int = 100,
    batch_size: int | Literal["auto"] = "auto",
    mesh: Mesh | None = None,
    compute_dtype: str | None = None,
    timed: bool = False,
) -> Budget:
    """What a surface or a search for eigenvalues takes, before it starts: nothing is computed, unless ``timed``.

    Bytes of params, of the displaced copy, directions and Krylov vectors are those of their shapes; activations are the
    temporary memory of the compiled loss of one batch, or of a product with its Hessian, as XLA reports it; operations
    are those that XLA counts in it, times the batches and the points or products.

    >>> import jax.numpy as jnp
    >>> params, x = {"w": jnp.ones((512, 512))}, jnp.ones((64, 512))
    >>> budget = estimate(params, lambda p, x: ((x @ p["w"]) ** 2).sum(-1), x, grid=Grid.plane((-1, 1, 5), (-1, 1, 5)))
    >>> budget.bytes["params"], budget.bytes["displaced"], budget.bytes["directions"], budget.work, budget.fits
    (1048576, 1048576, 2097152, 25, True)

    Args:
        params: Any pytree of floating arrays; or of `jax.ShapeDtypeStruct`, with a ``sharding`` where leaves are cut
            over devices: a model that nobody has loaded yet.
        loss_fn: As in `jaxscape.surface`.
        data: As in `jaxscape.surface`.
        call: ``"surface"``: `jaxscape.surface` with random directions; ``"eigenvalues"``:
            `jaxscape.extreme_eigenvalues`.
        grid: Of the surface; None: 51x51 points.
        lazy: Whether directions are drawn where they are used; None: as `jaxscape.random_directions` chooses.
        max_basis: Krylov vectors in memory, at most.
        max_matvecs: Products with the Hessian, at most.
        batch_size: Examples in one call of loss_fn, at most; ``"auto"``: as many as a call begins with.
        mesh: The devices; None: those that params are cut over, else all.
        compute_dtype: As in `jaxscape.surface`.
        timed: Whether one point, or one product, is computed and timed.

    Returns:
        The budget; ``print(budget)`` shows it as a table.

    Raises:
        ValueError: ``call`` is unknown, ``timed`` is True and params has shapes alone; or params, data or loss_fn are
            wrong, as in `jaxscape.surface`.
        TypeError: A leaf of params is not floating.
    """
    refuse_inside_transform("js.estimate")
    if call not in get_args(Call):
        raise ValueError(f"call is {call!r}, expected one of {', '.join(get_args(Call))}.")
    shapes = _shapes(params)
    if timed and any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(params)):
        raise ValueError("timed is True, but params has shapes without numbers; expected arrays, or timed=False.")
    checks.check_mesh(mesh)
    placement = Placement.of(shapes, mesh)
    size = as_batch_size(batch_size)
    objective = Objective.of(loss_fn, shapes, data, compute_dtype=compute_dtype, check=False, batch_size=size)
    local = functools.partial(_local_bytes, shapes, placement)
    bytes_of = {"params": local(lambda x: x.dtype)}
    devices = placement.mesh.local_devices
    if call == "surface":
        grid = grid or Grid.plane()
        num, work = len(grid.axes), math.prod(grid.shape)
        if lazy is None:
            lazy = not fit(jax.tree.leaves(shapes), num, placement.mesh if placement.is_cut else None)
        bytes_of["displaced"] = bytes_of["params"]
        bytes_of["directions"] = 0 if lazy else num * local(trees.working_dtype)
        parts = [_loss_of_a_batch(term, shapes, size, placement) for term in objective.terms]
    else:
        work = max_matvecs
        bytes_of["basis"] = (max_basis + 4) * local(trees.working_dtype)
        parts = [_part(lowered, times) for lowered, times in lowered_products(loss_fn, shapes, data, size, mesh)]
    bytes_of["activations"] = max(part.temporary for part in parts)
    bytes_of["data"] = max(_bytes_of_data(term, placement) for term in objective.terms)
    flop, free = work * sum(part.flop for part in parts), free_bytes(devices) // len(devices)
    seconds = _timed(params, loss_fn, data, call, work, size, mesh, compute_dtype) if timed else None
    cure = _cure(bytes_of, free, call, bool(lazy), placement)
    return Budget(bytes_of, free, flop, work, seconds, cure)


class _Part(NamedTuple):
    """Temporary bytes of a program on a device, and the operations of all its runs."""

    temporary: int
    flop: float


def _shapes(params: Params) -> Params:
    """Shapes, dtypes and, of leaves that are cut, shardings."""
    if any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(params)):
        return params
    params = checks.as_params(params)
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding if is_cut(x) else None), params
    )


def _local_bytes(shapes: Params, placement: Placement, dtype: Any) -> int:
    """Bytes of a pytree like params on a device."""
    specs = placement.specs or [PartitionSpec()] * len(jax.tree.leaves(shapes))
    total = 0
    for x, spec in zip(jax.tree.leaves(shapes), specs, strict=True):
        shape = NamedSharding(placement.mesh, spec).shard_shape(x.shape)
        total += math.prod(shape) * jnp.dtype(dtype(x)).itemsize
    return total


def _loss_of_a_batch(term: Term, shapes: Params, size: int | None, placement: Placement) -> _Part:
    """The temporary memory and the operations of the loss: of a batch, and of all batches."""
    width = even_size(term.examples, min(size or first_batch(term.sample), term.examples))
    computation, constants = term.traced(width)
    like = functools.partial(_placed, placement)
    specs = placement.specs or [PartitionSpec()] * len(jax.tree.leaves(shapes))
    point = jax.tree.unflatten(jax.tree.structure(shapes), map(like, jax.tree.leaves(shapes), specs))
    parts = placement.parts_of_batch
    spec = PartitionSpec(placement.example_axes or None) if width % parts == 0 else PartitionSpec()
    batch = jax.tree.map(lambda x: like(x, spec), term.batch_like(width))
    constants = jax.tree.map(lambda x: like(x, PartitionSpec()), constants)
    with within(placement.context):
        lowered = jax.jit(computation, compiler_options=compiler_options()).lower(constants, point, batch)
        return _part(lowered, -(-term.examples // width))


def _part(lowered: Any, times: int) -> _Part:
    """What a program takes that is run several times; operations are 0 where XLA does not count."""
    temporary = lowered.compile().memory_analysis().temp_size_in_bytes
    costs = lowered.cost_analysis() or {}
    costs = costs[0] if isinstance(costs, list) else costs
    return _Part(temporary, times * float(costs.get("flops", 0.0)))


def _placed(placement: Placement, x: Any, spec: PartitionSpec) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(placement.mesh, spec))


def _bytes_of_data(term: Term, placement: Placement) -> int:
    """Bytes of the examples on a device; of a stream those of two parts."""
    total = sum(np.asarray(x).nbytes if not hasattr(x, "nbytes") else x.nbytes for x in jax.tree.leaves(term.data))
    return 2 * total if term.passes else total // (placement.shares * placement.parts_of_batch)


def _timed(
    params: Params,
    loss_fn: Any,
    data: Data,
    call: Call,
    work: int,
    size: int | None,
    mesh: Mesh | None,
    compute_dtype: str | None,
) -> float:
    """Seconds of all work, from one point of the line, or one product, that is computed twice."""
    if call == "surface":
        params = checks.as_params(params)
        objective = Objective.of(loss_fn, params, data, compute_dtype=compute_dtype, check=False, batch_size=size)
        directions = random_directions(0, params, num=1)
        evaluator = engine.Evaluator(objective, params, directions.operand, mesh)
        first = {t.name: engine.Load(min(size or first_batch(t.sample), t.examples)) for t in objective.terms}
        placement = Placement.of(params, mesh)
        points = np.zeros((placement.groups, 1))

        def once() -> None:
            with engine.progress_bar(0, progress=False) as bar:
                evaluator(points, first, bar)

        work = -(-work // placement.groups)
    else:
        operator = hvp(loss_fn, params, data, batch_size=size or "auto", mesh=mesh, check=False)

        def once() -> None:
            jax.block_until_ready(operator(params))

    once()  # it compiles
    start = time.perf_counter()
    once()
    return work * (time.perf_counter() - start)


def _cure(bytes_of: dict[str, int], free: int, call: Call, lazy: bool, placement: Placement) -> str:
    """What to do where it does not fit."""
    lacking = sum(bytes_of.values()) - free
    if lacking <= 0:
        return ""
    cures = []
    if call == "surface" and not lazy and bytes_of["directions"]:
        cures.append(f"lazy=True spares {_gigabytes(bytes_of['directions']).strip()}")
    if call == "eigenvalues":
        cures.append('a smaller max_basis, or basis="host"')
    if bytes_of["activations"] > lacking / 2:
        cures.append("a smaller batch_size")
    if bytes_of["data"] > lacking / 2:
        cures.append("js.Stream for data that do not fit")
    if not placement.is_cut:
        cures.append("params that are cut over devices (docs/large-models.md)")
    return f"does not fit: {_gigabytes(lacking).strip()} are lacking. Cures: {'; '.join(cures or ['more devices'])}."


def _gigabytes(size: int) -> str:
    return f"{size / 2**30:10.3f} GiB" if size >= 2**27 else f"{size / 2**20:10.3f} MiB"
