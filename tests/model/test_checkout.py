"""The series as a branch of a developer's checkout, which is left as it is."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import pytest

from fa_harness.errors import FaHarnessError
from fa_harness.model.checkout import Checkout, make_branch, make_commits, open_checkout
from fa_harness.project import Project
from fa_harness.upstream.git import git
from tiny_upstream import AddPatch, write_files

OPS = "ggml/src/ggml-cpu/ops.c"


@pytest.fixture
def mine(tmp_path: Path, files: Mapping[str, str]) -> Path:
    """A checkout of llama.cpp with a history of two commits and an author."""
    folder = tmp_path / "mine"
    write_files(folder, {**files, "include/llama.h": ""})
    git(folder, "init", "--quiet")
    git(folder, "checkout", "--quiet", "-B", "master")
    commit_all(folder, "one")
    (folder / "README.md").write_text("two\n")
    commit_all(folder, "two")
    git(folder, "config", "user.name", "Åsa B. Öst, Jr")
    git(folder, "config", "user.email", "asa@example.org")
    return folder


@pytest.fixture(autouse=True)
def _no_author_of_the_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("GIT_AUTHOR_NAME", "GIT_AUTHOR_EMAIL", "EMAIL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def two_patches(add_patch: AddPatch) -> None:
    add_patch("say 42", {OPS: [("return 41;", "return 42;")]})
    add_patch("say 1", {OPS: [("return 0;", "return 1;")]})


def commit_all(folder: Path, message: str) -> None:
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", message)


def content(folder: Path) -> dict[str, str]:
    """All files of a checkout, git's own included, except those that hold objects."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".git/objects" not in str(path)
    }


def put(project: Project, mine: Path, tmp_path: Path, branch: str = "state") -> Checkout:
    checkout = open_checkout(project, mine, branch)
    make_commits(project, checkout, tmp_path / "work")
    make_branch(checkout, tmp_path / "work", branch)
    return checkout


@pytest.mark.usefixtures("two_patches")
def test_the_branch_has_the_patches_as_commits_of_the_developer(
    project: Project, mine: Path, tmp_path: Path
) -> None:
    put(project, mine, tmp_path)
    log = git(mine, "log", "--format=%an <%ae>|%cn|%s|%b", "master..state").splitlines()
    who = "Åsa B. Öst, Jr <asa@example.org>|Åsa B. Öst, Jr"
    assert log == [f"{who}|ggml : say 1|", f"{who}|ggml : say 42|"]
    assert "return 42;" in git(mine, "show", f"state:{OPS}")
    assert git(mine, "log", "-1", "--format=%ad", "--date=format:%Y", "state") > "2001"


@pytest.mark.usefixtures("two_patches")
def test_nothing_else_of_the_checkout_is_touched(
    project: Project, mine: Path, tmp_path: Path
) -> None:
    before = content(mine)
    put(project, mine, tmp_path)
    after = content(mine)
    new = {name for name in after if after[name] != before.get(name)}
    assert new <= {".git/refs/heads/state", ".git/logs/refs/heads/state"}
    assert not set(before) - set(after)
    assert git(mine, "fsck", "--strict") == ""


@pytest.mark.usefixtures("two_patches")
def test_a_name_with_a_slash_is_a_branch_too(project: Project, mine: Path, tmp_path: Path) -> None:
    put(project, mine, tmp_path, "fix/state")
    assert git(mine, "rev-list", "--count", "master..fix/state") == "2"


@pytest.mark.usefixtures("two_patches")
def test_a_shallow_checkout_takes_the_branch(project: Project, mine: Path, tmp_path: Path) -> None:
    shallow = tmp_path / "shallow"
    git(tmp_path, "clone", "--quiet", "--depth=1", mine.as_uri(), shallow)
    git(shallow, "config", "user.name", "A")
    git(shallow, "config", "user.email", "a@b.c")
    put(project, shallow, tmp_path)
    assert git(shallow, "rev-list", "--count", "master..state") == "2"


