"""The options that several commands share: one name, one form and one text everywhere."""

from typing import Annotated, Any, Literal

import typer

Split = Literal["train", "test"]
Norm = Literal["filter", "layer", "weight", "dfilter", "dlayer", "none"]
Leaves = Literal["bias_norm", "none"]
Precision = Literal["bfloat16", "tensorfloat32", "float32"]


def parse_points(text: str) -> list[int]:
    """Parse a number of points: ``51`` or ``51x31``.

    Args:
        text: What was typed.

    Returns:
        One number or two.

    Raises:
        BadParameter: It is no number of points.
    """
    parts = text.split("x")
    if len(parts) > 2 or not all(part.isdecimal() for part in parts):
        raise typer.BadParameter(f"{text!r} is no number of points; expected e.g. 51 or 51x31")
    return [int(part) for part in parts]


def _goal(text: str) -> Any:
    """Parse what an adaptive grid must show right: ``contours``, or a number."""
    try:
        return text if text == "contours" else float(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no goal; expected contours, or a number, e.g. 0.01") from None


def _examples(text: str) -> Any:
    """Parse a number of examples, or ``auto``."""
    try:
        return text if text == "auto" else int(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no batch size; expected auto, or a number") from None


Target = Annotated[str, typer.Argument(metavar="RUN", help="A run's folder, or package.module:function.")]
Targets = Annotated[list[str], typer.Argument(metavar="RUN...", help="Runs' folders, or package.module:function.")]
Range = Annotated[tuple[float, float], typer.Option(metavar="LO HI", help="Of the coordinates.")]
Points = Annotated[Any, typer.Option(parser=parse_points, metavar="N[xM]", help="Points along each axis.")]
Count = Annotated[int, typer.Option(metavar="N", help="Points on the line.")]
Refine = Annotated[
    Any, typer.Option(parser=_goal, metavar="X", help="Fewer points: 'contours', or a relative error. [default: all]")
]
OfSplit = Annotated[Split, typer.Option(help="Which data.")]
Seed = Annotated[int, typer.Option(metavar="N", help="Of the random directions.")]
Norms = Annotated[Norm, typer.Option(help="How random directions are scaled.")]
Ignore = Annotated[Leaves, typer.Option(help="Leaves that are left alone.")]
Rtol = Annotated[float | None, typer.Option(metavar="X", help="Relative standard error to reach. [default: exact]")]
Atol = Annotated[float, typer.Option(metavar="X", help="Absolute standard error, with --rtol.")]
ComputeDtype = Annotated[Precision | None, typer.Option(help="Precision. [default: JAX's setting]")]
BatchSize = Annotated[Any, typer.Option(parser=_examples, metavar="N", help="Examples at a time; auto: measured.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what it will take, from one timed point.")]
Out = Annotated[str | None, typer.Option(metavar="FILE", help="Where the result goes. [default: the run's folder]")]
