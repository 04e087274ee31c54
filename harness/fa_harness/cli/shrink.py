"""`shrink`: the smallest case that fails as one does, and a C program of it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import click
from rich.console import Console
from rich.text import Text

from fa_harness.build.named import held_library
from fa_harness.case import captures
from fa_harness.case.case import Case
from fa_harness.case.modes import missing_option
from fa_harness.case.selection import check_modes
from fa_harness.cli import options
from fa_harness.cli.options import How
from fa_harness.engine.runner import Runner
from fa_harness.engine.session import Clock, Session
from fa_harness.errors import UsageError
from fa_harness.files import check_writable, write_report
from fa_harness.hunt import emit_c
from fa_harness.hunt.shrink import Failure, Shrunk, Simplification, shrink
from fa_harness.judge.verdict import Verdict
from fa_harness.judge.words import explain
from fa_harness.terminal import make_console, number_of, say

_SIMPLER_SECONDS = 5.0
"""A case that is simpler than one that fails has this time; where that is not enough, it hangs."""


@click.command("shrink")
@click.option(
    "--case",
    "case_string",
    required=True,
    metavar="STRING",
    help="A failing case, given as reports print it.",
)
@options.modes
@options.library_on
@options.seconds
@options.file(
    "--emit-c", "c_file", text="Also write a C program that reproduces it with ggml alone."
)
def command(
    *, case_string: str, modes: tuple[str, ...], how: How, seconds: float, c_file: Path | None
) -> bool:
    """Find and print the smallest case that fails in the same way.

    Exit code 1: a failing case was found and shrunk; 2: the case does not fail.
    """
    case = captures.checked(Case.parse(case_string))
    checked = check_modes(modes, [case])
    if c_file is not None:
        check_writable(c_file)
    console = make_console(stderr=True)
    smallest = shrink_case(case, how, modes=checked, seconds=seconds, console=console)
    case = smallest.shrunk.case
    click.echo(str(case))
    click.echo(smallest.session.repro(case))
    if c_file is not None:
        library = smallest.session.what_ran
        program = emit_c.program(smallest.verdict, library=library, features=smallest.features)
        write_report(c_file, program)
    return False


@dataclass(frozen=True, kw_only=True)
class Smallest:
    """The smallest failing case that was found, and how it fails on what."""

    shrunk: Shrunk
    verdict: Verdict
    session: Session
    features: tuple[str, ...]
    """CPU features that the library uses here."""


def shrink_case(
    case: Case, how: How, *, modes: tuple[str, ...] | None, seconds: float, console: Console
) -> Smallest:
    """Find the smallest case that fails on a library as a case does, and print each step to it.

    Ctrl-C ends the search; the smallest case so far is returned. The time is counted from the end
    of the case's own run.

    Raises:
        UsageError: The case does not fail.
    """
    with (
        held_library(how.library, how.options) as found,
        Runner(found.module_path, device=how.backend) as runner,
    ):
        [verdict] = runner.run([case], modes=modes)
        verdicts = {case: verdict}
        end = time.monotonic() + seconds
        interrupted = False

        def fails(candidate: Case) -> Failure | None:
            nonlocal interrupted
            if any(missing_option(candidate, mode) for mode in modes or ()):
                return None
            if candidate not in verdicts:
                try:
                    [verdicts[candidate]] = runner.run(
                        [candidate], modes=modes, timeout=_SIMPLER_SECONDS
                    )
                except KeyboardInterrupt:
                    interrupted = True
                    return None
            return Failure.of(verdicts[candidate])

        shrunk = shrink(
            case,
            fails,
            out_of_time=lambda: interrupted or time.monotonic() > end,
            on_step=lambda step: _print_step(console, step),
        )
        if shrunk is None:
            ended = "passes" if verdict.status == "pass" else f"is {verdict.status}"
            reason = f" ({verdict.reason})" if verdict.reason else ""
            raise UsageError(
                f"{case} {ended} on library {how.library!r}{reason}: nothing to shrink"
            )
        _print_end(console, shrunk, verdicts[shrunk.case])
        return Smallest(
            shrunk=shrunk,
            verdict=verdicts[shrunk.case],
            session=Clock(found, how.options, modes, backend=how.backend).session(),
            features=runner.features,
        )


def _print_step(console: Console, step: Simplification) -> None:
    """Print what is simpler in a case that still fails, and what shows that it does."""
    line = Text(f"  {step.what}")
    line.append(f"  {step.failure.name.replace('_', ' ')}", style="dim")
    say(console, line)


def _print_end(console: Console, shrunk: Shrunk, verdict: Verdict) -> None:
    """Print how far it went, and why the smallest case fails."""
    steps = number_of(len(shrunk.steps), "step")
    end = "nothing simpler fails" if shrunk.finished else "stopped before all was tried"
    say(console, f"{steps}, {shrunk.tried} cases run: {end}", "bold")
    for line in explain(verdict):
        say(console, f"    {line}")
