"""Work at every point of a grid: which points are left, in what order, what is kept on disk, the dataset."""

from jaxscape.sweep._blocks import columns_of, in_blocks
from jaxscape.sweep._grid import check_names, on_grid, to_dataset
from jaxscape.sweep._layout import Layout
from jaxscape.sweep._load import load, save
from jaxscape.sweep._losses import Chart, Options, losses_on_grid
from jaxscape.sweep._provenance import inputs, provenance
from jaxscape.sweep._record import to_tolerance
from jaxscape.sweep._repeats import repeats
from jaxscape.sweep._rounding import unresolved_share
from jaxscape.sweep._shares import SHARE, StoppedError, device_groups, in_shares
from jaxscape.sweep._store import Store

__all__ = [
    "SHARE",
    "Chart",
    "Layout",
    "Options",
    "StoppedError",
    "Store",
    "check_names",
    "columns_of",
    "device_groups",
    "in_blocks",
    "in_shares",
    "inputs",
    "load",
    "losses_on_grid",
    "on_grid",
    "provenance",
    "repeats",
    "save",
    "to_dataset",
    "to_tolerance",
    "unresolved_share",
]
