"""What `series check` and `mutants` found last of a series with the patches as they are now."""

from __future__ import annotations

from collections.abc import Mapping

from fa_harness.errors import SetupError
from fa_harness.project import Project
from fa_harness.series import kept
from fa_harness.series.series import load_mutants, series_for
from fa_harness.upstream.source import Source


def of_pin(project: Project, source: Source) -> bool | None:
    """Return whether the series was found to hold on an upstream; None where it was not checked."""
    found = kept.recall(project, "checked", *_checked(project, source))
    return None if found is None else bool(found["passed"])


def keep_of_pin(project: Project, source: Source, *, passed: bool) -> None:
    """Keep whether the series holds on an upstream, with the suites that it names."""
    kept.keep(project, "checked", *_checked(project, source), result={"passed": passed})


def of_mutants(project: Project, source: Source) -> dict[str, int] | None:
    """Return how many of the series' mutants had which outcome; None where they were not run."""
    try:
        found = kept.recall(project, "mutants", *_of_mutants(project, source))
    except SetupError:  # it has none
        return None
    return None if found is None else {str(status): int(n) for status, n in found.items()}


def keep_of_mutants(project: Project, source: Source, counts: Mapping[str, int]) -> None:
    """Keep how many of the series' mutants had which outcome."""
    kept.keep(project, "mutants", *_of_mutants(project, source), result=dict(counts))


def _checked(project: Project, source: Source) -> tuple[str, ...]:
    suites = project.about().suites
    return (source.digest, *series_for(project, source).digests, "suites", *suites)


def _of_mutants(project: Project, source: Source) -> tuple[str, ...]:
    of_series = series_for(project, source).digests
    return (source.digest, *of_series, *load_mutants(project).digests)
