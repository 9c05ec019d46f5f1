"""Sequences of params that keep no params in memory: each access reads or creates them."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from jaxscape.types import Params


@dataclass(frozen=True)
class Lazy(Sequence[Params]):
    """A sequence that reads its entries by index.

    Attributes:
        length: The number of entries.
        read: A function that returns the params at an index from 0 to ``length - 1``.
    """

    length: int
    read: Callable[[int], Params]

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self.read(i) for i in range(self.length)[index]]
        return self.read(range(self.length)[index])


@dataclass(frozen=True)
class Repeated(Sequence[Params]):
    """A sequence whose entries come from an iterator, which can be created several times.

    The first access to the length or to the last entry costs one pass, which keeps only the last entry in memory.

    Attributes:
        make: A function that returns a new iterator.
        name: The name of the caller's argument, for the messages.
    """

    make: Callable[[], Iterable[Params]]
    name: str

    def __iter__(self) -> Iterator[Params]:
        iterable = self.make()
        if not isinstance(iterable, Iterable) or isinstance(iterable, Mapping):  # a mapping would give its keys
            raise TypeError(
                f"{self.name} is a function that gave {type(iterable).__name__}, expected an iterator of params."
            )
        return iter(iterable)

    def __len__(self) -> int:
        return self._end[0]

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            chosen = set(range(len(self))[index])
            entries = {i: params for i, params in enumerate(self) if i in chosen}
            return [entries[i] for i in range(len(self))[index]]
        position = range(len(self))[index]
        if position == len(self) - 1:
            return self._end[1]
        return next(params for i, params in enumerate(self) if i == position)

    @cached_property
    def _end(self) -> tuple[int, Params | None]:
        """The length and the last entry, from one pass; a second pass must not be empty."""
        count, last = 0, None
        for count, last in enumerate(self, start=1):  # noqa: B007  # only the last entry is used
            pass
        if count and next(iter(self), None) is None:
            raise ValueError(
                f"{self.name} gives {count} params in the first pass and none in the second; it must make a new "
                "iterator each time, e.g. `lambda: (read(step) for step in steps)`."
            )
        return count, last
