"""`mutants`: faults in the kernel, and the cases that notice them.

Its JSON has the schema `fa-harness.mutants/1`.
"""

from __future__ import annotations

import contextlib
import shlex
from dataclasses import dataclass
from typing import Any

import click
from rich.console import Console
from rich.text import Text

from fa_harness.build.named import held_library
from fa_harness.build.names import MUTANTS
from fa_harness.case.label import label, regex
from fa_harness.case.suites import suite as cases_of_suite
from fa_harness.cli import options
from fa_harness.engine.session import Clock, Session
from fa_harness.errors import UsageError
from fa_harness.hunt import mutants
from fa_harness.hunt.mutants import (
    STATUSES,
    SUITES,
    Mutant,
    Outcome,
    load_killers,
    renewed,
    save_killers,
)
from fa_harness.project import find_project
from fa_harness.terminal import counted, make_console, number_of, say, say_summary, write_json

SCHEMA = "fa-harness.mutants/1"

_STYLE = {"killed": "green", "survived": "bold red", "invalid": "bold red", "equivalent": "yellow"}


@click.command("mutants")
@click.option("--suite", metavar="NAME", help="Use only the cases of this suite.")
@click.option(
    "--killers", is_flag=True, help="Run only the case that is recorded as the mutant's killer."
)
@click.option("--record", is_flag=True, help="Record the cases that kill, for --killers.")
@click.option("-k", "pattern", metavar="REGEX", help="Select mutants by id.")
@click.option("--list", "list_only", is_flag=True, help="Print the selected mutants and exit.")
@options.json_path
@click.option(
    "-v", "--verbose", is_flag=True, help="Print what each mutant does and what found it."
)
def command(
    *,
    suite: str | None,
    killers: bool,
    record: bool,
    pattern: str | None,
    list_only: bool,
    json_path: str | None,
    verbose: bool,
) -> bool:
    """Put faults into the kernel and check that the cases find them.

    Each mutant runs the cases of suite smoke, then those of larger suites, until one fails. An
    impostor, which computes nothing, must fail every case. Exit code 1: a mutant survived or was
    never executed.

    --killers takes seconds: it runs the cases in patches/mutants/killers.toml only.
    """
    if killers and (suite or record):
        raise UsageError("--killers tries recorded cases; leave out --suite and --record")
    folder = find_project().mutants
    every = mutants.load(folder / "mutants.toml")
    selected = [mutant for mutant in every if regex(pattern).search(mutant.id)]
    if not selected:
        raise UsageError(f"none of {len(every)} mutants matches -k {pattern!r}; --list shows them")
    if list_only:
        for mutant in selected:
            click.echo(f"{mutant.id:30}  {mutant.kind:8}  {mutant.does}")
        return True
    console = make_console(stderr=json_path == "-")
    suites = () if killers else (suite,) if suite else SUITES
    cases = {name: cases_of_suite(name) for name in suites}
    recorded = load_killers(folder / "killers.toml", every) if killers else {}
    outcomes: dict[str, Outcome] = {}
    with held_library(MUTANTS, {}) as found:
        clock = Clock(found)
        if killers:
            trials = mutants.run_killers(found, selected, recorded)
        else:
            trials = mutants.run(found, selected, cases)
        print_headings(console)
        with (
            contextlib.suppress(KeyboardInterrupt),  # the report has fewer outcomes than mutants
            counted(console, "mutants", len(selected)) as advance,
        ):
            for outcome in trials:
                outcomes[outcome.mutant.id] = outcome
                print_outcome(console, outcome, verbose=verbose)
                advance()
    score = Score(
        **clock.fields(interrupted=len(outcomes) < len(selected)),
        suites=suites,
        selected=tuple(selected),
        outcomes=tuple(outcomes[m.id] for m in selected if m.id in outcomes),
    )
    print_summary(console, score)
    write_json(document(score), json_path)
    if record:
        file = folder / "killers.toml"
        with held_library(MUTANTS, {}) as library:
            killed = mutants.on_one_thread(library, score.outcomes)
        save_killers(file, renewed(load_killers(file, every), killed), every)
    return score.passed


