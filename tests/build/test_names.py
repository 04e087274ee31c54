import pytest

from fa_harness.build.names import WHOLE, library_names, patches_of
from fa_harness.errors import SetupError, UsageError
from fa_harness.project import Project
from fa_harness.series.series import load_mutants, load_series


@pytest.fixture
def two_patches(project: Project) -> Project:
    for name in ("0001-a.patch", "0002-b.patch"):
        (project.patches / name).write_text(name)
    project.series_file.write_text("# order\n\n0002-b.patch  # first\n0001-a.patch\n")
    return project


def test_libraries_are_named_after_the_number_of_patches_in_them(two_patches: Project) -> None:
    series = load_series(two_patches)
    *names, mutants, generated, museum = library_names(series)
    assert names == ["pristine", "0001", "0002", *WHOLE]
    assert (mutants, generated, museum) == ("mutants", "generated", "museum")
    counts = [len(patches_of(two_patches, series, name).patches) for name in names]
    assert counts == [0, 1, 2, *[2 for _ in WHOLE]]


def test_libraries_with_a_sanitizer_have_every_patch() -> None:
    assert {"patched", "asan-ubsan", "tsan"} <= {*WHOLE}


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


def test_generated_mutants_that_were_never_made_name_the_command(two_patches: Project) -> None:
    with pytest.raises(SetupError, match=r"generated yet: fa-harness mutants --generate"):
        patches_of(two_patches, load_series(two_patches), "generated")


def test_an_unknown_library_is_refused_with_the_known_ones(two_patches: Project) -> None:
    message = r"unknown library '0003': the libraries are pristine, 0001, 0002, patched, "
    with pytest.raises(UsageError, match=message):
        patches_of(two_patches, load_series(two_patches), "0003")
