"""Data that do not fit in memory: batches that are read again and again, one pass after another.

A result is a mean over the same examples at every point, so each pass has to give the same batches. They are hashed as
they come; a pass that differs from the first one ends the call with an error that says where.
"""

import contextlib
import functools
import hashlib
import operator
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxscape import trees
from jaxscape.objective._batches import num_examples, rows_of
from jaxscape.objective._devices import gather
from jaxscape.types import Data

_AHEAD = 2  # batches that are read while one is computed
_SEVERAL = 16  # batches in a stream that does not tell its length, for the choice of what goes side by side

_CURE = (
    "A result is a mean over the same examples at every point, so each pass must give the same batches in the same "
    "order: switch off shuffling and augmentation, or give them a fixed seed for each pass."
)


class Stream:
    """Data that do not fit in memory: batches that can be read again and again.

    It stands wherever a call takes ``data``. A pass reads each batch once, for all points of a surface, while the
    batches before are computed; a product with the Hessian takes a pass of its own. The batches may have any sizes.
    Where the loss gives the value of each example, the result is that of arrays with the same examples; where it gives
    the mean of a batch, it is the mean of these means, weighted by the examples of the batches.

    Each pass must give the same batches in the same order. The first batch is read twice before anything is computed,
    and each later pass is compared with the first one.

    With several processes (`jax.distributed`) every process streams examples of its own, and the result is the mean
    over the examples of all.

    >>> import jax.numpy as jnp
    >>> import jaxscape as js
    >>> def batches():
    ...     for start in range(0, 6, 2):
    ...         yield jnp.arange(start, start + 2.0)
    >>> ds = js.surface({"w": jnp.ones((2, 2))}, lambda p, x: p["w"].sum() * x, js.Stream(batches),
    ...                 grid=js.Grid.line(0, 1, 2), progress=False)
    >>> float(ds.loss[0]), int(ds.num_examples[0])
    (10.0, 6)

    Attributes:
        batches: As it was given.
    """

    def __init__(self, batches: Iterable[Any] | Callable[[], Iterable[Any]]) -> None:
        """Nothing is read yet.

        Args:
            batches: Something that can be iterated again and again, each time from its beginning, such as a
                `torch.utils.data.DataLoader`, a `grain` loader, a `tf.data.Dataset` or a list of batches; or a function
                that makes an iterator, such as a generator function. A batch is a pytree of arrays (NumPy, JAX, PyTorch
                or TensorFlow) with a common leading example axis, e.g. ``(images, labels)``; all batches have the same
                structure, dtypes and shapes but for that axis.

        Raises:
            TypeError: It can be iterated once only, or it gives examples or arrays instead of batches.
        """
        kind = type(batches).__name__
        if hasattr(batches, "__next__"):
            raise TypeError(
                f"batches is {_a(kind)}, which can be read once only; expected something that begins anew each time. "
                "Pass the function that makes it, js.Stream(make_batches), or a list of its batches."
            )
        if isinstance(batches, Mapping | tuple) or hasattr(batches, "dtype"):
            raise TypeError(
                f"batches is {_a(kind)}, expected a list of batches, or something else that gives one batch after "
                "another. Arrays that are in memory are passed as data themselves."
            )
        if not hasattr(batches, "__iter__") and not callable(batches):
            if hasattr(batches, "__getitem__"):
                raise TypeError(
                    f"batches is {_a(kind)}, which gives single examples by their numbers; expected batches. Wrap it "
                    "in a loader, such as torch.utils.data.DataLoader(dataset, batch_size=...) without shuffling."
                )
            raise TypeError(
                f"batches is {_a(kind)}, expected a loader, a list of batches, or a function that makes an iterator."
            )
        self.batches = batches

    def __repr__(self) -> str:
        return f"Stream({type(self.batches).__name__})"


class Totals(NamedTuple):
    """What all passes have in common.

    Attributes:
        counts: The examples of each batch, one process after another.
        first: The number of this process's first batch.
        fingerprint: A hash of all batches.
    """

    counts: np.ndarray
    first: int
    fingerprint: str


