"""The documents do what they say: the README's example, the docstrings' examples, the notebooks."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import pytest

import jaxscape
import models

ROOT = Path(jaxscape.__file__).parents[1]
MODULES = [
    module.name
    for package in (jaxscape, models)
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    if not module.name.endswith("__main__")
]


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name):
    with jax.enable_x64(False):  # as users have it
        assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_the_readmes_example():
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert sum(map(bool, code.splitlines())) <= 12
    names = {}
    with jax.enable_x64(False):
        exec(code, names)
    assert dict(names["surface"].sizes) == {"alpha": 25, "beta": 25}
    assert names["ax"].collections
    plt.close("all")


# That of large models compiles programs of GPT-2, which takes a minute.
PAGES = [pytest.param(path, marks=[pytest.mark.slow] * (path.stem == "large-models"), id=path.stem)
         for path in sorted((ROOT / "docs").glob("*.md"))]  # fmt: skip


@pytest.mark.parametrize("path", PAGES)
def test_the_code_of_a_page(path):
    with jax.enable_x64(False):
        for code in re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL):
            exec(code, {})


def test_every_name_and_command_of_the_readme_is_there():
    text = (ROOT / "README.md").read_text()
    for path in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / path).exists(), path
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"make ([a-z/.-]+)`", text):
        assert f"\n{target}:" in makefile, target
    for name in re.findall(r"`js\.(\w+)", text):
        assert hasattr(jaxscape, name), name


def test_every_test_that_the_documents_name_is_there():
    text = "".join(path.read_text() for path in (ROOT / "docs").glob("*.md"))
    named = re.findall(r"`(test_\w+\.py)(?:::(\w+))?`", text)
    assert named
    for file, name in named:
        tests = (ROOT / "tests" / file).read_text()
        assert f"def {name or 'test_'}" in tests, (file, name)


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda p: p.stem)
def test_notebooks_run_from_top_to_bottom(path, tmp_path, monkeypatch):
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("MPLBACKEND", "agg")
    notebook = nbformat.read(path, as_version=4)
    assert len(notebook.cells) <= 10
    assert not any(cell.get("outputs") for cell in notebook.cells), "commit it without outputs"
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": tmp_path}}).execute()