@pytest.mark.usefixtures("two_patches")
def test_patches_meet_an_upstream_that_moved_on_three_way(
    project: Project, mine: Path, tmp_path: Path
) -> None:
    text = (mine / OPS).read_text()
    (mine / OPS).write_text(text.replace("\nint ggml_answer", "\n#define N 3\nint ggml_answer"))
    commit_all(mine, "moved on")
    put(project, mine, tmp_path)
    assert "return 42;" in git(mine, "show", f"state:{OPS}")
    assert "#define N 3" in git(mine, "show", f"state:{OPS}")


@pytest.mark.usefixtures("two_patches")
def test_a_patch_that_does_not_apply_changes_nothing(
    project: Project, mine: Path, tmp_path: Path
) -> None:
    (mine / OPS).write_text((mine / OPS).read_text().replace("return 0;", "return 7;"))
    commit_all(mine, "elsewhere")
    before = content(mine)
    with pytest.raises(FaHarnessError) as caught:
        put(project, mine, tmp_path)
    message = str(caught.value)
    assert "0002-say-1.patch" in message
    assert "after 1 patches" in message
    assert f"it conflicts in {OPS};" in message
    assert f"fa-harness series rebase --onto {mine}" in message
    assert content(mine) == before


def _dirty(mine: Path) -> None:
    (mine / "README.md").write_text("changed\n")


def _staged(mine: Path) -> None:
    (mine / "README.md").write_text("changed\n")
    git(mine, "add", "README.md")


def _detached(mine: Path) -> None:
    git(mine, "checkout", "--quiet", "--detach")


def _has_it(mine: Path) -> None:
    git(mine, "branch", "state")


def _no_author(mine: Path) -> None:
    git(mine, "config", "--unset", "user.email")
    git(mine, "config", "user.useConfigOnly", "true")


def _no_llama(mine: Path) -> None:
    (mine / "include" / "llama.h").unlink()
    commit_all(mine, "gone")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_dirty, "changes that are not committed (README.md); commit or stash them"),
        (_staged, "changes that are not committed (README.md)"),
        (_detached, "has a detached HEAD"),
        (_has_it, "has a branch 'state' already; name another with --branch"),
        (_no_author, "git knows no author"),
        (_no_llama, "is ggml without llama.cpp"),
    ],
)
def test_a_checkout_that_cannot_take_it_is_refused_and_left(
    project: Project, mine: Path, spoil: object, words: str
) -> None:
    assert callable(spoil)
    spoil(mine)
    before = content(mine)
    with pytest.raises(FaHarnessError) as caught:
        open_checkout(project, mine, "state")
    assert words in str(caught.value)
    assert content(mine) == before


def test_files_that_git_does_not_know_do_not_matter(project: Project, mine: Path) -> None:
    (mine / "model.gguf").write_text("mine")
    assert open_checkout(project, mine, "state").branch == "master"


def test_a_folder_without_git_is_refused(
    project: Project, tmp_path: Path, files: Mapping[str, str]
) -> None:
    write_files(tmp_path / "plain", {**files, "include/llama.h": ""})
    with pytest.raises(FaHarnessError, match="is no git repository"):
        open_checkout(project, tmp_path / "plain", "state")


def test_a_folder_inside_another_repository_is_refused(
    project: Project, tmp_path: Path, files: Mapping[str, str]
) -> None:
    git(tmp_path, "init", "--quiet")
    write_files(tmp_path / "inside", {**files, "include/llama.h": ""})
    with pytest.raises(FaHarnessError, match="lies inside the repository"):
        open_checkout(project, tmp_path / "inside", "state")


@pytest.mark.parametrize("name", ["", "a b", "x..y", "-x"])
def test_a_branch_must_be_called_something(project: Project, mine: Path, name: str) -> None:
    with pytest.raises(FaHarnessError, match="no branch can be called so"):
        open_checkout(project, mine, name)


def test_a_series_whose_last_patch_is_wrong_alone_is_put_on_no_branch(
    project: Project, mine: Path, add_patch: AddPatch
) -> None:
    add_patch("say 42 (wrong without the next)", {OPS: [("return 41;", "return 42;")]})
    with pytest.raises(FaHarnessError, match="says that it is wrong without the next patch"):
        open_checkout(project, mine, "state")
    add_patch("say 43", {OPS: [("return 42;", "return 43;")]})
    assert len(open_checkout(project, mine, "state").series.patches) == 2
