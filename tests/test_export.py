"""Exports of closed-form surfaces, read back by VTK, by readers of a few lines, and by the laws of areas."""

import base64
import json
import re
import struct
import sys

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from PIL import Image
from vtkmodules.util.numpy_support import vtk_to_numpy
from vtkmodules.vtkFiltersCore import vtkPolyDataNormals, vtkTriangleFilter
from vtkmodules.vtkIOXML import vtkXMLImageDataReader, vtkXMLPolyDataReader, vtkXMLRectilinearGridReader

import jaxscape as js

ALPHA, BETA = np.linspace(-1, 1, 5), np.array([0.0, 0.5, 2.0, 4.0])  # not square, not evenly spaced


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def f(alpha, beta):
    return 1 + alpha + 10 * beta**2


def surface(function=f, alpha=ALPHA, beta=BETA, **attrs):
    a, b = np.meshgrid(alpha, beta, indexing="ij")
    variables = {"loss": (("alpha", "beta"), function(a, b)), "accuracy": (("alpha", "beta"), np.exp(-(a**2) - b))}
    return xr.Dataset(variables, {"alpha": alpha, "beta": beta}, {"directions": "random", "norm": "filter"} | attrs)


def with_nans(result):
    values = result.loss.values.copy()
    values[0, 0], values[2, 2] = np.inf, np.nan  # a corner, and a point of four cells
    return result.assign(loss=(result.loss.dims, values))


def path_of_training(lost=(3,)):
    """A surface and a path with the variables of js.trajectory; checkpoint 3 is not finite."""
    x, y = np.linspace(0.9, 0, 7), np.linspace(2.5, 0, 7) ** 2 / 2.5
    coordinates = np.stack([x, y], axis=-1)
    coordinates[list(lost)] = np.nan
    path = {"coordinates": (("step", "axis"), coordinates), "in_plane_loss": ("step", f(x, y))}
    return surface().assign(path | {"epoch": ("step", np.arange(7.0) * 10)})


def read(path, reader):
    reader = reader()
    reader.SetFileName(str(path))
    reader.Update()
    return reader.GetOutput()


def arrays(data):
    return {data.GetArrayName(i): vtk_to_numpy(data.GetArray(i)) for i in range(data.GetNumberOfArrays())}


def cells(of):
    connectivity, offsets = vtk_to_numpy(of.GetConnectivityArray()), vtk_to_numpy(of.GetOffsetsArray())
    return [connectivity[a:b] for a, b in zip(offsets[:-1], offsets[1:], strict=True)]


def read_obj(path):
    rows = [line.split() for line in path.read_text().splitlines() if not line.startswith("#")]
    points = np.array([row[1:] for row in rows if row[0] == "v"], float)
    return points, np.array([row[1:] for row in rows if row[0] == "f"], int) - 1


def read_stl(path):
    content = path.read_bytes()
    (count,) = struct.unpack("<I", content[80:84])
    rows = [struct.unpack("<12fH", content[84 + 50 * i : 134 + 50 * i]) for i in range(count)]
    assert len(content) == 84 + 50 * count
    assert not content.startswith(b"solid")
    return np.array(rows)[:, :3], np.array(rows)[:, 3:12].reshape(-1, 3, 3)


def crossed(corners):
    """Twice the area of each triangle, as a vector along its normal."""
    return np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])


# VTK files.


def test_a_surface_has_each_value_at_its_point_whatever_the_order(tmp_path):
    shuffled = surface().transpose("beta", "alpha").isel(alpha=[3, 0, 4, 1, 2], beta=slice(None, None, -1))
    data = read(js.export.vtk(shuffled, tmp_path / "new" / "surface.vtp"), vtkXMLPolyDataReader)
    points = vtk_to_numpy(data.GetPoints().GetData())
    assert points.dtype == np.float64
    np.testing.assert_array_equal(points[:, 0], np.tile(ALPHA, 4))
    np.testing.assert_array_equal(points[:, 1], np.repeat(BETA, 5))
    np.testing.assert_array_equal(points[:, 2], f(points[:, 0], points[:, 1]))
    values = arrays(data.GetPointData())
    np.testing.assert_array_equal(values["zvalue"], points[:, 2])
    np.testing.assert_array_equal(values["loss"], points[:, 2])
    np.testing.assert_allclose(values["accuracy"], 100 * np.exp(-(points[:, 0] ** 2) - points[:, 1]))
    assert data.GetPointData().GetScalars().GetName() == "zvalue"


