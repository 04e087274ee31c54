"""`museum`: faults that kernels really had, put back, and who sees them.

Its JSON has the schema `fa-harness.museum/1`.
"""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import click
from rich.console import Console
from rich.text import Text

from fa_harness.build.builder import build_test_backend_ops
from fa_harness.build.named import held_library
from fa_harness.build.names import MUSEUM, Name
from fa_harness.case.label import label, regex
from fa_harness.case.suites import suite as cases_of_suite
from fa_harness.cli import options
from fa_harness.cli.mutants import told_by
from fa_harness.engine.session import Clock, Session
from fa_harness.errors import UsageError
from fa_harness.hunt import mutants, upstream_test
from fa_harness.hunt.museum import (
    SUITES,
    Bug,
    load,
    load_upstream,
    needs_state,
    save_upstream,
    smallest,
)
from fa_harness.hunt.mutants import Outcome, load_killers, renewed, save_killers
from fa_harness.project import Project
from fa_harness.terminal import counted, make_console, number_of, say, say_summary, write_json

SCHEMA = "fa-harness.museum/1"

_STYLE = {True: "green", False: "bold red", None: "dim"}
_SEEN = {True: "seen", False: "not seen", None: "not run"}


@click.command("museum")
@click.option(
    "--suite", "suites", metavar="NAME", multiple=True, help="Use this suite's cases; repeatable."
)
@click.option(
    "--killers", is_flag=True, help="Run only the case that is recorded as the bug's killer."
)
@click.option("--upstream", is_flag=True, help="Run upstream's own test on each bug, too.")
@click.option(
    "--record", is_flag=True, help="Record the killing cases, shrunk, and what --upstream found."
)
@click.option("-k", "pattern", metavar="REGEX", help="Select bugs by id.")
@click.option("--list", "list_only", is_flag=True, help="Print the selected bugs and exit.")
@options.series
@options.json_path
@click.option("-v", "--verbose", is_flag=True, help="Print what each bug was and where it was.")
def command(
    *,
    suites: tuple[str, ...],
    killers: bool,
    upstream: bool,
    record: bool,
    pattern: str | None,
    list_only: bool,
    series: str | None,
    json_path: str | None,
    verbose: bool,
) -> bool:
    """Put bugs back that kernels really had and check who sees them.

    Each bug runs the cases of suite gate until one fails. What upstream's own test says is recorded
    in museum/upstream.toml of the series; --upstream runs it, which takes minutes for a bug that it
    does not see. Exit code 1: no case saw a bug.

    --killers takes seconds: it runs the cases in museum/killers.toml of the series only.
    """
    if killers and (suites or record):
        raise UsageError("--killers tries recorded cases; leave out --suite and --record")
    project = options.project_of(series)
    folder = project.museum
    every = load(folder / "museum.toml")
    bugs = [
        replace(bug, mutant=replace(bug.mutant, series=series or ""))
        for bug in every
        if regex(pattern).search(bug.mutant.id)
    ]
    if not bugs:
        raise UsageError(f"none of {len(every)} bugs matches -k {pattern!r}; --list shows them")
    if list_only:
        for bug in bugs:
            click.echo(f"{bug.mutant.id:28}  {bug.backend:8}  {bug.reported:30}  {bug.title}")
        return True
    console = make_console(stderr=json_path == "-")
    cases = {} if killers else {name: cases_of_suite(name) for name in suites or SUITES}
    switches = [bug.mutant for bug in bugs]
    recorded = load_killers(folder / "killers.toml", [bug.mutant for bug in every])
    lines = load_upstream(folder / "upstream.toml", every)
    name = str(Name(project=project, part=MUSEUM))
    program = build_test_backend_ops(project, name, options={}) if upstream else None
    found: dict[str, Finding] = {}
    with held_library(name, {}) as library:
        clock = Clock(library)
        if killers:
            trials = mutants.run_killers(library, switches, recorded)
        else:
            trials = mutants.run(library, switches, cases)
        say(console, f"{'bug':28}  {'gate':8}  {'upstream':8}  {'by':24}  case", "bold")
        with (
            contextlib.suppress(KeyboardInterrupt),  # the report has fewer rows than bugs
            counted(console, "bugs", len(bugs)) as advance,
        ):
            for bug, outcome in _with_bugs(bugs, trials):
                if program:
                    lines[bug.mutant.id] = upstream_test.sees(program, bug.mutant.id)
                if record:
                    outcome = smallest(library.module_path, outcome)
                finding = Finding(bug=bug, outcome=outcome, line=lines.get(bug.mutant.id))
                found[bug.mutant.id] = finding
                print_finding(console, finding, verbose=verbose)
                advance()
        score = Score(
            **clock.fields(interrupted=len(found) < len(bugs)),
            suites=tuple(cases),
            n_bug=len(bugs),
            findings=tuple(found[bug.mutant.id] for bug in bugs if bug.mutant.id in found),
        )
        if record:
            outcomes = mutants.on_one_thread(library, [f.outcome for f in score.findings])
    print_summary(console, score)
    write_json(document(score), json_path)
    if record:
        _record(project, every, renewed(recorded, outcomes), lines if program else {})
    return score.passed


