"""The path of training: its principal directions, its coordinates in a plane, and the loss around it."""

from jaxscape.trajectory._pca import pca_directions
from jaxscape.trajectory._project import project
from jaxscape.trajectory._trajectory import trajectory

__all__ = ["pca_directions", "project", "trajectory"]
