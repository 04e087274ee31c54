from pathlib import Path

import pytest

from fa_harness.build.places import Copy, first_errors
from fa_harness.upstream.git import git

BEFORE = [f"line {n}" for n in range(1, 21)]
# two lines before the first, the fifth and sixth one another, the tenth gone
AFTER = ["new 1", "new 2", *BEFORE[:4], "changed", *BEFORE[6:9], *BEFORE[10:]]
OWN = Path("/home/me/my llama/src/ops.c")


def commit(repository: Path, lines: list[str]) -> str:
    (repository / "ops.c").write_text("\n".join(lines) + "\n")
    git(repository, "add", "--all")
    git(repository, "commit", "--quiet", "--message", "state")
    return git(repository, "rev-parse", "HEAD")


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    repository = tmp_path / "tree"
    repository.mkdir()
    git(repository, "init", "--quiet")
    return Copy(
        src=tmp_path / "work" / "src",
        cmake=tmp_path / "work" / "cmake",
        own={"ops.c": OWN},
        repository=repository,
        before=commit(repository, BEFORE),
        after=commit(repository, AFTER),
    )


@pytest.mark.parametrize("text", ["line 1", "line 4", "line 7", "line 9", "line 11", "line 20"])
def test_a_line_of_the_copy_is_told_by_its_place_in_the_users_file(copy: Copy, text: str) -> None:
    line, own = AFTER.index(text) + 1, BEFORE.index(text) + 1
    told = copy.told_of_own([f"{copy.src}/ops.c:{line}:7: error: no"])
    assert told == [f"{OWN}:{own}:7: error: no"]


@pytest.mark.parametrize(("text", "next_own"), [("new 2", 1), ("changed", 7)])
def test_a_line_that_a_patch_added_stays_that_of_the_copy_and_says_where_it_goes(
    copy: Copy, text: str, next_own: int
) -> None:
    line = f"{copy.src}/ops.c:{AFTER.index(text) + 1}:7: error: no"
    told = copy.told_of_own([line])
    assert told == [f"{line} [a patch has added this line at {OWN}:{next_own}]"]


def test_the_numbers_beside_the_code_are_those_of_the_file_above(copy: Copy) -> None:
    told = copy.told_of_own(
        [
            f"{copy.src}/ops.c: In function 'f':",
            f"{copy.src}/ops.c:15:7: error: no",
            "   15 |     no;",
            "      |     ^~",
            f"{copy.src}/ops.c:1:7: note: here",
            "    1 | new 1",
        ]
    )
    assert told[:4] == [
        f"{OWN}: In function 'f':",
        f"{OWN}:15:7: error: no".replace("15", str(BEFORE.index(AFTER[14]) + 1)),
        f"{BEFORE.index(AFTER[14]) + 1:5} |     no;",
        "      |     ^~",
    ]
    assert told[5] == "    1 | new 1"


def test_a_path_as_the_compiler_sees_it_from_its_folder_is_known(copy: Copy) -> None:
    told = copy.told_of_own(["In file included from ../src/ops.c:20,"])
    assert told == [f"In file included from {OWN}:{BEFORE.index(AFTER[19]) + 1},"]


def test_commands_and_other_files_stay_as_they_are(copy: Copy) -> None:
    lines = [
        f"/usr/bin/cc -I{copy.src} -c {copy.src}/ops.c",
        f"{copy.src}/other.c:3:1: error: no",
        f"/elsewhere{copy.src}/ops.c:3:1: error: no",
        "    3 | no",
    ]
    assert copy.told_of_own(lines) == lines


def test_an_error_is_shown_from_where_it_begins_whatever_is_before_and_after_it() -> None:
    error = ["In file included from a.h:1,", "    from a.c:2:", "a.c: In f:", "a.c:1:1: error: no"]
    lines = [
        *(f"b.c:{n}:1: warning: calm" for n in range(30)),
        "[2/9] Building C object a.o",
        "FAILED: a.o ",
        "cc -Werror -c a.c",
        "a.c:7:1: warning: before it",
        *error,
        *(f"a.c:{n}:1: note: more" for n in range(30)),
    ]
    assert first_errors(lines)[:5] == [*error, "a.c:0:1: note: more"]
    assert len(first_errors(lines)) == 20


def test_without_an_error_the_last_lines_are_shown() -> None:
    lines = ["FAILED: a.o ", "cc -c a.c", *(f"line {n}" for n in range(30))]
    assert first_errors(lines) == lines[-20:]
    assert first_errors([]) == []
