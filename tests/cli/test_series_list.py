"""What `series list` shows, and what it knows from `series check` and `mutants`."""

import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

import schemas
from fa_harness.cli import series_check
from fa_harness.cli.main import cli
from fa_harness.cli.series_check import CheckedUpstream
from fa_harness.project import Project
from fa_harness.series.outcomes import keep_of_mutants, of_mutants, of_pin
from fa_harness.upstream.source import find_source
from tiny_upstream import write_files

OPS = "ggml/src/ggml-cpu/ops.c"
AddPatch = Callable[..., Path]


@pytest.fixture
def two(project: Project, add_patch: AddPatch, monkeypatch: pytest.MonkeyPatch) -> Project:
    """`state`, and `fast` on it."""
    add_patch("answer", {OPS: [("return 41;", "return 42;")]})
    add_patch("faster", {OPS: [("return 42;", "return 43;")]}, series="fast", on=("state",))
    monkeypatch.chdir(project.home)
    return project


def listed(*arguments: str) -> list[str]:
    done = CliRunner().invoke(cli, ["series", "list", *arguments], catch_exceptions=False)
    return [re.sub(r"  +", " | ", line.strip()) for line in done.stdout.splitlines()]


def check(project: Project, monkeypatch: pytest.MonkeyPatch, *, passed: bool) -> None:
    """Check the series as `series check` does, without building anything."""

    def pretend(_project: Project, _suites: object, found: CheckedUpstream) -> None:
        found.problem = "" if passed else "does not build"

    monkeypatch.setattr(series_check, "_check", pretend)
    series_check.check(project, ["mini"], ["seed", "smoke"], Console(file=io.StringIO()))


def test_each_series_has_a_line_with_what_it_stands_on(two: Project) -> None:
    assert listed() == [
        "series | on | patches | pins | mutants | upstream",
        "fast | state | 1 | 1 not checked | none | not sent",
        "* state | pristine | 1 | 1 not checked | none | not sent",
    ]


def test_a_series_holds_where_it_was_checked_with_the_patches_of_now(
    two: Project, monkeypatch: pytest.MonkeyPatch, add_patch: AddPatch
) -> None:
    fast, source = two.of("fast"), find_source(two)
    assert of_pin(two, source) is None
    check(fast, monkeypatch, passed=True)
    check(two, monkeypatch, passed=False)
    assert (of_pin(fast, source), of_pin(two, source)) == (True, False)
    assert [line.split(" | ")[3] for line in listed()[1:]] == ["1 of 1 hold", "0 of 1 hold"]
    add_patch("third", {OPS: [("return 43;", "return 44;")]}, series="fast")
    assert of_pin(fast, source) is None
    assert of_pin(two, source) is False


def test_a_series_on_another_is_checked_again_if_that_changes(
    two: Project, monkeypatch: pytest.MonkeyPatch, add_patch: AddPatch
) -> None:
    fast, source = two.of("fast"), find_source(two)
    check(fast, monkeypatch, passed=True)
    add_patch("other", {OPS: [("return 0;", "return 1;")]})
    assert of_pin(fast, source) is None


def test_a_check_with_fewer_suites_than_the_series_names_is_not_enough(
    two: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(series_check, "_check", lambda *_: None)
    series_check.check(two, ["mini"], ["seed"], Console(file=io.StringIO()))
    assert of_pin(two, find_source(two)) is None


def test_mutants_that_were_run_are_counted(two: Project) -> None:
    source = find_source(two)
    assert of_mutants(two, source) is None
    write_files(two.mutants, {"series": "0001-x.patch\n", "0001-x.patch": "x"})
    assert listed()[2].split(" | ")[4] == "not run"
    keep_of_mutants(two, source, {"killed": 8, "survived": 1})
    assert listed()[2].split(" | ")[4] == "8 of 9 killed"
    (two.mutants / "0001-x.patch").write_text("y")
    assert of_mutants(two, source) is None


def test_a_series_that_cannot_be_read_does_not_hide_the_others(two: Project) -> None:
    (two.folder_of("fast") / "series.toml").write_text("title = 1")
    lines = listed()
    assert lines[1].startswith("fast | pristine | 0 | ")
    assert lines[2].endswith("fast/series.toml: why is missing; say it in one sentence")
    assert lines[3].startswith("* state")


def test_verbose_says_why_a_series_exists_and_names_the_pins(two: Project) -> None:
    lines = listed("-v")
    assert lines[2:5] == ["fast", "tests need it", "mini | not checked"]
    assert "(series.toml does not say why)" in lines


def test_the_report_has_the_keys_of_its_schema(two: Project) -> None:
    done = CliRunner().invoke(cli, ["series", "list", "--json", "-"], catch_exceptions=False)
    report = schemas.checked(json.loads(done.stdout))
    fast, state = report["series"]
    assert (fast["name"], fast["on"], fast["is_default"]) == ("fast", ["state"], False)
    assert (state["is_default"], state["pins"], state["holds"]) == (True, {"mini": None}, None)
