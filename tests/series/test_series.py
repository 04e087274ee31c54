import pytest

from fa_harness.errors import SetupError
from fa_harness.project import Project, find_project
from fa_harness.series.series import load_series, title


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
