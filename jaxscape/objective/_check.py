"""Is a loss the mean over its examples? Two partitions of the same examples must agree.

The check is lowered, compiled and run in a thread of its own, while the caller compiles its program. The caller asks
for the verdict before it gives a result.
"""

import contextlib
import functools
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxscape import trees
from jaxscape.convolution import compiler_options
from jaxscape.objective._batches import even_size, rows_of
from jaxscape.objective._devices import fetch
from jaxscape.objective._proof import is_mean
from jaxscape.objective._trace import Computation, Traced
from jaxscape.shards import on_mesh, within
from jaxscape.types import Params

if TYPE_CHECKING:
    from jaxscape.objective._objective import Term

EXAMPLES = 128  # at most, in each of the two partitions
SMALL = (8, 4, 2, 1)  # examples in a batch of the finer partition, the first that divides the others' size

# A quick compilation matters more than a quick run: ResNet-56 compiles in 0.9 instead of 1.6 s, and runs as fast, since
# its convolutions are library calls.
_QUICK = {"xla_backend_optimization_level": 0}


class Check:
    """A check of a loss, which runs in a thread while the caller compiles its program."""

    def __init__(self, begin: Callable[[], Callable[[], None]] | None = None) -> None:
        """Nothing runs yet.

        Args:
            begin: It begins the check and returns a call that waits for the verdict; None: there is nothing to check.
        """
        self._begin = begin
        self._wait: Callable[[], None] | None = None

    def begin_beside(self, program: Any, *args: Any) -> None:
        """Begin, once, when nothing but the compilation of the caller's program is left, which needs no Python.

        The thread's Python and the caller's take turns: begun before, the first call of a ResNet-56 took 1.3 times as
        long as without the check.

        Args:
            program: A function of `jax.jit`, which the caller calls next.
            *args: What it calls it with.
        """
        if self._begin is not None and self._wait is None:
            program.lower(*args)  # the call finds it in the cache of JAX
            self._wait = self._begin()

    def verdict(self) -> None:
        """Wait for the verdict.

        Raises:
            ValueError: The loss is no mean over examples.
            jax.errors.JaxRuntimeError: Memory runs out with two examples, or the loss fails.
        """
        if self._begin is not None:
            self._wait = self._wait or self._begin()
            self._wait()
            self._begin = None  # a loss that passed is not asked again


def check_is_mean(term: "Term", params: Params, batch_size: int | None) -> Check:
    """The check that the value of a loss does not depend on how the data are cut into batches.

    Most losses are proven to be means, by what they are made of, and nothing is computed. Else they are evaluated:
    Up to `EXAMPLES` examples, evenly spaced in the data, are evaluated at params in batches of consecutive ones, as
    large as those of the trace that identifies the loss, and in batches of at most 8 drawn at random: of data that are
    sorted, say by length, the two differ most. The loss of each example, or the mean of batch means, must be the same
    but for rounding: within ``sqrt(eps)`` of the coarsest floating type in the computation, relative to the root mean
    square.

    Args:
        term: The loss and its data.
        params: Where.
        batch_size: At most so many examples in a batch, as the caller's memory allows (2 at least); None: no limit.

    Returns:
        The check, which has not begun.
    """
    most = term.canonical if batch_size is None else max(2, min(batch_size, EXAMPLES))
    large = even_size(term.examples, most)
    proven = term.traced(large).computation, large
    if proven in _passed:
        return Check()
    with jax.ensure_compile_time_eval():  # within a transform too, values are values
        key = _key(term, params, large)
    if key in _passed:
        return Check()
    small = _smaller(large)
    for size in (large, small):
        term.traced(size)  # here: within `ensure_compile_time_eval` what depends on no argument would be run at once
    batch = jax.tree.leaves((jax.tree.map(lambda _: False, params), jax.tree.map(lambda _: True, term.data)))
    if small < large and is_mean(_unconstrained(term, large), _unconstrained(term, small), (large, small), batch):
        _passed[proven] = None
        return Check()
    return Check(lambda: _begun(term, params, large, key))


def _unconstrained(term: "Term", size: int) -> Traced:
    traced = term.traced(size)
    return traced._replace(computation=traced.computation.unconstrained())


def _begun(term: "Term", params: Params, large: int, key: Any) -> Callable[[], None]:
    """Begin a check; the call that waits for the verdict."""
    with jax.ensure_compile_time_eval() if term.mesh is None else contextlib.nullcontext():
        attempt = _two_partitions(term, params, large)

    def wait() -> None:
        nonlocal attempt, large
        while True:
            try:
                first, second, small = attempt.result()
                break
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error) or large <= 2:
                    raise
                large //= 2
                attempt = _two_partitions(term, params, large)
        disagreement, tolerance = _distance(first, second), _rounding(term.traced(large).computation)
        if disagreement > tolerance:
            raise ValueError(_message(term, first, second, (large, small), disagreement))
        _passed[key] = None
        while len(_passed) > 256:
            del _passed[next(iter(_passed))]

    return wait


_THREAD = ThreadPoolExecutor(1, thread_name_prefix="jaxscape-check")
_passed: dict[Any, None] = {}  # checks of this process that need not be made again


def _key(term: "Term", params: Params, large: int) -> Any:
    """All that a check depends on."""
    computation, constants = term.traced(term.canonical)
    return computation, large, trees.fingerprint(params, constants, rows_of(term.data, _rows(term, large)))


