import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fa_harness import proc
from fa_harness.errors import SetupError
from fa_harness.project import Project
from fa_harness.series.series import load_mutants, load_series
from fa_harness.series.tree import Tree, current_tree, extend_tree, prepare_tree
from fa_harness.upstream.git import git
from fa_harness.upstream.source import find_source

OPS = "ggml/src/ggml-cpu/ops.c"
HEADER = "ggml/include/ggml.h"
AddPatch = Callable[..., Path]


def prepare(project: Project) -> Tree:
    return prepare_tree(project, find_source(project), load_series(project))


def current(project: Project) -> Tree | None:
    return current_tree(project, find_source(project), load_series(project))


def log(tree: Tree) -> list[str]:
    return git(tree.path, "log", "--format=%s", "series").splitlines()


@pytest.fixture
def two_patches(project: Project, add_patch: AddPatch) -> Project:
    add_patch("answer", {OPS: [("return 41;", "return 42;")]})
    add_patch("other", {OPS: [("return 0;", "return 1;")]})
    return project


def test_a_tree_has_upstream_and_one_commit_for_each_patch(two_patches: Project) -> None:
    tree = prepare(two_patches)
    assert log(tree) == ["ggml : other", "ggml : answer", "upstream : mini abc123"]
    assert "return 42;" in (tree.path / OPS).read_text()
    assert git(tree.path, "status", "--porcelain") == ""
    assert tree.ggml_version == "0.1.2"


def test_upstreams_head_is_kept_under_a_ref_of_its_own(two_patches: Project) -> None:
    tree = prepare(two_patches)
    assert git(tree.path, "rev-parse", "refs/fa-harness/upstream") == tree.commits[0]
    assert git(tree.path, "rev-parse", "series") == tree.commits[-1]


def test_a_tree_made_again_has_the_same_commits(two_patches: Project) -> None:
    first = prepare(two_patches)
    shutil.rmtree(first.path)
    again = prepare(two_patches)
    assert again.commits == first.commits
    dates = git(again.path, "log", "--format=%aI %cI", "series").splitlines()
    assert dates == ["2000-01-01T00:00:00+00:00 2000-01-01T00:00:00+00:00"] * 3


