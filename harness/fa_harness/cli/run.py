"""`run`: cases on a library, a line for each, and what was found."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timezone

import click
from rich.console import Console

from fa_harness import __version__
from fa_harness.build.library import Library
from fa_harness.build.named import held_library
from fa_harness.case.case import Case
from fa_harness.case.selection import Selection, check_modes, select
from fa_harness.case.suites import SUITES
from fa_harness.cli import options
from fa_harness.cli.options import How, Reports
from fa_harness.engine.runner import Runner
from fa_harness.errors import FaHarnessError, SetupError, UsageError
from fa_harness.judge.verdict import Verdict
from fa_harness.machine import cpu_model, usable_cores
from fa_harness.project import find_project
from fa_harness.report.console import Table, print_summary
from fa_harness.report.results import Results
from fa_harness.terminal import make_console, stage
from fa_harness.upstream.source import chosen

_what = options.as_record(
    Selection,
    "what",
    options.numbers("--segments", metavar="N", help="Split the KV cache into N segments."),
    click.option(
        "--boundaries", metavar="B1,B2,...|random", help="Split it at these keys instead."
    ),
    click.option(
        "--suite",
        metavar="NAME",
        help="Suite to run: seed, smoke, default, paths, reduction, mixed, fifo or gate; several "
        "with commas.  [default: default]",
    ),
    click.option(
        "--case", "case_string", metavar="STRING", help="Run one case, given as reports print it."
    ),
    click.option(
        "--case-file",
        type=options.PATH,
        metavar="FILE",
        help="Run the cases in a file, one per line; the output of test-backend-ops works, too.",
    ),
    click.option(
        "--captured",
        type=options.PATH,
        metavar="FILE",
        help="Run the attention calls of a model, recorded by `fa-harness capture`.",
    ),
    options.modes,
    options.words("--regime", "regimes", metavar="R", help="Data regime of the inputs."),
    options.numbers("--threads", metavar="T", help="Number of threads."),
    options.seed,
    options.words(
        "--segment-types",
        metavar="T",
        help="K/V types of the segments for mode mixed, such as q4_0,q8_0/f16.",
    ),
    click.option(
        "--hot-window", type=int, metavar="N", help="Tokens in the hot window of mode fifo."
    ),
    click.option(
        "--group", type=int, metavar="N", help="Tokens that leave the hot window together."
    ),
    click.option("--cold-type", metavar="T", help="K/V type of the tokens that have left it."),
    options.pattern,
)
_how = options.as_record(
    How,
    "how",
    options.library,
    options.define,
    options.no_series,
    click.option(
        "--timeout", type=options.SECONDS, metavar="SECONDS", help="Time limit for each case."
    ),
    click.option(
        "-v",
        "--verbose",
        is_flag=True,
        help="Print repro lines and steps; put all outputs into the JSON report.",
    ),
)


@click.command("run")
@_what
@_how
@click.option("--list", "list_only", is_flag=True, help="Print the selected cases and exit.")
@options.reports
def command(*, what: Selection, how: How, list_only: bool, reports: Reports) -> None:
    """Compare attention, computed in one call and in segments, with the oracle.

    \b
    Each case is computed in every mode that applies to it:
      standard    one call, without a state
      full_state  one call, with a state
      segmented   one call per segment
      resumed     one call per segment, the state saved to a file in between
      merged      one state per segment, merged at the end
      mixed       segments of different K/V types
      fifo        a rolling cache with a hot window and a cold part

    Options that can be repeated also take a comma list: --segments 1,2,7 runs each case three
    times. Cases with boundaries of their own keep them.
    """
    cases = select(_with_usual_suites(what))
    modes = check_modes(what.modes, cases)
    if list_only:
        for case in cases:
            click.echo(str(case))
        return
    reports.check()
    console = make_console(stderr=reports.to_stdout)
    try:
        results = run_cases(cases, how, modes=modes, console=console)
    except EndedError as end:
        reports.write(end.results)
        raise end.cause from None
    reports.write(results)
    if not results.passed:
        sys.exit(1)


def _with_usual_suites(what: Selection) -> Selection:
    """Take the suites of `fa-harness.toml` where nothing says which cases."""
    config = find_project().config
    if not config.suites or any((what.suite, what.case_string, what.case_file, what.captured)):
        return what
    for name in config.suites:
        if name not in SUITES:
            known = ", ".join(SUITES)
            raise UsageError(f"{config.where('suites')} '{name}' is unknown; there are {known}")
    return replace(what, suite=",".join(config.suites))


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
    cases: Sequence[Case], how: How, *, modes: tuple[str, ...] | None, console: Console
) -> Results:
    """Run cases on a built library and print a line for each.

    Ctrl-C ends the run, not the report: what ran until then is returned.

    Raises:
        UsageError: There is no library of that name.
        SetupError: It does not build or does not load.
        EndedError: A disk is full, say, or nobody reads the table.
    """
    with held_library(how.library, how.options) as found, Runner(found.module_path) as runner:
        offered = modes or _offered(runner, found)
        return run_with(runner, found, cases, how, modes=offered, console=console)


def _offered(runner: Runner, library: Library) -> tuple[str, ...] | None:
    """The one mode of a checkout that did not take the series; None for those of each case."""
    if not library.series_note or runner.has_state:
        return None
    stage(f"{library.upstream} has no flash attention with a state: only mode standard runs")
    return ("standard",)


def run_with(
    runner: Runner,
    library: Library,
    cases: Sequence[Case],
    how: How,
    *,
    modes: tuple[str, ...] | None,
    console: Console,
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
            options=how.options,
            environment=chosen(),
        )

    interrupted = False
    ended: Exception | SystemExit | None = None
    so_far = results(interrupted=False)
    with Table(console, cases, verbose=how.verbose) as table:
        try:
            for verdict in runner.run(
                cases, modes=modes, timeout=how.timeout, with_outputs=how.verbose
            ):
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
