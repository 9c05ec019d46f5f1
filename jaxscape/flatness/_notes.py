"""What a reader must know to trust a number, in words; empty where there is nothing to say."""

import numpy as np


def joined(*notes: str) -> str:
    """Several notes as one."""
    return "; ".join(filter(None, notes))


def not_finite(count: int, total: int, what: str) -> str:
    """A note of evaluations that are NaN or infinite."""
    return f"{count} of {total} {what} are not finite" if count else ""


def rounded(difference: float, loss: float, dtype: np.dtype) -> str:
    """A note where rounding of the loss is over 1 % of a difference of losses."""
    rounding = float(np.finfo(dtype).eps) * abs(loss)
    return f"the loss is {loss:.3g}, rounded to about {rounding:.0e}" if abs(difference) < 100 * rounding else ""
