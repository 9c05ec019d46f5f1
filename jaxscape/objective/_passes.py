"""The passes over a stream: its batches, read again and again within one call.

A result is a mean over the same examples at every point, so each pass has to give the same batches. They are hashed as
they come; a pass that differs from the first one ends the call with an error that says where.

An iterator lives within one thread from its beginning to its end, and within one pass: some loaders have a single
iterator that each pass begins anew, and what a generator sets for its thread (`torch.no_grad`) must not reach the
caller's.
"""

import contextlib
import functools
import hashlib
import operator
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxscape import trees
from jaxscape.objective._batches import num_examples, rows_of
from jaxscape.objective._stream import Stream
from jaxscape.shards import gather
from jaxscape.types import Data

_AHEAD = 2  # batches that are read while one is computed
_SAMPLE = 128  # examples that are read before anything else, for the trace, the check of the loss, and trials
_SEVERAL = 16  # batches that they come from, at most; and those of a stream that does not tell its length
_PATIENCE = 1.0  # seconds that an error waits for the thread that reads: a loader may hang

_CURE = (
    "A result is a mean over the same examples at every point, so each pass must give the same batches in the same "
    "order: switch off shuffling and augmentation, or give them a fixed seed for each pass, and leave the data as they "
    "are during a call."
)


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
        sample: The first examples, from one or more batches.
        largest: Examples in the largest of these batches.
    """

    def __init__(self, stream: Stream, name: str = "data") -> None:
        """Read the first batches.

        Args:
            stream: The batches.
            name: What the caller's argument is called, for messages.

        Raises:
            ValueError: There is no batch, or the first ones differ in form.
            TypeError: A leaf of a batch is no array of numbers.
        """
        self._stream, self._name = stream, name
        self._like: Data | None = None
        self._digests: list[str] | None = None  # of a whole pass
        self._counts: list[int] = []
        ((batches, self._seen),) = _ahead(lambda: iter([self._first_batches()]), lambda _, first: first)
        if not batches:
            raise ValueError(f"{name} gave no batch; expected at least one.")
        self.sample: Data = jax.tree.map(_joined, *batches)
        self.largest = max(map(num_examples, batches))
        self._mean = num_examples(self.sample) / len(batches)

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
    def expected_examples(self) -> int:
        """In a pass, as far as is known before the first."""
        if self._digests is not None:
            return sum(self._counts)
        batches = _SEVERAL
        with contextlib.suppress(Exception):  # a loader without a length may raise whatever it likes
            batches = operator.length_hint(self._stream.batches, _SEVERAL)
        return max(round(batches * self._mean), num_examples(self.sample))

    def __iter__(self) -> Iterator[Data]:
        """One pass: the batches in their order, read ahead in a thread.

        Yields:
            Batches of NumPy or JAX arrays.

        Raises:
            ValueError: A batch has another form than the first, or the pass differs from an earlier one.
        """
        digests, counts = [], []
        known = self._seen if self._digests is None else self._digests
        for i, (batch, digest) in enumerate(_ahead(self._stream.begin, self._read)):
            if i < len(known) and digest != known[i]:
                raise ValueError(f"batch {i} of {self._name} is not what it was when it was read before. {_CURE}")
            digests.append(digest)
            counts.append(len(jax.tree.leaves(batch)[0]))
            if i < len(known) or self._digests is None:
                yield batch
        if not digests:
            raise ValueError(
                f"{self._name} gave batches once, and none the second time. Pass a function that makes a new iterator "
                "each time."
            )
        if len(digests) < len(known) or (self._digests is not None and len(digests) > len(known)):
            least = "" if self._digests is not None else "at least "
            raise ValueError(
                f"{self._name} gave {len(digests)} batches, and {least}{len(known)} when it was read before. {_CURE}"
            )
        if self._digests is None:
            self._digests, self._counts = digests, counts

    def _survey(self) -> list[str]:
        """The hash of each batch."""
        if self._digests is None:
            for _ in self:
                pass
        assert self._digests is not None
        return self._digests

    def _first_batches(self) -> tuple[list[Data], list[str]]:
        """The first batches and their hashes."""
        batches: list[Data] = []
        digests: list[str] = []
        iterator = self._stream.begin()
        try:
            while len(batches) < _SEVERAL and sum(num_examples(batch) for batch in batches) < _SAMPLE:
                batch = next(iterator, None)
                if batch is None:
                    break
                arrays, digest = self._read(len(batches), batch)
                batches.append(arrays)
                digests.append(digest)
        finally:
            _close(iterator)
        return batches, digests

    def _read(self, i: int, batch: Any) -> tuple[Data, str]:
        """A batch as arrays, which has the form of the first one, and its hash."""
        batch = jax.tree.map(_as_array, batch)
        name = f"batch {i} of {self._name}"
        num_examples(batch, name)
        if self._like is None:
            self._like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), batch)
        expected, this = (str(jax.tree.structure(tree)) for tree in (self._like, batch))
        if expected != this:
            raise ValueError(f"{name} has the structure {this}, expected {expected} as in the first batch.")
        pairs = zip(jax.tree_util.tree_leaves_with_path(batch), jax.tree.leaves(self._like), strict=True)
        for (path, leaf), like in pairs:
            if (leaf.dtype, leaf.shape[1:]) != (like.dtype, like.shape):
                raise ValueError(
                    f"{name}{jax.tree_util.keystr(path)} has {leaf.dtype}{list(leaf.shape)}, expected "
                    f"{like.dtype}[any, {', '.join(map(str, like.shape))}] as in the first batch. Pad the examples of "
                    "all batches to one length."
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


def _ahead(begin: Callable[[], Iterator[Any]], read: Callable[[int, Any], Any]) -> Iterator[Any]:
    """What ``read(i, batch)`` gives for each batch of a new iterator, in order.

    The iterator begins, runs and ends in a thread, while the batches before are used.
    """
    results: queue.Queue[tuple[str, Any]] = queue.Queue(_AHEAD)
    stop = threading.Event()

    def put(kind: str, value: Any) -> None:
        while not stop.is_set():
            with contextlib.suppress(queue.Full):
                results.put((kind, value), timeout=0.1)
                return

    def run() -> None:
        iterator = None
        try:
            iterator = begin()
            for i, batch in enumerate(iterator):
                put("batch", read(i, batch))
                if stop.is_set():
                    return
            put("end", None)
        except BaseException as error:  # noqa: BLE001  # it is raised where the batches are used
            put("error", error)
        finally:
            _close(iterator)

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
                break
            if kind == "error":
                raise value
            yield value
    finally:
        stop.set()
        thread.join(_PATIENCE)


def _close(iterator: Any) -> None:
    """End a generator where it stands, and whatever else can be closed."""
    if callable(getattr(iterator, "close", None)):
        iterator.close()


def _as_array(leaf: Any) -> Any:
    """An array with memory of its own: a loader may write its next batch into that of this one."""
    if isinstance(leaf, jax.Array):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jnp.copy(leaf)
        on_cpu = all(device.platform == "cpu" for device in leaf.devices())  # there it may share memory of NumPy
        return np.array(leaf) if on_cpu else leaf
    if hasattr(leaf, "detach"):  # PyTorch
        leaf = leaf.detach().cpu()
        if str(leaf.dtype) == "torch.bfloat16":  # NumPy has none
            return np.array(jax.dlpack.from_dlpack(leaf.contiguous()))
        leaf = leaf.numpy()
    return np.array(leaf) if np.ndim(leaf) or hasattr(leaf, "dtype") else leaf