def test_quads_cover_the_grid_once_and_face_up(tmp_path):
    data = read(js.export.vtk(surface(lambda a, b: a + 2 * b), tmp_path / "s.vtp"), vtkXMLPolyDataReader)
    quads = cells(data.GetPolys())
    assert len(quads) == 4 * 3
    assert {len(quad) for quad in quads} == {4}
    triangles = vtkTriangleFilter()
    triangles.SetInputData(data)
    normals = vtkPolyDataNormals()
    normals.SetInputConnection(triangles.GetOutputPort())
    normals.ConsistencyOff()  # the orientation of the file
    normals.ComputeCellNormalsOn()
    normals.Update()
    found = arrays(normals.GetOutput().GetCellData())["Normals"]
    np.testing.assert_allclose(found, np.tile(np.array([-1, -2, 1]) / np.sqrt(6), (24, 1)), atol=1e-6)
    points = vtk_to_numpy(data.GetPoints().GetData())
    means = [points[quad, 2].mean() for quad in quads]
    np.testing.assert_allclose(arrays(data.GetCellData())["averaged zvalue"], means)


@pytest.mark.parametrize("clip", [None, 20.0])
@pytest.mark.parametrize("log", [False, True])
def test_heights_are_clipped_and_then_logarithmic_as_in_the_original(tmp_path, clip, log):
    data = read(js.export.vtk(surface(), tmp_path / "s.vtp", clip=clip, log=log), vtkXMLPolyDataReader)
    z = f(np.tile(ALPHA, 4), np.repeat(BETA, 5))  # h52vtp.py: z[z > zmax] = zmax, then ln(z + 0.1)
    if clip is not None:
        z[z > clip] = clip
    if log:
        z = np.log(z + 0.1)
    np.testing.assert_allclose(vtk_to_numpy(data.GetPoints().GetData())[:, 2], z)
    np.testing.assert_allclose(arrays(data.GetPointData())["zvalue"], z)
    assert arrays(data.GetPointData())["loss"].max() == f(1, 4)


def test_points_that_are_not_finite_are_left_out_with_their_quads_and_counted(tmp_path):
    data = read(js.export.vtk(with_nans(surface()), tmp_path / "s.vtp", clip=20.0), vtkXMLPolyDataReader)
    points = vtk_to_numpy(data.GetPoints().GetData())
    assert len(points) == 18
    assert not any((points[:, 0] == 0) & (points[:, 1] == 2))
    quads = cells(data.GetPolys())
    assert len(quads) == 12 - 1 - 4
    for quad in quads:
        low, _, high, _ = points[quad]
        assert high[0] - low[0] == 0.5
        assert BETA.tolist().index(high[1]) - BETA.tolist().index(low[1]) == 1
    assert arrays(data.GetFieldData())["nonfinite_points"].tolist() == [2]


def test_a_path_is_a_polyline_on_the_surface_that_a_lost_checkpoint_divides(tmp_path):
    result = path_of_training()
    data = read(js.export.vtk(result, tmp_path / "s.vtp", clip=20.0, log=True), vtkXMLPolyDataReader)
    values, points = arrays(data.GetPointData()), vtk_to_numpy(data.GetPoints().GetData())
    assert [values["step"][line].tolist() for line in cells(data.GetLines())] == [[0, 1, 2], [4, 5, 6]]
    on_path = values["step"] >= 0
    kept = result.isel(step=[0, 1, 2, 4, 5, 6])
    np.testing.assert_array_equal(points[on_path, :2], kept.coordinates)
    np.testing.assert_allclose(points[on_path, 2], np.log(np.minimum(kept.in_plane_loss, 20) + 0.1))
    np.testing.assert_array_equal(values["loss"][on_path], kept.in_plane_loss)
    assert np.isnan(values["accuracy"][on_path]).all()
    assert len(cells(data.GetPolys())) == 12
    lines = [points[line, 2].mean() for line in cells(data.GetLines())]
    np.testing.assert_allclose(arrays(data.GetCellData())["averaged zvalue"][:2], lines)


