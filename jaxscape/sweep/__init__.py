"""Work at every point of a grid: which points are left, in what order, what is kept on disk, the dataset."""

from jaxscape.sweep._blocks import in_blocks
from jaxscape.sweep._grid import check_names, on_grid, to_dataset
from jaxscape.sweep._provenance import provenance
from jaxscape.sweep._rounding import unresolved_share
from jaxscape.sweep._shares import SHARE, device_groups, in_shares
from jaxscape.sweep._store import Store

__all__ = [
    "SHARE",
    "Store",
    "check_names",
    "device_groups",
    "in_blocks",
    "in_shares",
    "on_grid",
    "provenance",
    "to_dataset",
    "unresolved_share",
]
