"""The units along an axis of an array, and which axes have the same ones.

Two axes that meet in a computation, say in a sum of two arrays, have the same units: a permutation of one must go with
that of the other. An axis of several kinds of units is a product (of axes that a reshape joined) or a sum (of arrays
that were concatenated); these are found by unification, as types are.
"""

import math
from collections.abc import Sequence
from typing import Literal


class Units:
    """The units along an axis; equal ones share a representative, see `root`.

    Attributes:
        size: How many there are.
        fixed: Whether their order is part of what the network computes, as that of pixels or classes.
        kind: What they consist of; None where they are units of one kind.
        parts: Those of a product, the slowest first, or of a sum, the first first.
    """

    def __init__(self, size: int, *, fixed: bool = False) -> None:
        """Units of one kind."""
        self.size, self.fixed = size, fixed
        self.kind: Literal["product", "sum"] | None = None
        self.parts: list[Units] = []
        self._same: Units | None = None

    @property
    def root(self) -> "Units":
        """The representative of all units that are known to be the same."""
        units = self
        while units._same is not None:
            units = units._same
        return units

    def fix(self) -> None:
        """Keep them in their order."""
        units = self.root
        units.fixed = True
        for part in units.parts:
            part.fix()

    def split(self, kind: Literal["product", "sum"], sizes: Sequence[int]) -> list["Units"]:
        """Their parts, of these sizes; all are fixed where they have other parts already.

        Args:
            kind: What they consist of.
            sizes: Of the parts.

        Returns:
            The parts.
        """
        units = self.root
        if units.kind is None:
            units.kind, units.parts = kind, [Units(size, fixed=units.fixed) for size in sizes]
        if units.kind == kind and _refine(units, sizes):
            return units.parts
        units.fix()
        return [Units(size, fixed=True) for size in sizes]


def compound(kind: Literal["product", "sum"], parts: Sequence[Units]) -> Units:
    """Units that consist of others; a part that adds nothing is left out."""
    parts = [part for part in parts if part.size > (kind == "product")]
    if len(parts) == 1:
        return parts[0]
    total = math.prod if kind == "product" else sum
    units = Units(total(part.size for part in parts))
    units.kind, units.parts = kind, list(parts)
    return units


def unify(a: Units, b: Units) -> None:
    """Both are the same units from now on; where that cannot be, they keep their order."""
    a, b = a.root, b.root
    if a is b:
        return
    if a.size != b.size:
        a.fix()
        b.fix()
        return
    if a.fixed or b.fixed:
        a.fix()
        b.fix()
    if a.kind is None:
        a._same = b
    elif b.kind is None:
        b._same = a
    elif a.kind == b.kind and _refine(a, sizes := [part.size for part in b.parts]) and _refine(b, sizes):
        pairs = list(zip(a.parts, b.parts, strict=True))
        a._same = b
        for x, y in pairs:
            unify(x, y)
    else:
        a.fix()
        b.fix()


def _refine(units: Units, sizes: Sequence[int]) -> bool:
    """Whether the parts have these sizes, after parts that are too large were split in two where that is possible."""
    parts = list(units.parts)
    for i, size in enumerate(sizes):
        if i == len(parts):
            return False
        part = parts[i]
        if part.size == size:
            continue
        if part.size < size or (units.kind == "product" and part.size % size):
            return False
        rest = part.size // size if units.kind == "product" else part.size - size
        if part.root.kind is not None and part.root.kind != units.kind:
            return False
        parts[i : i + 1] = part.split(units.kind or "product", [size, rest])
    units.parts = parts
    return len(parts) == len(sizes)