def test_the_path_has_no_height_for_another_metric(tmp_path):
    data = read(js.export.vtk(path_of_training(), tmp_path / "s.vtp", metric="accuracy"), vtkXMLPolyDataReader)
    assert data.GetNumberOfLines() == 0
    assert data.GetNumberOfPoints() == 20


def volume(gamma):
    a, b, c = np.meshgrid(ALPHA, BETA, gamma, indexing="ij")
    values = 1 + a + 10 * b**2 + 100 * c
    values[0, 0, 0] = np.nan
    axes = {"alpha": ALPHA, "beta": BETA, "axis2": gamma}
    return xr.Dataset({"loss": (tuple(axes), values)}, axes)


def test_a_volume_is_a_rectilinear_grid_with_any_spacing(tmp_path):
    gamma = np.array([0.0, 1.0, 3.0])
    data = read(js.export.vtk(volume(gamma), tmp_path / "v.vtr", clip=250.0), vtkXMLRectilinearGridReader)
    assert data.GetDimensions() == (5, 4, 3)
    axes = (data.GetXCoordinates(), data.GetYCoordinates(), data.GetZCoordinates())
    for axis, expected in zip(axes, (ALPHA, BETA, gamma), strict=True):
        np.testing.assert_array_equal(vtk_to_numpy(axis), expected)
    points = np.array([data.GetPoint(i) for i in range(60)])
    expected = 1 + points[:, 0] + 10 * points[:, 1] ** 2 + 100 * points[:, 2]
    expected[0] = np.nan
    values = arrays(data.GetPointData())
    np.testing.assert_allclose(values["loss"], expected)
    np.testing.assert_allclose(values["zvalue"], np.minimum(expected, 250))
    assert arrays(data.GetFieldData())["nonfinite_points"].tolist() == [1]


def test_an_even_volume_is_an_image(tmp_path):
    result = volume(np.linspace(0, 0.3, 4)).isel(beta=[0, 1])
    data = read(js.export.vtk(result, tmp_path / "v.vti"), vtkXMLImageDataReader)
    points = np.array([data.GetPoint(i) for i in range(40)])
    expected = 1 + points[:, 0] + 10 * points[:, 1] ** 2 + 100 * points[:, 2]
    expected[0] = np.nan
    np.testing.assert_allclose(arrays(data.GetPointData())["loss"], expected)


# Meshes.


@pytest.mark.parametrize("suffix", [".obj", ".STL"])
def test_triangles_have_the_area_and_the_normals_of_the_plane(tmp_path, suffix):
    path = js.export.mesh(surface(lambda a, b: a + 2 * b), tmp_path / f"s{suffix}", z_scale=0.5)
    if suffix == ".obj":
        points, triangles = read_obj(path)
        assert points.shape == (20, 3)
        corners = points[triangles]
    else:
        normals, corners = read_stl(path)
        np.testing.assert_allclose(normals, crossed(corners) / np.linalg.norm(crossed(corners), axis=1)[:, None], 1e-6)
    assert len(corners) == 2 * 4 * 3
    doubled = crossed(corners)
    assert (doubled[:, 2] > 0).all()  # counterclockwise from above
    np.testing.assert_allclose(doubled[:, :2], doubled[:, 2:] * [-0.5, -1.0], atol=1e-6)
    # the projection of each triangle covers its share of 2 x 4, and the plane is steeper by sqrt(1 + 0.25 + 1)
    np.testing.assert_allclose(doubled[:, 2].sum() / 2, 8, rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(doubled, axis=1).sum() / 2, 8 * 1.5, rtol=1e-6)


