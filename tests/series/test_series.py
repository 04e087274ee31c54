import pytest

from fa_harness.errors import SetupError, UsageError
from fa_harness.project import Project, find_project
from fa_harness.series.series import (
    WHOLE,
    library_names,
    load_mutants,
    load_series,
    patches_of,
    title,
)


@pytest.fixture
def two_patches(project: Project) -> Project:
    for name in ("0001-a.patch", "0002-b.patch"):
        (project.patches / name).write_text(name)
    project.series_file.write_text("# order\n\n0002-b.patch  # first\n0001-a.patch\n")
    return project


def test_the_series_has_the_order_of_the_file_not_of_the_names(two_patches: Project) -> None:
    assert load_series(two_patches).names == ("0002-b.patch", "0001-a.patch")


def test_a_changed_patch_changes_its_digest_only(two_patches: Project) -> None:
    before = load_series(two_patches).digests
    (two_patches.patches / "0001-a.patch").write_text("changed")
    after = load_series(two_patches).digests
    assert (before[0] == after[0], before[1] == after[1]) == (True, False)


def test_libraries_are_named_after_the_number_of_patches_in_them(two_patches: Project) -> None:
    series = load_series(two_patches)
    *names, last = library_names(series)
    assert names == ["pristine", "0001", "0002", *WHOLE]
    assert last == "mutants"
    counts = [len(patches_of(two_patches, series, name).patches) for name in names]
    assert counts == [0, 1, 2, *[2 for _ in WHOLE]]


def test_libraries_with_a_sanitizer_have_every_patch() -> None:
    assert {"patched", "asan", "ubsan", "tsan"} <= {*WHOLE}


def test_the_mutants_follow_the_whole_series(two_patches: Project) -> None:
    two_patches.mutants.mkdir()
    (two_patches.mutants / "series").write_text("0001-switch.patch\n")
    (two_patches.mutants / "0001-switch.patch").write_text("switch")
    series = load_series(two_patches)
    every = patches_of(two_patches, series, "mutants")
    assert every.names == ("0002-b.patch", "0001-a.patch", "0001-switch.patch")
    assert every.digests == series.digests + load_mutants(two_patches).digests


def test_mutants_that_cannot_be_read_are_missed_by_their_own_library_only(
    two_patches: Project,
) -> None:
    series = load_series(two_patches)
    assert patches_of(two_patches, series, "patched") == series
    with pytest.raises(SetupError, match=r"cannot read the patch series .*mutants/series"):
        patches_of(two_patches, series, "mutants")


def test_an_unknown_library_is_refused_with_the_known_ones(two_patches: Project) -> None:
    message = r"unknown library '0003': the libraries are pristine, 0001, 0002, patched, "
    with pytest.raises(UsageError, match=message):
        patches_of(two_patches, load_series(two_patches), "0003")


def test_a_missing_series_is_named(project: Project) -> None:
    project.series_file.unlink()
    with pytest.raises(SetupError, match="cannot read the patch series"):
        load_series(project)


def test_a_patch_that_is_not_there_is_named(project: Project) -> None:
    project.series_file.write_text("0001-gone.patch\n")
    with pytest.raises(SetupError, match=r"there is no patch '0001-gone\.patch'"):
        load_series(project)


def test_a_patch_listed_twice_is_refused(two_patches: Project) -> None:
    two_patches.series_file.write_text("0001-a.patch\n0001-a.patch\n")
    with pytest.raises(SetupError, match=r"'0001-a\.patch' is listed twice"):
        load_series(two_patches)


def test_a_patch_s_title_is_its_subject_also_where_that_takes_two_lines() -> None:
    patches = load_series(find_project()).patches
    titles = [title(patch) for patch in patches]
    assert titles[1] == "ggml : do not reset the VKQ accumulator of a continued row"
    assert all(text and "\n" not in text and "[PATCH" not in text for text in titles)
