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
from fa_harness.upstream.lint import Finding
from fa_harness.upstream.series import series_for
from fa_harness.upstream.source import find_source

KERNEL = "+++ b/ggml/src/ggml-cpu/"
"""In each patch that changes what the CPU backend computes."""


def without_effect(project: Project, of_prefixes: list[Colours], suite: str) -> list[Finding]:
    """Return the patches of the kernel that turn no case of a suite green.

    Args:
        project: Where `patches/` is.
        of_prefixes: What `colours` returned.
        suite: The suite's name.
    """
    patches = series_for(project, find_source(project)).patches
    found = []
    for i, patch in enumerate(patches):
        before, after = of_prefixes[i], of_prefixes[i + 1]
        if KERNEL in patch.read_text("utf-8", errors="replace") and not before.red - after.red:
            text = f"no case of suite {suite} fails before it and passes after it"
            found.append(
                Finding(
                    level="should", rule="test", patch=patch.name, line=1, file="", file_line=0,
                    text=text,
                )
            )  # fmt: skip
    return found


def colours(project: Project, suite: str) -> list[Colours]:
    """Run a suite on the library of each prefix of the series, upstream as it is first.

    Libraries that are missing or not current are built.

    Raises:
        UsageError: There is no such suite.
        SetupError: A library does not build or does not load.
    """
    cases = cases_of_suite(suite)
    names = [prefix.library for prefix in prefixes(series_for(project, find_source(project)))]
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