class Passes:
    """The passes over a stream within one call, each compared with the first one.

    Attributes:
        first: The first batch.
    """

    def __init__(self, stream: Stream, name: str = "data") -> None:
        """Read the first batch twice, from two iterators.

        Args:
            stream: The batches.
            name: What the caller's argument is called, for messages.

        Raises:
            ValueError: There is no batch, the second iterator gives another one, or it is no batch.
            TypeError: A leaf of the batch is no array of numbers.
        """
        self._stream, self._name = stream, name
        self._digests: list[str] | None = None
        self._counts: list[int] = []
        once = self._begin()
        batch = next(once, None)
        if batch is None:
            raise ValueError(f"{name} gave no batch; expected at least one.")
        self.first: Data = _as_arrays(batch)
        num_examples(self.first, f"batch 0 of {name}")
        _close(once)
        del once, batch
        self._opened: Iterator[Any] | None = self._begin()
        again = next(self._opened, None)
        if again is None:
            raise ValueError(
                f"{name} gave batches once, and none the second time. Pass a function that makes a new iterator each "
                "time."
            )
        again = _as_arrays(again)
        if trees.fingerprint(again) != trees.fingerprint(self.first):
            raise ValueError(f"{name} gave another first batch when it was read again. {_CURE}")
        self._again: Data | None = again

    @functools.cached_property
    def totals(self) -> Totals:
        """What all passes have in common, of all processes; a pass is made if none was made before.

        Raises:
            ValueError: Two processes stream the same examples.
        """
        digest = hashlib.blake2b(" ".join(self._survey()).encode(), digest_size=8)
        digests = [part.tobytes() for part in gather(np.frombuffer(digest.digest(), np.uint8))]
        if len(set(digests)) < len(digests):
            raise ValueError(
                f"{self._name} has the same batches in several processes; expected examples of its own in each. Give "
                "each process its share of the data."
            )
        lengths = gather(np.array(len(self._counts)))
        padded = gather(np.pad(self._counts, (0, int(lengths.max()) - len(self._counts))))
        counts = np.concatenate([row[:length] for row, length in zip(padded, lengths, strict=True)])
        fingerprint = digest.hexdigest() if len(digests) == 1 else hashlib.blake2b(b"".join(digests)).hexdigest()[:16]
        return Totals(counts, int(lengths[: jax.process_index()].sum()), fingerprint)

    @property
    def expected_batches(self) -> int:
        """In a pass, as far as is known before the first."""
        if self._digests is not None:
            return len(self._digests)
        try:
            return max(operator.length_hint(self._stream.batches, _SEVERAL), 1)
        except (TypeError, ValueError, NotImplementedError):  # a loader of data without a length
            return _SEVERAL

    @property
    def expected_examples(self) -> int:
        """In a pass, as far as is known before the first."""
        if self._digests is not None:
            return sum(self._counts)
        return self.expected_batches * num_examples(self.first)

    def __iter__(self) -> Iterator[Data]:
        """One pass: the batches in their order, read ahead in a thread.

        Yields:
            Batches of NumPy or JAX arrays.

        Raises:
            ValueError: A batch has another form than the first, or the pass differs from the first one.
        """
        digests, counts = [], []
        for i, (batch, digest) in enumerate(_ahead(self._opened_or_new(), self._read)):
            if self._digests is not None and self._digests[i : i + 1] != [digest]:
                before = f"the first pass had {len(self._digests)} batches" if i >= len(self._digests) else "before"
                raise ValueError(f"batch {i} of {self._name} is not what it was in the first pass ({before}). {_CURE}")
            digests.append(digest)
            counts.append(len(jax.tree.leaves(batch)[0]))
            yield batch
        if self._digests is None:
            self._digests, self._counts = digests, counts
        elif len(digests) != len(self._digests):
            raise ValueError(
                f"{self._name} gave {len(digests)} batches in a pass and {len(self._digests)} in the first one. {_CURE}"
            )

    def _survey(self) -> list[str]:
        """The hash of each batch."""
        if self._digests is None:
            for _ in self:
                pass
        assert self._digests is not None
        return self._digests

    def _begin(self) -> Iterator[Any]:
        batches = self._stream.batches
        return iter(batches if hasattr(batches, "__iter__") else batches())

    def _opened_or_new(self) -> Iterator[Any]:
        """The iterator whose first batch is read already, for the first pass; a new one for the others."""
        if self._opened is None:
            yield from self._begin()
            return
        opened, first, self._opened, self._again = self._opened, self._again, None, None
        yield first
        yield from opened

    def _read(self, i: int, batch: Any) -> tuple[Data, str]:
        """A batch as arrays, which has the form of the first one, and its hash."""
        batch = _as_arrays(batch)
        name = f"batch {i} of {self._name}"
        num_examples(batch, name)
        first, this = (str(jax.tree.structure(tree)) for tree in (self.first, batch))
        if first != this:
            raise ValueError(f"{name} has the structure {this}, expected {first} as in the first batch.")
        pairs = zip(jax.tree_util.tree_leaves_with_path(batch), jax.tree.leaves(self.first), strict=True)
        for (path, leaf), like in pairs:
            if (leaf.dtype, leaf.shape[1:]) != (like.dtype, like.shape[1:]):
                raise ValueError(
                    f"{name}{jax.tree_util.keystr(path)} has {leaf.dtype}{list(leaf.shape)}, expected "
                    f"{like.dtype}[any, {', '.join(map(str, like.shape[1:]))}] as in the first batch. Pad the examples "
                    "of all batches to one length."
                )
        return batch, trees.fingerprint(batch)


