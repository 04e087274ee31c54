"""A series compared with how it was: in a folder, or in a revision of its repository."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fa_harness.errors import UsageError
from fa_harness.project import Project
from fa_harness.series import rework
from fa_harness.series.earlier import earlier, range_diff
from fa_harness.series.series import load_series
from fa_harness.upstream.git import git
from fa_harness.upstream.source import find_source
from tiny_upstream import commit, replace, write_files

OPS = "ggml/src/ggml-cpu/ops.c"
OTHER = "ggml/src/ggml-backend.c"
AddPatch = Callable[..., Path]


@pytest.fixture
def two(project: Project, add_patch: AddPatch) -> Project:
    """Two patches, of which the first was changed after they were committed."""
    add_patch("answer", {OPS: [("return 41;", "return 42;")]})
    add_patch("backend", {OTHER: [("return 0;", "return 1;")]})
    write_files(project.patches, {"mutants/series": "", "variants/x.diff": "x"})
    git(project.data, "init", "--quiet")
    git(project.data, "add", "patches")
    commit(project.data, "--message", "before")
    place = rework.edit(project, find_source(project), "1")
    replace(place / OPS, "return 42;", "return 50;")
    commit(place, "--all", "--amend", "--no-edit")
    rework.refresh(project, find_source(project))
    return project


def test_a_revision_has_the_patches_of_then_under_another_name(two: Project) -> None:
    before = earlier(two, "HEAD")
    assert (before.stack, two.stack) == (("old-state",), ("state",))
    assert load_series(before).names == ("0001-answer.patch", "0002-backend.patch")
    old = git(two.data, "show", "HEAD:patches/state/0001-answer.patch")
    assert (before.patches / "0001-answer.patch").read_text().startswith(old)
    assert before.of("state").patches == two.patches


def test_a_range_diff_shows_what_changed(two: Project) -> None:
    said = range_diff(two, find_source(two), earlier(two, "HEAD"))
    assert "-+    return 42;" in said
    assert "++    return 50;" in said
    first, *_, last = [line for line in said.splitlines() if line[0].isdigit()]
    assert first.split()[2] == "!"
    assert last.split()[2] == "="
    git(two.data, "add", "patches")
    commit(two.data, "--message", "after")
    same = range_diff(two, find_source(two), earlier(two, "HEAD"))
    assert [line.split()[2] for line in same.splitlines()] == ["=", "="]


def test_a_folder_may_hold_the_patches_of_then(two: Project, tmp_path: Path) -> None:
    shutil.copytree(two.patches, tmp_path / "then")
    replace(tmp_path / "then" / "series", "0002-backend.patch\n", "")
    before = earlier(two, str(tmp_path / "then"))
    assert len(load_series(before).names) == 1
    assert not (before.patches / "mutants").exists()
    [same, new] = range_diff(two, find_source(two), before).splitlines()
    assert (same.split()[2], new.split()[2]) == ("=", ">")


def test_a_series_on_another_is_compared_patch_by_patch(two: Project, add_patch: AddPatch) -> None:
    add_patch("fast", {OTHER: [("return 1;", "return 2;")]}, series="fast", on=("state",))
    fast = two.of("fast")
    git(two.data, "add", "patches")
    commit(two.data, "--message", "fast")
    before = earlier(fast, "HEAD")
    assert before.stack == ("state", "old-fast")
    [line] = range_diff(fast, find_source(fast), before).splitlines()
    assert line.endswith("ggml : fast")


def test_what_is_neither_a_folder_nor_a_revision_is_refused(two: Project) -> None:
    with pytest.raises(UsageError, match="'nowhere' is no folder with a series and no revision"):
        earlier(two, "nowhere")
    git(two.data, "rm", "--quiet", "--cached", "patches/state/series")
    commit(two.data, "--message", "none")
    with pytest.raises(UsageError, match="patches/state was no series in HEAD: it had no file 'se"):
        earlier(two, "HEAD")
