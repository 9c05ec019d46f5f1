"""Results for other programs: VTK files, meshes, interactive pages, figures for print, the original tool's files.

>>> vtk(result, "surface.vtp"), mesh(result, "surface.stl"), html(result, "surface.html")  # doctest: +SKIP
>>> result = read_h5("resnet56_surface.h5")  # doctest: +SKIP

Each function takes a result and a path, writes the file in one step and returns the path. Missing folders are created.
A reader sees the old file or the new one, never a part. Nothing here computes a loss.
"""

from jaxscape.export._figure import figure
from jaxscape.export._h5 import h5
from jaxscape.export._html import html
from jaxscape.export._mesh import mesh
from jaxscape.export._read_h5 import read_h5
from jaxscape.export._vtk import vtk

__all__ = ["figure", "h5", "html", "mesh", "read_h5", "vtk"]
