"""Work at every point of a grid: which points are left, in what order, what is kept on disk, the dataset."""

from jaxscape.sweep._blocks import in_blocks
from jaxscape.sweep._grid import on_grid, to_dataset
from jaxscape.sweep._provenance import provenance
from jaxscape.sweep._shares import SHARE, device_groups, in_shares
from jaxscape.sweep._store import Store

__all__ = [
    "SHARE",
    "Store",
    "device_groups",
    "in_blocks",
    "in_shares",
    "on_grid",
    "provenance",
    "to_dataset",
]
