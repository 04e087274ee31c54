"""Which patch of the series turned a case red or green."""

import dataclasses
import io
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import cast

import pytest
from rich.console import Console

import schemas
from fa_harness.case.case import Case
from fa_harness.cli.bisect import document, print_headings, print_row, print_turns
from fa_harness.engine.runner import Runner
from fa_harness.hunt.bisect import Bisected, Prefix, PrefixVerdict, run_on
from fa_harness.judge.verdict import Verdict

CASE = Case(hsk=64, hsv=64, n_head_kv=2, n_kv=90, n_batch=3, segments=3)
PREFIXES = (
    Prefix(library="pristine", patch="", title="upstream as it is"),
    Prefix(library="0001", patch="0001-ggml-add-it.patch", title="ggml : add it"),
    Prefix(library="0002", patch="0002-ggml-mend-it.patch", title="ggml : mend it"),
    Prefix(library="patched", patch="0003-ggml-more.patch", title="ggml : more"),
)


def verdict(status: str, *, modes: tuple[str, ...] = ("standard",), reason: str = "") -> Verdict:
    return Verdict(
        case=CASE, status=status, path="vec", modes=modes, reason=reason, comparisons={}, outputs={}
    )


def bisected(*statuses: str) -> Bisected:
    return Bisected(
        case=CASE,
        library={"upstream": "an upstream"},
        machine={},
        tool_version="1",
        started=datetime(2026, 1, 1, tzinfo=timezone.utc),
        seconds=1.0,
        rows=tuple(
            PrefixVerdict(prefix=prefix, verdict=verdict(status, reason=f"it is {status}"))
            for prefix, status in zip(PREFIXES, statuses, strict=True)
        ),
    )


def turns(found: Bisected) -> list[tuple[str, bool]]:
    return [(turn.row.prefix.library, turn.to_red) for turn in found.turns]


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [
        (("pass", "pass", "pass", "pass"), []),
        (("pass", "fail", "pass", "pass"), [("0001", True), ("0002", False)]),
        (("pass", "crash", "timeout", "mistrusted"), [("0001", True)]),
        (
            ("fail", "fail", "pass", "fail"),
            [("pristine", True), ("0002", False), ("patched", True)],
        ),
        (("unsupported", "fail", "unsupported", "fail"), [("0001", True)]),
        (("unsupported", "pass", "unsupported", "fail"), [("patched", True)]),
    ],
)
def test_a_turn_is_a_change_of_colour_against_the_last_library_that_computes_the_case(
    statuses: Sequence[str], expected: list[tuple[str, bool]]
) -> None:
    assert turns(bisected(*statuses)) == expected


@pytest.mark.parametrize(
    ("last", "passed"),
    [
        ("pass", True),
        ("unsupported", True),
        ("fail", False),
        ("crash", False),
        ("mistrusted", False),
    ],
)
def test_it_passes_where_the_last_library_does_not_fail(last: str, passed: bool) -> None:
    assert bisected("fail", "fail", "fail", last).passed == passed


def test_a_library_without_a_state_runs_standard_and_says_what_it_lacks() -> None:
    asked: list[tuple[str, ...] | None] = []

    class WithoutState:
        def run(self, cases: object, modes: tuple[str, ...] | None = None) -> list[Verdict]:
            asked.append(modes)
            return [verdict("pass") if modes else verdict("unsupported", reason="no state")]

    row = run_on(PREFIXES[0], cast(Runner, WithoutState()), CASE)
    assert asked == [None, ("standard",)]
    assert (row.verdict.status, row.lacks, row.is_red) == ("pass", "no state", False)


def test_a_case_that_no_mode_can_compute_is_neither_red_nor_green() -> None:
    class OfNoMode:
        def run(self, cases: object, modes: tuple[str, ...] | None = None) -> list[Verdict]:
            return [verdict("unsupported", reason=f"not in {modes}")]

    row = run_on(PREFIXES[0], cast(Runner, OfNoMode()), CASE)
    assert (row.verdict.reason, row.lacks, row.is_red) == ("not in None", "", None)


def printed(found: Bisected) -> list[str]:
    console = Console(file=io.StringIO(), width=150, highlight=False)
    print_headings(console)
    for row in found.rows:
        print_row(console, row)
    print_turns(console, found)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_the_table_has_a_line_a_library_and_what_failed_below_it() -> None:
    headings, pristine, first, why, *_, red, green = printed(
        bisected("pass", "fail", "pass", "pass")
    )
    assert headings.split() == ["library", "patch", "status", "modes"]
    assert pristine.split() == ["pristine", "upstream", "as", "it", "is", "pass", "standard"]
    assert first.split()[:4] == ["0001", "ggml", ":", "add"]
    assert why == "    it is fail"
    assert red == "first red: 0001-ggml-add-it"
    assert green == "turned green by: 0002-ggml-mend-it"


def test_the_columns_stay_in_line_whatever_the_title() -> None:
    rows = bisected("pass", "pass", "pass", "pass").rows
    long = dataclasses.replace(rows[3].prefix, title="ggml : " + "more and " * 20)
    console = Console(file=io.StringIO(), width=150, highlight=False)
    print_row(console, rows[2])
    print_row(console, dataclasses.replace(rows[3], prefix=long))
    assert isinstance(console.file, io.StringIO)
    short, cut = console.file.getvalue().splitlines()
    assert short.index("pass") == cut.index("pass")
    assert ".. " in cut


def test_a_case_that_fails_on_upstream_is_not_laid_to_a_patch() -> None:
    assert printed(bisected("fail", "fail", "fail", "fail"))[-1] == (
        "first red: pristine, upstream as it is"
    )


def test_a_case_that_never_fails_says_so() -> None:
    assert printed(bisected("pass", "pass", "pass", "pass"))[-1] == "never red"


def test_the_document_has_every_library_and_every_turn() -> None:
    found = bisected("pass", "fail", "pass", "pass")
    record = schemas.checked(document(found))
    assert record == document(found)
    assert record["schema"] == "fa-harness.bisect/1"
    assert [row["status"] for row in record["libraries"]] == ["pass", "fail", "pass", "pass"]
    assert record["turns"] == [
        {"to": "red", "library": "0001", "patch": "0001-ggml-add-it.patch"},
        {"to": "green", "library": "0002", "patch": "0002-ggml-mend-it.patch"},
    ]
    assert record["passed"]
