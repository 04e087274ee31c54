"""`mutants`: faults in the kernel, and the cases that notice them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime, timezone

from rich.console import Console

from fa_harness import __version__
from fa_harness.build.named import held_library
from fa_harness.build.names import MUTANTS
from fa_harness.case.selection import regex
from fa_harness.case.suites import suite as cases_of_suite
from fa_harness.errors import UsageError
from fa_harness.hunt import mutants
from fa_harness.hunt.mutants import Mutant, Outcome
from fa_harness.machine import cpu_model, usable_cores
from fa_harness.project import find_project
from fa_harness.report.mutants import Score, Table, print_summary


def select_mutants(pattern: str | None) -> list[Mutant]:
    """Return the mutants that a call asks for.

    Args:
        pattern: Regular expression that a mutant's id must match.

    Raises:
        UsageError: None does, or it is no regular expression.
        SetupError: The list of mutants cannot be read.
    """
    every = mutants.load(find_project().mutants / "mutants.toml")
    selected = [mutant for mutant in every if regex(pattern).search(mutant.id)]
    if not selected:
        raise UsageError(f"none of {len(every)} mutants matches -k {pattern!r}; --list shows them")
    return selected


def try_mutants(
    selected: Sequence[Mutant],
    suites: Sequence[str],
    *,
    console: Console,
    verbose: bool,
) -> Score:
    """Try mutants and print a line for each.

    Ctrl-C ends the run, not the report: what was found until then is returned.

    Args:
        selected: The mutants.
        suites: Suites whose cases are tried, one after the other.
        console: Where to print.
        verbose: Print of the killed ones, too, what they do and what the verdict said.

    Raises:
        UsageError: There is no suite of that name.
        SetupError: The library `mutants` is not built, not current, or does not load.
    """
    cases = {suite: cases_of_suite(suite) for suite in suites}
    started, start = datetime.now(timezone.utc), time.perf_counter()
    outcomes: dict[str, Outcome] = {}
    with (
        held_library(MUTANTS, {}) as found,
        Table(console, total=len(selected), verbose=verbose) as table,
    ):
        try:
            for outcome in mutants.run(found, selected, cases):
                outcomes[outcome.mutant.id] = outcome
                table.add(outcome)
        except KeyboardInterrupt:
            pass  # the report has fewer outcomes than mutants
    score = Score(
        tool_version=__version__,
        library=found.to_json(),
        machine={"cpu": cpu_model(), "threads": usable_cores()},
        started=started,
        seconds=time.perf_counter() - start,
        suites=tuple(suites),
        selected=tuple(selected),
        outcomes=tuple(outcomes[m.id] for m in selected if m.id in outcomes),
    )
    print_summary(console, score)
    return score