def _rows(term: "Term", large: int) -> np.ndarray:
    """Evenly spaced examples, a multiple of the larger batch."""
    count = max(EXAMPLES // large, 1) * large if term.examples >= EXAMPLES else term.examples // large * large
    return np.linspace(0, term.examples - 1, count).round().astype(int)


def _smaller(large: int) -> int:
    """Examples in a batch of the finer partition."""
    return next((size for size in SMALL if size < large and not large % size), 1)


def _two_partitions(term: "Term", params: Params, large: int) -> Future[tuple[np.ndarray, np.ndarray, int]]:
    """The losses of some examples in large batches, and in small ones, and the size of these; in the thread."""
    small = _smaller(large)
    rows = _rows(term, large)
    order = np.random.default_rng(0).permutation(len(rows))
    runs = _losses(term, params, rows, large), _losses(term, params, rows[order], small)

    # What a caller sets in a context holds for the caller's thread alone. The loss is traced already; how it is lowered
    # depends on these two.
    config: Any = jax.config
    x64, precision = config.jax_enable_x64, config.jax_default_matmul_precision

    def run() -> tuple[np.ndarray, np.ndarray, int]:
        with jax.enable_x64(x64), jax.default_matmul_precision(precision):
            first, second = (losses() for losses in runs)
        return (first[order] if term.per_example["loss"] else first), second, small

    if term.mesh is None:
        return _THREAD.submit(run)
    done: Future[tuple[np.ndarray, np.ndarray, int]] = Future()
    done.set_result(run())  # programs of several devices must be sent by one thread, in the same order by each process
    return done


def _losses(term: "Term", params: Params, rows: np.ndarray, size: int) -> Callable[[], np.ndarray]:
    """Prepare the loss of each of these examples, or one weighted mean of batch means, from batches of this size.

    Returns:
        The rest of the work, for the thread. It does not call the user's function, which is traced here.
    """
    computation, constants = term.traced(size)
    program, mesh = _program(computation, jax.default_backend()), term.mesh

    def put(tree: Any) -> Any:  # it may be on other devices
        return jax.device_put(tree, jax.local_devices()[0]) if mesh is None else on_mesh(tree, mesh)

    constants, leaves = put((constants, jax.tree.leaves(params)))
    parts = [put(jax.tree.leaves(rows_of(term.data, part))) for part in rows.reshape(-1, size)]

    def run() -> np.ndarray:
        with within(mesh):
            batches = fetch([program(constants, leaves, part) for part in parts])
        values = np.stack([np.asarray(losses, np.float64) for losses, _ in batches])
        if term.per_example["loss"]:
            return values.ravel()
        weights = np.array([float(weight) for _, weight in batches])
        return np.atleast_1d(np.sum(values * weights) / np.sum(weights))

    return run


@functools.lru_cache(maxsize=64)
def _program(computation: Computation, backend: str) -> Callable[..., Any]:
    def losses(constants: Any, params: Any, batch: Any) -> tuple[Any, Any]:
        metrics = computation(constants, params, batch)
        return metrics["loss"], jnp.sum(metrics["weight"]) if "weight" in metrics else jnp.ones(())

    return jax.jit(losses, compiler_options={**compiler_options(backend), **(_QUICK if backend == "cpu" else {})})


def _distance(first: np.ndarray, second: np.ndarray) -> float:
    """Root mean square difference relative to the root mean square; infinite where one alone is not finite."""
    both = np.isfinite(first) & np.isfinite(second)
    with np.errstate(all="ignore"):
        same = both | (first == second) | (np.isnan(first) & np.isnan(second))
        if not same.all():
            return np.inf
        scale = np.abs(first[both]).max(initial=0.0)
        if not scale > 0:
            return float(np.abs(second[both]).max(initial=0.0) > 0)
        return float(np.sqrt(np.mean(((first - second)[both] / scale) ** 2) / np.mean((first[both] / scale) ** 2)))


def _rounding(computation: Computation) -> float:
    """How far two orders of the same sums may be apart."""
    dtypes: Sequence[Any] = [
        v.aval.dtype for eqn in computation.jaxpr.eqns for v in eqn.outvars if hasattr(v.aval, "dtype")
    ]
    floats = [dtype for dtype in dtypes if jnp.issubdtype(dtype, jnp.floating)] or [jnp.dtype(jnp.float32)]
    eps = max(float(jnp.finfo(dtype).eps) for dtype in floats)
    on_accelerator = jax.default_backend() != "cpu" and eps < 1e-3  # products may be rounded to TF32 there
    return float(np.sqrt(1e-3 if on_accelerator else eps))


def _message(term: "Term", first: np.ndarray, second: np.ndarray, sizes: tuple[int, int], disagreement: float) -> str:
    name = f"loss_fn[{term.name!r}]" if term.name else "loss_fn"
    return (
        f"{name} is no mean over examples: the same examples have the mean loss {np.mean(first):.6g} in batches of "
        f"{sizes[0]} and {np.mean(second):.6g} in batches of {sizes[1]} (relative difference {disagreement:.1e}). "
        "Likely causes and cures: (1) batch norm in training mode: evaluate the network with its running statistics; "
        "(2) randomness, such as dropout or a noisy loss: switch it off, or put a PRNG key for each example into data; "
        "(3) a division by what is in the batch, such as its tokens, or a sum over the batch: return the loss "
        "of each example, shape (batch,), and its weight, e.g. {'loss': (l * mask).sum(-1) / mask.sum(-1), 'weight': "
        "mask.sum(-1)}. check=False takes the loss as it is; then the result depends on "
        "batch_size."
    )
