"""The house: which module may know of which, what importing costs, and that every name has one meaning and is told."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import maskdm

PACKAGE = Path(maskdm.__file__).parent
ORDER = [
    {"errors"},
    {"files"},
    {"config"},
    {"runtime"},
    {"diffusion"},
    {"sampling"},
    {"models"},
    {"data"},
    {"evaluation"},
    {"training"},
    {"profiling"},
    {"experiments"},
    {"auditing"},
    {"reports"},
    {"commands"},
    {"cli"},
]
"""From the bottom up: a room imports from rooms below it."""
RANK = {room: rank for rank, rooms in enumerate(ORDER) for room in rooms}
FILES = {".".join(file.relative_to(PACKAGE).with_suffix("").parts): file for file in sorted(PACKAGE.rglob("*.py"))}
EDGES = {"__init__", "__main__"}  # the package's own doors, in front of everything
INSIDE = sorted(FILES.keys() - EDGES)
HEAVY = {"torch", "numpy", "scipy", "PIL", "pydantic", "sklearn", "ruamel", "matplotlib", "jinja2"}
NO_TORCH = [m for m in INSIDE if m.split(".")[0] in ("errors", "files", "config", "data")]
NO_TORCH += [
    "runtime.console",
    "runtime.host_memory",
    "models.spec",
    "training.events",
    "training.progress",
    "training.read_run",
]
BACKWARD = {"training.step", "evaluation.encoder"}  # the trainer, and the trainer of a small network for features

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(FILES[module].read_text(encoding="utf-8"))


def imports(module: str) -> Iterator[str]:
    """Full names of what a module imports, at its top, inside functions, or for types."""
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            assert node.module is not None
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_imports(module: str) -> set[str]:
    """Modules of the package that a module imports: `training.step`, not the names in it."""
    names = [name.removeprefix("maskdm.") for name in imports(module) if name.startswith("maskdm.")]
    found = {name if name in FILES else name.rpartition(".")[0] for name in names if name != "__version__"}
    return {f"{name}.__init__" if f"{name}.__init__" in FILES else name for name in found if name}


def room(module: str) -> str:
    return module.split(".")[0]


def public(body: list[ast.stmt]) -> list[Definition]:
    return [node for node in body if isinstance(node, Definition) and not node.name.startswith("_")]


def fresh(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A Python of its own."""
    command = [sys.executable, "-X", "importtime", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)


def brought(done: subprocess.CompletedProcess[str]) -> set[str]:
    """Top-level packages that it imported."""
    return {line.rpartition("|")[2].strip().split(".")[0] for line in done.stderr.splitlines()}


# --- which module may know of which ----------------------------------------------------------------------------------


@pytest.mark.parametrize("module", INSIDE)
def test_every_module_has_a_room(module):
    assert room(module) in RANK


@pytest.mark.parametrize("module", INSIDE)
def test_imports_point_down_the_list(module):
    rooms = {room(name) for name in own_imports(module)} - {room(module)}
    assert {other for other in rooms if RANK.get(other, len(ORDER)) >= RANK[room(module)]} == set()


def test_there_are_no_circles():
    graph = {module: own_imports(module) - {module} for module in INSIDE}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize("module", [m for m in INSIDE if room(m) == "data"])
def test_data_know_nothing_of_models(module):
    others = {name for name in own_imports(module) if room(name) not in ("errors", "files", "config", "data")}
    assert others <= {"runtime.console", "runtime.host_memory"}


@pytest.mark.parametrize("module", [m for m in INSIDE if room(m) != "cli"])
def test_only_the_command_line_parses_it(module):
    assert "argparse" not in set(imports(module))


@pytest.mark.parametrize("module", [m for m in INSIDE if m not in BACKWARD])
def test_gradients_come_from_one_place(module):
    called = {node.attr for node in ast.walk(tree(module)) if isinstance(node, ast.Attribute)}
    assert "backward" not in called


# --- what importing costs --------------------------------------------------------------------------------------------


def test_what_needs_no_torch_brings_none():
    modules = [f"maskdm.{m.removesuffix('.__init__')}" for m in [*NO_TORCH, "reports.run_page"]]
    found = brought(fresh("-c", "\n".join(f"import {m}" for m in modules)))
    assert "numpy" in found  # the measure works
    assert "torch" not in found


def test_importing_the_package_and_its_command_costs_nothing():
    assert not brought(fresh("-c", "import maskdm, maskdm.cli.main; dir(maskdm)")) & HEAVY


@pytest.mark.parametrize("command", [[], ["train"], ["sample"], ["eval"], ["audit"], ["compare"], ["info"]], ids=str)
def test_help_is_quick(command):
    done = fresh("-m", "maskdm", *command, "--help")
    assert "usage: maskdm" in done.stdout
    assert not brought(done) & HEAVY


# --- one name, one meaning -------------------------------------------------------------------------------------------


def test_a_basename_has_one_meaning():
    """A command bears the name of the module that it composes; no other two modules share one."""
    named = defaultdict(list)
    for module in FILES:
        package, _, base = module.rpartition(".")
        if base != "__init__" and package not in ("commands", "cli"):
            named[base].append(module)
    assert {name: modules for name, modules in named.items() if len(modules) > 1} == {}


def test_a_public_name_is_defined_in_one_module():
    homes = defaultdict(set)
    for module in FILES:
        for node in public(tree(module).body):
            homes[node.name].add(module)
    assert {name: sorted(modules) for name, modules in homes.items() if len(modules) > 1} == {}


@pytest.mark.parametrize("module", sorted(FILES))
def test_every_public_name_is_documented(module):
    """Modules, functions, classes, and the methods and properties of classes."""
    silent = [] if ast.get_docstring(tree(module)) else [module]
    for node in public(tree(module).body):
        members = public(node.body) if isinstance(node, ast.ClassDef) else []
        silent += [node.name] if not ast.get_docstring(node) else []
        silent += [f"{node.name}.{m.name}" for m in members if not ast.get_docstring(m)]
    assert silent == []


def test_public_names_are_what_type_checkers_are_told():
    told = dict(name.rsplit(".", 1)[::-1] for name in imports("__init__") if name.startswith("maskdm."))
    assert {*told, "__version__"} == set(maskdm.__all__)
    for name, home in told.items():
        assert getattr(maskdm, name) is getattr(importlib.import_module(home), name)


def test_a_name_that_is_not_public_is_no_attribute():
    with pytest.raises(AttributeError, match="no attribute 'teach'"):
        _ = maskdm.teach
