"""What undoes a change of a series, and conflicts that were resolved before."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from fa_harness.errors import UsageError
from fa_harness.project import Project
from fa_harness.series import rework
from fa_harness.series.rework import ConflictError
from fa_harness.series.series import load_series
from fa_harness.series.tree import prepare_tree
from fa_harness.upstream import newer
from fa_harness.upstream.git import git
from fa_harness.upstream.pins import load_pins
from fa_harness.upstream.source import Source, find_source
from tiny_upstream import commit, replace

OPS = "ggml/src/ggml-cpu/ops.c"
OTHER = "ggml/src/ggml-backend.c"
AddPatch = Callable[..., Path]


@pytest.fixture
def three(project: Project, add_patch: AddPatch) -> Project:
    """Three patches: the second stands on the first, the third on neither."""
    add_patch("first", {OPS: [("return 41;", "return 42;")]})
    add_patch("second", {OPS: [("return 42;", "return 43;")]})
    add_patch("third", {OTHER: [("return 0;", "return 1;")]})
    return project


@pytest.fixture
def source(three: Project) -> Source:
    return find_source(three)


def contents(project: Project) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(project.patches.iterdir())}


def test_an_undo_brings_back_every_byte_and_the_next_one_what_was_before(
    three: Project, source: Source
) -> None:
    states = [contents(three)]
    rework.drop(three, source, ["3"])
    states.append(contents(three))
    place = rework.edit(three, source, "2")
    commit(place, "--amend", "--message", "ggml : better words")
    rework.refresh(three, source)
    assert contents(three) not in states
    changes = rework.undo(three, source)
    assert changes.undone == "series edit"
    assert (changes.written, changes.removed) == (
        ("series", "0002-second.patch"), ("0002-ggml-better-words.patch",),
    )  # fmt: skip
    assert contents(three) == states[1]
    assert rework.undo(three, source).undone == "series drop"
    assert contents(three) == states[0]
    tree = prepare_tree(three, source, load_series(three))
    assert git(tree.path, "log", "-1", "--format=%s", "series") == "ggml : third"
    with pytest.raises(UsageError, match="nothing to undo: no command has changed patches/state"):
        rework.undo(three, source)


def test_a_variant_goes_back_to_the_name_that_its_patch_had(three: Project, source: Source) -> None:
    about = 'title = "t"\nwhy = "w"\n\n[[variants]]\npatch = "0003-third.patch"\nbelow = "0.0.1"\n'
    three.about().file.write_text(about)
    rework.reorder(three, source, ["3"])
    assert '"0001-third.patch"' in three.about().file.read_text()
    rework.undo(three, source)
    assert three.about().file.read_text() == about


def test_a_change_that_changed_nothing_is_not_undone(three: Project, source: Source) -> None:
    rework.drop(three, source, ["3"])
    rework.refresh(three, source)
    assert rework.undo(three, source).undone == "series drop"


def test_what_was_changed_by_hand_since_is_not_lost(three: Project, source: Source) -> None:
    rework.drop(three, source, ["3"])
    patch = three.patches / "0001-first.patch"
    patch.write_text(patch.read_text().replace("42", "50"))
    with pytest.raises(UsageError, match=r"0001-first\.patch changed after 'series drop', which"):
        rework.undo(three, source)
    assert "50" in patch.read_text()


def test_a_rebase_is_undone_with_its_pin(
    three: Project,
    source: Source,
    index: Path,
    make_sdist: Callable[..., Path],
    files: Mapping[str, str],
) -> None:
    page = index / "mini-llama"
    new = {**files, OPS: files[OPS] + "// more\n"}
    make_sdist(new).rename(page / "mini_llama-2.0.tar.gz")
    links = "".join(f'<a href="mini_llama-{n}.0.tar.gz">x</a>' for n in (1, 2))
    (page / "index.html").write_text(links)
    onto = find_source(three, newer.add(three, "mini-llama==2.0").name)
    pins = three.pins_file.read_text()
    rework.rebase(three, source, onto)
    assert load_pins(three.pins_file).default == onto.name
    rework.undo(three, onto)
    assert three.pins_file.read_text() == pins


def resolve(place: Path, answer: str) -> None:
    """Leave of a conflict the lines before it, and an answer."""
    text = (place / OPS).read_text()
    (place / OPS).write_text(text.split("<<<<<<<")[0] + f"    return {answer};\n}}\n")
    git(place, "add", OPS)


def change_the_first(project: Project, source: Source) -> Path:
    place = rework.edit(project, source, "1")
    replace(place / OPS, "return 42;", "return 50;")
    commit(place, "--all", "--amend", "--no-edit")
    return place


def test_a_conflict_that_was_resolved_before_is_resolved_in_the_same_way(
    three: Project, source: Source
) -> None:
    place = change_the_first(three, source)
    with pytest.raises(ConflictError):
        rework.refresh(three, source)
    resolve(place, "51")
    changes = rework.go_on(three, source)
    assert changes.remembered == ()
    after = contents(three)
    rework.undo(three, source)
    change_the_first(three, source)
    changes = rework.refresh(three, source)
    assert changes.remembered == ("ggml : second",)
    assert contents(three) == after


def test_what_was_resolved_is_known_on_another_tree(
    three: Project, source: Source, add_patch: AddPatch
) -> None:
    place = change_the_first(three, source)
    with pytest.raises(ConflictError):
        rework.refresh(three, source)
    resolve(place, "51")
    commit(place, "--all", "--message", "ggml : second")  # a developer's own git
    rework.go_on(three, source)
    add_patch("first", {OPS: [("return 41;", "return 42;")]}, series="copy")
    add_patch("second", {OPS: [("return 42;", "return 43;")]}, series="copy")
    copy = three.of("copy")
    change_the_first(copy, source)
    assert rework.refresh(copy, source).remembered == ("ggml : second",)