def _record(
    project: Project, bugs: Iterable[Bug], killers: dict[str, Any], lines: dict[str, str]
) -> None:
    every = tuple(bugs)
    save_killers(project.museum / "killers.toml", killers, [bug.mutant for bug in every])
    if lines:
        save_upstream(project.museum / "upstream.toml", lines, every)


def _with_bugs(bugs: Iterable[Bug], outcomes: Iterable[Outcome]) -> Iterator[tuple[Bug, Outcome]]:
    by_id = {bug.mutant.id: bug for bug in bugs}
    for outcome in outcomes:
        yield by_id[outcome.mutant.id], outcome


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Who sees a bug."""

    bug: Bug
    outcome: Outcome
    line: str | None
    """Of upstream's test the line that sees it, empty if none does; None where it was not run."""

    @property
    def is_caught(self) -> bool:
        """Whether a case of the suites, or the recorded one, failed."""
        return self.outcome.status == "killed"

    @property
    def by_upstream(self) -> bool | None:
        """Whether upstream's own test sees it; None where it was not run."""
        return None if self.line is None else bool(self.line)


@dataclass(frozen=True, kw_only=True)
class Score(Session):
    """Who sees which of the bugs."""

    suites: tuple[str, ...]
    """Those that were tried; none where recorded killers were."""
    n_bug: int
    findings: tuple[Finding, ...]
    """Fewer where the run was interrupted."""

    @property
    def n_caught(self) -> int:
        """How many the cases see."""
        return sum(finding.is_caught for finding in self.findings)

    @property
    def n_by_upstream(self) -> int:
        """How many upstream's own test sees."""
        return sum(finding.by_upstream is True for finding in self.findings)

    @property
    def n_run_by_upstream(self) -> int:
        """On how many upstream's own test ran."""
        return sum(finding.by_upstream is not None for finding in self.findings)

    @property
    def passed(self) -> bool:
        """Whether the cases see every bug."""
        return self.n_caught == self.n_bug


def print_finding(console: Console, finding: Finding, *, verbose: bool = False) -> None:
    """Print a bug's line, and where it was where no case saw it."""
    bug, outcome = finding.bug, finding.outcome
    line = Text(f"{bug.mutant.id:28}  ")
    for seen in (finding.is_caught, finding.by_upstream):
        line.append(f"{_SEEN[seen]:8}", _STYLE[seen])
        line.append("  ")
    line.append(f"{told_by(outcome):24}  {label(outcome.case) if outcome.case else ''}")
    say(console, line)
    if not finding.is_caught or verbose:
        say(console, f"    {bug.title} ({bug.backend})")
        say(console, f"    reported: {bug.reported}; mended: {bug.mended}")
        say(console, f"    {bug.mutant.does}")
        say(console, f"    shown by: {bug.mutant.shown_by}")
        say(console, f"    {outcome.reason}", _STYLE[finding.is_caught])
        if finding.line:
            say(console, f"    upstream: {finding.line}")
        say(console, f"    {_repro(bug)}", "dim")


def print_summary(console: Console, score: Score) -> None:
    """Print the last line: how many bugs, and who sees them."""
    n = len(score.findings)
    bugs = f"{n} of {score.n_bug} bugs (interrupted)" if score.interrupted else number_of(n, "bug")
    by = " and ".join(f"suite {name}" for name in score.suites) or "the recorded killers"
    head = f"{bugs}: {by} {'see' if len(score.suites) != 1 else 'sees'} {score.n_caught}"
    upstream = f"upstream's test sees {score.n_by_upstream} of {score.n_run_by_upstream}"
    rest = f"{upstream} | ggml {score.library['ggml_version']} | {score.seconds:.1f} s"
    say_summary(console, head, rest, passed=score.passed)


def document(score: Score) -> dict[str, Any]:
    """Return the JSON document as plain data."""
    return {
        **score.header(SCHEMA),
        "suites": list(score.suites),
        "summary": {
            "bugs": len(score.findings),
            "caught": score.n_caught,
            "caught_by_upstream": score.n_by_upstream,
            "run_by_upstream": score.n_run_by_upstream,
        },
        "results": [_result(finding) for finding in score.findings],
    }


def _repro(bug: Bug) -> str:
    of_series = ["--series", bug.mutant.series] if bug.mutant.series else []
    return shlex.join(["fa-harness", "museum", *of_series, "-v", "-k", f"^{bug.mutant.id}$"])


def _result(finding: Finding) -> dict[str, Any]:
    bug, outcome = finding.bug, finding.outcome
    return {
        "bug": bug.mutant.id,
        "title": bug.title,
        "backend": bug.backend,
        "kind": bug.mutant.kind,
        "patch": bug.mutant.patch,
        "what": bug.mutant.does,
        "shown_by": bug.mutant.shown_by,
        "reported": bug.reported,
        "mended": bug.mended,
        "caught": finding.is_caught,
        "caught_by_upstream": finding.by_upstream,
        "upstream_line": finding.line or None,
        "suite": outcome.suite or None,
        "case": str(outcome.case) if outcome.case else None,
        "comparison": outcome.comparison or None,
        "needs_state": needs_state(outcome) if finding.is_caught else None,
        "reason": outcome.reason,
        "cases": outcome.n_case,
        "seconds": round(outcome.seconds, 4),
        "repro": _repro(bug),
    }
