"""Series by name: what a `series.toml` may say, and which series a stack has."""

from pathlib import Path

import pytest

from fa_harness import stacks
from fa_harness.errors import SetupError, UsageError
from fa_harness.project import find_project
from fa_harness.stacks import About, about, hold_on, names_in, stack_of
from fa_harness.upstream.pins import load_pins
from tiny_upstream import write_files

HEAD = 'title = "t"\nwhy = "w"\n'
ACCEPTED = f'{HEAD}[[accepted]]\ncase = "c"\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """`fast` stands on `state`, `faster` on `fast`, `partial` on nothing."""
    write_files(
        tmp_path,
        {
            "state/series": "",
            "partial/series": "",
            "partial/series.toml": HEAD,
            "fast/series": "",
            "fast/series.toml": f'{HEAD}on = ["state"]\n',
            "faster/series": "",
            "faster/series.toml": f'{HEAD}on = ["fast"]\n',
            "notes/readme.txt": "no series",
        },
    )
    return tmp_path


@pytest.mark.parametrize(
    ("text", "stack"),
    [
        ("state", ("state",)),
        ("fast", ("state", "fast")),
        ("state+fast", ("state", "fast")),
        ("faster", ("state", "fast", "faster")),
        ("partial+faster", ("partial", "state", "fast", "faster")),
        ("fast+partial+state", ("state", "fast", "partial")),
    ],
)
def test_what_a_series_stands_on_comes_before_it_once(
    folder: Path, text: str, stack: tuple[str, ...]
) -> None:
    assert stack_of([folder], text) == stack


@pytest.mark.parametrize(
    ("text", "stack"),
    [
        ("partial+fast", ("partial", "state", "fast", "both")),
        ("fast+partial", ("state", "fast", "partial", "both")),
        ("both", ("partial", "state", "fast", "both")),
        ("partial+faster", ("partial", "state", "fast", "faster", "both")),
        ("fast", ("state", "fast")),
        ("partial", ("partial",)),
    ],
)
def test_a_series_that_joins_others_comes_behind_all_of_them(
    folder: Path, text: str, stack: tuple[str, ...]
) -> None:
    write_files(
        folder,
        {"both/series": "", "both/series.toml": f'{HEAD}on = ["partial", "fast"]\njoins = true\n'},
    )
    assert stack_of([folder], text) == stack
    (folder / "both" / "series.toml").write_text(f'{HEAD}on = ["partial", "fast"]\n')
    assert stack_of([folder], "partial+fast") == ("partial", "state", "fast")


def test_a_series_that_may_join_a_stack_and_cannot_be_read_is_told(folder: Path) -> None:
    write_files(folder, {"both/series": "", "both/series.toml": 'title = "t"\n'})
    with pytest.raises(SetupError, match=r"both/series\.toml: why is missing"):
        stack_of([folder], "partial+fast")
    assert stack_of([folder], "partial") == ("partial",)  # one alone has nothing to join


def test_folders_without_an_order_are_no_series(folder: Path) -> None:
    assert list(names_in([folder])) == ["fast", "faster", "partial", "state"]


def test_a_series_of_the_first_folder_hides_one_of_the_same_name(
    folder: Path, tmp_path: Path
) -> None:
    own = tmp_path / "own"
    write_files(own, {"fast/series": "", "mine/series": ""})
    assert list(names_in([own, folder])) == ["fast", "mine", "faster", "partial", "state"]
    assert stack_of([own, folder], "fast") == ("fast",)


def test_a_series_that_is_not_there_is_refused_with_those_that_are(folder: Path) -> None:
    with pytest.raises(UsageError, match="no series 'fats'; there are: fast, faster, partial, s"):
        stack_of([folder], "state+fats")
    (folder / "state" / "series").unlink()
    with pytest.raises(UsageError, match="no series 'state', on which 'fast' stands; there are"):
        stack_of([folder], "faster")


def test_a_series_that_stands_on_itself_is_refused(folder: Path) -> None:
    (folder / "state" / "series.toml").write_text(f'{HEAD}on = ["faster"]\n')
    with pytest.raises(SetupError, match="itself: fast on state on faster on fast; correct "):
        stack_of([folder], "fast")


def test_a_series_without_a_file_says_its_name_only(folder: Path) -> None:
    said = about(folder / "state")
    assert said == About(name="state", folder=folder / "state")
    assert said.pins_of(["a", "b"]) == ("a", "b")
    assert str(said.upstream) == "not sent"


