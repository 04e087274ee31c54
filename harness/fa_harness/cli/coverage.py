"""`--coverage` of `run` and `gate`: cases on the library that counts its branches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fa_harness.build.coverage import COVERAGE
from fa_harness.build.named import held_library
from fa_harness.build.names import find_name
from fa_harness.case.case import Case
from fa_harness.cli.options import How, Reports
from fa_harness.cli.run import run_with
from fa_harness.engine.runner import Runner
from fa_harness.errors import UsageError
from fa_harness.hunt.coverage import counted, measure
from fa_harness.project import find_project
from fa_harness.report.branches import print_coverage
from fa_harness.terminal import make_console


def run_covered(
    cases: Sequence[Case],
    how: How,
    modes: tuple[str, ...] | None,
    reports: Reports,
    *,
    strict: bool = False,
) -> bool:
    """Run cases on the library `coverage`, and report what they do not reach.

    Return whether all passed, and, if it is `strict`, whether nothing was missed.
    """
    name = find_name(find_project(), how.library)
    if name.part not in ("", COVERAGE):
        raise UsageError(
            f"--coverage runs the library '{COVERAGE}' of a stack, which counts; name the stack "
            "with --library, or leave it out"
        )
    name = replace(name, part=COVERAGE)
    how = replace(how, library=str(name))
    console = make_console(stderr=reports.to_stdout)
    with held_library(how.library, how.options) as library, counted() as counts:
        with Runner(library.module_path) as runner:
            results = run_with(runner, library, cases, how, modes, console, write=reports.write)
        if results.interrupted:  # what the others would have reached is not known
            reports.write(results)
            return False
        coverage = measure(name.project, library, counts)
    print_coverage(console, coverage)
    reports.write(replace(results, coverage=coverage.to_json()))
    return results.passed and not (strict and coverage.missed)
