"""Names for what flows through jaxscape: parameters, data, loss functions, paths to leaves."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol

from jaxtyping import Array, Float, PyTree, Shaped

Params = PyTree[Float[Array, "..."]]
"""Any pytree of floating arrays: an NNX state, a Linen dict, an Equinox partition, a plain dict or list."""

Vector = Any
"""A flat array; or, where params are cut over devices, a list of leaves, each cut as that of params."""

Data = PyTree[Shaped[Array, "examples ..."]]
"""Any pytree of arrays with one common leading example axis, for example ``(images, labels)``."""

KeyPath = tuple[Any, ...]
"""Where a leaf is, as JAX tells it; ``jax.tree_util.keystr(path)`` makes it readable."""

Norm = Literal["filter", "layer", "weight", "dfilter", "dlayer"]
Ignore = Literal["bias_norm"] | Callable[[KeyPath, Array], bool] | None
Library = Literal["flax", "equinox", "haiku", "keras", "huggingface"]
FilterAxis = int | Library | Callable[[KeyPath, Array], int | tuple[int, ...] | None] | None


class LossFn(Protocol):
    """A loss as jaxscape calls it."""

    def __call__(self, params: Any, batch: Any, /) -> Array | Mapping[str, Array]:
        """The loss of each example, shape ``(batch,)``; or a dict of such vectors with the key ``"loss"``.

        A scalar stands for the mean over the batch; then there are no error bars.
        """