def test_a_current_tree_costs_no_program(
    two_patches: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = prepare(two_patches)

    def refuse(*_args: object, **_more: object) -> str:
        raise AssertionError("a program was run")

    monkeypatch.setattr(proc, "run", refuse)
    assert prepare(two_patches) == tree


def test_the_users_git_configuration_hooks_and_variables_take_no_part(
    two_patches: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    (home / "hooks").mkdir(parents=True)
    hook = home / "hooks" / "applypatch-msg"
    hook.write_text("#!/bin/sh\nexit 1\n")
    hook.chmod(0o755)
    (home / ".gitconfig").write_text(
        f"[core]\n\thooksPath = {home / 'hooks'}\n\tautocrlf = true\n"
        "[commit]\n\tgpgSign = true\n[am]\n\tthreeWay = true\n"
    )
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(home / ".gitconfig"))
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    assert len(log(prepare(two_patches))) == 3


def test_a_patch_that_does_not_apply_is_named_with_file_and_hunk(
    two_patches: Project, add_patch: AddPatch
) -> None:
    patch = add_patch(
        "third",
        {
            HEADER: [("(void)", "(int)")],
            OPS: [("return 42;", "return 43;"), ("return 1;", "return 2;")],
        },
    )
    mail = patch.read_text()
    assert "-    return 1;" in mail
    patch.write_text(mail.replace("-    return 1;", "-    return 7;"))
    with pytest.raises(SetupError) as caught:
        prepare(two_patches)
    message = str(caught.value)
    assert "patch '0003-third.patch' does not apply on upstream 'mini' after 2 patches" in message
    assert f"  {OPS}: hunk 2 of 2, line 13" in message
    assert HEADER not in message


def test_context_that_differs_is_not_forgiven(two_patches: Project) -> None:
    patch = two_patches.patches / "0001-answer.patch"
    mail = patch.read_text()
    assert " int ggml_answer(void) {" in mail
    patch.write_text(mail.replace(" int ggml_answer(void) {", " int ggml_answer() {"))
    with pytest.raises(SetupError, match=r"'0001-answer\.patch' does not apply"):
        prepare(two_patches)


def test_white_space_in_the_context_is_not_forgiven_even_if_the_users_git_would(
    two_patches: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".gitconfig").write_text("[apply]\n\tignoreWhitespace = change\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    patch = two_patches.patches / "0001-answer.patch"
    mail = patch.read_text()
    assert " int ggml_answer(void) {" in mail
    patch.write_text(mail.replace(" int ggml_answer(void) {", " int  ggml_answer(void) {"))
    with pytest.raises(SetupError, match=r"'0001-answer\.patch' does not apply"):
        prepare(two_patches)


def test_a_patch_for_a_file_that_is_not_there_is_explained(two_patches: Project) -> None:
    patch = two_patches.patches / "0001-answer.patch"
    patch.write_text(patch.read_text().replace("ops.c", "gone.c"))
    with pytest.raises(SetupError, match=r"gone\.c: No such file"):
        prepare(two_patches)


def test_a_file_that_is_no_patch_is_named(two_patches: Project) -> None:
    (two_patches.patches / "0001-answer.patch").write_text("nothing to see\n")
    with pytest.raises(SetupError, match=r"patch '0001-answer\.patch' does not apply.*\n.+error"):
        prepare(two_patches)


def test_a_failed_patch_leaves_the_tree_as_it_was(
    two_patches: Project, add_patch: AddPatch
) -> None:
    tree = prepare(two_patches)
    add_patch("broken", {OPS: [("return 1;", "return 2;")]}).write_text("broken")
    with pytest.raises(SetupError, match="does not apply"):
        prepare(two_patches)
    assert git(tree.path, "rev-parse", "HEAD") == tree.commits[-1]
    assert git(tree.path, "status", "--porcelain") == ""
    assert git(tree.path, "worktree", "list").count("\n") == 0
    assert [path.name for path in two_patches.sources.iterdir()] == ["mini"]


def test_a_changed_series_is_applied_anew_on_the_same_upstream(two_patches: Project) -> None:
    before = prepare(two_patches)
    two_patches.series_file.write_text("0002-other.patch\n")
    assert current(two_patches) is None
    after = prepare(two_patches)
    assert after.commits[0] == before.commits[0]
    assert log(after) == ["ggml : other", "upstream : mini abc123"]
    assert "return 41;" in (after.path / OPS).read_text()


def test_edits_in_the_tree_are_not_thrown_away(two_patches: Project) -> None:
    tree = prepare(two_patches)
    (tree.path / OPS).write_text("my work\n")
    two_patches.series_file.write_text("0002-other.patch\n")
    with pytest.raises(SetupError, match=r"vendor/src/mini holds work of your own.*ops\.c"):
        prepare(two_patches)
    assert (tree.path / OPS).read_text() == "my work\n"


def test_commits_on_the_series_are_not_thrown_away(two_patches: Project) -> None:
    tree = prepare(two_patches)
    (tree.path / OPS).write_text("my work\n")
    git(tree.path, "commit", "--all", "--message", "mine")
    two_patches.series_file.write_text("0002-other.patch\n")
    with pytest.raises(SetupError, match="commits on branch 'series'"):
        prepare(two_patches)


def test_a_message_that_was_changed_on_the_series_is_not_thrown_away(two_patches: Project) -> None:
    tree = prepare(two_patches)
    git(tree.path, "commit", "--amend", "--message", "ggml : a better subject")
    two_patches.series_file.write_text("0001-answer.patch\n")
    with pytest.raises(SetupError, match="commits on branch 'series'"):
        prepare(two_patches)
    assert log(tree)[0] == "ggml : a better subject"


def test_commits_that_were_exported_to_the_series_are_accepted(two_patches: Project) -> None:
    tree = prepare(two_patches)
    text = (tree.path / OPS).read_text()
    (tree.path / OPS).write_text(text.replace("return 1;", "return 2;"))
    git(tree.path, "commit", "--all", "--message", "ggml : third\n\nAnd why.")
    mail = git(tree.path, "format-patch", "--stdout", "-1")
    (two_patches.patches / "0003-third.patch").write_text(mail + "\n")
    names = two_patches.series_file.read_text() + "0003-third.patch\n"
    two_patches.series_file.write_text(names)
    assert log(prepare(two_patches))[0] == "ggml : third"


def test_an_interrupted_run_leaves_no_tree_that_a_later_one_takes(
    two_patches: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_run = proc.run
    started: list[str] = []

    def interrupted(command: list[str], **more: object) -> str:
        started.append(command[-1])
        if len(started) == 4:
            raise KeyboardInterrupt
        return real_run(command, **more)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(proc, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare(two_patches)
    assert current(two_patches) is None
    assert len(log(prepare(two_patches))) == 3


def test_a_pin_that_promises_another_ggml_version_is_refused(project: Project) -> None:
    text = project.pins_file.read_text()
    project.pins_file.write_text(text.replace('"0.1.2"', '"9.9.9"'))
    with pytest.raises(SetupError, match=r"its ggml is version 0\.1\.2.*says 9\.9\.9"):
        prepare(project)
    assert list(project.sources.iterdir()) == []


@pytest.fixture
def mutants(two_patches: Project, add_patch: AddPatch) -> Path:
    """Make a patch after the two one of the mutants."""
    patch = add_patch("switch", {OPS: [("return 42;", "return 99;")]})
    two_patches.series_file.write_text("0001-answer.patch\n0002-other.patch\n")
    two_patches.mutants.mkdir()
    (two_patches.mutants / "series").write_text(f"{patch.name}\n")
    return patch.rename(two_patches.mutants / patch.name)


def extend(project: Project, tree: Tree) -> Tree:
    return extend_tree(project, find_source(project), tree, load_mutants(project))


def test_the_states_of_the_mutants_follow_those_of_the_series(
    two_patches: Project, mutants: Path
) -> None:
    tree = prepare(two_patches)
    extended = extend(two_patches, tree)
    assert extended.contents[:-1] == tree.contents
    assert "return 99;" in git(tree.path, "show", f"{extended.commits[-1]}:{OPS}")


def test_the_mutants_leave_the_tree_as_it_was(two_patches: Project, mutants: Path) -> None:
    tree = prepare(two_patches)
    extend(two_patches, tree)
    assert current(two_patches) == tree
    assert git(tree.path, "rev-parse", "series") == tree.commits[-1]
    assert "return 42;" in (tree.path / OPS).read_text()


def test_a_mutant_that_does_not_apply_is_named_with_its_own_series(
    two_patches: Project, mutants: Path
) -> None:
    mutants.write_text(mutants.read_text().replace("-    return 42;", "-    return 7;"))
    message = r"'0003-switch\.patch' does not apply.*\n.*\n.*correct patches/state/mutants/series"
    with pytest.raises(SetupError, match=message):
        extend(two_patches, prepare(two_patches))
