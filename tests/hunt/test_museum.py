import re
from pathlib import Path

import pytest

from fa_harness.build.library import Library
from fa_harness.case.suites import suite
from fa_harness.engine.worker import Worker
from fa_harness.errors import SetupError
from fa_harness.hunt import museum, mutants
from fa_harness.hunt.museum import Bug
from fa_harness.hunt.mutants import Mutant, Outcome
from fa_harness.project import find_project
from fa_harness.series.series import load_museum

FOLDER = find_project().museum
EVERY = museum.load(FOLDER / "museum.toml")
IDS = [bug.mutant.id for bug in EVERY]
REFERENCE = re.compile(
    r"(ggml-org/(ggml|llama\.cpp|whisper\.cpp)|ikawrakow/ik_llama\.cpp)#\d+", re.ASCII
)

# whole lines of a table that holds
GOOD = {
    "title": "t", "backend": "cpu", "kind": "kernel", "patch": "0002-a.patch", "what": "w",
    "shown_by": "s", "reported": "r", "mended": "m",
}  # fmt: skip


def toml(**changes: object) -> str:
    table = {**GOOD, **changes}
    lines = [f"{key} = {value!r}\n" for key, value in table.items() if value is not None]
    return "[a]\n" + "".join(lines)


def bug(id_: str = "a") -> Bug:
    switch = Mutant(
        id=id_, class_="t", kind="kernel", patch="p", does="w", shown_by="s", of="museum"
    )
    return Bug(mutant=switch, title="t", backend="cpu", reported="r", mended="m")


def test_there_are_twenty_bugs_at_least_and_half_of_what_is_there_is_of_cpus() -> None:
    assert len(EVERY) >= 20
    assert sum(bug.backend == "cpu" for bug in EVERY) >= 15


@pytest.mark.parametrize("each", EVERY, ids=IDS)
def test_a_bug_has_its_reference_its_date_and_its_killer(each: Bug) -> None:
    assert REFERENCE.fullmatch(each.reported)
    day = r"\d{4}-\d\d-\d\d"
    merged = rf"{day} by {REFERENCE.pattern}"
    assert re.fullmatch(rf"{merged}|not by {day}|in ggml \d+\.\d+\.\d+", each.mended)
    assert each.mutant.id in mutants.load_killers(
        FOLDER / "killers.toml", [bug.mutant for bug in EVERY]
    )


def test_every_patch_puts_its_own_bug_back_and_says_where_it_was() -> None:
    switch, table, *patches = load_museum(find_project()).patches
    assert switch.parent.resolve() == find_project().mutants
    assert re.findall(r'X\([A-Z0-9_]+, +"(.+)"\)', table.read_text()) == IDS
    assert [patch.name for patch in patches] == [bug.mutant.patch for bug in EVERY]
    for each, patch in zip(EVERY, patches, strict=True):
        text = patch.read_text()
        added = re.findall(r"^\+.*GGML_FA_MUTANT\(([A-Z0-9_]+)\)", text, re.MULTILINE)
        assert each.mutant.id.upper().replace("-", "_") in added, patch
        assert f"Reported: {each.reported}\nMended: {each.mended}\n" in text


def test_every_patch_applies_in_order_and_the_library_has_every_bug(
    museum_library: Library,
) -> None:
    names = load_museum(find_project()).names
    assert museum_library.series[-len(names) :] == names
    with Worker(museum_library.module_path) as worker:
        assert worker.mutants == tuple(IDS)


def test_every_bug_is_seen_by_the_case_that_is_recorded(museum_library: Library) -> None:
    switches = [bug.mutant for bug in EVERY]
    killers = mutants.load_killers(FOLDER / "killers.toml", switches)
    outcomes = list(mutants.run_killers(museum_library, switches, killers))
    assert [(o.mutant.id, o.reason) for o in outcomes if o.status != "killed"] == []


