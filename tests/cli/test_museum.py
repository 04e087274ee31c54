import dataclasses
import io
import json
import subprocess
import sys
from datetime import datetime, timezone

from rich.console import Console

import schemas
from fa_harness.build.library import Library
from fa_harness.case.suites import suite
from fa_harness.cli.museum import Finding, Score, document, print_finding, print_summary
from fa_harness.hunt.museum import Bug
from fa_harness.hunt.mutants import Mutant, Outcome

MUTANT = Mutant(
    id="mask-dim-3",
    class_="The mask",
    kind="kernel",
    patch="0012-mask-dim-3.patch",
    does="the sequence chooses along dimension 2",
    shown_by="several sequences",
    of="museum",
)
BUG = Bug(mutant=MUTANT, title="The mask", backend="cpu", reported="o/r#1", mended="in 1.0")
KILLED = Outcome(
    mutant=MUTANT,
    status="killed",
    reason="standard vs oracle: 1.00e+00, allowed 1.00e-03 at batch 0",
    case=suite("seed")[0],
    suite="gate",
    comparison="standard_vs_oracle",
    n_case=3,
    seconds=0.25,
)
CAUGHT = Finding(bug=BUG, outcome=KILLED, line="FLASH_ATTN_EXT(hsk=64)")
MISSED = Finding(
    bug=BUG,
    outcome=Outcome(mutant=MUTANT, status="survived", reason="none of 9 cases reaches it"),
    line="",
)


def score(*findings: Finding, left: int = 0, suites: tuple[str, ...] = ("gate",)) -> Score:
    return Score(
        tool_version="1",
        library={"name": "museum", "ggml_version": "0.25.3"},
        machine={"cpu": "a CPU", "threads": 2},
        started=datetime(2026, 1, 1, tzinfo=timezone.utc),
        seconds=1.5,
        suites=suites,
        n_bug=len(findings) + left,
        findings=findings,
        interrupted=left > 0,
    )


def printed(*findings: Finding, verbose: bool = False, left: int = 0) -> list[str]:
    file = io.StringIO()
    console = Console(file=file, width=150)
    for finding in findings:
        print_finding(console, finding, verbose=verbose)
    print_summary(console, score(*findings, left=left))
    return [line.strip() for line in file.getvalue().splitlines()]


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    call = [sys.executable, "-m", "fa_harness.cli", "museum", *arguments]
    return subprocess.run(call, capture_output=True, text=True)


def test_a_bug_is_a_line_with_who_sees_it_by_what_and_the_case() -> None:
    line, summary = printed(CAUGHT)
    assert line.split()[:4] == ["mask-dim-3", "seen", "seen", "standard_vs_oracle"]
    assert summary == (
        "1 bug: suite gate sees 1 | upstream's test sees 1 of 1 | ggml 0.25.3 | 1.5 s"
    )


def test_a_bug_that_no_case_sees_says_where_it_was_and_how_it_is_tried_again() -> None:
    assert printed(MISSED)[:6] == [
        "mask-dim-3                    not seen  not seen",
        "The mask (cpu)",
        "reported: o/r#1; mended: in 1.0",
        "the sequence chooses along dimension 2",
        "shown by: several sequences",
        "none of 9 cases reaches it",
    ]
    assert "fa-harness museum -v -k '^mask-dim-3$'" in printed(MISSED)


def test_verbose_says_so_of_the_others_and_which_line_of_upstream_sees_them() -> None:
    assert "upstream: FLASH_ATTN_EXT(hsk=64)" in printed(CAUGHT, verbose=True)


def test_a_bug_on_which_upstream_s_test_was_not_run_is_not_one_that_it_does_not_see() -> None:
    unknown = dataclasses.replace(CAUGHT, line=None)
    assert "not run" in printed(unknown)[0]
    assert "upstream's test sees 1 of 1" in printed(CAUGHT, unknown)[-1]


def test_a_run_passes_if_every_bug_is_seen_and_it_was_not_interrupted() -> None:
    assert score(CAUGHT).passed
    assert not score(CAUGHT, MISSED).passed
    assert not score(CAUGHT, left=1).passed
    assert printed(CAUGHT, left=1)[-1].startswith("1 of 2 bugs (interrupted): suite gate sees 1")


def test_the_document_has_a_summary_and_a_row_a_bug() -> None:
    made = schemas.checked(document(score(CAUGHT, MISSED)))
    assert made["summary"] == {
        "bugs": 2, "caught": 1, "caught_by_upstream": 1, "run_by_upstream": 2,
    }  # fmt: skip
    first, second = made["results"]
    assert first == {
        "bug": "mask-dim-3",
        "title": "The mask",
        "backend": "cpu",
        "kind": "kernel",
        "patch": "0012-mask-dim-3.patch",
        "what": "the sequence chooses along dimension 2",
        "shown_by": "several sequences",
        "reported": "o/r#1",
        "mended": "in 1.0",
        "caught": True,
        "caught_by_upstream": True,
        "upstream_line": "FLASH_ATTN_EXT(hsk=64)",
        "suite": "gate",
        "case": str(suite("seed")[0]),
        "comparison": "standard_vs_oracle",
        "needs_state": False,
        "reason": KILLED.reason,
        "cases": 3,
        "seconds": 0.25,
        "repro": "fa-harness museum -v -k '^mask-dim-3$'",
    }
    assert (second["caught"], second["caught_by_upstream"], second["case"]) == (False, False, None)


def test_a_run_of_some_bugs_on_a_suite_writes_its_report(museum_library: Library) -> None:
    done = command("--suite", "seed", "-k", "^(dot-starts-twice|gqa-power-of-2)$", "--json", "-")
    assert done.returncode == 1, done.stderr
    made = schemas.checked(json.loads(done.stdout))
    assert made["suites"] == ["seed"]
    caught = {row["bug"]: row["caught"] for row in made["results"]}
    assert caught == {"dot-starts-twice": True, "gqa-power-of-2": False}


def test_killers_are_not_searched_for_and_recorded_at_once() -> None:
    done = command("--killers", "--record")
    assert done.returncode == 2
    assert "leave out --suite and --record" in done.stderr


def test_a_pattern_that_no_bug_matches_is_refused() -> None:
    done = command("-k", "nothing-like-it")
    assert done.returncode == 2
    assert "bugs matches -k 'nothing-like-it'" in done.stderr


def test_list_prints_where_each_bug_was_and_runs_none() -> None:
    done = command("--list", "-k", "^mask-dim-3$")
    assert done.returncode == 0
    assert done.stdout.split()[:3] == ["mask-dim-3", "cpu", "ggml-org/llama.cpp#14505"]