def test_both_formats_hold_the_same_triangles(tmp_path):
    options = {"clip": 30.0, "log": True, "z_scale": 2.0}
    points, triangles = read_obj(js.export.mesh(with_nans(surface()), tmp_path / "s.obj", **options))
    _, corners = read_stl(js.export.mesh(with_nans(surface()), tmp_path / "s.stl", **options))
    np.testing.assert_array_equal(corners, points[triangles].astype(np.float32))
    assert len(triangles) == 2 * (12 - 1 - 4)
    assert len(points) == 20 - 2 - 1  # without the point at (0, 4), whose two cells touch the NaN
    z = 2 * np.log(np.minimum(f(points[:, 0], points[:, 1]), 30) + 0.1)
    np.testing.assert_allclose(points[:, 2], z, rtol=1e-15)


def test_a_point_without_a_cell_is_no_vertex_of_an_obj(tmp_path):
    values = np.ones((3, 4))
    values[1, 0] = values[1, 1] = np.nan  # of the first column of points only cells with a NaN
    result = xr.Dataset({"loss": (("alpha", "beta"), values)}, {"alpha": [0, 1, 2], "beta": [0, 1, 2, 3]})
    points, triangles = read_obj(js.export.mesh(result, tmp_path / "s.obj"))
    assert len(points) == 6
    assert set(triangles.ravel()) == set(range(6))
    assert points[:, 1].min() == 2


# Pages.


def page_figure(path):
    """The traces, the layout and the options of the plotly figure in a page."""
    page = path.read_text()
    decoder, at = json.JSONDecoder(), page.rindex("Plotly.newPlot(")
    found = []
    for opening in "[{{":
        at = page.index(opening, at)
        value, at = decoder.raw_decode(page, at)
        found.append(value)
    return found


def numbers(value):
    """plotly writes large arrays in base64."""
    if isinstance(value, dict):
        flat = np.frombuffer(base64.b64decode(value["bdata"]), np.dtype(value["dtype"]))
        return flat.reshape([int(n) for n in value["shape"].split(",")]) if "shape" in value else flat
    return np.array(value, float)


def test_a_page_holds_the_numbers(tmp_path):
    path = js.export.html(path_of_training(), tmp_path / "s.html", clip=20.0, log=True)
    (solid, contour, path3d, path2d), layout, _ = page_figure(path)
    z = np.log(np.minimum(f(*np.meshgrid(ALPHA, BETA)), 20) + 0.1)
    for trace, kind in ((solid, "surface"), (contour, "contour")):
        assert trace["type"] == kind
        np.testing.assert_array_equal(numbers(trace["x"]), ALPHA)
        np.testing.assert_array_equal(numbers(trace["y"]), BETA)
        np.testing.assert_allclose(numbers(trace["z"]), z)
        np.testing.assert_allclose(np.array(trace["text"], float), f(*np.meshgrid(ALPHA, BETA)), rtol=1e-5)
    assert (solid["cmin"], solid["cmax"]) == (contour["zmin"], contour["zmax"]) == (z.min(), z.max())
    lost = [0, 1, 2, 3, 4, 5, 6]
    expected = path_of_training().coordinates.values[lost]
    for trace in (path3d, path2d):
        np.testing.assert_array_equal(numbers(trace["x"]), expected[:, 0])
        np.testing.assert_array_equal(numbers(trace["y"]), expected[:, 1])
    assert path2d["text"][4].startswith("checkpoint 4, epoch 40<br>loss ")
    ticks, labels = numbers(layout["scene"]["zaxis"]["tickvals"]), layout["scene"]["zaxis"]["ticktext"]
    np.testing.assert_allclose(ticks, np.log(np.array(labels, float) + 0.1))
    assert layout["xaxis"]["title"]["text"] == "α (random direction 1, filter-normalized)"
    assert "10 of 20 points above 20, cut off there; heights are ln(z + 0.1)" in path.read_text()


def test_a_page_needs_no_network_and_sends_nothing(tmp_path):
    path = js.export.html(surface(), tmp_path / "s.html")
    page = path.read_text()
    assert not re.findall(r"<(?:script|link|img|iframe)[^>]*\b(?:src|href)\s*=", page)
    assert page.count("<script") == page.count("</script>") >= 2
    assert "Content-Security-Policy\" content=\"default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'" in page
    assert len(page) > 1e6  # plotly.js is in it
    assert page_figure(path)[2]["showSendToCloud"] is False


