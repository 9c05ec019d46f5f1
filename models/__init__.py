"""The paper's networks in flax NNX; a registry of them by name."""

from models.registry import create, names

__all__ = ["create", "names"]
