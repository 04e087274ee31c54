"""Patches that older upstreams need otherwise."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from fa_harness.errors import SetupError, UsageError
from fa_harness.project import Project
from fa_harness.series import rework
from fa_harness.series.series import load_series, series_for
from fa_harness.series.status import drift
from fa_harness.series.tree import prepare_tree
from fa_harness.series.variants import load_variants, parse_version
from fa_harness.upstream.source import find_source

OPS = "ggml/src/ggml-cpu/ops.c"
OTHER = "ggml/src/ggml-backend.c"
AddPatch = Callable[..., Path]
BOTH = '[[variants]]\npatch = "0001-both.patch"\n'


@pytest.fixture
def two_files(project: Project, add_patch: AddPatch) -> Project:
    """A patch of two files, and one after it; the upstream is ggml 0.1.2."""
    add_patch("both", {OPS: [("return 41;", "return 42;")], OTHER: [("return 0;", "return 1;")]})
    add_patch("next", {OTHER: [("return 1;", "return 2;")]})
    return project


def write(project: Project, text: str, diff: str = "") -> None:
    (project.patches / "variants").mkdir(exist_ok=True)
    (project.patches / "variants" / "0001.diff").write_text(diff)
    (project.patches / "series.toml").write_text(f'title = "t"\nwhy = "w"\n{text}')


def diff_of(project: Project, file: str, old: str, new: str) -> str:
    """Return the first patch's diff of one file, changed."""
    text = (project.patches / "0001-both.patch").read_text()
    [section] = [
        "diff --git " + part
        for part in text.split("diff --git ")[1:]
        if part.startswith(f"a/{file}")
    ]
    assert old in section
    return section.replace(old, new)


def tree_text(project: Project, file: str) -> str:
    source = find_source(project)
    tree = prepare_tree(project, source, series_for(project, source))
    return (tree.path / file).read_text()


def test_a_variant_replaces_one_files_diff_and_keeps_the_rest(two_files: Project) -> None:
    write(
        two_files,
        BOTH + 'below = "0.2"\nfiles = "variants/0001.diff"\n',
        diff_of(two_files, OPS, "return 42;", "return 77;"),
    )
    assert "return 77;" in tree_text(two_files, OPS)
    assert "return 2;" in tree_text(two_files, OTHER)


LONG = "".join(f"int line_{i};\n" for i in range(40))
TWO_HUNKS = (("int line_3;", "int third;"), ("int line_33;", "int other;"))


@pytest.fixture
def two_hunks(project: Project, add_patch: AddPatch) -> Project:
    """A patch of two hunks in one file, the second far below the first."""
    add_patch("long", {OPS: [("return 41;\n}\n", "return 41;\n}\n" + LONG)]})
    add_patch("both", {OPS: list(TWO_HUNKS)})
    return project


def hunks_of(project: Project, patch: str) -> tuple[str, list[str]]:
    """Return what is before the hunks of a patch's only diff, and the hunks."""
    diff = (project.patches / patch).read_text().partition("diff --git ")[2]
    head, *hunks = re.split(r"^(?=@@ )", "diff --git " + diff, flags=re.MULTILINE)
    return head, hunks


@pytest.mark.parametrize("i", [0, 1])
def test_a_variant_replaces_one_hunk_and_keeps_the_others(two_hunks: Project, i: int) -> None:
    head, hunks = hunks_of(two_hunks, "0002-both.patch")
    new = TWO_HUNKS[i][1]
    write(
        two_hunks,
        '[[variants]]\npatch = "0002-both.patch"\nbelow = "0.2"\nhunks = "variants/0001.diff"\n',
        head + hunks[i].replace(new, "int older;"),
    )
    text = tree_text(two_hunks, OPS)
    assert "int older;" in text
    assert new not in text
    assert TWO_HUNKS[1 - i][1] in text


def test_a_hunk_that_stands_for_none_is_refused(two_hunks: Project) -> None:
    head, hunks = hunks_of(two_hunks, "0002-both.patch")
    table = '[[variants]]\npatch = "0002-both.patch"\nbelow = "0.2"\nhunks = "variants/0001.diff"\n'
    for diff in (head + hunks[0] * 2, head + "@@ -1,1 +1,1 @@\n-nowhere\n+there\n"):
        write(two_hunks, table, diff)
        with pytest.raises(SetupError, match=r"0001\.diff: .*: no hunk of the patch is left that"):
            series_for(two_hunks, find_source(two_hunks))


def test_a_variant_leaves_files_out(two_files: Project) -> None:
    write(
        two_files,
        BOTH + 'below = "0.2"\nwithout = ["ggml/src/ggml-cpu/ops.c"]\n',
    )
    assert "return 41;" in tree_text(two_files, OPS)
    assert "return 2;" in tree_text(two_files, OTHER)


@pytest.mark.parametrize(
    ("limits", "holds"),
    [
        ('below = "0.1.2"', False),
        ('below = "0.1.3"', True),
        ('below = "0.1.10"', True),
        ('below = "0.0.10"', False),
    ],
)
def test_a_variant_holds_below_its_version_only(
    two_files: Project, limits: str, holds: bool
) -> None:
    write(two_files, BOTH + f'{limits}\nwithout = ["{OPS}"]\n')
    source = find_source(two_files)
    same = series_for(two_files, source).digests == load_series(two_files).digests
    assert same is not holds


