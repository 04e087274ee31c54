"""A command on the tree of each patch, whose results are kept by tree and command."""

from collections.abc import Callable
from pathlib import Path

import pytest

from fa_harness.project import Project
from fa_harness.series.trying import Tried, try_patches
from fa_harness.upstream.source import find_source

OPS = "ggml/src/ggml-cpu/ops.c"
OTHER = "ggml/src/ggml-backend.c"
AddPatch = Callable[..., Path]


@pytest.fixture
def three(project: Project, add_patch: AddPatch) -> Project:
    add_patch("first", {OPS: [("return 41;", "return 42;")]})
    add_patch("second", {OPS: [("return 42;", "return 43;")]})
    add_patch("third", {OTHER: [("return 0;", "return 1;")]})
    return project


def tried(project: Project, command: str, *, jobs: int = 1, anew: bool = False) -> list[Tried]:
    return list(try_patches(project, find_source(project), command, jobs=jobs, anew=anew))


def count(tmp_path: Path) -> str:
    """A command that fails with the second patch, and counts how often it ran."""
    return f"echo ran >> {tmp_path}/log; grep 'return 42' {OPS} || exit 3"


def runs(tmp_path: Path) -> int:
    return len((tmp_path / "log").read_text().splitlines())


def test_each_patch_is_tried_on_its_own_sources(three: Project, tmp_path: Path) -> None:
    found = tried(three, count(tmp_path))
    assert [(each.title, each.status) for each in found] == [
        ("ggml : first", 0), ("ggml : second", 3), ("ggml : third", 3),
    ]  # fmt: skip
    assert found[0].output == ("    return 42;",)
    assert len({each.tree for each in found}) == runs(tmp_path) == 3


def test_a_result_is_kept_until_the_sources_or_the_command_change(
    three: Project, tmp_path: Path, add_patch: AddPatch
) -> None:
    first = tried(three, count(tmp_path))
    again = tried(three, count(tmp_path))
    assert runs(tmp_path) == 3
    assert [each.is_kept for each in first + again] == [False] * 3 + [True] * 3
    assert [(each.status, each.output, each.tree) for each in again] == [
        (each.status, each.output, each.tree) for each in first
    ]
    add_patch("fourth", {OTHER: [("return 1;", "return 2;")]})
    assert [each.is_kept for each in tried(three, count(tmp_path))] == [True, True, True, False]
    assert runs(tmp_path) == 4
    tried(three, count(tmp_path) + " ")
    assert runs(tmp_path) == 8
    tried(three, count(tmp_path), anew=True)
    assert runs(tmp_path) == 12


def test_patches_that_change_places_are_tried_anew_where_their_sources_differ(
    three: Project, tmp_path: Path
) -> None:
    tried(three, count(tmp_path))
    names = three.series_file.read_text().split()
    three.series_file.write_text("\n".join([names[2], *names[:2]]) + "\n")
    assert [each.is_kept for each in tried(three, count(tmp_path))] == [False, False, True]


def test_several_patches_are_tried_at_once_and_come_in_their_order(
    three: Project, tmp_path: Path
) -> None:
    # each waits for the others
    meet = f"touch {tmp_path}/$$; for i in $(seq 100); do [ $(ls {tmp_path} | grep -c '^[0-9]*$') "
    meet += "-ge 3 ] && exit 0; sleep 0.1; done; exit 1"
    found = tried(three, meet, jobs=3)
    assert [(each.patch[:4], each.passed) for each in found] == [
        ("0001", True), ("0002", True), ("0003", True),
    ]  # fmt: skip


def test_what_a_command_does_to_the_sources_is_undone_and_what_it_makes_stays(
    three: Project,
) -> None:
    command = f"ls made; echo broken >> {OTHER}; touch made; tail -n 1 {OTHER} {OPS}"
    found = tried(three, command)
    assert [each.output.count("broken") for each in found] == [1, 1, 1]
    assert [each.output[0] == "made" for each in found] == [False, True, True]


def test_a_command_that_is_not_there_or_is_killed_is_tried_again(three: Project) -> None:
    for command, status in (("no-such-program", 127), ("kill -9 $$", -9)):
        for _ in range(2):
            found = tried(three, command)
            assert [(each.status, each.is_kept) for each in found] == [(status, False)] * 3


def test_only_the_patches_of_the_series_itself_are_tried(
    three: Project, add_patch: AddPatch
) -> None:
    add_patch("fast", {OPS: [("return 43;", "return 44;")]}, series="fast", on=("state",))
    [found] = tried(three.of("fast"), f"grep 'return 44' {OPS}")
    assert (found.title, found.passed) == ("ggml : fast", True)
