"""Which module may know of which, and what importing costs."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import maskdm

PACKAGE = Path(maskdm.__file__).parent
LAYERS = [
    ["errors"],
    ["method"],
    ["backbones"],
    ["data"],
    ["training"],
    ["measuring", "interop"],
    ["audit"],
    ["demo"],
    ["commands"],
    ["cli"],
]
RANK = {part: rank for rank, parts in enumerate(LAYERS) for part in parts}
FILES = {".".join(file.relative_to(PACKAGE).with_suffix("").parts): file for file in sorted(PACKAGE.rglob("*.py"))}
EDGES = {"__init__", "__main__"}  # the package's own doors, in front of everything
HEAVY = {"torch", "numpy", "PIL", "pydantic", "sklearn", "ruamel"}
INSIDE = sorted(FILES.keys() - EDGES)


def imports(file: Path) -> Iterator[str]:
    """Full names of the modules that a file imports, at its top, inside functions, or for types."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            assert node.module is not None
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def parts(module: str) -> set[str]:
    """Which parts of the package a module imports."""
    ours = [name.split(".") for name in imports(FILES[module]) if name.split(".")[0] == "maskdm"]
    return {name[1] for name in ours if name[1:] != ["__version__"]}


def fresh(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A Python of its own."""
    command = [sys.executable, "-X", "importtime", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)


def brought(done: subprocess.CompletedProcess[str]) -> set[str]:
    """Top-level packages that it imported."""
    return {line.rpartition("|")[2].strip().split(".")[0] for line in done.stderr.splitlines()}


@pytest.mark.parametrize("module", INSIDE)
def test_every_module_has_a_layer(module):
    assert module.split(".")[0] in RANK


@pytest.mark.parametrize("module", INSIDE)
def test_imports_point_one_way(module):
    own = module.split(".")[0]
    assert {part for part in parts(module) - {own} if RANK.get(part, len(LAYERS)) >= RANK[own]} == set()


@pytest.mark.parametrize("module", [m for m in INSIDE if m.startswith("data.")])
def test_data_know_nothing_of_the_method(module):
    assert not parts(module) & {"method", "backbones"}


@pytest.mark.parametrize(
    "module", [m for m in INSIDE if m.startswith("data.")] + ["measuring.report", "training.summary"]
)
def test_no_torch_in_data_and_report(module):
    assert "torch" not in {name.split(".")[0] for name in imports(FILES[module])}


def test_data_and_report_bring_no_torch_with_them():
    modules = [f"maskdm.{m.removesuffix('.__init__')}" for m in INSIDE if m.startswith("data.")]
    found = brought(fresh("-c", "\n".join(f"import {m}" for m in [*modules, "maskdm.reports.run_page"])))
    assert "numpy" in found  # the measure works
    assert "torch" not in found


def test_importing_the_package_and_its_command_costs_nothing():
    assert not brought(fresh("-c", "import maskdm, maskdm.cli.main; dir(maskdm)")) & HEAVY


@pytest.mark.parametrize("command", [[], ["train"], ["sample"], ["info"]], ids=str)
def test_help_imports_no_torch(command):
    done = fresh("-m", "maskdm", *command, "--help")
    assert "usage: maskdm" in done.stdout
    assert not brought(done) & HEAVY


def test_public_names_are_what_type_checkers_are_told():
    told = dict(name.rsplit(".", 1)[::-1] for name in imports(FILES["__init__"]) if name.startswith("maskdm."))
    assert {*told, "__version__"} == set(maskdm.__all__)
    for name, home in told.items():
        assert getattr(maskdm, name) is getattr(importlib.import_module(home), name)


def test_a_name_that_is_not_public_is_no_attribute():
    with pytest.raises(AttributeError, match="no attribute 'train'"):
        _ = maskdm.train