@dataclass(frozen=True, kw_only=True)
class Score(Session):
    """What became of all mutants, and what they were tried with."""

    suites: tuple[str, ...]
    """Those that were tried, in their order; none where recorded killers were."""
    selected: tuple[Mutant, ...]
    outcomes: tuple[Outcome, ...]
    """In the order of `selected`; fewer where the run was interrupted."""

    def count(self, status: str) -> int:
        """Return how many mutants have a status."""
        return sum(outcome.status == status for outcome in self.outcomes)

    @property
    def by_first_suite(self) -> tuple[int, int]:
        """How many mutants of the kernel and the API the first suite kills, and of how many."""
        faults = [
            outcome
            for outcome in self.outcomes
            if outcome.mutant.kind != "impostor" and outcome.status != "equivalent"
        ]
        return sum(fault.suite in self.suites[:1] for fault in faults), len(faults)

    @property
    def passed(self) -> bool:
        """Whether every mutant was killed or has a reason why it cannot be."""
        good = self.count("killed") + self.count("equivalent")
        return good == len(self.selected) and self.count("killed") > 0


def print_headings(console: Console) -> None:
    """Print the names of the columns."""
    say(console, f"{'mutant':30}  {'status':10}  {'by':28}  case", "bold")


def print_outcome(console: Console, outcome: Outcome, *, verbose: bool = False) -> None:
    """Print a mutant's line, and what a person needs to go on where it was not killed."""
    mutant, status = outcome.mutant, outcome.status
    case = label(outcome.case) if outcome.case else ""
    line = Text(f"{mutant.id:30}  ")
    line.append(status, _STYLE[status])
    line.append(f"{'':{10 - len(status)}}  {_by(outcome):28}  {case}")
    say(console, line)
    if status != "killed" or verbose:
        say(console, f"    {mutant.patch}: {mutant.does}")
        say(console, f"    shown by: {mutant.shown_by}")
        say(console, f"    {outcome.reason}", _STYLE[status])
        say(console, f"    {_repro(mutant)}", "dim")


def print_summary(console: Console, score: Score) -> None:
    """Print the last line: how many mutants, what became of them, on what, how long."""
    parts = [f"{score.count(status)} {status}" for status in STATUSES if score.count(status)]
    n, total = len(score.outcomes), len(score.selected)
    mutants = f"{n} of {total} mutants (interrupted)"
    if not score.interrupted:
        mutants = number_of(n, "mutant")
    alone, faults = score.by_first_suite
    by = "each against its recorded killer"
    if score.suites:
        share = f" ({alone / faults:.0%})" if faults else ""
        by = f"suite {score.suites[0]} alone kills {alone} of {faults} faults{share}"
    head = f"{mutants}: {', '.join(parts) or 'none ran'}"
    rest = f"{by} | ggml {score.library['ggml_version']} | {score.seconds:.1f} s"
    say_summary(console, head, rest, passed=score.passed)


def document(score: Score) -> dict[str, Any]:
    """Return the JSON document as plain data."""
    alone, faults = score.by_first_suite
    return {
        **score.header(SCHEMA),
        "suites": list(score.suites),
        "summary": {
            "mutants": len(score.outcomes),
            **{status: score.count(status) for status in STATUSES},
            "faults": faults,
            "killed_by_first_suite": alone,
        },
        "results": [_result(outcome) for outcome in score.outcomes],
    }


def _repro(mutant: Mutant) -> str:
    """Return the command that tries a mutant again."""
    return shlex.join(["fa-harness", "mutants", "-v", "-k", f"^{mutant.id}$"])


def _result(outcome: Outcome) -> dict[str, Any]:
    mutant = outcome.mutant
    return {
        "mutant": mutant.id,
        "class": mutant.class_,
        "kind": mutant.kind,
        "patch": mutant.patch,
        "does": mutant.does,
        "shown_by": mutant.shown_by,
        "status": outcome.status,
        "suite": outcome.suite or None,
        "case": str(outcome.case) if outcome.case else None,
        "comparison": outcome.comparison or None,
        "reason": outcome.reason,
        "cases": outcome.n_case,
        "seconds": round(outcome.seconds, 4),
        "repro": _repro(mutant),
    }


def _by(outcome: Outcome) -> str:
    """Return what told: the comparison, or in short the reason."""
    if outcome.status != "killed":
        return ""
    if outcome.mutant.kind == "impostor" and outcome.suite:
        return f"each of {outcome.n_case} cases"
    return outcome.comparison or outcome.reason.partition("\n")[0].partition(":")[0]
