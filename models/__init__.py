"""The paper's networks in flax NNX, and a registry that creates them by name."""

from models.registry import create, names, num_params

__all__ = ["create", "names", "num_params"]
