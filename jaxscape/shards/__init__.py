"""Arrays that are cut over devices: what each device does with its own part, so that none ever holds the whole.

A cut changes no bit of what is computed here: numbers are drawn by their place in the whole array, and sums are exact,
so that their order does not matter.
"""

from jaxscape.shards._columns import Columns, gather
from jaxscape.shards._digest import digest_of_shards
from jaxscape.shards._drawn import Drawn, is_drawn
from jaxscape.shards._mesh import auto, is_cut, mesh_and_spec, mesh_of_shards, on_mesh, put, specs_of, within
from jaxscape.shards._noise import bits, is_threefry, key_words, normal, signs
from jaxscape.shards._parts import Part, filled, folded_rows, on_shards, reduced_rows, rows_of

__all__ = [
    "Columns",
    "Drawn",
    "Part",
    "auto",
    "bits",
    "digest_of_shards",
    "filled",
    "folded_rows",
    "gather",
    "is_cut",
    "is_drawn",
    "is_threefry",
    "key_words",
    "mesh_and_spec",
    "mesh_of_shards",
    "normal",
    "on_mesh",
    "on_shards",
    "put",
    "reduced_rows",
    "rows_of",
    "signs",
    "specs_of",
    "within",
]
