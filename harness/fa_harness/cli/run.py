"""`run`: cases on a library, a line for each, and what was found."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone

from rich.console import Console

from fa_harness import __version__
from fa_harness.build.library import Library
from fa_harness.build.named import held_library
from fa_harness.case.case import Case
from fa_harness.engine.runner import Runner
from fa_harness.errors import FaHarnessError, SetupError
from fa_harness.judge.verdict import Verdict
from fa_harness.machine import cpu_model, usable_cores
from fa_harness.report.console import Table, print_summary
from fa_harness.report.results import Results
from fa_harness.upstream.source import chosen


class EndedError(FaHarnessError):
    """Something ended a run before its last case.

    Attributes:
        cause: what.
        results: what ran until then.
    """

    exit_status = SetupError.exit_status

    def __init__(self, cause: Exception | SystemExit, results: Results) -> None:
        super().__init__(str(cause))
        self.cause = cause
        self.results = results


def run_cases(
    cases: Sequence[Case],
    *,
    library: str,
    options: Mapping[str, str] = {},
    modes: tuple[str, ...] | None,
    timeout: float | None,
    console: Console,
    verbose: bool,
) -> Results:
    """Run cases on a built library and print a line for each.

    Ctrl-C ends the run, not the report: what ran until then is returned.

    Raises:
        UsageError: There is no library of that name.
        SetupError: It is not built, not current, or does not load.
        EndedError: A disk is full, say, or nobody reads the table.
    """
    with held_library(library, options) as found, Runner(found.module_path) as runner:
        return run_with(
            runner,
            found,
            cases,
            options=options,
            modes=modes,
            timeout=timeout,
            console=console,
            verbose=verbose,
        )


def run_with(
    runner: Runner,
    library: Library,
    cases: Sequence[Case],
    *,
    options: Mapping[str, str],
    modes: tuple[str, ...] | None,
    timeout: float | None,
    console: Console,
    verbose: bool,
) -> Results:
    """Run cases on a library that a runner has, print a line for each, then the summary.

    Ctrl-C ends the run, not the report: what ran until then is returned.

    Raises:
        EndedError: A disk is full, say, or nobody reads the table.
    """
    started, start = datetime.now(timezone.utc), time.perf_counter()
    verdicts: list[Verdict] = []

    def results(*, interrupted: bool) -> Results:
        return Results(
            tool_version=__version__,
            library=library.to_json(),
            features=runner.features,
            machine={"cpu": cpu_model(), "threads": usable_cores()},
            modes=modes or (),
            started=started,
            seconds=time.perf_counter() - start,
            verdicts=tuple(verdicts),
            selected=len(cases),
            interrupted=interrupted,
            options=options,
            environment=chosen(),
        )

    interrupted = False
    ended: Exception | SystemExit | None = None
    so_far = results(interrupted=False)
    with Table(console, total=len(cases), verbose=verbose) as table:
        try:
            for verdict in runner.run(cases, modes=modes, timeout=timeout, with_outputs=verbose):
                verdicts.append(verdict)
                table.add(verdict, so_far.repro(verdict))
        except KeyboardInterrupt:
            interrupted = True
        except (Exception, SystemExit) as error:  # rich exits where a pipe is broken
            interrupted, ended = True, error
    final = results(interrupted=interrupted)
    if ended is None or isinstance(ended, FaHarnessError):
        print_summary(console, final)
    if ended is not None:
        raise EndedError(ended, final)
    return final
