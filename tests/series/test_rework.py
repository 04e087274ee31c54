"""Changes of the series on a small upstream: what happens to `patches/`, and what is never lost."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from fa_harness.cli.main import cli
from fa_harness.errors import FaHarnessError, SetupError, UsageError
from fa_harness.project import Project
from fa_harness.series import export, rework
from fa_harness.series.export import Changes
from fa_harness.series.rework import ConflictError
from fa_harness.series.series import load_series
from fa_harness.series.status import drift, status
from fa_harness.series.tree import current_tree, prepare_tree
from fa_harness.upstream.git import git
from fa_harness.upstream.source import Source, find_source, source_of
from tiny_upstream import commit, replace, write_files

OPS = "ggml/src/ggml-cpu/ops.c"
OTHER = "ggml/src/ggml-backend.c"
AddPatch = Callable[..., Path]


@pytest.fixture
def three(project: Project, add_patch: AddPatch) -> Project:
    """Three patches: the second stands on the first, the third on neither."""
    add_patch("first", {OPS: [("return 41;", "return 42;")]})
    add_patch("second", {OPS: [("return 42;", "return 43;")]})
    add_patch("third", {OTHER: [("return 0;", "return 1;")]})
    project.series_file.write_text("# the order\n" + project.series_file.read_text())
    return project


@pytest.fixture
def source(three: Project) -> Source:
    return find_source(three)


def contents(project: Project) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(project.patches.glob("*.patch"))}


def is_settled(project: Project, source: Source) -> bool:
    """Tell whether the tree is current and nothing is left of a change."""
    tree = current_tree(project, source, load_series(project))
    nothing_left = rework.begun(project, source) is None
    return tree is not None and nothing_left and not rework.worktree(project, source).exists()


def test_a_refresh_without_a_change_changes_no_byte(three: Project, source: Source) -> None:
    prepare_tree(three, source, load_series(three))
    before = contents(three)
    changes = rework.refresh(three, source)
    assert changes == Changes(written=(), renamed=(), removed=())
    assert contents(three) == before
    assert three.series_file.read_text().startswith("# the order\n0001-first.patch\n")


def test_an_edited_patch_is_written_and_the_others_keep_every_byte(
    three: Project, source: Source
) -> None:
    before = contents(three)
    place = rework.edit(three, source, "3")
    replace(place / OTHER, "return 1;", "return 7;")
    commit(place, "--all", "--amend", "--no-edit")
    changes = rework.refresh(three, source)
    assert len(changes.written) == 1
    after = contents(three)
    assert [after[name] == before[name] for name in sorted(before)[:2]] == [True, True]
    [written] = changes.written
    assert "+int ggml_backend(void) { return 7; }" in after[written]
    assert is_settled(three, source)


def test_line_numbers_that_an_edit_moved_are_written_when_they_are_wanted(
    three: Project, source: Source
) -> None:
    place = rework.edit(three, source, "1")
    (place / OPS).write_text("// a line more\n" + (place / OPS).read_text())
    commit(place, "--all", "--amend", "--no-edit")
    with pytest.raises(UsageError, match="'series edit' has begun: fa-harness series refresh ends"):
        rework.refresh(three, source, line_numbers=True)
    assert len(rework.refresh(three, source).written) == 1
    off_by_one = contents(three)
    assert drift(prepare_tree(three, source, load_series(three)), load_series(three)) == [0, 1, 0]
    changes = rework.refresh(three, source, line_numbers=True)
    assert changes == Changes(written=("0002-second.patch",), renamed=(), removed=())
    assert drift(prepare_tree(three, source, load_series(three)), load_series(three)) == [0, 0, 0]
    after = contents(three)
    assert [name for name in after if after[name] != off_by_one[name]] == ["0002-second.patch"]
    assert is_settled(three, source)


LONG = "ggml : keep the state of flash attention in the tiled path where a row has no key at all"


def test_a_long_title_is_cut_at_the_end_of_a_word(three: Project, source: Source) -> None:
    place = rework.edit(three, source, "3")
    commit(place, "--amend", "--message", LONG)
    [written] = rework.refresh(three, source).written
    assert (
        written == "0003-ggml-keep-the-state-of-flash-attention-in-the-tiled-path-where-a-row.patch"
    )
    assert written in load_series(three).names


@pytest.mark.parametrize("n", [66, 67, 68, 69, 70, 90])
def test_no_name_of_a_patch_ends_within_a_word(n: int) -> None:
    name = export.file_name(f"0001-{'a' * n}-word-more.patch")
    assert len(name) <= 80
    assert name.removesuffix(".patch").rpartition("-")[2] in ("a" * 69, "a" * n, "word", "more")


def test_variants_go_with_a_patch_whose_name_git_had_cut(three: Project, source: Source) -> None:
    place = rework.edit(three, source, "3")
    commit(
        place, "--amend", "--message", "ggml : keep the state of flash attention in the tiled path"
    )
    [written] = rework.refresh(three, source).written
    by_git = written.replace("-path.patch", "-.patch")
    (three.patches / written).rename(three.patches / by_git)
    replace(three.series_file, written, by_git)
    about = 'title = "t"\nwhy = "w"\n\n[[variants]]\npatch = "{}"\nbelow = "0.0.1"\n'
    three.about().file.write_text(about.format(by_git))
    place = rework.edit(three, source, "3")
    replace(place / OTHER, "return 1;", "return 7;")
    commit(place, "--all", "--amend", "--no-edit")
    assert rework.refresh(three, source).written == (written,)
    assert three.about().file.read_text() == about.format(written)


def test_a_commit_made_while_editing_becomes_a_patch_of_its_own(
    three: Project, source: Source
) -> None:
    place = rework.edit(three, source, "0001-first")
    replace(
        place / OPS,
        "int ggml_other(void) {\n    return 0;",
        "int ggml_other(void) {\n    return 5;",
    )
    commit(place, "--all", "--message", "ggml : other")
    changes = rework.refresh(three, source)
    assert changes.written == ("0002-ggml-other.patch",)
    assert changes.renamed == (
        ("0002-second.patch", "0003-second.patch"),
        ("0003-third.patch", "0004-third.patch"),
    )
    assert "From: Dev <dev@example.org>" in contents(three)["0002-ggml-other.patch"]
    assert load_series(three).names == (
        "0001-first.patch",
        "0002-ggml-other.patch",
        "0003-second.patch",
        "0004-third.patch",
    )
    assert is_settled(three, source)


def test_commits_on_the_trees_own_branch_are_written_too(three: Project, source: Source) -> None:
    tree = prepare_tree(three, source, load_series(three))
    replace(tree.path / OTHER, "return 1;", "return 2;")
    commit(tree.path, "--all", "--message", "ggml : more")
    assert rework.refresh(three, source).written == ("0004-ggml-more.patch",)
    assert is_settled(three, source)


def test_work_on_the_trees_own_branch_is_not_lost_by_another_change(
    three: Project, source: Source
) -> None:
    tree = prepare_tree(three, source, load_series(three))
    replace(tree.path / OTHER, "return 1;", "return 2;")
    with pytest.raises(SetupError, match="holds what is not committed"):
        rework.drop(three, source, ["3"])
    commit(tree.path, "--all", "--message", "ggml : more")
    with pytest.raises(
        SetupError, match="commits that are not in patches/state; fa-harness series refr"
    ):
        rework.edit(three, source, "1")
    assert "return 2;" in (tree.path / OTHER).read_text()


def test_what_is_not_committed_is_not_written_and_not_lost(three: Project, source: Source) -> None:
    place = rework.edit(three, source, "3")
    replace(place / OTHER, "return 1;", "return 7;")
    with pytest.raises(SetupError, match="holds what is not committed"):
        rework.refresh(three, source)
    assert "return 7;" in (place / OTHER).read_text()


def test_a_second_change_is_refused_while_one_has_begun(three: Project, source: Source) -> None:
    rework.edit(three, source, "1")
    with pytest.raises(SetupError, match="'series edit' has begun in vendor/edit"):
        rework.drop(three, source, ["3"])


def test_a_later_patch_that_conflicts_stops_with_steps_and_goes_on_when_resolved(
    three: Project, source: Source
) -> None:
    before = contents(three)
    place = rework.edit(three, source, "1")
    replace(place / OPS, "return 42;", "return 50;")
    commit(place, "--all", "--amend", "--no-edit")
    with pytest.raises(ConflictError) as caught:
        rework.refresh(three, source)
    message = str(caught.value)
    assert "the patch 'ggml : second' conflicts in ggml/src/ggml-cpu/ops.c" in message
    assert "3. git add ggml/src/ggml-cpu/ops.c" in message
    assert "4. fa-harness series edit --continue" in message
    assert contents(three) == before
    with pytest.raises(ConflictError, match="conflicts in"):
        rework.go_on(three, source)
    (place / OPS).write_text((place / OPS).read_text().split("<<<<<<<")[0] + "    return 51;\n}\n")
    git(place, "add", OPS)
    changes = rework.go_on(three, source)
    assert len(changes.written) == 2
    assert is_settled(three, source)
    assert status(three, source)[2].files[0].path == OTHER


def test_a_conflict_that_is_resolved_by_leaving_all_as_it_is_drops_the_patch(
    three: Project, source: Source
) -> None:
    place = rework.edit(three, source, "1")
    replace(place / OPS, "return 42;", "return 50;")
    commit(place, "--all", "--amend", "--no-edit")
    with pytest.raises(ConflictError):
        rework.refresh(three, source)
    git(place, "checkout", "--ours", OPS)
    git(place, "add", OPS)
    changes = rework.go_on(three, source)
    assert changes.dropped == ("ggml : second",)
    assert load_series(three).names[1:] == ("0002-third.patch",)


def test_an_aborted_change_leaves_all_as_it_was(three: Project, source: Source) -> None:
    before = contents(three)
    place = rework.edit(three, source, "1")
    replace(place / OPS, "return 42;", "return 50;")
    commit(place, "--all", "--amend", "--no-edit")
    with pytest.raises(ConflictError):
        rework.refresh(three, source)
    rework.abort(three, source)
    assert contents(three) == before
    assert is_settled(three, source)


def test_a_patch_that_others_do_not_need_is_dropped(three: Project, source: Source) -> None:
    changes = rework.drop(three, source, ["2"])
    assert changes.removed == ("0002-second.patch",)
    assert changes.renamed == (("0003-third.patch", "0002-third.patch"),)
    assert sorted(contents(three)) == ["0001-first.patch", "0002-third.patch"]
    assert is_settled(three, source)


def test_a_patch_that_others_need_is_not_dropped_without_a_word(
    three: Project, source: Source
) -> None:
    before = contents(three)
    with pytest.raises(ConflictError, match="'ggml : second' conflicts"):
        rework.drop(three, source, ["1"])
    assert contents(three) == before


def test_patches_change_places_and_keep_every_byte(three: Project, source: Source) -> None:
    before = contents(three)
    changes = rework.reorder(three, source, ["3"])
    assert changes.written == ()
    assert load_series(three).names == (
        "0001-third.patch",
        "0002-first.patch",
        "0003-second.patch",
    )
    assert contents(three)["0001-third.patch"] == before["0003-third.patch"]
    assert is_settled(three, source)


def test_a_mail_is_put_after_a_patch(three: Project, source: Source, tmp_path: Path) -> None:
    mail = tmp_path / "x.patch"
    third = three.patches / "0003-third.patch"
    mail.write_text(
        third.read_text().replace("ggml : third", "ggml : mine").replace(OTHER, OPS)
        .replace("-int ggml_backend(void) { return 0; }", "-int ggml_other(void) {")
        .replace("+int ggml_backend(void) { return 1; }", "+int ggml_other(void ) {")
    )  # fmt: skip
    before = contents(three)
    with pytest.raises(ConflictError, match=r"'x\.patch' does not apply after 1 patches"):
        rework.add(three, source, [mail], "1")
    assert contents(three) == before
    assert is_settled(three, source)
    rework.drop(three, source, ["3"])
    mail.write_text(before["0003-third.patch"])
    changes = rework.add(three, source, [mail], "1")
    assert changes.written == ("0002-ggml-third.patch",)
    assert changes.renamed == (("0002-second.patch", "0003-second.patch"),)
    assert is_settled(three, source)


@pytest.mark.parametrize("patch", ["0", "4", "0004", "fourth"])
def test_a_patch_that_is_not_there_is_refused_with_those_that_are(
    three: Project, source: Source, patch: str
) -> None:
    with pytest.raises(UsageError, match=r"the series has 0001-first\.patch, 0002-second"):
        rework.edit(three, source, patch)


def test_a_beginning_of_several_names_is_refused(three: Project) -> None:
    with pytest.raises(UsageError, match="several patches begin with '000'"):
        rework.find(load_series(three), "000")


@pytest.mark.parametrize("end", [rework.go_on, rework.abort])
def test_there_is_nothing_to_end_where_nothing_has_begun(
    three: Project, source: Source, end: object
) -> None:
    prepare_tree(three, source, load_series(three))
    with pytest.raises(UsageError, match="no change of the series has begun"):
        end(three, source)  # type: ignore[operator]


def test_the_status_has_files_sizes_and_what_upstream_has(three: Project, source: Source) -> None:
    [first, _, third] = status(three, source)
    assert (first.name, first.title) == ("0001-first.patch", "ggml : first")
    [file] = third.files
    assert (file.path, file.added, file.removed, third.size) == (OTHER, 1, 1, 2)
    assert not first.is_upstream


def test_errors_of_a_change_are_the_users_not_tracebacks() -> None:
    assert issubclass(ConflictError, FaHarnessError)
    assert ConflictError.exit_status == 1


def test_a_conflict_whose_commit_the_user_makes_is_resolved(three: Project, source: Source) -> None:
    place = rework.edit(three, source, "1")
    replace(place / OPS, "return 42;", "return 50;")
    commit(place, "--all", "--amend", "--no-edit")
    with pytest.raises(ConflictError):
        rework.refresh(three, source)
    (place / OPS).write_text((place / OPS).read_text().split("<<<<<<<")[0] + "    return 51;\n}\n")
    git(place, "add", OPS)
    commit(place, "--no-edit")
    rework.go_on(three, source)
    assert load_series(three).names == (
        "0001-ggml-first.patch",
        "0002-ggml-second.patch",
        "0003-third.patch",
    )
    assert "+    return 51;" in contents(three)["0002-ggml-second.patch"]
    assert is_settled(three, source)


def test_patches_that_came_while_a_change_had_begun_are_not_lost(
    three: Project, source: Source, add_patch: AddPatch
) -> None:
    place = rework.edit(three, source, "1")
    commit(place, "--amend", "--message", "ggml : better words")
    names = three.series_file.read_text()
    new = add_patch("fourth", {OTHER: [("return 1;", "return 2;")]})
    before = contents(three)
    for end in (rework.refresh, rework.go_on):
        with pytest.raises(SetupError, match="patches/state was changed since 'series edit' has"):
            end(three, source)
        assert contents(three) == before
    new.unlink()
    three.series_file.write_text(names)
    assert rework.go_on(three, source).written == ("0001-ggml-better-words.patch",)


def test_patches_that_came_after_the_tree_was_made_are_not_lost(
    three: Project, source: Source, add_patch: AddPatch
) -> None:
    tree = prepare_tree(three, source, load_series(three))
    add_patch("fourth", {OTHER: [("return 1;", "return 2;")]})
    before = contents(three)
    with pytest.raises(SetupError, match="was made of other patches than patches/state has"):
        rework.refresh(three, source)
    assert contents(three) == before
    prepare_tree(three, source, load_series(three))
    assert rework.refresh(three, source).written == ()
    assert git(tree.path, "log", "-1", "--format=%s") == "ggml : fourth"


def test_words_changed_on_the_trees_own_branch_are_not_lost_by_another_change(
    three: Project, source: Source
) -> None:
    tree = prepare_tree(three, source, load_series(three))
    commit(tree.path, "--amend", "--message", "ggml : better words")
    with pytest.raises(
        SetupError, match="commits that are not in patches/state; fa-harness series refr"
    ):
        rework.drop(three, source, ["1"])
    assert git(tree.path, "log", "-1", "--format=%s") == "ggml : better words"
    assert rework.refresh(three, source).written == ("0003-ggml-better-words.patch",)
    commit(tree.path, "--amend", "--no-edit")  # of a later time only
    rework.drop(three, source, ["3"])


def test_a_change_is_kept_while_the_upstream_changes_under_it(
    three: Project, files: Mapping[str, str], tmp_path: Path
) -> None:
    checkout = tmp_path / "checkout"
    write_files(checkout, files)
    place = rework.edit(three, source_of(checkout), "2")
    commit(place, "--amend", "--message", "ggml : better words")
    replace(checkout / OTHER, "return 0;", "return 0; // so far")
    source = source_of(checkout)
    with pytest.raises(SetupError, match="end that first, with --continue or --abort"):
        prepare_tree(three, source, load_series(three))
    assert git(place, "log", "-1", "--format=%s") == "ggml : better words"


def test_a_folder_to_edit_in_that_nothing_is_known_of_is_not_deleted(
    three: Project, source: Source
) -> None:
    place = rework.edit(three, source, "2")
    shutil.rmtree(three.sources)
    with pytest.raises(SetupError, match=r"vendor/edit/mini is there, though no change .* begun"):
        rework.edit(three, source, "1")
    assert (place / OPS).is_file()
    shutil.rmtree(place)
    rework.edit(three, source, "1")


def test_the_change_that_is_ended_is_of_the_upstream_that_was_named(
    three: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = three.pins_file.read_text()
    three.pins_file.write_text(
        text + text[text.index("[upstreams.mini]") :].replace("mini]", "two]")
    )
    monkeypatch.chdir(three.home)
    places = {}
    for name in ("mini", "two"):
        monkeypatch.setenv("UPSTREAM", name)
        places[name] = rework.edit(three, find_source(three), "1")

    def abort() -> Result:
        return CliRunner().invoke(cli, ["series", "edit", "--abort"])

    monkeypatch.delenv("UPSTREAM")
    assert abort().exit_code == 0  # of the default pin, on which one has begun
    assert not places["mini"].exists()
    assert places["two"].exists()
    monkeypatch.setenv("UPSTREAM", "mini")
    assert "no change of the series has begun on 'mini'" in str(abort().exception)
    monkeypatch.delenv("UPSTREAM")
    abort()
    assert not places["two"].exists()
