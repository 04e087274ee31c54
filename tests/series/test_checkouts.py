"""The series on a developer's own checkout, which has edits, or the patches, or both."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from fa_harness.errors import SetupError
from fa_harness.project import Project
from fa_harness.series import applying, lint
from fa_harness.series.applying import Applied
from fa_harness.series.series import load_series, series_for
from fa_harness.series.status import Touched, status
from fa_harness.series.tree import Tree, current_tree, note, prepare_tree
from fa_harness.terminal import stage_once
from fa_harness.upstream.git import git
from fa_harness.upstream.source import find_source
from tiny_upstream import write_files

OPS = "ggml/src/ggml-cpu/ops.c"
AddPatch = Callable[..., Path]
Edit = Callable[..., Path]
NEAR = ('"ggml.h"\n\n\n\n', '"ggml.h"\n\n\n// mine\n')
"""An edit in the context of the first patch, not beside the line that it changes."""
SAME = ("return 41;", "return 40 + 1;")
"""An edit of the line that the first patch changes."""
FIRST = ("return 41;", "return 42;")
"""What the first patch does."""
SECOND = ("return 0;\n}\n", "return 1;\n}\n// more\n// lines\n")
"""What the second does; of its file's two functions it changes the last."""


@pytest.fixture(autouse=True)
def _nothing_said() -> None:
    """A test before has said nothing."""
    stage_once.cache_clear()


@pytest.fixture
def two_patches(project: Project, add_patch: AddPatch) -> Project:
    add_patch("answer", {OPS: [FIRST]})
    add_patch("backend", {OPS: [SECOND]})
    return project