def test_texts_of_a_page_are_no_markup_and_no_code(tmp_path):
    title = "</script><script>alert(1)</script> & <b>"
    path = js.export.html(surface(title=title, norm="<i>"), tmp_path / "s.html")
    page = path.read_text()
    assert "alert(1)</script>" not in page.replace("alert(1)&lt;/script&gt;", "")
    assert "<title>&lt;/script&gt;&lt;script&gt;alert(1)&lt;/script&gt; &amp; &lt;b&gt;</title>" in page
    assert page_figure(path)[1]["xaxis"]["title"]["text"] == "α (random direction 1, &lt;i&gt;-normalized)"


def test_a_page_has_holes_where_there_is_no_number(tmp_path):
    path = js.export.html(with_nans(surface()).assign(done=surface().loss < 100), tmp_path / "s.htm")
    (solid, contour), _, _ = page_figure(path)
    expected = with_nans(surface()).loss.values.T
    for trace in (solid, contour):
        np.testing.assert_array_equal(numbers(trace["z"]), np.where(np.isfinite(expected), expected, np.nan))
    assert "<p>2 of 20 points not finite</p>" in path.read_text()


def test_eigenvalues_have_their_symbols_in_a_page(tmp_path):
    result = surface().rename(loss="ratio")
    _, layout, _ = page_figure(js.export.html(result, tmp_path / "s.html", metric="ratio"))
    assert layout["scene"]["zaxis"]["title"]["text"] == "|λ<sub>min</sub> / λ<sub>max</sub>|"


@pytest.mark.parametrize(
    ("function", "options"),
    [
        (lambda a, b: 0 * a, {}),
        (f, {"clip": 0.5}),
        (lambda a, b: abs(a), {"log": True}),
        (f, {"log": True, "clip": 0.0}),
    ],
    ids=["constant", "clipped below all", "a zero and log", "clipped at zero and log"],
)
def test_flat_surfaces_and_zeros_have_pages(tmp_path, function, options):
    (solid, _), layout, _ = page_figure(js.export.html(surface(function), tmp_path / "s.html", **options))
    ticks = numbers(layout["scene"]["zaxis"]["tickvals"])
    assert np.isfinite(numbers(solid["z"])).all()
    assert np.isfinite(ticks).all()
    assert len(ticks)


def test_plotly_that_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly", None)
    with pytest.raises(
        ImportError, match=r'needs plotly, which is not installed: `pip install "jax-losscape\[export\]"`'
    ):
        js.export.html(surface(), tmp_path / "s.html")


# Figures.


def test_figures_have_print_quality(tmp_path):
    ax = js.plot.contour(surface())
    ax.figure.set_size_inches(4, 3)
    words = {"title": "ResNet-56", "author": "A. Nonym"}
    with Image.open(js.export.figure(ax, tmp_path / "s.png", **words)) as image:
        assert round(image.info["dpi"][0]) == 300
        assert (image.info["Title"], image.info["Author"]) == ("ResNet-56", "A. Nonym")
        assert 0.8 * 1200 < image.width < 1.1 * 1200
    with Image.open(js.export.figure(ax.figure, tmp_path / "fine.png", dpi=600)) as image:
        assert round(image.info["dpi"][0]) == 600
        assert "Title" not in image.info
    pdf = js.export.figure(ax, tmp_path / "s.pdf", **words).read_bytes()
    assert b"/Title (ResNet-56)" in pdf
    assert b"/Author (A. Nonym)" in pdf
    assert b"/FontFile2" in pdf
    assert b"/Type3" not in pdf
    assert b"CreationDate" not in pdf
    svg = js.export.figure(ax, tmp_path / "s.svg", **words).read_text()
    assert "<dc:title>ResNet-56</dc:title>" in re.sub(r"\s*\n\s*", "", svg).replace(" <", "<").replace("> ", ">")
    assert "filter-normalized" in svg
    assert "<dc:date>" not in svg