def recut(batches: Iterable[Data], rows: int) -> Iterator[Data]:
    """The same examples in batches of one size, the last one smaller.

    >>> [batch.tolist() for batch in recut([np.arange(3), np.arange(3, 8)], 4)]
    [[0, 1, 2, 3], [4, 5, 6, 7]]

    Args:
        batches: Arrays with a common leading example axis.
        rows: The size.

    Yields:
        Batches.
    """
    waiting: list[Data] = []
    count = 0
    for batch in batches:
        waiting.append(batch)
        count += len(jax.tree.leaves(batch)[0])
        if count < rows:
            continue
        whole = jax.tree.map(_joined, *waiting)
        for start in range(0, count - rows + 1, rows):
            yield rows_of(whole, slice(start, start + rows))
        waiting = [rows_of(whole, slice(count - count % rows, count))] if count % rows else []
        count %= rows
    if waiting:
        yield jax.tree.map(_joined, *waiting)


def _joined(*arrays: Any) -> Any:
    if len(arrays) == 1:
        return arrays[0]
    if jax.dtypes.issubdtype(arrays[0].dtype, jax.dtypes.prng_key):
        return jnp.concatenate(arrays)
    return np.concatenate([np.asarray(x) for x in arrays])  # by JAX it would be a program for each shape


def has_stream(data: Any) -> bool:
    """Whether data, or those of one of several terms, are a stream."""
    return any(isinstance(part, Stream) for part in (data.values() if isinstance(data, Mapping) else [data]))


def refuse_stream(data: Any, wish: str) -> None:
    """Refuse a stream where examples are wanted by their numbers.

    Args:
        data: What the caller passed, or a mapping of such.
        wish: What needs arrays.

    Raises:
        TypeError: It is a stream.
    """
    if has_stream(data):
        raise TypeError(
            f"{wish} takes examples by their numbers, which a js.Stream does not have; expected data in memory. Pass "
            "arrays, for example those of some batches."
        )


def _ahead(batches: Iterator[Any], read: Callable[[int, Any], Any]) -> Iterator[Any]:
    """What ``read(i, batch)`` gives for each batch, in order, done in a thread while the ones before are used."""
    results: queue.Queue[tuple[str, Any]] = queue.Queue(_AHEAD)
    stop = threading.Event()

    def put(kind: str, value: Any) -> None:
        while not stop.is_set():
            with contextlib.suppress(queue.Full):
                results.put((kind, value), timeout=0.1)
                return

    def run() -> None:
        try:
            for i, batch in enumerate(batches):
                put("batch", read(i, batch))
                if stop.is_set():
                    return
            put("end", None)
        except BaseException as error:  # noqa: BLE001  # it is raised where the batches are used
            put("error", error)

    x64 = jax.config.jax_enable_x64  # type: ignore[attr-defined]

    def within() -> None:
        with jax.enable_x64(x64):  # a thread does not know what the caller's context has set
            run()

    thread = threading.Thread(target=within, name="jaxscape-stream", daemon=True)
    thread.start()
    try:
        while True:
            kind, value = results.get()
            if kind == "end":
                return
            if kind == "error":
                raise value
            yield value
    finally:
        stop.set()
        thread.join()
        _close(batches)


def _close(iterator: Any) -> None:
    """End a generator where it stands; what other iterators hold ends with them."""
    if hasattr(iterator, "close") and hasattr(iterator, "send"):
        iterator.close()


def _as_arrays(batch: Any) -> Data:
    """The batch in arrays of its own: a loader may write its next batch into the same memory."""
    return jax.tree.map(_as_array, batch)


def _as_array(leaf: Any) -> Any:
    if isinstance(leaf, jax.Array):
        return leaf
    if hasattr(leaf, "detach"):  # PyTorch
        leaf = leaf.detach().cpu()
        if str(leaf.dtype) == "torch.bfloat16":  # NumPy has none
            return np.array(jax.dlpack.from_dlpack(leaf.contiguous()))
        leaf = leaf.numpy()
    return np.array(leaf) if np.ndim(leaf) or hasattr(leaf, "dtype") else leaf


def _a(kind: str) -> str:
    """A noun with its article."""
    return f"{'an' if kind[:1].lower() in 'aeiou' else 'a'} {kind}"
