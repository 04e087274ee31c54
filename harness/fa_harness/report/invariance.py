"""What `run --invariance` found: a table per case, and a JSON document.

The document has the schema `fa-harness.invariance/1`.
"""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from fa_harness.case.case import Case
from fa_harness.case.label import label
from fa_harness.engine.session import Session
from fa_harness.hunt.invariance import NOT_VARIED, Found, Row, Verdict
from fa_harness.judge.invariance import DIFFERS, ROUNDED, Outcome
from fa_harness.judge.shares import in_words
from fa_harness.report.json import plain
from fa_harness.terminal import number_of, say, say_summary

SCHEMA = "fa-harness.invariance/1"
_STYLES = {ROUNDED: "yellow", NOT_VARIED: "dim"}


def say_case(console: Console, case: Case, path: str) -> None:
    """Print the head of a case's table."""
    say(console, f"{label(case)}, {path} path", "bold")
    say(console, f"  {'variation':23}  {'calls':>5}  {'path':12}  result", "bold")


def say_row(console: Console, row: Row) -> None:
    """Print a line of the table, and below it what a person needs to go on if it did not pass."""
    head = f"  {row.name:23}  {row.calls or '-':>5}  {'+'.join(row.paths) or '-':12}  "
    line = Text(head)
    line.append(_result(row), _STYLES.get(row.outcome, "green") if row.passed else "bold red")
    say(console, line)
    if row.passed:
        return
    for text in _explained(row.worst) if row.worst else row.reason.splitlines():
        say(console, f"    {text}")


def say_unsupported(console: Console, verdict: Verdict) -> None:
    """Print why a case was not varied."""
    say(console, f"    unsupported: {verdict.unsupported}", "yellow")


def _result(row: Row) -> str:
    if row.outcome == NOT_VARIED:
        return f"not varied: {row.reason}"
    words = f"{row.outcome}: fail" if row.outcome == DIFFERS else row.outcome
    if row.outcome == ROUNDED and row.worst is not None:
        words += f", {in_words(row.worst.comparison.of_bound)} of bound"
        if row.worst.overflowed:
            words += f"; {number_of(row.worst.overflowed, 'row')} of F16 overflow"
    return words


def _explained(found: Outcome) -> list[str]:
    comparison, worst = found.comparison, found.comparison.worst
    must = "must have the same bits" if found.required == "bits" else "must be within rounding"
    lines = [f"{found.variation}, {found.path} path: {must}, differs by {comparison.max_abs:.2e}"]
    if worst is not None:
        at = f"batch {worst.batch}, head {worst.head}, row {worst.row}, element {worst.dim}"
        share = in_words(comparison.of_bound)
        lines.append(f"worst at {at} of that call: {share} of what rounding explains")
    return lines


def say_total(console: Console, found: Found) -> None:
    """Print how it ended."""
    failed = sum(not verdict.passed for verdict in found.verdicts)
    none = sum(bool(verdict.unsupported) for verdict in found.verdicts)
    passed = len(found.verdicts) - failed - none
    counts = ((passed, "invariant"), (failed, "fail"), (none, "unsupported"))
    parts = ", ".join(f"{n} {what}" for n, what in counts if n)
    ended = " (interrupted)" if found.interrupted else ""
    head = f"{number_of(len(found.verdicts), 'case')}{ended}: {parts or 'none ran'}"
    say_summary(console, head, f"{found.what_ran} | {found.seconds:.1f} s", passed=found.passed)


def repro(session: Session, case: Case) -> str:
    """Return the command that varies a case again."""
    return session.command("run", "--invariance", "--case", str(case))


def document(found: Found) -> dict[str, Any]:
    """Return the document as plain data."""
    verdicts = found.verdicts
    return {
        **found.header(SCHEMA),
        "summary": {
            "cases": len(verdicts),
            "pass": sum(verdict.passed and not verdict.unsupported for verdict in verdicts),
            "fail": sum(not verdict.passed for verdict in verdicts),
            "unsupported": sum(bool(verdict.unsupported) for verdict in verdicts),
        },
        "results": [
            {
                "case": str(verdict.case),
                "path": verdict.path,
                "status": _status(verdict),
                "reason": verdict.unsupported,
                "rows": [_row(row) for row in verdict.rows],
                "repro": repro(found, verdict.case),
            }
            for verdict in verdicts
        ],
    }


def _status(verdict: Verdict) -> str:
    if verdict.unsupported:
        return "unsupported"
    return "pass" if verdict.passed else "fail"


def _row(row: Row) -> dict[str, Any]:
    of_worst: dict[str, Any] = {}
    if row.worst is not None:
        comparison, call = row.worst.comparison, row.worst.variation
        of_worst = {
            "call": vars(call),
            "max_abs": comparison.max_abs,
            "of_bound": comparison.of_bound,
            "worst": comparison.worst and comparison.worst._asdict(),
            "overflowed": row.worst.overflowed,
        }
    record: dict[str, Any] = plain(
        {
            "variation": row.name,
            "calls": row.calls,
            "paths": row.paths,
            "required": row.required,
            "outcome": row.outcome,
            "reason": row.reason,
            "worst_call": of_worst or None,
        }
    )
    return record
