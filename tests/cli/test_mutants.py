import dataclasses
import io
from datetime import datetime, timezone

from rich.console import Console

import schemas
from fa_harness.case.suites import suite
from fa_harness.cli.mutants import (
    SCHEMA,
    Score,
    document,
    print_headings,
    print_outcome,
    print_summary,
)
from fa_harness.hunt.mutants import Mutant, Outcome

MUTANT = Mutant(
    id="norm-never-vec",
    class_="norm-never",
    kind="kernel",
    patch="0002-vec.patch",
    does="the result is not divided by S",
    shown_by="any case",
)
KILLED = Outcome(
    mutant=MUTANT,
    status="killed",
    reason="standard vs oracle: 1.00e+00, allowed 1.00e-03 at batch 0",
    case=suite("seed")[0],
    suite="smoke",
    comparison="standard_vs_oracle",
    n_case=1,
    seconds=0.25,
)
SURVIVED = Outcome(mutant=MUTANT, status="survived", reason="none of 9 cases fails with it")


def score(*outcomes: Outcome, left: int = 0) -> Score:
    return Score(
        tool_version="1",
        library={"name": "mutants", "ggml_version": "0.25.3"},
        machine={"cpu": "a CPU", "threads": 2},
        started=datetime(2026, 1, 1, tzinfo=timezone.utc),
        seconds=1.5,
        suites=("smoke", "default"),
        selected=(*(outcome.mutant for outcome in outcomes), *[MUTANT] * left),
        outcomes=outcomes,
        interrupted=left > 0,
    )


def printed(*outcomes: Outcome, verbose: bool = False, left: int = 0) -> str:
    file = io.StringIO()
    console = Console(file=file, width=150)
    print_headings(console)
    for outcome in outcomes:
        print_outcome(console, outcome, verbose=verbose)
    print_summary(console, score(*outcomes, left=left))
    return file.getvalue()


def test_a_killed_mutant_is_a_line_with_the_comparison_and_the_case() -> None:
    heading, line, summary = printed(KILLED).splitlines()
    assert heading.split() == ["mutant", "status", "by", "case"]
    assert line.split()[:4] == ["norm-never-vec", "killed", "standard_vs_oracle", "hs4"]
    assert summary == (
        "1 mutant: 1 killed | suite smoke alone kills 1 of 1 faults (100%) | ggml 0.25.3 | 1.5 s"
    )


def test_a_survivor_says_what_it_does_what_would_show_it_and_how_to_try_it_again() -> None:
    lines = printed(SURVIVED).splitlines()
    assert [line.strip() for line in lines[2:6]] == [
        "0002-vec.patch: the result is not divided by S",
        "shown by: any case",
        "none of 9 cases fails with it",
        "fa-harness mutants -v -k '^norm-never-vec$'",
    ]


def test_a_mutant_of_another_series_names_it() -> None:
    other = dataclasses.replace(SURVIVED, mutant=dataclasses.replace(MUTANT, series="partial"))
    assert printed(other).splitlines()[5].strip() == (
        "fa-harness mutants --series partial -v -k '^norm-never-vec$'"
    )


def test_verbose_says_so_of_the_killed_ones_too() -> None:
    assert KILLED.reason in printed(KILLED, verbose=True)


def test_only_killed_and_equivalent_mutants_pass_and_not_the_latter_alone() -> None:
    equivalent = dataclasses.replace(SURVIVED, status="equivalent")
    invalid = dataclasses.replace(SURVIVED, status="invalid")
    assert score(KILLED, equivalent).passed
    assert not score(equivalent).passed
    assert not score(KILLED, SURVIVED).passed
    assert not score(KILLED, invalid).passed


def test_an_interrupted_run_says_so_and_does_not_pass() -> None:
    assert "1 of 3 mutants (interrupted): 1 killed" in printed(KILLED, left=2)
    assert not score(KILLED, left=2).passed


