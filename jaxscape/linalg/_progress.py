"""A progress bar that counts products."""

from collections.abc import Callable
from typing import Any

import jax
from tqdm.auto import tqdm


def product_bar(total: int, progress: bool | None) -> tqdm:
    """Products so far, of at most ``total``; on one process only."""
    shown = progress if jax.process_index() == 0 else False
    return tqdm(total=total, unit="product", desc="products", disable=None if shown is None else not shown)


def counted(matvec: Callable[[Any], Any], bar: tqdm) -> Callable[[Any], Any]:
    """The product; each one moves the bar."""

    def product(vector: Any) -> Any:
        image = matvec(vector)
        bar.update()
        return image

    return product