def test_what_upstream_s_test_said_is_known_of_bugs_that_there_are() -> None:
    lines = museum.load_upstream(FOLDER / "upstream.toml", EVERY)
    assert all(re.fullmatch(r"((after )?FLASH_ATTN_EXT\(.+\))?", line) for line in lines.values())


def test_the_page_has_a_row_for_every_bug_with_where_when_and_who_sees_it() -> None:
    lines = museum.load_upstream(FOLDER / "upstream.toml", EVERY)
    page = (Path(__file__).parents[2] / "docs" / "museum.md").read_text()
    rows = {
        cells[0].strip("`"): cells[1:]
        for line in page.splitlines()
        if line.startswith("| `")
        for cells in [[cell.strip() for cell in line.strip("|").split("|")]]
    }
    assert list(rows) == IDS
    for each in EVERY:
        what, backend, reported, mended, gate, upstream = rows[each.mutant.id]
        assert (what, backend) == (each.mutant.does, each.backend)
        assert f"#{each.reported.partition('#')[2]}]" in reported
        assert set(re.findall(r"[\d.-]{6,}|#\d+", each.mended)) <= set(
            re.findall(r"[\d.-]{6,}|#\d+", mended)
        )
        assert gate.startswith("seen")
        line = lines.get(each.mutant.id)
        assert upstream == ("not run" if line is None else "seen" if line else "not seen")


def test_a_bug_that_no_case_reaches_is_not_seen_and_no_mistake_of_the_table(
    museum_library: Library,
) -> None:
    tried = next(bug.mutant for bug in EVERY if bug.mutant.id == "tile-sinks-dropped")
    [outcome] = mutants.run(museum_library, [tried], {"seed": suite("seed")})
    assert (outcome.status, outcome.reason) == ("survived", "none of 1 cases reaches it")


def test_the_smallest_case_fails_with_the_bug_and_without_a_state(museum_library: Library) -> None:
    tried = next(bug.mutant for bug in EVERY if bug.mutant.id == "dot-starts-twice")
    [found] = mutants.run(museum_library, [tried], {"gate": suite("gate")[:1]})
    shrunk = museum.smallest(museum_library.module_path, found)
    assert shrunk.case is not None
    assert shrunk.case.segment_bounds() == (0, 2)
    [again] = mutants.run_killers(museum_library, [tried], {tried.id: shrunk.case})
    assert again.status == "killed"
    assert not museum.needs_state(again)


def test_a_bug_needs_a_state_if_only_a_call_with_one_shows_it() -> None:
    def told(comparison: str, reason: str = "") -> bool:
        return museum.needs_state(
            Outcome(mutant=bug().mutant, status="killed", comparison=comparison, reason=reason)
        )

    assert not told("standard_vs_oracle")
    assert not told("", "standard: SIGABRT")
    assert told("full_state_state_vs_oracle")
    assert told("", "merged: SIGABRT")


def test_what_upstream_s_test_said_is_read_as_it_was_written(tmp_path: Path) -> None:
    file = tmp_path / "upstream.toml"
    lines = {"b": "", "a": "FLASH_ATTN_EXT(hsk=64)"}
    museum.save_upstream(file, lines, [bug("a"), bug("b")])
    assert museum.load_upstream(file, [bug("a"), bug("b")]) == lines
    with pytest.raises(SetupError, match=r"museum\.toml has no 'b'; delete its line"):
        museum.load_upstream(file, [bug("a")])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (toml(reported=None), "bug 'a': reported is missing"),
        (toml(reported=""), "bug 'a': reported is missing"),
        (toml(mended=1), "bug 'a': mended must be a string, not 1"),
        (toml(where="w"), "bug 'a': unknown key 'where'; known: title, backend"),
        (toml(kind="k"), "bug 'a': kind is 'k'; there are kernel, api, impostor"),
        ("a = 1\n", r"bug 'a': must be a table \[a\]"),
    ],
)
def test_a_table_that_cannot_be_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "museum.toml").write_text(text)
    with pytest.raises(SetupError, match=message):
        museum.load(tmp_path / "museum.toml")
