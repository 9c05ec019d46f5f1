"""The floors of the package: a file imports only from floors below its own."""

import ast
from pathlib import Path

import pytest

import jaxscape as js

ROOT = Path(js.__file__).parents[1]
FLOORS = {
    0: ("types", "trees", "data", "ritz"),
    1: ("normalize", "grid", "convolution", "provenance", "store", "krylov"),
    2: ("directions", "engine", "lanczos", "layout"),
    3: ("surface", "curvature", "trajectory"),
    4: ("plot", "cifar", "datasets", "torch_weights", "checkpoints", "runs", "cli"),
}
FLOOR = {name: floor for floor, names in FLOORS.items() for name in names}
# On one floor: types know no arrays, a trajectory walks on a surface, the command line and runs use their neighbours.
BESIDE = {
    ("trees", "types"),
    ("data", "types"),
    ("trajectory", "surface"),
    ("datasets", "cifar"),
    ("runs", "datasets"),
    ("runs", "torch_weights"),
    ("runs", "checkpoints"),
    ("cli", "plot"),
    ("cli", "runs"),
    ("cli", "datasets"),
}
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
            assert FLOOR[other] < FLOOR[own] or (own, other) in BESIDE, f"{own} imports {other}"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_the_core_knows_no_neural_network_library(path):
    tops = {name.partition(".")[0] for name in imported(path)}
    assert not tops & {"flax", "equinox", "optax", "haiku", "torch"} or room(path) in ("runs", "torch_weights")


def test_models_know_nothing_of_jaxscape():
    for path in (ROOT / "models").glob("*.py"):
        assert not any(name.startswith("jaxscape") for name in imported(path))


def test_public_names_are_unique_documented_and_there():
    assert len(set(js.__all__)) == len(js.__all__)
    for name in js.__all__:
        assert getattr(js, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        js.nothing  # noqa: B018
