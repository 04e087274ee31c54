"""`bisect`: a case on the library of each prefix of the series."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from datetime import datetime, timezone

from rich.console import Console

from fa_harness.build import builder as build
from fa_harness.build.library import Library, held
from fa_harness.build.named import current_library
from fa_harness.build.names import library_names
from fa_harness.case.case import Case
from fa_harness.engine.runner import Runner
from fa_harness.errors import SetupError
from fa_harness.hunt.bisect import Bisected, Prefix, run_on
from fa_harness.judge.verdict import Verdict
from fa_harness.project import find_project
from fa_harness.report.bisect import print_headings, print_row, print_turns
from fa_harness.series.series import Series, series_for, title
from fa_harness.upstream.source import find_source


def bisect_case(
    case: Case, *, may_build: bool, options: Mapping[str, str] = {}, console: Console
) -> Bisected:
    """Run a case on the library of each prefix of the series, and print each.

    Args:
        case: The case.
        may_build: Build the libraries that are missing or not current.
        options: CMake options that they are built with.
        console: Where the table goes.

    Raises:
        SetupError: One is missing and may not be built, does not build or does not load.
    """
    project = find_project()
    wanted = prefixes(series_for(project, find_source(project)))
    if may_build:
        names = [prefix.library for prefix in wanted]
        libraries = build.build(project, names, options=options)
    else:
        libraries = [_built(prefix.library, options) for prefix in wanted]
    started, start = datetime.now(timezone.utc), time.perf_counter()
    rows = []
    print_headings(console)
    with contextlib.ExitStack() as stack:
        as_built = [stack.enter_context(held(library)) for library in libraries]
        for prefix, library in zip(wanted, as_built, strict=True):
            with Runner(library.module_path) as runner:

                def run_modes(modes: tuple[str, ...] | None, runner: Runner = runner) -> Verdict:
                    [verdict] = runner.run([case], modes=modes)
                    return verdict

                rows.append(run_on(prefix, run_modes))
            print_row(console, rows[-1])
    bisected = Bisected(
        case=case,
        upstream=libraries[-1].upstream,
        started=started,
        seconds=time.perf_counter() - start,
        rows=tuple(rows),
    )
    print_turns(console, bisected)
    return bisected


def prefixes(series: Series) -> list[Prefix]:
    """Return the library of each prefix of a series; that of all patches is `patched`."""
    names = library_names(series)[1 : len(series.patches)]
    pristine = Prefix(library="pristine", patch="", title="upstream as it is")
    patches = zip([*names, "patched"], series.patches, strict=True)
    return [
        pristine,
        *(Prefix(library=name, patch=path.name, title=title(path)) for name, path in patches),
    ]


def _built(name: str, options: Mapping[str, str]) -> Library:
    try:
        return current_library(name, options)
    except SetupError as error:
        raise SetupError(f"{error}; or let `fa-harness bisect --build` do it") from error
