"""A line of the verdict: a question, a measured number, and a plain judgement."""

from typing import Literal, NamedTuple

Judgement = Literal["good", "look", "unknown"]


class Line(NamedTuple):
    """A line of the verdict.

    Attributes:
        name: A word for the line, its key in the page.
        question: What it answers.
        formula: How the number is computed, and what is good.
        answer: The number in words.
        judgement: ``"good"``, ``"look"`` (the reader should look there) or ``"unknown"``.
        value: The number; None: it is not measured.
        cure: What measures it, or what to change.
    """

    name: str
    question: str
    formula: str
    answer: str
    judgement: Judgement
    value: float | None
    cure: str = ""


class Question(NamedTuple):
    """A question, and how its answer is computed.

    Attributes:
        name: As in `Line`.
        text: The question.
        formula: As in `Line`.
    """

    name: str
    text: str
    formula: str

    def answered(self, answer: str, value: float, *, good: bool, cure: str = "") -> Line:
        """The line with an answer; what to change is said where the answer is not good."""
        return Line(*self, answer, "good" if good else "look", value, "" if good else cure)

    def only_told(self, answer: str, value: float | None, cure: str = "") -> Line:
        """The line with a number that cannot be judged."""
        return Line(*self, answer, "unknown", value, cure)

    def not_measured(self, cure: str) -> Line:
        """The line without a number."""
        return Line(*self, "not measured", "unknown", None, cure)
