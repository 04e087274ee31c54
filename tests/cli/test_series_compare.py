"""What `series compare` shows of the cases that patches turned then and turn now."""

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

import schemas
from fa_harness.cli import series_compare
from fa_harness.cli.series_compare import Effect, compare, document, print_effects
from fa_harness.cli.series_status import Colours
from fa_harness.project import Project
from fa_harness.series.earlier import earlier
from fa_harness.upstream.source import find_source

OPS = "ggml/src/ggml-cpu/ops.c"
AddPatch = Callable[..., Path]


def colours(*red: str) -> Colours:
    return Colours(red=frozenset(red))


def test_patches_are_compared_by_title_and_those_that_are_new_or_gone_are_named(
    project: Project, add_patch: AddPatch, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    add_patch("answer", {OPS: [("return 41;", "return 42;")]})
    gone = add_patch("gone", {OPS: [("return 0;", "return 1;")]})
    (tmp_path / "then").mkdir()
    for path in project.patches.iterdir():
        (tmp_path / "then" / path.name).write_text(path.read_text())
    new = gone.with_name("0002-new.patch")
    new.write_text(gone.read_text().replace("ggml : gone", "ggml : new"))
    project.series_file.write_text("0001-answer.patch\n0002-new.patch\n")
    of_series = {
        "old-state": [colours("a", "b"), colours("b"), colours("b")],
        "state": [colours("a", "b"), colours(), colours("a")],
    }
    monkeypatch.setattr(series_compare, "colours", lambda each, _suite: of_series[each.series])
    before = earlier(project, str(tmp_path / "then"))
    effects = compare(project, before, find_source(project), "smoke")
    assert [(each.title, each.then is None, each.now is None) for each in effects] == [
        ("ggml : answer", False, False), ("ggml : new", True, False), ("ggml : gone", False, True),
    ]  # fmt: skip
    out = io.StringIO()
    print_effects(Console(file=out, width=140), effects, "smoke")
    cells = [line.split("  ") for line in out.getvalue().splitlines()]
    shown = [[cell.strip() for cell in line if cell.strip()] for line in cells]
    assert shown == [
        ["suite smoke", "then", "now"],
        ["ggml : answer", "1 red -> green", "2 red -> green"],
        ["ggml : new", "not there", "1 green -> red"],
        ["ggml : gone", "-", "not there"],
    ]


def test_the_report_has_the_cases_of_each_patch() -> None:
    effects = [
        Effect(title="t", then=None, now=(colours("b", "a"), colours("c"))),
    ]
    found = document("1: x\n2: y", effects, old="HEAD", suite="smoke", series="state")
    report = schemas.checked(found)
    assert report["range_diff"] == ["1: x", "2: y"]
    assert report["patches"][0]["then"] is None
    assert report["patches"][0]["now"] == {"turned_green": ["a", "b"], "turned_red": ["c"]}
