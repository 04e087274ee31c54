"""The series on another version of the small upstream."""

from collections.abc import Callable, Mapping
from pathlib import Path
from unittest.mock import ANY

import pytest
from click.testing import CliRunner

from fa_harness.cli import series_check
from fa_harness.cli.main import cli
from fa_harness.errors import UsageError
from fa_harness.project import Project
from fa_harness.series import rework
from fa_harness.series.applying import DoesNotApplyError
from fa_harness.series.rework import ConflictError
from fa_harness.series.series import as_files_are, load_series
from fa_harness.series.tree import current_tree
from fa_harness.upstream import newer
from fa_harness.upstream.git import git
from fa_harness.upstream.pins import load_pins
from fa_harness.upstream.source import Source, find_source, source_of

OPS = "ggml/src/ggml-cpu/ops.c"
OTHER = "ggml/src/ggml-backend.c"
AddPatch = Callable[..., Path]
Onto = Callable[[dict[str, tuple[str, str]]], Source]


@pytest.fixture
def two(project: Project, add_patch: AddPatch) -> Project:
    """A patch of each of two files."""
    add_patch("answer", {OPS: [("return 41;", "return 42;")]})
    add_patch("backend", {OTHER: [("return 0;", "return 1;")]})
    return project


@pytest.fixture
def onto(
    two: Project, index: Path, make_sdist: Callable[..., Path], files: Mapping[str, str]
) -> Onto:
    """Make and pin a version 2.0 in which some texts of files are others."""

    def make(changes: dict[str, tuple[str, str]]) -> Source:
        new = dict(files) | {"include/llama.h": ""}
        for name, (old, text) in changes.items():
            assert old in new[name]
            new[name] = new[name].replace(old, text)
        page = index / "mini-llama"
        make_sdist(new).rename(page / "mini_llama-2.0.tar.gz")
        names = ("mini_llama-1.0.tar.gz", "mini_llama-2.0.tar.gz")
        (page / "index.html").write_text("".join(f'<a href="{n}">{n}</a>' for n in names))
        return find_source(two, newer.add(two, "mini-llama==2.0").name)

    return make


def contents(project: Project) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(project.patches.glob("*.patch"))}


def is_settled(project: Project, source: Source) -> bool:
    settled = current_tree(project, source, load_series(project)) is not None
    return settled and rework.begun(project, source) is None


def test_patches_that_git_can_move_keep_their_bytes_and_the_pin_becomes_the_default(
    two: Project, onto: Onto
) -> None:
    before = contents(two)
    new = onto({OPS: ('#include "ggml.h"\n', '#include "ggml.h"\n// more\n// lines\n')})
    changes = rework.rebase(two, find_source(two), new)
    assert changes.written == changes.removed == changes.dropped == ()
    assert contents(two) == before
    assert [line.split()[2] for line in changes.range_diff.splitlines()] == ["=", "="]
    assert load_pins(two.pins_file).default == "llama.cpp-2.0"
    assert is_settled(two, new)


def test_what_upstream_has_taken_is_dropped_and_said(two: Project, onto: Onto) -> None:
    new = onto({OPS: ("return 41;", "return 42;")})
    changes = rework.rebase(two, find_source(two), new)
    assert changes.dropped == ("ggml : answer",)
    assert load_series(two).names == ("0001-backend.patch",)
    assert is_settled(two, new)


def test_a_conflict_stops_and_goes_on_when_it_is_resolved(two: Project, onto: Onto) -> None:
    before, pins = contents(two), two.pins_file
    new = onto({OPS: ("return 41;", "return 7 * 6;")})
    text = pins.read_text()
    with pytest.raises(ConflictError, match=r"'series rebase': .* conflicts in .*ops\.c"):
        rework.rebase(two, find_source(two), new)
    assert (contents(two), pins.read_text()) == (before, text)
    place = rework.worktree(two, new)
    merged = (place / OPS).read_text()
    start, end = merged.index("<<<<<<<"), merged.index("\n", merged.index(">>>>>>>")) + 1
    (place / OPS).write_text(f"{merged[:start]}    return 43;\n{merged[end:]}")
    git(place, "add", OPS)
    changes = rework.go_on(two, new)
    assert changes.written == ("0001-ggml-answer.patch",)
    assert "!" in changes.range_diff
    assert "-    return 7 * 6;" in contents(two)["0001-ggml-answer.patch"]
    assert is_settled(two, new)


