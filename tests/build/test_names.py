import pytest

from fa_harness.build.names import PARTS, find_name, prefixes
from fa_harness.build.sanitizers import SANITIZERS
from fa_harness.errors import SetupError, UsageError
from fa_harness.project import Project
from fa_harness.series.series import load_mutants, series_for
from fa_harness.stacks import RESERVED
from fa_harness.upstream.source import find_source
from tiny_upstream import write_files

ABOUT = 'title = "t"\nwhy = "w"\non = {}\n'


@pytest.fixture
def stacks(project: Project) -> Project:
    """`state` with two patches, `fast` with one on it, and `partial` with one on pristine."""
    write_files(
        project.data / "patches",
        {
            "state/0001-a.patch": "a",
            "state/0002-b.patch": "b",
            "state/series": "# order\n\n0002-b.patch  # first\n0001-a.patch\n",
            "fast/0001-c.patch": "c",
            "fast/series": "0001-c.patch\n",
            "fast/series.toml": ABOUT.format('["state"]'),
            "partial/0001-d.patch": "d",
            "partial/series": "0001-d.patch\n",
            "partial/series.toml": ABOUT.format("[]"),
        },
    )
    return project


def patches(project: Project, text: str) -> tuple[str, ...]:
    name = find_name(project, text)
    return name.patches(series_for(name.project, find_source(project))).names


@pytest.mark.parametrize(
    ("text", "full", "names"),
    [
        ("pristine", "pristine", ()),
        ("patched", "state", ("0002-b.patch", "0001-a.patch")),
        ("state", "state", ("0002-b.patch", "0001-a.patch")),
        ("0001", "state@0001", ("0002-b.patch",)),
        ("state@1", "state@0001", ("0002-b.patch",)),
        ("state@0002", "state@0002", ("0002-b.patch", "0001-a.patch")),
        ("tsan", "state@tsan", ("0002-b.patch", "0001-a.patch")),
        ("partial", "partial", ("0001-d.patch",)),
        ("partial@coverage", "partial@coverage", ("0001-d.patch",)),
        ("fast", "state+fast", ("0002-b.patch", "0001-a.patch", "0001-c.patch")),
        ("state+fast@1", "state+fast@0001", ("0002-b.patch", "0001-a.patch", "0001-c.patch")),
        ("partial+state", "partial+state", ("0001-d.patch", "0002-b.patch", "0001-a.patch")),
    ],
)
def test_a_name_says_which_series_are_in_a_library_and_how_far(
    stacks: Project, text: str, full: str, names: tuple[str, ...]
) -> None:
    assert str(find_name(stacks, text)) == full
    assert str(find_name(stacks, full)) == full
    assert patches(stacks, text) == names


def test_short_names_are_of_the_projects_default(stacks: Project) -> None:
    partial = stacks.of("partial")
    names = [str(find_name(partial, text)) for text in ("patched", "1", "mutants", "pristine")]
    assert names == ["partial", "partial@0001", "partial@mutants", "pristine"]
    assert str(find_name(partial, "state@0002")) == "state@0002"


def test_the_prefixes_of_a_stack_end_with_each_whole_series(stacks: Project) -> None:
    fast = stacks.of("fast")
    found = prefixes(fast, series_for(fast, find_source(fast)))
    assert found == ["pristine", "state@0001", "state", "state+fast"]
    assert [len(patches(stacks, name)) for name in found] == [0, 1, 2, 3]


def test_the_mutants_of_the_last_series_follow_the_whole_stack(stacks: Project) -> None:
    folder = stacks.folder_of("fast") / "mutants"
    write_files(folder, {"series": "0001-switch.patch\n", "0001-switch.patch": "switch"})
    assert patches(stacks, "fast@mutants")[2:] == ("0001-c.patch", "0001-switch.patch")
    assert load_mutants(stacks.of("fast")).names == ("0001-switch.patch",)


def test_mutants_that_are_not_there_are_missed_by_their_own_library_only(stacks: Project) -> None:
    assert patches(stacks, "partial") == ("0001-d.patch",)
    with pytest.raises(SetupError, match=r"series 'partial' has no mutants: there is no .*/series"):
        patches(stacks, "partial@mutants")


@pytest.mark.parametrize(
    ("text", "option"), [("generated", ""), ("fast@generated", " --series fast")]
)
def test_generated_mutants_that_were_never_made_name_the_command(
    stacks: Project, text: str, option: str
) -> None:
    with pytest.raises(SetupError, match=f"fa-harness mutants --generate{option}$"):
        patches(stacks, text)


def test_a_prefix_that_is_longer_than_the_series_is_refused_with_those_that_there_are(
    stacks: Project,
) -> None:
    message = r"unknown library 'state@0003': state has 2 patches here, so there are state@0001 to"
    with pytest.raises(UsageError, match=message):
        patches(stacks, "0003")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fats", r"'fats': there is no series 'fats'; there are: fast, partial, state \("),
        ("state@fats", "unknown library 'state@fats': behind @ comes the number of a patch, or "),
        ("state@", "behind @ comes the number"),
    ],
)
def test_an_unknown_library_is_refused_with_the_known_ones(
    stacks: Project, text: str, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        find_name(stacks, text)


def test_no_series_can_be_called_like_a_part_of_a_library() -> None:
    assert {*PARTS, *SANITIZERS, "pristine", "patched"} <= RESERVED
