"""A library is held by whatever runs it: a build meanwhile changes nothing of what it runs."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console

from fa_harness.build import builder
from fa_harness.build.library import Library
from fa_harness.case.case import Case
from fa_harness.cli import bench, bisect, doctor, series_check, series_status
from fa_harness.engine import ggml
from fa_harness.engine.runner import Runner
from fa_harness.project import find_project
from fa_harness.speed import bench as speed

CASE = Case(n_kv=16)


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The modules that runners, or this process, load."""
    paths: list[Path] = []
    start = Runner.__init__

    def started(self: Runner, module: Path) -> None:
        paths.append(module)
        start(self, module)

    monkeypatch.setattr(Runner, "__init__", started)
    monkeypatch.setattr(ggml, "load", paths.append)
    return paths


def measure_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(*_: object, **__: object) -> Iterator[object]:
        yield from ()

    monkeypatch.setattr(speed, "run", nothing)
    passed = bench.command.main(["-k", "kv=512", "--rounds", "8"], standalone_mode=False)
    assert not passed  # nothing was measured


def bisect_a_case(monkeypatch: pytest.MonkeyPatch) -> None:
    bisect.bisect_case(CASE, console=Console(file=io.StringIO()))


def check_the_series(monkeypatch: pytest.MonkeyPatch) -> None:
    project = find_project()
    upstream = builder.find(project, "patched").upstream
    console = Console(file=io.StringIO())
    [checked] = series_check.check(project, [upstream], ["seed"], console)
    assert checked.passed


def run_a_suite_on_each_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    assert series_status.colours(find_project(), "seed")


def try_a_library(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.try_library(builder.find(find_project(), "patched")) is None


@pytest.mark.usefixtures("pristine")
@pytest.mark.parametrize(
    "run",
    [measure_speed, bisect_a_case, check_the_series, run_a_suite_on_each_prefix, try_a_library],
)
def test_what_runs_a_library_holds_it(
    run: Callable[[pytest.MonkeyPatch], None],
    loaded: list[Path],
    patched: Library,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if run in (bisect_a_case, run_a_suite_on_each_prefix):  # those of all prefixes are many
        monkeypatch.setattr(builder, "build", lambda _, names, **__: [patched for _ in names])
    run(monkeypatch)
    assert loaded
    assert [path for path in loaded if ".held-" not in path.parent.parent.name] == []
