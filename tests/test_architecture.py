"""The floors of the package: a file imports only from floors below its own."""

import ast
import re
import subprocess
import sys
import tomllib
import types
from pathlib import Path

import pytest

import jaxscape as js

ROOT = Path(js.__file__).parents[1]
FLOORS = (
    ("types", "files", "interrupts", "peers", "compilation", "memory"),
    ("shards",),
    ("trees", "grid", "meshes", "levels"),
    ("checks", "convolution"),
    ("arguments",),
    ("normalize",),
    ("directions", "subspace"),
    ("objective",),
    ("engine", "linalg"),
    ("curvature", "sweep"),
    ("surfaces", "interpolation", "maps", "flatness", "budgets"),
    ("trajectories", "comparison"),
    ("plot", "cifar", "torch_weights", "run_checkpoints"),
    ("export",),
    ("datasets",),
    ("runs",),
    ("alignment", "weights", "report_page"),
    ("cli",),
)
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names}
MODULES = sorted(p for p in (ROOT / "jaxscape").rglob("*.py") if p.name not in ("__init__.py", "__main__.py"))


def room(path):
    """The module or subpackage of jaxscape that a file belongs to."""
    return path.relative_to(ROOT / "jaxscape").parts[0].removesuffix(".py")


def imported(path):
    """Every name after ``jaxscape`` or of another top package that a file imports, wherever it stands in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down(path):
    own = room(path)
    assert own in FLOOR, f"{own} has no floor; give it one here and in the README"
    for name in imported(path):
        top, _, rest = name.partition(".")
        other = rest.partition(".")[0]
        if top == "jaxscape" and other in FLOOR and other != own:
            assert FLOOR[other] < FLOOR[own], f"{own} imports {other}"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_the_core_knows_no_neural_network_library(path):
    tops = {name.partition(".")[0] for name in imported(path)}
    assert not tops & {"flax", "equinox", "optax", "haiku", "torch"} or room(path) in (
        "runs",
        "torch_weights",
        "alignment",
    )


def test_modules_with_shapes_are_checked_at_run_time():
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]["addopts"]
    (packages,) = re.findall(r"--jaxtyping-packages=(\S+)", options)
    checked = {name.removeprefix("jaxscape.") for name in packages.split(",")}
    for path in MODULES:
        if re.search(r"\b(Array|ArrayLike|Any|ndarray), \"", path.read_text()) and room(path) != "types":
            assert room(path) in checked, f"{room(path)} has shapes in annotations: add it to addopts in pyproject.toml"


def test_every_public_name_is_found_where_the_package_looks_for_it():
    for name in js.__all__:
        value = getattr(js, name)
        assert value is getattr(js, name)
        assert (name in js._PUBLIC_MODULES) == isinstance(value, types.ModuleType)
    assert set(js._MODULE) | set(js._PUBLIC_MODULES) == set(js.__all__) <= set(dir(js))
    with pytest.raises(AttributeError, match="no attribute 'surfces'"):
        js.surfces  # noqa: B018


def test_no_module_has_the_name_of_a_public_function():
    modules = {p.stem for p in (ROOT / "jaxscape").iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert modules & set(js.__all__) <= set(js._PUBLIC_MODULES)


def test_the_import_leaves_slow_libraries_for_their_first_use():
    code = (
        "import sys, jax; before = set(sys.modules); import jaxscape as js; js.Grid.plane(); "
        "print(*{m.partition('.')[0] for m in set(sys.modules) - before})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert not set(done.stdout.split()) & {"xarray", "zarr", "pandas", "matplotlib", "tqdm"}


def test_models_know_nothing_of_jaxscape():
    for path in (ROOT / "models").glob("*.py"):
        assert not any(name.startswith("jaxscape") for name in imported(path))


def test_public_names_are_unique_documented_and_there():
    assert len(set(js.__all__)) == len(js.__all__)
    for name in js.__all__:
        assert getattr(js, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        js.nothing  # noqa: B018
