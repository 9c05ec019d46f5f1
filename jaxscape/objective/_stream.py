"""Data that do not fit in memory, as a caller passes them."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from jaxscape.arguments import blamed


class Stream:
    """Data that do not fit in memory: batches that can be read again and again.

    It stands wherever a call takes ``data``. A pass reads each batch once, for all points of a surface, while the
    batches before are computed; a product with the Hessian takes a pass of its own. The batches may have any sizes.
    Where the loss gives the value of each example, the result is that of arrays with the same examples; where it gives
    the mean of a batch, it is the mean of these means, weighted by the examples of the batches.

    Each pass must give the same batches in the same order. The first batches, 128 examples of them, are read once more
    at the beginning; each pass is compared with the one before.

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
        if _is_batch(batches):
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

    def begin(self) -> Iterator[Any]:
        """A new iterator over the batches.

        Returns:
            The iterator.

        Raises:
            TypeError: The function that makes it gave none.
        """
        if hasattr(self.batches, "__iter__") and not isinstance(self.batches, type):
            return iter(self.batches)
        assert callable(self.batches)
        with blamed("batches", "without arguments"):
            result = self.batches()
        if _is_batch(result) or not hasattr(result, "__iter__"):
            raise TypeError(
                f"batches gave {_a(type(result).__name__)} when it was called, expected an iterator of batches, or a "
                "list."
            )
        return iter(result)


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


def _is_batch(value: Any) -> bool:
    """Whether a value looks like one batch, or like arrays, rather than like several batches."""
    return isinstance(value, Mapping | tuple | str | bytes) or hasattr(value, "dtype")


def _a(kind: str) -> str:
    """A noun with its article."""
    return f"{'an' if kind[:1].lower() in 'aeiou' else 'a'} {kind}"
