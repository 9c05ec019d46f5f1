"""The XML of VTK files: arrays are inline, in base64 of little-endian numbers."""

import base64
from collections.abc import Mapping
from xml.sax.saxutils import quoteattr

import numpy as np

_TYPES = {"f": ("Float64", "<f8"), "i": ("Int64", "<i8")}


def data_array(name: str, values: np.ndarray, components: int = 1, *, tuples: bool = False) -> str:
    """One array as an XML element.

    Args:
        name: Its name.
        values: Floats or ints.
        components: How many numbers belong to one point or cell.
        tuples: Whether to write the number of tuples, as field data have it.

    Returns:
        The element.
    """
    kind, dtype = _TYPES[values.dtype.kind]
    content = np.ascontiguousarray(values, dtype).tobytes()
    text = base64.b64encode(np.array([len(content)], "<u8").tobytes() + content).decode()
    attributes = f'type="{kind}" Name={quoteattr(name)} NumberOfComponents="{components}" format="binary"'
    count = f' NumberOfTuples="{values.size // components}"' if tuples else ""
    return f"<DataArray {attributes}{count}>{text}</DataArray>"


def group(tag: str, arrays: Mapping[str, np.ndarray], active: str = "", *, tuples: bool = False) -> str:
    """An element such as ``PointData`` with its arrays; ``active`` is the one that a program colours by."""
    scalars = f" Scalars={quoteattr(active)}" if active else ""
    inner = "\n".join(data_array(name, values, tuples=tuples) for name, values in arrays.items())
    return f"<{tag}{scalars}>\n{inner}\n</{tag}>"


def document(kind: str, head: str, body: str, left_out: int) -> bytes:
    """A whole file.

    Args:
        kind: The type of the data set, such as ``PolyData``.
        head: The attributes of its element.
        body: The XML of its piece.
        left_out: How many points of the result are not finite; it is stored as field data.

    Returns:
        The content of the file.
    """
    counts = group("FieldData", {"nonfinite_points": np.array([left_out])}, tuples=True)
    lines = [
        '<?xml version="1.0"?>',
        f'<VTKFile type="{kind}" version="1.0" byte_order="LittleEndian" header_type="UInt64">',
        f"<{kind}{head}>",
        counts,
        body,
        f"</{kind}>",
        "</VTKFile>",
    ]
    return "\n".join(lines).encode()
