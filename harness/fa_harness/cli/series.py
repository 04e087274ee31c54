"""`series`: what each patch does to the cases of a suite."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from fa_harness import progress
from fa_harness.build import builder as build
from fa_harness.case.case import Case
from fa_harness.case.suites import suite as cases_of_suite
from fa_harness.cli.bisect import prefixes
from fa_harness.engine.runner import Runner
from fa_harness.errors import SetupError
from fa_harness.project import Project, locked
from fa_harness.report.series import CheckedUpstream, Colours, SuiteOutcome, WrongCase
from fa_harness.series.drift import drift
from fa_harness.series.lint import Finding
from fa_harness.series.series import load_series, series_for
from fa_harness.series.tree import prepare_tree
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


def check(
    project: Project, upstreams: Sequence[str], suites: Sequence[str]
) -> Iterator[CheckedUpstream]:
    """Yield what becomes of the series on each upstream: does it apply, build, and pass.

    A case that pristine upstream gets wrong without a state, too, is upstream's own.

    Args:
        project: Where `patches/` is.
        upstreams: Names of pins, or folders of checkouts.
        suites: What runs on the patched library.

    Raises:
        UsageError: There is no such upstream or suite.
    """
    cases = {suite: cases_of_suite(suite) for suite in suites}
    for name in upstreams:
        find_source(project, name)
    for name in upstreams:
        yield _check(project, name, cases)


def _check(project: Project, name: str, suites: Mapping[str, Sequence[Case]]) -> CheckedUpstream:
    checked = CheckedUpstream(upstream=name)
    try:
        source = find_source(project, name)
        series = series_for(project, source)
        with locked(project):
            tree = prepare_tree(project, source, series)
        whole = load_series(project)
        checked = replace(
            checked,
            ggml_version=tree.ggml_version,
            applied=len(series.patches),
            patches=len(whole.patches),
            drift=max(drift(tree, series), default=0),
            variants=sum(a != b for a, b in zip(series.digests, whole.digests, strict=False)),
        )
        libraries = build.build(project, ["patched", "pristine"], upstream=name)
        patched, pristine = (Runner(library.module_path) for library in libraries)
        with patched, pristine:
            results = {suite: _outcome(patched, pristine, cases) for suite, cases in suites.items()}
    except SetupError as error:
        return replace(checked, problem=str(error))
    return replace(checked, suites=results)


def _outcome(patched: Runner, pristine: Runner, cases: Sequence[Case]) -> SuiteOutcome:
    wrong = []
    for verdict in patched.run(cases):
        if verdict.status in ("pass", "unsupported"):
            continue
        [without] = pristine.run([verdict.case], modes=())
        wrong.append(
            WrongCase(
                case=str(verdict.case),
                status=verdict.status,
                reason=verdict.reason,
                # the same numbers in its reason, too: nothing else is wrong beside that
                is_upstreams=(without.status, without.reason) == (verdict.status, verdict.reason),
            )
        )
    return SuiteOutcome(cases=len(cases), wrong=tuple(wrong))


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
