"""`fuzz`: cases drawn at random, and the case file that keeps what fails."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path

from rich.console import Console

from fa_harness import __version__
from fa_harness.build.named import held_library
from fa_harness.case.case_file import add_case, read_cases
from fa_harness.engine.runner import Runner
from fa_harness.hunt.fuzz import Found, Fuzz, Fuzzer
from fa_harness.machine import cpu_model, usable_cores
from fa_harness.project import find_project, locked
from fa_harness.report.fuzz import Ticker, print_found, print_summary
from fa_harness.report.results import repro
from fa_harness.upstream.source import chosen


def find_failures(
    *,
    library: str,
    options: Mapping[str, str] = {},
    seconds: float,
    seed: int,
    max_cases: int | None,
    failures: Path | None,
    console: Console,
) -> Fuzz:
    """Run the failures of earlier runs and then cases drawn from a seed until the time is up.

    Ctrl-C ends the run, not the report.

    Args:
        library: Name of the library.
        options: CMake options that it was built with.
        seconds: When to stop.
        seed: What the cases are drawn from.
        max_cases: The most cases to draw.
        failures: The case file that has the earlier failures and gets the new ones; the project's
            own where it is None.
        console: Where progress and failures go.

    Raises:
        UsageError: There is no library of that name, or the file holds something else than cases.
        SetupError: The library is not built, not current, or does not load.
    """
    from fa_harness.case.strategies import draw_cases  # hypothesis takes its time to load

    project = find_project()
    if failures is None:
        failures = project.build / "fuzz" / "failures.txt"
    kept_in = project.relative(failures.resolve())
    started, start = datetime.now(timezone.utc), time.perf_counter()
    stored = read_cases(failures) if failures.exists() else []
    with (
        held_library(library, options) as found,
        Runner(found.module_path) as runner,
        Ticker(console) as ticker,
    ):

        def keep(failure: Found) -> None:
            verdict = failure.verdict
            with locked(project):
                add_case(failures, verdict.case, comment=f"{verdict.status}: {verdict.reason}")
            command = repro(
                verdict.case,
                library=library,
                options=options,
                modes=(),
                environment=chosen(),
            )
            print_found(console, failure, command=command, kept_in=kept_in)

        fuzzer = Fuzzer(
            runner,
            seconds=seconds,
            on_verdict=lambda _: ticker.show(fuzzer.tally, len(fuzzer.found)),
            on_found=keep,
        )
        fuzzer.run(list(dict.fromkeys(stored)), itertools.islice(draw_cases(seed), max_cases))
    fuzz = Fuzz(
        tool_version=__version__,
        library=found.to_json(),
        machine={"cpu": cpu_model(), "threads": usable_cores()},
        seed=seed,
        started=started,
        seconds=time.perf_counter() - start,
        tally=fuzzer.tally,
        found=fuzzer.found,
        failures_file=kept_in,
        interrupted=fuzzer.interrupted,
        options=options,
        environment=chosen(),
    )
    print_summary(console, fuzz)
    return fuzz
