"""What a proof that a loss is a mean (`_proof`) knows of a value, and the pair of operations that it comes from."""

import enum
from typing import Any, NamedTuple


class Kind(enum.Enum):
    """What is known of a value without an axis for the examples."""

    SAME = "does not depend on the batch"
    COUNT = "a number proportional to the number of examples"
    INVERSE = "a number proportional to its inverse"
    TOTAL = "a sum over the examples of values that depend on one example each"
    MEAN = "a mean over the examples of values that depend on one example each"


class Rows(NamedTuple):
    """Along an axis the value has so many rows for each example, one example after the other.

    They depend on this example alone, not on its place in the batch, and not on the number of examples.

    Attributes:
        axis: The axis.
        each: Rows of one example.
    """

    axis: int
    each: int


State = Kind | Rows


class UnprovenError(Exception):
    """What a value depends on is not known."""


class Pair(NamedTuple):
    """One operation in the jaxprs of two batches.

    Attributes:
        eqns: The equations, of the same primitive.
        states: Of the operands.
        sizes: Examples in the batches.
    """

    eqns: tuple[Any, Any]
    states: list[State]
    sizes: tuple[int, int]

    @property
    def name(self) -> str:
        """Of the primitive."""
        return str(self.eqns[0].primitive.name)

    @property
    def rows(self) -> Rows:
        """The one state of all operands that have rows.

        Raises:
            UnprovenError: They have several, or an operand is a sum or a number of examples.
        """
        if len(found := {state for state in self.states if state is not Kind.SAME}) != 1:
            raise UnprovenError(f"{self.name} of {self.states}")
        return as_rows(found.pop())

    def params(self, *free: str) -> dict[str, Any]:
        """The parameters of the operation.

        Args:
            *free: Those that may differ between the two batches; the others must not.

        Returns:
            Those of the first equation.

        Raises:
            UnprovenError: They differ.
        """
        one, other = (eqn.params for eqn in self.eqns)
        if one.keys() != other.keys() or any(
            repr(one[name]) != repr(other[name])
            for name in one
            if name not in free  # repr: NaN is not equal to NaN
        ):
            raise UnprovenError(f"parameters of {self.name}")
        return dict(one)

    def shapes(self, operand: int = 0) -> list[tuple[int, ...]]:
        """Of an operand in the two batches."""
        return [eqn.invars[operand].aval.shape for eqn in self.eqns]

    def results(self) -> list[tuple[int, ...]]:
        """The shapes of the first result in the two batches."""
        return [eqn.outvars[0].aval.shape for eqn in self.eqns]


def as_rows(state: State) -> Rows:
    """The state, which must be that of rows.

    Args:
        state: Any state.

    Returns:
        It.

    Raises:
        UnprovenError: It is another one.
    """
    if not isinstance(state, Rows):
        raise UnprovenError(state.value)
    return state


def need(condition: bool, pair: Pair) -> None:  # noqa: FBT001
    """Require a condition.

    Args:
        condition: What must hold.
        pair: The operation that it is about, for the message.

    Raises:
        UnprovenError: It does not hold.
    """
    if not condition:
        raise UnprovenError(f"{pair.name} of {pair.states}")
