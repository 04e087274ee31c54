"""`series`: what each patch does to the cases of a suite."""

from __future__ import annotations

from collections import Counter

from fa_harness import progress
from fa_harness.commands.bisect import prefixes
from fa_harness.project import Project
from fa_harness.report.series import Colours
from fa_harness.runner import Runner
from fa_harness.suites import suite as cases_of_suite
from fa_harness.upstream import build
from fa_harness.upstream.series import load_series


def colours(project: Project, suite: str) -> list[Colours]:
    """Run a suite on the library of each prefix of the series, upstream as it is first.

    Libraries that are missing or not current are built.

    Raises:
        UsageError: There is no such suite.
        SetupError: A library does not build or does not load.
    """
    cases = cases_of_suite(suite)
    names = [prefix.library for prefix in prefixes(load_series(project))]
    found = []
    libraries = build.build(project, names)
    with progress.bar(f"running suite {suite}") as advance:
        for n, library in enumerate(libraries):
            advance(n, len(libraries))
            with Runner(library.module_path) as runner:
                verdicts = list(runner.run(cases))
            red = frozenset(str(v.case) for v in verdicts if v.status != "pass")
            found.append(Colours(red=red, counts=dict(Counter(v.status for v in verdicts))))
    return found