def test_a_figure_that_is_drawn_anew_is_the_same_file_and_settings_stay(tmp_path):
    before = dict(plt.rcParams)
    for suffix in (".pdf", ".svg", ".png"):
        files = [js.export.figure(js.plot.heatmap(surface()), tmp_path / f"{i}{suffix}") for i in range(2)]
        assert files[0].read_bytes() == files[1].read_bytes()
    assert dict(plt.rcParams) == before


# Mistakes.


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: js.export.vtk(surface(), p / "s.stl"), r"path is 's\.stl', expected .* \.vtp or \.vtr or \.vti"),
        (lambda p: js.export.vtk(surface(), p / "s.vtr"), r"path is 's\.vtr', expected a name that ends with \.vtp"),
        (
            lambda p: js.export.vtk(volume(ALPHA), p / "s.vtp"),
            r"'s\.vtp', expected a name that ends with \.vtr or \.vti",
        ),
        (lambda p: js.export.vtk(volume(ALPHA), p / "s.vti"), r"needs even spacing; beta has steps from 0\.5 to 2\."),
        (
            lambda p: js.export.vtk(surface().isel(beta=0), p / "s.vtp"),
            r"dimensions \('alpha',\), expected two or three",
        ),
        (
            lambda p: js.export.vtk(surface().expand_dims(seed=[0, 1]), p / "s.vtr"),
            r"expected two or three axes; pass one repeat: result\.isel\(seed=0\)",
        ),
        (lambda p: js.export.vtk(surface(), p / "s.vtp", metric="los"), "metric is 'los', expected one of"),
        (lambda p: js.export.vtk(surface(), p / "s.vtp", clip=np.nan), "clip is nan, expected a finite number or None"),
        (
            lambda p: js.export.vtk(surface(lambda a, b: a), p / "s.vtp", log=True),
            r"log is True with heights down to -1, expected all above -0\.1.*pass log=False",
        ),
        (lambda p: js.export.vtk(surface(lambda a, b: a * np.nan), p / "s.vtp"), "no finite value of 'loss'"),
        (lambda p: js.export.mesh(surface(), p / "s.vtp"), r"path is 's\.vtp', expected .* \.obj or \.stl"),
        (lambda p: js.export.mesh(surface().isel(beta=0), p / "s.obj"), "result has the dimension 'alpha' only"),
        (lambda p: js.export.mesh(surface(), p / "s.obj", z_scale=0), "z_scale is 0, expected a positive number"),
        (
            lambda p: js.export.mesh(
                surface(lambda a, b: np.where(a * b == 0, np.nan, 1)).isel(alpha=[1, 2]), p / "s.obj"
            ),
            "no cell with four finite values of 'loss': 5 of 8 points",
        ),
        (lambda p: js.export.mesh(surface(lambda a, b: 1e40 + a), p / "s.stl"), r"reaches 1e\+40, .* pass clip or log"),
        (lambda p: js.export.html(surface(), p / "s"), r"path is 's', expected a name that ends with \.html or \.htm"),
        (
            lambda p: js.export.figure(js.plot.contour(surface()), p / "s.jpg"),
            r"'s\.jpg', expected .* \.pdf or \.svg or",
        ),
        (
            lambda p: js.export.figure(js.plot.contour(surface()), p / "s.png", dpi=0),
            "dpi is 0, expected an integer of at least 1",
        ),
    ],
)
def test_mistakes_are_named(tmp_path, call, message):
    with pytest.raises(ValueError, match=message):
        call(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: js.export.vtk(surface().loss, p / "s.vtp"), "result is DataArray, expected the whole Dataset"),
        (lambda p: js.export.vtk(surface(), 3), "path is int, expected the path of a file"),
        (lambda p: js.export.html(surface(), p / "s.html", log="yes"), "log is 'yes', expected True, False"),
        (lambda p: js.export.figure(surface(), p / "s.png"), "picture is Dataset, expected a matplotlib figure"),
        (lambda p: js.export.figure(js.plot.contour(surface()), p / "s.png", title=3), "title is int, expected a text"),
    ],
)
def test_values_of_other_types_are_named(tmp_path, call, message):
    with pytest.raises(TypeError, match=message):
        call(tmp_path)