def test_an_aborted_rebase_leaves_patches_and_pins_as_they_were(two: Project, onto: Onto) -> None:
    before = contents(two)
    new = onto({OPS: ("return 41;", "return 7 * 6;")})
    with pytest.raises(ConflictError):
        rework.rebase(two, find_source(two), new)
    rework.abort(two, new)
    assert contents(two) == before
    assert load_pins(two.pins_file).default == "mini"
    assert rework.begun(two, new) is None


def test_a_checkout_is_no_pin_and_changes_none(
    two: Project, tmp_path: Path, files: Mapping[str, str]
) -> None:
    checkout = tmp_path / "mine"
    for name, text in files.items():
        path = checkout / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.replace("return 41;", "return 42;"))
    new = source_of(checkout)
    assert rework.rebase(two, find_source(two), new).dropped == ("ggml : answer",)
    assert load_pins(two.pins_file).default == "mini"
    assert "return 42;" in (checkout / OPS).read_text()


def test_a_rebase_onto_the_same_upstream_is_refused(two: Project) -> None:
    with pytest.raises(UsageError, match="the series is for 'mini' already"):
        rework.rebase(two, find_source(two), find_source(two))


@pytest.fixture
def fast(two: Project, add_patch: AddPatch) -> Project:
    """A series on the two patches, whose file names the pins on which it must hold."""
    add_patch("faster", {OPS: [("return 42;", "return 43;")]}, series="fast", on=("state",))
    fast = two.of("fast")
    file = fast.about().file
    file.write_text(file.read_text() + 'pins = ["mini"]\n')
    return fast


def test_a_series_on_another_goes_to_a_new_upstream_with_what_it_stands_on(
    two: Project, onto: Onto, fast: Project
) -> None:
    new = onto({OPS: ('#include "ggml.h"\n', '#include "ggml.h"\n// more\n// lines\n')})
    before = contents(two)
    changes = rework.rebase(fast, find_source(two), new)
    assert [line.split()[2:5] for line in changes.range_diff.splitlines()] == [["=", "1:", ANY]]
    assert contents(two) == before
    assert load_pins(two.pins_file).default == new.label
    assert fast.about().pins == ("mini", new.label)
    assert current_tree(fast, new, as_files_are(fast, new)) is not None


def test_a_series_does_not_go_where_what_it_stands_on_does_not_apply(
    two: Project, onto: Onto, fast: Project
) -> None:
    new = onto({OPS: ("return 41;", "return 99;")})
    with pytest.raises(DoesNotApplyError, match=r"patch '0001-answer\.patch' does not apply on u"):
        rework.rebase(fast, find_source(two), new)
    assert load_pins(two.pins_file).default == "mini"
    assert rework.begun(fast, new) is None


def test_after_a_rebase_the_commands_for_the_other_series_are_named(
    two: Project, onto: Onto, fast: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = onto({OTHER: ("return 0;", "return 0; // more")})
    monkeypatch.chdir(two.home)
    monkeypatch.setattr(series_check, "_check", lambda *_: None)
    arguments = ["series", "rebase", "--onto", new.label]
    place = rework.worktree(two, new)
    done = CliRunner().invoke(cli, arguments)
    assert isinstance(done.exception, ConflictError)
    (place / OTHER).write_text("int ggml_backend(void) { return 1; // more }\n")
    git(place, "add", OTHER)
    done = CliRunner().invoke(cli, ["series", "rebase", "--continue"], catch_exceptions=False)
    command = f"UPSTREAM=mini fa-harness series rebase --series fast --onto {new.label}"
    assert f"next: {command}\n" in done.stdout
    monkeypatch.setenv("UPSTREAM", "mini")
    done = CliRunner().invoke(cli, command.split()[2:], catch_exceptions=False)
    assert "1:" in done.stdout
    assert "next:" not in done.stdout
    assert fast.about().pins == ("mini", new.label)
