"""The names and the numbers of the original tool's surface files: what both the reader and the writer know."""

from typing import NamedTuple


class Stored(NamedTuple):
    """A dataset of a file, and the variable of a result that it is.

    Attributes:
        variable: The name in a result.
        factor: What a stored number is divided by: files have percent, results have fractions.
        missing: The number at points that were never computed.
        long_name: What it is.
    """

    variable: str
    factor: float
    missing: float
    long_name: str


# The tool adds the Hessians of all batches and does not divide by their number.
_SUM = "eigenvalue of the Hessian, summed over the batches of the file's data"
EIGENVALUES = {
    "min_eig": Stored("min_eigenvalue", 1.0, 1.0, f"smallest {_SUM}"),
    "max_eig": Stored("max_eigenvalue", 1.0, -1.0, f"largest {_SUM}"),
}
SPLITS = ("train", "test")


def of_split(split: str) -> dict[str, Stored]:
    """The names of the losses and accuracies of a split."""
    return {
        f"{split}_loss": Stored("loss", 1.0, -1.0, f"mean loss on the {split} split"),
        f"{split}_acc": Stored("accuracy", 100.0, -1.0, f"accuracy on the {split} split"),
    }
