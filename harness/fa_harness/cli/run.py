"""`run`: cases on a library, a line for each, and what was found.

With `--invariance` it is a table for each: see `hunt/invariance.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import click
from rich.console import Console

from fa_harness.build.library import Library
from fa_harness.build.named import held_library
from fa_harness.case.case import Case
from fa_harness.case.selection import Selection, check_modes, select
from fa_harness.case.suites import suite_names
from fa_harness.case.variations import one_call
from fa_harness.cli import options
from fa_harness.cli.options import How, Reports
from fa_harness.engine.ggml import CPU
from fa_harness.engine.runner import Runner
from fa_harness.engine.session import Clock, Results, is_good, offered_modes
from fa_harness.errors import FaHarnessError, UsageError
from fa_harness.hunt.invariance import Found, vary_all
from fa_harness.hunt.invariance import Verdict as Varied
from fa_harness.judge.verdict import Verdict
from fa_harness.kernel import path
from fa_harness.project import find_project
from fa_harness.report import invariance as varied_report
from fa_harness.report.console import Table, print_summary
from fa_harness.terminal import counted, make_console, say, write_json

_what = options.as_record(
    Selection,
    "what",
    options.numbers("--segments", help="Split the KV cache into N segments."),
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
    options.file(
        "--case-file",
        text="Run the cases in a file, one per line; the output of test-backend-ops works, too.",
    ),
    options.file(
        "--captured", text="Run the attention calls of a model, recorded by `fa-harness capture`."
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
    options.backend,
    click.option(
        "--timeout", type=options.SECONDS, metavar="SECONDS", help="Time limit for each case."
    ),
    options.exit_first,
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
@click.option(
    "--invariance",
    is_flag=True,
    help="Vary each case instead, in batches, order of keys, threads and more: bug or rounding?",
)
@options.list_only
@options.coverage
@options.reports
def command(
    *,
    what: Selection,
    how: How,
    invariance: bool,
    list_only: bool,
    with_coverage: bool,
    reports: Reports,
) -> bool:
    """Compare attention, computed in one call and in segments, with the oracle.

    \b
    Each case is computed in every mode that applies to it:
      standard    one call, without a state
      full_state  one call, with a state
      segmented   one call per segment
      resumed     one call per segment, the state saved to a file in between
      merged      one state per segment, merged at the end
      reduced     the same, of a library that reduces states in one op
      scheduled   under ggml's scheduler, beside another backend
      preset      one call, on a state set by hand
      mixed       segments of different K/V types
      fifo        a rolling cache with a hot window and a cold part

    Options that can be repeated also take a comma list: --segments 1,2,7 runs each case three
    times. Cases with boundaries of their own keep them.

    --coverage runs the cases on a library that counts its branches, and names those of the kernel
    that no case takes.
    """
    cases = select(_with_usual_suites(what))
    modes = check_modes(what.modes, cases)
    if list_only:
        click.echo("\n".join(map(str, cases)))
        return True
    reports.check()
    if invariance and with_coverage:
        raise UsageError("--coverage does not go with --invariance; leave one out")
    if with_coverage and how.backend != CPU:
        raise UsageError("--coverage counts branches of the CPU's kernel; leave --backend out")
    if invariance:
        return _vary(cases, what, how, reports)
    if with_coverage:
        from fa_harness.cli.coverage import run_covered  # it imports this module

        return run_covered(cases, how, modes, reports)
    results = run_cases(
        cases, how, modes, make_console(stderr=reports.to_stdout), write=reports.write
    )
    reports.write(results)
    return results.passed


def _vary(cases: Sequence[Case], what: Selection, how: How, reports: Reports) -> bool:
    """Vary cases; return whether none differs by more than rounding."""
    other = next((form for form, path in vars(reports).items() if path and form != "json"), None)
    if other is not None:
        raise UsageError(
            f"--{other} does not go with --invariance, which writes --json; leave it out"
        )
    if what.modes:
        raise UsageError(
            "--mode does not go with --invariance, which varies one call; leave it out"
        )
    found = vary_cases(cases, how, make_console(stderr=reports.to_stdout))
    write_json(varied_report.document(found), reports.json)
    return found.passed


def vary_cases(cases: Sequence[Case], how: How, console: Console) -> Found:
    """Vary cases on a built library, and print a table for each.

    Those that differ in segments alone are one. Ctrl-C ends it, not the report.
    """
    different = list(dict.fromkeys(map(one_call, cases)))
    verdicts: list[Varied] = []
    interrupted = False
    with (
        held_library(how.library, how.options) as library,
        Runner(library.module_path, device=how.backend) as runner,
    ):
        clock = Clock(library, how.options, backend=how.backend)
        try:
            for case in different:
                varied_report.say_case(console, case, path(case, features=runner.features))
                verdict = vary_all(
                    runner,
                    case,
                    timeout=how.timeout,
                    on_row=lambda row: varied_report.say_row(console, row),
                )
                verdicts.append(verdict)
                if verdict.unsupported:
                    varied_report.say_unsupported(console, verdict)
                if how.verbose or not verdict.passed:
                    say(console, f"    {varied_report.repro(clock.session(), case)}", "dim")
        except KeyboardInterrupt:
            interrupted = True
    found = Found(
        **clock.fields(interrupted=interrupted),
        verdicts=tuple(verdicts),
        selected=len(different),
    )
    varied_report.say_total(console, found)
    return found


def _with_usual_suites(what: Selection) -> Selection:
    """Take the suites of `fa-harness.toml` where nothing says which cases."""
    config = find_project().config
    if not config.suites or any((what.suite, what.case_string, what.case_file, what.captured)):
        return what
    known = suite_names()
    for name in config.suites:
        if name not in known:
            raise UsageError(
                f"{config.where('suites')} '{name}' is unknown; there are {', '.join(known)}"
            )
    return replace(what, suite=",".join(config.suites))


def run_cases(
    cases: Sequence[Case],
    how: How,
    modes: tuple[str, ...] | None,
    console: Console,
    *,
    write: Callable[[Results], None],
) -> Results:
    """Run cases on a built library; the rest is as in `run_with`."""
    with (
        held_library(how.library, how.options) as found,
        Runner(found.module_path, device=how.backend) as runner,
    ):
        return run_with(runner, found, cases, how, modes, console, write=write)


def run_with(
    runner: Runner,
    library: Library,
    cases: Sequence[Case],
    how: How,
    modes: tuple[str, ...] | None,
    console: Console,
    *,
    write: Callable[[Results], None],
    redraws: int = 0,
) -> Results:
    """Run cases on a library that a runner has, print a line for each, then the summary.

    A case whose numbers could show no fault is tried with so many of the next seeds, until it can.
    Ctrl-C ends the run, not the report: what ran until then is returned. If an error ends it (a
    disk is full, say, or nobody reads the table), `write` gets what ran until then.
    """
    modes = modes or offered_modes(runner, library)
    clock = Clock(library, how.options, modes, backend=how.backend)
    repeat = clock.session()
    verdicts: list[Verdict] = []
    ended: Exception | SystemExit | KeyboardInterrupt | None = None
    table = Table(console, cases, verbose=how.verbose)
    with counted(console, "cases", len(cases)) as advance:
        try:
            for verdict in runner.run(
                cases, modes=modes, timeout=how.timeout, with_outputs=how.verbose
            ):
                verdicts.append(verdict)
                table.add(verdict, repeat.repro(verdict.case))
                advance()
                if how.exit_first and not is_good(verdict.status):
                    break
            for i, verdict in enumerate(verdicts):
                for n in range(1, redraws + 1):
                    if verdicts[i].status != "mistrusted":
                        break
                    again = verdict.case.with_(seed=verdict.case.seed + n)
                    [verdicts[i]] = runner.run([again], modes=modes, timeout=how.timeout)
                    table.add(verdicts[i], repeat.repro(again))
        except (Exception, SystemExit, KeyboardInterrupt) as error:  # rich exits at a broken pipe
            ended = error
    final = Results(
        **clock.fields(interrupted=ended is not None),
        features=runner.features,
        verdicts=tuple(verdicts),
        selected=len(cases),
    )
    if ended is None or isinstance(ended, (FaHarnessError, KeyboardInterrupt)):
        print_summary(console, final)
    if isinstance(ended, (Exception, SystemExit)):
        write(final)
        raise ended
    return final