def test_a_file_says_why_a_series_exists_where_it_holds_and_what_became_of_it(
    folder: Path,
) -> None:
    (folder / "fast" / "series.toml").write_text(
        f'{HEAD}on = ["state"]\npins = ["b"]\nsuites = ["paths"]\n'
        '[upstream]\nissue = "#1"\npull_request = "#2"\n'
    )
    said = about(folder / "fast")
    assert (said.title, said.why, said.on, said.suites) == ("t", "w", ("state",), ("paths",))
    assert said.pins_of(["a", "b"]) == ("b",)
    assert str(said.upstream) == "pull request #2"
    with pytest.raises(SetupError, match=r"series\.toml: pins: 'b' is no pin; there are a$"):
        said.pins_of(["a"])


def test_a_stack_has_modes_only_if_each_of_its_series_names_some(folder: Path) -> None:
    for name, modes in (("partial", '["standard"]'), ("fast", '["standard", "preset"]')):
        (folder / name / "series.toml").write_text(f"{HEAD}modes = {modes}\n")
    assert stacks.modes_of([folder], ["partial", "fast"]) == ("standard", "preset")
    assert stacks.modes_of([folder], ["partial", "state"]) == ()


def test_a_pin_is_added_to_those_on_which_a_series_must_hold(folder: Path) -> None:
    file = folder / "fast" / "series.toml"
    file.write_text(f'{HEAD}pins = ["b"]  # all that count\n')
    for _ in range(2):
        hold_on(about(folder / "fast"), "c")
    assert file.read_text() == f'{HEAD}pins = ["b", "c"]  # all that count\n'
    file.write_text(HEAD)
    hold_on(about(folder / "fast"), "c")
    assert file.read_text() == HEAD, "it must hold on every pin"


def test_of_two_series_that_accept_a_case_the_last_counts(folder: Path) -> None:
    for name, times in (("state", 1.03), ("fast", 1.02)):
        (folder / name / "series.toml").write_text(f'{ACCEPTED}times = {times}\nwhy = "w"\n')
    assert stacks.accepted_by([folder], ["state", "fast"])["c"].times == 1.02
    assert stacks.accepted_by([folder], ["partial"]) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("title = [", "is not valid TOML"),
        ('title = "t"\n', "why is missing; say it in one sentence"),
        (
            f"{HEAD}of = 1\n",
            "unknown key 'of'; known: title, why, on, joins, whole, pins, suites",
        ),
        (f'{HEAD}on = "state"\n', "on is 'state'; write a list of names"),
        (f"{HEAD}joins = 1\n", "joins is 1; write true or false"),
        (f'{HEAD}upstream = "#1"\n', r"upstream is '#1'; write a table \[upstream\]"),
        (f'{HEAD}[upstream]\npr = "#1"\n', "upstream: unknown key 'pr'; known: issue, pull_requ"),
        (f"{HEAD}[upstream]\nissue = 1\n", r"upstream\.issue is 1; write a text"),
        (f"{HEAD}variants = 1\n", r"variants is 1; write tables \[\[variants\]\]"),
        (f"{HEAD}accepted = 1\n", r"accepted is 1; write tables \[\[accepted\]\]"),
        (f'{HEAD}[[accepted]]\ncase = "c"\n', "give each table case, times, why"),
        (f'{ACCEPTED}times = "3 %"\nwhy = "w"\n', "times is '3 %'; write a number between 1 and 2"),
        (f'{ACCEPTED}times = 1.0\nwhy = "w"\n', r"times is 1\.0; write a number between"),
        (f'{ACCEPTED}times = 1.03\nwhy = " "\n', "why is empty; say why the cost is accepted"),
        ("why = 3\ntitle = 1\n", "why is 3; write a text"),
    ],
)
def test_a_file_that_cannot_be_is_refused(folder: Path, text: str, message: str) -> None:
    (folder / "fast" / "series.toml").write_text(text)
    with pytest.raises(SetupError, match=message):
        about(folder / "fast")


@pytest.mark.parametrize(
    ("name", "why"), [("mutants", "a library is called so"), ("1st", "letters, digits")]
)
def test_a_name_that_means_something_else_is_refused(tmp_path: Path, name: str, why: str) -> None:
    write_files(tmp_path, {f"{name}/series": ""})
    with pytest.raises(SetupError, match=f"no series can be called '{name}' .{why}.*; rename "):
        stack_of([tmp_path], name)


def test_the_series_of_the_project_says_what_it_is() -> None:
    folder = Path(__file__).parents[1] / "patches" / stacks.DEFAULT
    said = about(folder)
    assert said.title
    assert said.why
    assert said.on == ()
    assert said.pins_of(tuple(load_pins(find_project().pins_file).upstreams))