@pytest.fixture
def edit(tmp_path: Path, files: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> Edit:
    """Make a checkout that differs from the upstream, or change it; it is the one that is meant."""
    folder = tmp_path / "my llama"

    def make(*changes: tuple[str, str], name: str = OPS) -> Path:
        text = files[name]
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        write_files(folder, {**files, name: text})
        monkeypatch.setenv("UPSTREAM_DIR", str(folder))
        return folder

    return make


def prepare(project: Project, *, exactly: bool = False) -> Tree:
    source = find_source(project)
    return prepare_tree(project, source, series_for(project, source), exactly=exactly)


def text_of(tree: Tree, state: int) -> str:
    return git(tree.path, "show", f"{tree.commits[state]}:{OPS}")


def said(project: Project, tree: Tree) -> str:
    source = find_source(project)
    return note(source, series_for(project, source), tree.applied)


def test_a_checkout_that_is_as_the_patches_expect_needs_no_other_sources(
    two_patches: Project, edit: Edit
) -> None:
    edit()
    shutil.rmtree(two_patches.cache)
    tree = prepare(two_patches)
    assert (tree.applied.is_exact, said(two_patches, tree)) == (True, "")
    assert not two_patches.cache.exists()


def test_patches_are_merged_with_an_edit_beside_their_lines(
    two_patches: Project, edit: Edit, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(NEAR)
    tree = prepare(two_patches)
    states = [text_of(tree, n) for n in range(3)]
    assert ["// mine" in text for text in states] == [True, True, True]
    assert ["return 42;" in text for text in states] == [False, True, True]
    assert ["return 1;" in text for text in states] == [False, False, True]
    assert (tree.path / OPS).read_text() == states[2] + "\n"
    line = "series: 2 patches are merged into dir:my llama (--no-series takes it as it is)"
    assert said(two_patches, tree) == line
    assert capsys.readouterr().err.count(line) == 1


def test_a_merged_tree_is_current_and_the_same_when_made_again(
    two_patches: Project, edit: Edit
) -> None:
    edit(NEAR)
    tree = prepare(two_patches)
    assert current_tree(two_patches, find_source(two_patches), load_series(two_patches)) == tree
    (tree.path / ".git" / "fa-harness.json").unlink()
    assert prepare(two_patches) == tree


def test_a_checkout_that_conflicts_is_taken_as_it_is_and_one_line_says_so(
    two_patches: Project, edit: Edit, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = edit(SAME)
    tree = prepare(two_patches)
    assert len(set(tree.contents)) == 1
    assert len(tree.contents) == 3
    assert "return 40 + 1;" in text_of(tree, 2)
    assert tree.patches(load_series(two_patches), 2) == ()
    line = (
        f"series: not applied, patch 0001 conflicts in {OPS}; dir:my llama is taken as it is "
        f"(to resolve: fa-harness series rebase --onto '{folder}')"
    )
    assert said(two_patches, tree) == line
    assert capsys.readouterr().err.count(line) == 1


def test_a_conflict_that_is_mended_is_forgotten(two_patches: Project, edit: Edit) -> None:
    edit(SAME)
    assert prepare(two_patches).applied.conflict
    edit(NEAR)
    assert not prepare(two_patches).applied.conflict


def test_a_checkout_that_has_the_series_is_taken_as_it_is_and_has_all_patches(
    two_patches: Project, edit: Edit
) -> None:
    edit(FIRST, SECOND)
    tree = prepare(two_patches)
    assert len(set(tree.contents)) == 1
    names = load_series(two_patches).names
    assert [tree.patches(load_series(two_patches), n) for n in range(3)] == [names] * 3
    line = "series: dir:my llama has all 2 patches already; it is taken as it is"
    assert said(two_patches, tree) == line


def test_an_edit_of_a_line_that_a_patch_has_made_is_no_conflict(
    two_patches: Project, edit: Edit
) -> None:
    edit(FIRST, SECOND, ("// more\n", "// my more\n"))
    tree = prepare(two_patches)
    assert tree.applied.held == 2
    assert "// my more" in text_of(tree, 2)


def test_a_checkout_that_has_the_first_patches_gets_the_others(
    two_patches: Project, edit: Edit
) -> None:
    edit(FIRST, NEAR)
    tree = prepare(two_patches)
    series = load_series(two_patches)
    assert [text_of(tree, n).count("return 42;") for n in range(3)] == [1, 1, 1]
    assert [text_of(tree, n).count("return 1;") for n in range(3)] == [0, 0, 1]
    assert [len(tree.patches(series, n)) for n in range(3)] == [1, 1, 2]
    assert said(two_patches, tree) == (
        "series: dir:my llama has the first 1 patches already; the others are merged into "
        "dir:my llama (--no-series takes it as it is)"
    )


def test_a_conflict_of_a_later_patch_leaves_those_that_the_checkout_has(
    two_patches: Project, edit: Edit
) -> None:
    edit(FIRST, ("return 0;", "return 7;"))
    tree = prepare(two_patches)
    assert tree.patches(load_series(two_patches), 2) == ("0001-answer.patch",)
    assert "has the first 1 patches already; the others are not applied" in said(two_patches, tree)


def test_a_patch_in_the_way_of_which_a_file_is_gone_is_a_conflict(
    two_patches: Project, edit: Edit
) -> None:
    (edit() / OPS).unlink()
    assert prepare(two_patches).applied.conflict == f"patch 0001 conflicts in {OPS}"


def test_without_the_sources_that_patches_were_made_for_the_way_out_is_named(
    two_patches: Project, edit: Edit, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit(NEAR)
    shutil.rmtree(two_patches.cache)
    monkeypatch.setenv("PIP_INDEX_URL", (two_patches.home / "gone").as_uri())
    with pytest.raises(SetupError) as caught:
        prepare(two_patches)
    message = str(caught.value)
    assert "'0001-answer.patch' does not apply on dir:my llama as it is, and to merge" in message
    assert "no index gave the sdist mini-llama 1.0" in message
    assert message.endswith("--no-series takes dir:my llama as it is")


def test_who_changes_the_series_gets_its_patches_as_they_are_or_an_error(
    two_patches: Project, edit: Edit
) -> None:
    edit(NEAR)
    merged = prepare(two_patches)
    with pytest.raises(SetupError, match=r"'0001-answer\.patch' does not apply on upstream"):
        prepare(two_patches, exactly=True)
    assert prepare(two_patches) == merged


def test_on_a_pin_patches_are_not_merged(
    two_patches: Project, add_patch: AddPatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    patch = two_patches.patches / "0001-answer.patch"
    patch.write_text(patch.read_text().replace(" int ggml_answer(void) {", " int answer() {"))
    with pytest.raises(SetupError, match="does not apply on upstream 'mini'"):
        prepare(two_patches)


def test_no_series_takes_any_upstream_as_it_is(
    two_patches: Project, edit: Edit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_SERIES", "1")
    for label in ("mini", "dir:my llama"):
        tree = prepare(two_patches)
        assert len(tree.contents) == 1
        assert said(two_patches, tree) == (
            f"series: not applied, as asked for; {label} is taken as it is (NO_SERIES=0 applies it)"
        )
        edit(NEAR)
    monkeypatch.setenv("NO_SERIES", "0")
    assert len(prepare(two_patches).contents) == 3


def test_a_pin_that_is_named_keeps_its_patches_whatever_the_environment_says(
    two_patches: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_SERIES", "1")
    assert find_source(two_patches, "mini").takes_series
    assert not find_source(two_patches).takes_series


def test_patches_that_change_while_they_are_applied_are_noticed(
    two_patches: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = applying.apply

    def meanwhile(*args: object, **more: object) -> Applied:
        applied = real(*args, **more)  # type: ignore[arg-type]
        (two_patches.patches / "0002-backend.patch").write_text("another\n")
        return applied

    monkeypatch.setattr("fa_harness.series.tree.apply", meanwhile)
    with pytest.raises(SetupError, match="patches/state was changed while it was applied"):
        prepare(two_patches)


def test_a_tree_of_an_earlier_version_is_known(two_patches: Project) -> None:
    tree = prepare(two_patches)
    state = tree.path / ".git" / "fa-harness.json"
    record = json.loads(state.read_text())
    applied = record.pop("applied")
    record |= {key: applied[key] for key in ("commits", "contents")}
    state.write_text(json.dumps(record))
    assert current_tree(two_patches, find_source(two_patches), load_series(two_patches)) == tree


def test_the_status_on_a_checkout_is_of_patches_that_are_merged(
    two_patches: Project, edit: Edit, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(NEAR)
    for _ in range(2):  # in a tree that is made, and in one that is current
        stage_once.cache_clear()
        found = status(two_patches, find_source(two_patches))
        assert [patch.files for patch in found] == [
            (Touched(path=OPS, added=1, removed=1),),
            (Touched(path=OPS, added=3, removed=1),),
        ]
        assert [patch.is_upstream for patch in found] == [False, False]
        assert capsys.readouterr().err.count("series: 2 patches are merged into dir:my llama") == 1


def test_the_status_says_which_patches_a_checkout_has(two_patches: Project, edit: Edit) -> None:
    edit(FIRST, NEAR)
    found = status(two_patches, find_source(two_patches))
    assert [patch.is_upstream for patch in found] == [True, False]
    assert [patch.size for patch in found] == [2, 4]


@pytest.fixture
def clang_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that wants another form of one line."""
    program = tmp_path / "clang-format"
    program.write_text('#!/bin/sh\nfor file; do :; done\nsed "s/return 42;/return(42);/" "$file"\n')
    program.chmod(0o755)
    monkeypatch.setattr(lint, "_clang_format", lambda: [str(program)])


@pytest.mark.usefixtures("clang_format")
def test_lint_on_a_checkout_checks_the_lines_where_they_are_merged(
    two_patches: Project, edit: Edit
) -> None:
    edit((NEAR[0], NEAR[1] + "// a line more\n"))
    tree = prepare(two_patches)
    (tree.path / ".clang-format").write_text("")
    two_patches.about().file.write_text('title = "t"\nwhy = "w"\n')
    findings, missing = lint.lint(two_patches, find_source(two_patches))
    [found] = findings
    assert (found.rule, found.patch, found.text) == (
        "format",
        "0001-answer.patch",
        "clang-format has: return(42);",
    )
    assert text_of(tree, 1).splitlines()[found.file_line - 1] == "    return 42;"
    assert missing == []


@pytest.mark.usefixtures("clang_format")
def test_lint_on_a_checkout_says_which_patches_it_cannot_format(
    two_patches: Project, edit: Edit
) -> None:
    edit(FIRST, NEAR)
    (prepare(two_patches).path / ".clang-format").write_text("")
    _, missing = lint.lint(two_patches, find_source(two_patches))
    assert missing[0] == "format: of the first 1 patches, which dir:my llama has already"


@pytest.mark.parametrize("read", [status, lint.lint])
def test_status_and_lint_refuse_a_checkout_that_conflicts_and_name_the_way_out(
    two_patches: Project, edit: Edit, read: Callable[..., object]
) -> None:
    folder = edit(SAME)
    with pytest.raises(SetupError) as caught:
        read(two_patches, find_source(two_patches))
    assert str(caught.value) == (
        f"the patch series cannot be merged into dir:my llama: patch 0001 conflicts in {OPS}; to "
        f"resolve: fa-harness series rebase --onto '{folder}'"
    )
