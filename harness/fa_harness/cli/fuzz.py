"""`fuzz`: cases drawn at random, and the case file that keeps what fails.

Its JSON has the schema `fa-harness.fuzz/1`.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from fa_harness.build.named import held_library
from fa_harness.case.case_file import add_case, read_cases
from fa_harness.case.label import label
from fa_harness.cli import options
from fa_harness.cli.options import How
from fa_harness.engine.runner import Runner
from fa_harness.engine.session import Clock, offered_modes
from fa_harness.files import check_writable
from fa_harness.hunt.fuzz import Found, Fuzz, Fuzzer, Tally
from fa_harness.judge.verdict import STATUSES
from fa_harness.judge.words import explain
from fa_harness.project import find_project, locked
from fa_harness.terminal import make_console, number_of, say, say_summary, write_json

SCHEMA = "fa-harness.fuzz/1"

_SECONDS = 60.0
_LINE_SECONDS = 10.0


@click.command("fuzz")
@options.count("--cases", "Draw N cases, the same on any machine for the same seed.", metavar="N")
@click.option(
    "--seconds",
    type=options.SECONDS,
    metavar="S",
    help="Time limit.  [default: 60, none with --cases]",
)
@options.count("--seed", "Seed of the cases.  [default: a new one each time]", least=0, metavar="S")
@options.library_on
@options.file(
    "--failures",
    text="Case file for failures, which run first.  [default: build/fuzz/failures.txt]",
)
@options.json_path
def command(
    *,
    cases: int | None,
    seconds: float | None,
    seed: int | None,
    how: How,
    failures: Path | None,
    json_path: str | None,
) -> bool:
    """Run random cases; shrink and keep those that fail.

    Failures of earlier runs run first. They are kept in an ordinary case file, which can be
    committed and passed to `fa-harness run --case-file`.
    """
    if failures is not None:
        check_writable(failures)
    result = find_failures(
        how,
        cases=cases,
        seconds=_SECONDS if (cases, seconds) == (None, None) else seconds,
        seed=random.randrange(2**32) if seed is None else seed,
        failures=failures,
        console=make_console(stderr=json_path == "-"),
    )
    write_json(document(result), json_path)
    return result.passed


def find_failures(
    how: How,
    *,
    cases: int | None,
    seconds: float | None,
    seed: int,
    failures: Path | None,
    console: Console,
) -> Fuzz:
    """Run the failures of earlier runs, then so many cases drawn from a seed, or for some time.

    Ctrl-C ends the run, not the report. Failures are kept in a case file: the project's own where
    none is given.
    """
    from fa_harness.case.strategies import draw_cases  # hypothesis takes its time to load

    project = find_project()
    if failures is None:
        failures = project.build / "fuzz" / "failures.txt"
    kept_in = project.relative(failures.resolve())
    stored = read_cases(failures) if failures.exists() else []
    with (
        held_library(how.library, how.options) as found,
        Runner(found.module_path, device=how.backend) as runner,
        ticker(console) as show,
    ):
        modes = offered_modes(runner, found)
        clock = Clock(found, how.options, modes, backend=how.backend)

        def keep(failure: Found) -> None:
            verdict = failure.verdict
            with locked(project, kept_in):
                add_case(failures, verdict.case, comment=f"{verdict.status}: {verdict.reason}")
            print_found(console, failure)
            say(console, f"    {clock.session().repro(verdict.case)}", "dim")
            say(console, f"    kept in {kept_in}", "dim")

        fuzzer = Fuzzer(
            runner,
            seconds=seconds,
            on_verdict=lambda _: show(fuzzer.tally, len(fuzzer.found)),
            on_found=keep,
            modes=modes,
        )
        fuzzer.run(list(dict.fromkeys(stored)), itertools.islice(draw_cases(seed), cases))
    fuzz = Fuzz(
        **clock.fields(interrupted=fuzzer.interrupted),
        seed=seed,
        tally=fuzzer.tally,
        found=fuzzer.found,
        failures_file=kept_in,
    )
    print_summary(console, fuzz)
    return fuzz


@contextlib.contextmanager
def ticker(console: Console) -> Iterator[Callable[[Tally, int], None]]:
    """Show how far the run is: a line that changes on a terminal, a line now and then elsewhere.

    Yields what shows a tally and the number of failures.
    """
    start = last = time.monotonic()
    columns = (SpinnerColumn(), TextColumn("[progress.description]{task.description}"))
    is_terminal = console.is_terminal
    with Progress(
        *columns, TimeElapsedColumn(), console=console, transient=True, disable=not is_terminal
    ) as progress:
        task = progress.add_task("0 cases", total=None)

        def show(tally: Tally, n_found: int) -> None:
            nonlocal last
            now = time.monotonic()
            words = (
                f"{tally.cases} cases, {tally.cases / max(now - start, 1e-9):.0f} a second, "
                f"{number_of(n_found, 'failure')}"
            )
            progress.update(task, description=words)
            if not is_terminal and now - last >= _LINE_SECONDS:
                last = now
                say(console, f"{now - start:5.0f} s  {words}")

        yield show


def print_found(console: Console, found: Found) -> None:
    """Print a failure: the smallest case, and why it fails."""
    verdict = found.verdict
    head = Text(f"{verdict.status}: {label(verdict.case)}", style="bold red")
    if verdict.case != found.drawn:
        head.append(f", shrunk from {label(found.drawn)}", style="not bold default")
    say(console, head)
    for line in explain(verdict):
        say(console, f"    {line}")


def print_summary(console: Console, fuzz: Fuzz) -> None:
    """Print what ran, and how it ended."""
    tally = fuzz.tally
    for name, counts in tally.coverage().items():
        listed = ", ".join(f"{what} {n}" for what, n in counts.most_common() if n)
        say(console, f"{name.replace('_', ' '):10} {listed or 'none'}")
    parts = [f"{tally.statuses[s]} {s}" for s in STATUSES if tally.statuses[s]]
    ended = " (interrupted)" if fuzz.interrupted else ""
    head = f"{number_of(tally.cases, 'case')}{ended}: {', '.join(parts) or 'none ran'}"
    if fuzz.found:
        head += f", {number_of(len(fuzz.found), 'kind')} of failure"
    rest = f"{fuzz.what_ran} | seed {fuzz.seed} | {fuzz.seconds:.1f} s"
    say_summary(console, head, rest, passed=fuzz.passed)


def document(fuzz: Fuzz) -> dict[str, Any]:
    """Return the document as plain data."""
    tally = fuzz.tally
    return {
        **fuzz.header(SCHEMA),
        "seed": fuzz.seed,
        "summary": {
            "cases": tally.cases,
            **{status: tally.statuses[status] for status in STATUSES},
            "failures": len(fuzz.found),
        },
        "coverage": {
            name: dict(sorted((+counts).items())) for name, counts in tally.coverage().items()
        },
        "failures_file": fuzz.failures_file,
        "failures": [
            {
                "case": str(found.verdict.case),
                "drawn": str(found.drawn),
                "status": found.verdict.status,
                "path": found.verdict.path,
                "reason": found.verdict.reason,
                "explanation": explain(found.verdict),
                "cases": found.count,
                "repro": fuzz.repro(found.verdict.case),
            }
            for found in fuzz.found
        ],
    }
