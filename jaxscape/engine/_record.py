"""What an estimate keeps of its work."""

import numpy as np

from jaxscape.engine._program import Load
from jaxscape.engine._result import Evaluation


class Record:
    """Keeps nothing; a subclass may keep values of single examples, so that an estimate can go on from them."""

    def begin(self, term: str, load: Load) -> None:
        """Note how a term is evaluated.

        Args:
            term: Its name.
            load: How much goes side by side.
        """

    def find(self, term: str, row: int, examples: np.ndarray) -> dict[str, np.ndarray] | None:
        """Values that are known.

        Args:
            term: The name of the term.
            row: The point.
            examples: Numbers of the examples.

        Returns:
            For each metric the values of the examples; None if one of them is not known.
        """

    def split(
        self, term: str, rows: np.ndarray, examples: np.ndarray
    ) -> tuple[dict[int, dict[str, np.ndarray]], np.ndarray]:
        """Points whose values are known, with the values, and the points whose values are not.

        Args:
            term: The name of the term.
            rows: The points.
            examples: Numbers of the examples.

        Returns:
            What `find` gives, by point; and the other points.
        """
        found = {int(row): self.find(term, int(row), examples) for row in rows}
        known = {row: values for row, values in found.items() if values is not None}
        return known, np.array([row for row in found if row not in known], int)

    def keep(self, term: str, rows: np.ndarray, examples: np.ndarray, values: dict[str, np.ndarray]) -> None:
        """Keep values.

        Args:
            term: The name of the term.
            rows: The points.
            examples: Numbers of the examples.
            values: For each metric an array ``(points, examples)``.
        """

    def finish(self, rows: np.ndarray, evaluation: Evaluation) -> None:
        """Keep the result at points, which will not change any more.

        Args:
            rows: The points.
            evaluation: Of these points.
        """
