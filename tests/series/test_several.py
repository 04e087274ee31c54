"""Several series on a small upstream: one on the other, side by side, and in each other's way."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fa_harness.errors import SetupError, UsageError
from fa_harness.proc import ProgramError
from fa_harness.project import Project
from fa_harness.series import rework
from fa_harness.series.applying import DoesNotApplyError
from fa_harness.series.rework import ConflictError
from fa_harness.series.series import as_files_are, series_for
from fa_harness.series.stacking import StackConflictError
from fa_harness.series.status import drift, status
from fa_harness.series.tree import BRANCH, Tree, note, prepare_tree
from fa_harness.upstream.git import git
from fa_harness.upstream.source import Source, find_source
from tiny_upstream import commit, replace

OPS = "ggml/src/ggml-cpu/ops.c"
OTHER = "ggml/src/ggml-backend.c"
HEADER = "ggml/include/ggml.h"
AddPatch = Callable[..., Path]


@pytest.fixture
def stacks(project: Project, add_patch: AddPatch) -> Project:
    """`state` has two patches, `fast` two on it; `partial` stands on upstream."""
    add_patch("answer", {OPS: [("return 41;", "return 42;")]})
    add_patch("other", {OPS: [("return 0;", "return 1;")]})
    add_patch("faster", {OPS: [("return 42;", "return 43;")]}, series="fast", on=("state",))
    add_patch("fastest", {OTHER: [("return 0;", "return 9;")]}, series="fast")
    add_patch("header", {HEADER: [("answer", "reply")]}, series="partial")
    return project


def prepare(project: Project) -> Tree:
    source = find_source(project)
    return prepare_tree(project, source, series_for(project, source))


def log(tree: Tree) -> list[str]:
    return git(tree.path, "log", "--format=%s", BRANCH).splitlines()


def texts(project: Project, series: str) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(project.folder_of(series).iterdir())}


def test_a_series_lies_on_what_it_stands_on_in_a_tree_of_its_own(stacks: Project) -> None:
    state, fast, partial = (prepare(stacks.of(name)) for name in ("state", "fast", "partial"))
    assert [tree.path.name for tree in (state, fast, partial)] == [
        "mini", "mini+state+fast", "mini+partial",
    ]  # fmt: skip
    assert log(fast)[:-1] == ["ggml : fastest", "ggml : faster", "ggml : other", "ggml : answer"]
    assert log(partial)[:-1] == ["ggml : header"]
    assert fast.commits[:3] == state.commits
    assert prepare(stacks) == state, "other series have left it as it was"


def test_series_that_touch_other_lines_apply_on_each_other_as_they_are(stacks: Project) -> None:
    both = prepare(stacks.of("partial+fast"))
    assert len(both.commits) == 6
    assert both.applied.stacked == ()
    assert "reply" in (both.path / HEADER).read_text()
    assert "return 43;" in (both.path / OPS).read_text()


def test_series_whose_context_differs_are_merged_and_it_is_said(
    stacks: Project, add_patch: AddPatch
) -> None:
    add_patch("near", {OPS: [('#include "ggml.h"\n\n', '#include "ggml.h"\n\n// near\n')]},
              series="near")  # fmt: skip
    add_patch("nearer", {OPS: [("\nint ggml_answer", "// nearer\nint ggml_answer")]},
              series="near")  # fmt: skip
    project = stacks.of("state+near")
    tree = prepare(project)
    text = (tree.path / OPS).read_text()
    assert ("return 42;" in text, "// near\n" in text, "// nearer\n" in text) == (True, True, True)
    source = find_source(project)
    series = series_for(project, source)
    assert tree.applied.stacked == ("near/0002-nearer.patch",)
    assert note(source, series, tree.applied) == (
        "series: merged with those below: near/0002-nearer.patch"
    )
    assert prepare(project) == tree
    assert len(drift(tree, series)) == 3


def test_a_stack_that_conflicts_says_which_patches_and_where(
    stacks: Project, add_patch: AddPatch
) -> None:
    add_patch("mine", {OTHER: [("return 0;", "return 5;")]}, series="mine")
    add_patch("again", {OPS: [("    return 41;", "    return 77;")]}, series="mine")
    with pytest.raises(StackConflictError) as caught:
        prepare(stacks.of("fast+mine"))
    said = str(caught.value).splitlines()
    assert (
        said[0] == "'mine' cannot be put on 'state+fast': patch mine/0001 (ggml : mine) conflicts"
    )
    assert said[1:-1] == [f"  with fast/0002 (ggml : fastest) in {OTHER}, line 1"]
    assert said[-1].endswith("fa-harness series rebase --series mine")
    replace(stacks.folder_of("mine") / "series", "0001-mine.patch\n", "")
    with pytest.raises(StackConflictError) as caught:
        prepare(stacks.of("fast+mine"))
    assert str(caught.value).splitlines()[:2] == [
        "'mine' cannot be put on 'state+fast': patch mine/0002 (ggml : again) conflicts",
        f"  with state/0001 (ggml : answer) and fast/0001 (ggml : faster) in {OPS}, line 6",
    ]
    assert len(prepare(stacks.of("mine")).commits) == 2, "alone it applies"


def test_a_conflict_of_a_stack_does_not_depend_on_what_was_resolved_here(
    stacks: Project, add_patch: AddPatch
) -> None:
    add_patch("mine", {OTHER: [("return 0;", "return 5;")]}, series="mine")
    project, source = stacks.of("fast+mine"), find_source(stacks)
    with pytest.raises(StackConflictError):
        prepare(project)
    tree = prepare(stacks.of("fast"))
    rework.edit(stacks.of("fast"), source, "1")  # turns git's notes on, which all trees share
    git(tree.path, "fetch", prepare(stacks.of("mine")).path, BRANCH)
    with pytest.raises(ProgramError):
        git(tree.path, "cherry-pick", "FETCH_HEAD")
    (tree.path / OTHER).write_text("int ggml_backend(void) { return 14; }\n")
    git(tree.path, "commit", "--all", "--no-edit")
    for path in stacks.sources.glob("mini+state+fast+mine"):
        git(path, "config", "rerere.enabled", "true")
        git(path, "config", "rerere.autoUpdate", "true")
        shutil.copytree(
            stacks.sources / ".resolved", path / ".git" / "rr-cache", dirs_exist_ok=True
        )
    with pytest.raises(StackConflictError):
        prepare(project)


def test_a_patch_that_does_not_apply_on_what_it_stands_on_is_not_merged(stacks: Project) -> None:
    patch = stacks.folder_of("fast") / "0001-faster.patch"
    patch.write_text(patch.read_text().replace("-    return 42;", "-    return 7;"))
    with pytest.raises(DoesNotApplyError) as caught:
        prepare(stacks.of("fast"))
    assert "patch 'fast/0001-faster.patch' does not apply on upstream 'mini'" in str(caught.value)
    assert "after 2 patches of state:" in str(caught.value)
    assert str(caught.value).endswith("correct patches/fast/series")


def test_patches_of_several_series_are_counted_by_series(stacks: Project) -> None:
    patch = stacks.folder_of("fast") / "0002-fastest.patch"
    patch.write_text(patch.read_text().replace("return 0;", "return 7;"))
    with pytest.raises(DoesNotApplyError, match="after 2 patches of state and 1 of fast:"):
        prepare(stacks.of("fast"))


def test_the_status_of_a_series_is_of_its_own_patches(stacks: Project) -> None:
    fast = stacks.of("fast")
    found = status(fast, find_source(fast))
    assert [patch.title for patch in found] == ["ggml : faster", "ggml : fastest"]


@pytest.fixture
def fast(stacks: Project) -> Project:
    return stacks.of("fast")


@pytest.fixture
def source(stacks: Project) -> Source:
    return find_source(stacks)


def test_a_change_of_a_series_leaves_what_it_stands_on_as_it_is(
    fast: Project, source: Source
) -> None:
    before = texts(fast, "state")
    place = rework.edit(fast, source, "1")
    assert place.name == "mini+state+fast"
    replace(place / OPS, "return 43;", "return 50;")
    commit(place, "--all", "--amend", "--no-edit")
    assert rework.refresh(fast, source).written == ("0001-ggml-faster.patch",)
    assert texts(fast, "state") == before
    assert "+    return 50;" in texts(fast, "fast")["0001-ggml-faster.patch"]
    assert as_files_are(fast, source).owners == ("state", "state", "fast", "fast")
    assert rework.reorder(fast, source, ["2"]).renamed == (
        ("0002-fastest.patch", "0001-fastest.patch"),
        ("0001-ggml-faster.patch", "0002-ggml-faster.patch"),
    )
    assert rework.drop(fast, source, ["2"]).removed == ("0002-ggml-faster.patch",)
    assert log(prepare(fast))[0] == "ggml : fastest"


def test_a_series_follows_when_what_it_stands_on_has_changed(fast: Project, source: Source) -> None:
    state = fast.of("state")
    with pytest.raises(UsageError, match="fast is on state as it is now"):
        rework.rebase(fast, source, source)
    place = rework.edit(state, source, "1")
    replace(place / OPS, "\n\n\n\nint ggml_answer", "\n\n// more\n\nint ggml_answer")
    replace(place / OTHER, "return 0;", "return 0; // more")
    commit(place, "--all", "--amend", "--no-edit")
    rework.refresh(state, source)
    after = texts(fast, "state")
    with pytest.raises(DoesNotApplyError, match="series rebase --series fast puts it on what it"):
        prepare(fast)
    with pytest.raises(ConflictError, match="the patch 'ggml : fastest' conflicts"):
        rework.rebase(fast, source, source)
    rework.abort(fast, source)
    with pytest.raises(ConflictError, match="--series fast --continue"):
        rework.rebase(fast, source, source)
    place = rework.worktree(fast, source)
    (place / OTHER).write_text("int ggml_backend(void) { return 9; // more }\n")
    git(place, "add", OTHER)
    changes = rework.go_on(fast, source)
    assert "1:" in changes.range_diff
    assert texts(fast, "state") == after
    assert log(prepare(fast))[:2] == ["ggml : fastest", "ggml : faster"]
    assert rework.undo(fast, source).undone == "series rebase"


def test_a_series_that_was_alone_is_put_on_another(
    stacks: Project, source: Source, add_patch: AddPatch
) -> None:
    add_patch("mine", {OPS: [("return 0;", "return 5;"), ("answer", "reply")]}, series="mine")
    with pytest.raises(StackConflictError):
        prepare(stacks.of("fast+mine"))
    replace(stacks.folder_of("mine") / "series.toml", "on = []", 'on = ["state"]')
    mine = stacks.of("mine")
    with pytest.raises(ConflictError, match="the patch 'ggml : mine' conflicts"):
        rework.rebase(mine, source, source)
    place = rework.worktree(mine, source)
    git(place, "checkout", "--theirs", OPS)
    git(place, "add", OPS)
    assert rework.go_on(mine, source).written == ("0001-ggml-mine.patch",)
    assert log(prepare(mine))[:-1] == ["ggml : mine", "ggml : other", "ggml : answer"]


def test_changes_of_two_series_may_be_under_way_at_once(fast: Project, source: Source) -> None:
    partial = fast.of("partial")
    places = [rework.edit(project, source, "1") for project in (fast, partial)]
    assert len({*places}) == 2
    rework.abort(partial, source)
    assert rework.begun(fast, source) is not None
    assert not places[1].exists()


def test_a_series_is_added_to_from_nothing(stacks: Project, source: Source, tmp_path: Path) -> None:
    mail = tmp_path / "x.patch"
    mail.write_text(texts(stacks, "partial")["0001-header.patch"])
    folder = stacks.data / "patches" / "mine"
    folder.mkdir()
    (folder / "series").touch()
    assert rework.add(stacks.of("mine"), source, [mail], None).written == (
        "0001-ggml-header.patch",
    )
    assert log(prepare(stacks.of("mine")))[0] == "ggml : header"


def test_commits_below_the_series_cannot_be_changed_from_its_tree(
    fast: Project, source: Source
) -> None:
    tree = prepare(fast)
    git(tree.path, "reset", "--quiet", "--hard", tree.commits[1])
    replace(tree.path / OPS, "return 42;", "return 60;")
    commit(tree.path, "--all", "--message", "ggml : mine")
    before = texts(fast, "fast")
    with pytest.raises(SetupError, match="no longer holds state as it was, on which fast stands"):
        rework.refresh(fast, source)
    assert texts(fast, "fast") == before


def test_the_steps_of_a_conflict_name_the_series(fast: Project, source: Source) -> None:
    place = rework.edit(fast, source, "1")
    replace(place / OTHER, "return 0;", "return 3;")
    commit(place, "--all", "--amend", "--no-edit")
    with pytest.raises(ConflictError) as caught:
        rework.refresh(fast, source)
    assert "4. fa-harness series edit --series fast --continue" in str(caught.value)


def test_a_change_names_one_series(stacks: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    from fa_harness.cli.options import project_of

    monkeypatch.chdir(stacks.home)
    assert project_of("fast").stack == ("state", "fast")
    with pytest.raises(UsageError, match="names a stack; name one series, the last"):
        project_of("state+fast")
