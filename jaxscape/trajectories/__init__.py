"""The path of training: its principal directions, its coordinates in a plane, and the loss around it."""

from jaxscape.trajectories._orbax import checkpoints
from jaxscape.trajectories._pca import pca_directions
from jaxscape.trajectories._project import project
from jaxscape.trajectories._recorder import Recorder
from jaxscape.trajectories._trajectory import trajectory

__all__ = ["Recorder", "checkpoints", "pca_directions", "project", "trajectory"]
