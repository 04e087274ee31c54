"""`series status`: the patches of the series, and which cases each turns green.

Its JSON has the schema `fa-harness.series/1`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import click
from rich.console import Console
from rich.text import Text

from fa_harness import terminal
from fa_harness.build.named import built_libraries
from fa_harness.build.names import prefixes
from fa_harness.case.suites import suite as cases_of_suite
from fa_harness.cli import options
from fa_harness.engine.runner import Runner
from fa_harness.project import Project
from fa_harness.series.series import series_for
from fa_harness.series.status import Status
from fa_harness.series.status import status as status_of
from fa_harness.terminal import make_console, say, write_json
from fa_harness.upstream.source import find_source

SCHEMA = "fa-harness.series/1"


@click.command("status")
@click.option("--suite", metavar="NAME", help="Also run this suite on each prefix of the series.")
@options.series
@options.json_path
def command(*, suite: str | None, series: str | None, json_path: str | None) -> None:
    """Show each patch of a series: its files, its size, and whether upstream has it.

    With --suite, also show which cases each patch turns from red to green. A case is red if it does
    not pass, including when the library lacks the op.
    """
    project = options.project_of(series)
    source = find_source(project)
    patches = status_of(project, source)
    of_suite = colours(project, suite) if suite else []
    print_status(make_console(stderr=json_path == "-"), patches, of_suite, suite=suite)
    libraries = prefixes_of(project)
    found = document(
        patches,
        of_suite,
        suite=suite,
        upstream=source.label,
        series=project.series,
        libraries=libraries,
    )
    write_json(found, json_path)


@dataclass(frozen=True, kw_only=True)
class Colours:
    """How the cases of a suite came out on one library."""

    red: frozenset[str]
    """Case strings of those that the library has no right answer to: it gives a wrong one or, of
    an op that it does not have, none."""
    counts: dict[str, int] = field(default_factory=dict)
    """Cases by status."""

    def __str__(self) -> str:
        """Return the counts in words."""
        return ", ".join(f"{n} {status}" for status, n in sorted(self.counts.items()))


def prefixes_of(project: Project) -> list[str]:
    """Return the library of each prefix of the last series, what it stands on first."""
    stack = series_for(project, find_source(project))
    return prefixes(project, stack)[stack.below :]


def colours(project: Project, suite: str) -> list[Colours]:
    """Run a suite on the library of each prefix of the series, what it stands on first."""
    cases = cases_of_suite(suite)
    names = prefixes_of(project)
    found = []
    with (
        built_libraries(project, names) as libraries,
        terminal.bar(f"running suite {suite}") as advance,
    ):
        for n, library in enumerate(libraries):
            advance(n, len(libraries))
            with Runner(library.module_path) as runner:
                verdicts = list(runner.run(cases))
            red = frozenset(str(v.case) for v in verdicts if v.status != "pass")
            found.append(Colours(red=red, counts=dict(Counter(v.status for v in verdicts))))
    return found


def print_status(
    console: Console, patches: Sequence[Status], colours: Sequence[Colours], *, suite: str | None
) -> None:
    """Print a line a patch, and its files below it.

    `colours` is what the suite's cases did on each prefix, what it stands on first; else empty.
    """
    width = max((len(patch.title) for patch in patches), default=0)
    for i, patch in enumerate(patches):
        added = sum(file.added for file in patch.files)
        removed = sum(file.removed for file in patch.files)
        line = Text(f"{patch.name[:4]}  {patch.title:{width}}  +{added:<4} -{removed:<4}")
        if colours:
            line.append(f"  {turned(colours[i], colours[i + 1])}")
        if patch.is_upstream:
            line.append("  upstream has it", style="yellow")
        say(console, line)
        for file in patch.files:
            say(console, f"      {file.path}  +{file.added} -{file.removed}", "dim")
    total = sum(patch.size for patch in patches)
    words = f"{len(patches)} patches, {total} lines"
    if colours:
        words += f" | suite {suite}: {colours[0]} -> {colours[-1]}"
    say(console, words, "bold")


def document(
    patches: Sequence[Status],
    colours: Sequence[Colours],
    *,
    suite: str | None,
    upstream: str,
    series: str,
    libraries: Sequence[str],
) -> dict[str, Any]:
    """Return the JSON document."""
    return {
        "schema": SCHEMA,
        "upstream": upstream,
        "series": series,
        "libraries": list(libraries),
        "suite": suite if colours else None,
        "patches": [
            {
                "name": patch.name,
                "title": patch.title,
                "files": [dict(vars(file)) for file in patch.files],
                "is_upstream": patch.is_upstream,
                "before": colours[i].counts if colours else None,
                "after": colours[i + 1].counts if colours else None,
                "turned_green": sorted(colours[i].red - colours[i + 1].red) if colours else None,
                "turned_red": sorted(colours[i + 1].red - colours[i].red) if colours else None,
            }
            for i, patch in enumerate(patches)
        ],
    }


def turned(before: Colours, after: Colours) -> str:
    """Return in words how many cases changed their colour."""
    green, red = len(before.red - after.red), len(after.red - before.red)
    words = [f"{n} {word}" for n, word in ((green, "red -> green"), (red, "green -> red")) if n]
    return ", ".join(words) or "-"