def test_a_mutant_that_a_later_suite_kills_is_not_killed_by_the_first_alone() -> None:
    later = dataclasses.replace(KILLED, suite="default")
    impostor = dataclasses.replace(
        KILLED, mutant=dataclasses.replace(MUTANT, kind="impostor"), suite="default"
    )
    assert score(KILLED, later, impostor).by_suite == {"smoke": 1, "default": 2}


def test_a_generated_mutant_says_where_it_is_and_how_it_is_tried_again() -> None:
    generated = dataclasses.replace(
        MUTANT, id="17", file="ggml/src/ggml-cpu/ops.cpp", line=9000, does="line 9000: a + b -> -"
    )
    shown = printed(dataclasses.replace(SURVIVED, mutant=generated))
    assert "line 9000: a + b -> -" in shown
    assert "fa-harness mutants --generate -v -k '^17$'" in shown


def test_suites_that_kill_more_are_told_with_their_share() -> None:
    later = dataclasses.replace(KILLED, suite="default")
    assert (
        "suite smoke alone kills 1 of 3 faults (33%), with default 2 of 3 faults (67%) |"
        in printed(KILLED, later, SURVIVED)
    )


def test_an_impostor_tells_how_many_cases_it_failed_in() -> None:
    impostor = dataclasses.replace(
        KILLED, mutant=dataclasses.replace(MUTANT, kind="impostor"), n_case=24
    )
    assert "each of 24 cases" in printed(impostor)


def test_a_crash_is_told_by_the_mode() -> None:
    crash = dataclasses.replace(KILLED, comparison="", reason="standard: SIGABRT\n  GGML_ASSERT")
    assert printed(crash).splitlines()[1].split()[2] == "standard"


def test_the_document_has_a_summary_and_a_row_a_mutant() -> None:
    made = schemas.checked(document(score(KILLED, SURVIVED)))
    assert made == document(score(KILLED, SURVIVED))
    assert made["schema"] == SCHEMA
    assert made["summary"] == {
        "mutants": 2, "killed": 1, "survived": 1, "invalid": 0, "equivalent": 0, "faults": 2,
        "killed_by_first_suite": 1, "killed_by_suites": {"smoke": 1, "default": 1},
        "tried_by_upstream": 0, "killed_by_upstream": 0, "killed_beside_upstream": 0,
    }  # fmt: skip
    assert made["results"][0] == {
        "mutant": "norm-never-vec",
        "class": "norm-never",
        "kind": "kernel",
        "patch": "0002-vec.patch",
        "file": None,
        "line": None,
        "does": "the result is not divided by S",
        "shown_by": "any case",
        "status": "killed",
        "suite": "smoke",
        "case": str(suite("seed")[0]),
        "comparison": "standard_vs_oracle",
        "reason": KILLED.reason,
        "cases": 1,
        "seconds": 0.25,
        "repro": "fa-harness mutants -v -k '^norm-never-vec$'",
        "upstream": None,
    }
    assert made["results"][1]["case"] is None


def test_what_upstream_s_own_test_sees_stands_beside() -> None:
    other = dataclasses.replace(MUTANT, id="norm-never-tiled")
    survived = dataclasses.replace(SURVIVED, mutant=other)
    lines = {MUTANT.id: "", other.id: "FLASH_ATTN_EXT(hsk=64)"}
    found = dataclasses.replace(score(KILLED, survived), upstream=lines)
    made = schemas.checked(document(found))
    assert [made["summary"][f"{key}_upstream"] for key in ("tried_by", "killed_by")] == [2, 1]
    assert made["summary"]["killed_beside_upstream"] == 1
    assert [row["upstream"] for row in made["results"]] == ["", "FLASH_ATTN_EXT(hsk=64)"]
    file = io.StringIO()
    print_summary(Console(file=file, width=300), found)
    assert "upstream's test sees 1 of 2, the suites 1 of these" in file.getvalue()