def test_of_several_variants_the_oldest_goes_last(two_files: Project) -> None:
    write(
        two_files,
        BOTH
        + 'below = "0.1.3"\nfiles = "variants/0001.diff"\n'
        + BOTH
        + 'below = "0.3"\nfiles = "variants/newer.diff"\n',
        diff_of(two_files, OPS, "return 42;", "return 77;"),
    )
    newer = diff_of(two_files, OPS, "return 42;", "return 55;")
    (two_files.patches / "variants" / "newer.diff").write_text(newer)
    assert "return 77;" in tree_text(two_files, OPS)


def test_a_variant_of_the_series_ends_it_after_some_patches(two_files: Project) -> None:
    write(two_files, '[[variants]]\nbelow = "0.2"\nfirst = 1\n')
    assert series_for(two_files, find_source(two_files)).names == ("0001-both.patch",)


def test_a_variant_of_a_patch_that_is_not_there_is_refused(two_files: Project) -> None:
    write(
        two_files, f'[[variants]]\npatch = "0003-both.patch"\nbelow = "0.1"\nwithout = ["{OPS}"]\n'
    )
    with pytest.raises(SetupError, match=r"no patch '0003-both.patch'; correct the name"):
        series_for(two_files, find_source(two_files))


def test_variants_go_with_a_patch_that_gets_another_number(
    project: Project, add_patch: AddPatch
) -> None:
    for name, file in (("first", OTHER), ("both", OPS)):
        add_patch(name, {file: [("return", "return 1 +")]})
    table = (
        '# what is other\n\n[[variants]]\nbelow   = "0.0.2"\nfirst = 1 # none\n\n'
        '[[variants]]\npatch   = "{}"\nbelow = "0.1"  # of "0002-both.patch"\nwithout = []\n'
    )
    write(project, table.format("0002-both.patch"))
    rework.drop(project, find_source(project), ["1"])
    assert project.about().file.read_text().endswith(table.format("0001-both.patch"))
    series_for(project, find_source(project))


def test_a_refresh_does_not_write_the_patches_of_an_older_upstream(two_files: Project) -> None:
    write(two_files, BOTH + f'below = "0.2"\nwithout = ["{OPS}"]\n')
    source = find_source(two_files)
    prepare_tree(two_files, source, series_for(two_files, source))
    with pytest.raises(UsageError, match="has variants of the patches"):
        rework.refresh(two_files, source)


def test_the_series_is_not_changed_on_an_upstream_with_variants(two_files: Project) -> None:
    write(two_files, BOTH + f'below = "0.2"\nwithout = ["{OPS}"]\n')
    with pytest.raises(UsageError, match="has variants of the patches"):
        rework.drop(two_files, find_source(two_files), ["2"])


def test_a_version_that_is_not_known_is_the_oldest() -> None:
    assert (
        parse_version("") < parse_version("0.9.8") < parse_version("0.20") < parse_version("0.25.3")
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = [", "is not valid TOML"),
        (
            BOTH + 'below = "1"\nuntil = "2"\n',
            "unknown key 'until'",
        ),
        (BOTH + "without = []\n", "below is missing"),
        (BOTH + "below = 1\n", "below must be a str, not 1"),
        (
            BOTH + 'below = "1"\nfirst = 2\n',
            "write either patch, or first for the",
        ),
        ('[[variants]]\nbelow = "1"\n', "write either patch, or first for the"),
        (
            BOTH + 'below = "1"\nwithout = ["x.c"]\n',
            "does not touch x.c",
        ),
        (
            BOTH + 'below = "1"\nfiles = "gone.diff"\n',
            "cannot read .*gone.diff",
        ),
        (
            BOTH + 'below = "1"\nhunks = "gone.diff"\n',
            "cannot read .*gone.diff",
        ),
    ],
)
def test_what_cannot_be_is_refused(two_files: Project, text: str, message: str) -> None:
    write(two_files, text)
    with pytest.raises(SetupError, match=message):
        series_for(two_files, find_source(two_files))


def test_no_file_is_no_variant(project: Project) -> None:
    assert load_variants(project.about()) == ()


def test_a_pin_without_a_version_gets_variants_as_if_it_had_one(two_files: Project) -> None:
    pins = two_files.pins_file
    pins.write_text(pins.read_text() + 'variants_as = "0.0.7"\n')
    write(two_files, BOTH + f'below = "0.1"\nwithout = ["{OPS}"]\n')
    assert "return 41;" in tree_text(two_files, OPS)


def test_drift_is_how_far_the_hunk_that_moved_most_is_off(two_files: Project) -> None:
    source = find_source(two_files)
    series = series_for(two_files, source)
    assert drift(prepare_tree(two_files, source, series), series) == [0, 0]
    patch = two_files.patches / "0002-next.patch"
    patch.write_text(re.sub(r"@@ -1 \+1 @@", "@@ -8 +8 @@", patch.read_text()))
    series = series_for(two_files, source)
    assert drift(prepare_tree(two_files, source, series), series) == [0, 7]
