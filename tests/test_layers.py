"""Imports run downwards, from the command line to the root."""

import ast
import fnmatch
from collections.abc import Iterator
from pathlib import Path

import pytest

import fa_harness

PACKAGE = Path(fa_harness.__file__).parent

ORDER = (
    "root",
    "upstream",
    "series",
    "case",
    "judge",
    "engine.ggml",
    "build",
    "engine",
    "speed",
    "hunt",
    "model",
    "report",
    "cli",
)
"""Rooms; each may import itself and those before it. `engine.ggml` is the door to C."""

ROOT = {
    "arrays", "config", "errors", "files", "machine", "proc", "project", "stacks", "terminal",
}  # fmt: skip
"""Modules that every room may import; any other module of the root is a front, like `cli`."""


def room(module: str) -> str:
    """The room of a module, named from the package on: `engine.ggml` of `engine.ggml.loaded`."""
    first, _, rest = module.partition(".")
    if first == "engine" and rest.partition(".")[0] == "ggml":
        return "engine.ggml"
    if first in ROOT:
        return "root"
    if first == "kernel":  # facts of the kernel about cases, which label cases in turn
        return "case"
    return first if first in ORDER else "cli"


def modules() -> Iterator[tuple[str, ast.Module]]:
    """Each module of the package, as `engine.worker`, and its text."""
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        yield name.removesuffix(".__init__"), ast.parse(path.read_text("utf-8"))


def imported(tree: ast.Module) -> Iterator[str]:
    """Every module that a text imports, in functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_module(name: str) -> bool:
    """Tell whether the package has a module of that name; else it is a name in one."""
    path = PACKAGE.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def upward_imports() -> set[tuple[str, str]]:
    found = set()
    for name, tree in modules():
        for target in imported(tree):
            own = target.removeprefix("fa_harness.")
            if own == target or not is_module(own):
                continue
            if ORDER.index(room(own)) > ORDER.index(room(name)):
                found.add((name, own))
    return found


def test_imports_run_downwards() -> None:
    assert set(upward_imports()) == set()


def test_only_the_door_to_c_uses_cffi_and_the_bindings() -> None:
    users = {
        name
        for name, tree in modules()
        for target in imported(tree)
        if target.partition(".")[0] in ("cffi", "_ggml")
    }
    assert {room(name) for name in users} == {"engine.ggml"}


def test_upstream_and_series_know_nothing_of_attention() -> None:
    """The order says so, as long as no room of attention comes before them."""
    assert ORDER[:3] == ("root", "upstream", "series")


def test_an_import_that_runs_upwards_is_found() -> None:
    tree = ast.parse("def late() -> None:\n    from fa_harness.cli.main import cli\n")
    assert "fa_harness.cli.main" in set(imported(tree))
    assert room("cli.main") == room("pytest_plugin") == "cli"
    assert room("engine.ggml.loaded") == "engine.ggml"
    assert room("engine.worker") == "engine"


def test_no_command_and_no_report_have_a_module_of_the_same_name() -> None:
    cli, report = (
        {path.stem for path in (PACKAGE / of).glob("[!_]*.py")} for of in ("cli", "report")
    )
    assert cli & report == set()


def test_pytest_leaves_out_no_folder_of_tests(pytestconfig: pytest.Config) -> None:
    left_out = pytestconfig.getini("norecursedirs")
    folders = {path.parent for path in Path(__file__).parent.rglob("test_*.py")}
    assert not [
        folder for folder in folders for name in left_out if fnmatch.fnmatch(folder.name, name)
    ]
