"""`series lint`: the patches against upstream's own rules.

Its JSON has the schema `fa-harness.lint/1`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from itertools import pairwise
from typing import Any

import click
from rich.console import Console
from rich.text import Text

from fa_harness.cli import options
from fa_harness.cli.series_status import Colours, colours
from fa_harness.project import Project
from fa_harness.series.lint import Violation, lint
from fa_harness.series.series import series_for
from fa_harness.terminal import make_console, say, write_json
from fa_harness.upstream.source import find_source

SCHEMA = "fa-harness.lint/1"
_KERNEL = "+++ b/ggml/src/ggml-cpu/"
"""In each patch that changes what the CPU backend computes."""


@click.command("lint")
@click.option(
    "--suite", metavar="NAME", help="Also require that each patch turns a case of this suite green."
)
@options.series
@options.json_path
def command(*, suite: str | None, series: str | None, json_path: str | None) -> bool:
    """Check the patches of a series against upstream's coding rules.

    Checked are ASCII, white space, indentation, the form of the subject, upstream's .clang-format
    on added lines, new files, size, and cases in test-backend-ops. Exit code 1: a rule that
    upstream insists on ("must") is broken. What a reviewer might ask about ("should") is only
    shown.
    """
    project = options.project_of(series)
    source = find_source(project)
    findings, missing = lint(project, source)
    if suite:
        findings += without_effect(project, colours(project, suite), suite)
    console = make_console(stderr=json_path == "-")
    print_lint(console, findings, missing, folder=project.relative(project.patches))
    found = document(findings, missing, upstream=source.label, series=project.series)
    write_json(found, json_path)
    return not any(finding.level == "must" for finding in findings)


def without_effect(project: Project, of_prefixes: list[Colours], suite: str) -> list[Violation]:
    """Return the patches of the kernel that turn no case of a suite green."""
    patches = series_for(project, find_source(project)).own.patches
    text = f"no case of suite {suite} fails before it and passes after it"
    untested = partial(Violation, level="should", rule="test", line=1, file="", file_line=0)
    return [
        untested(patch=patch.name, text=text)
        for patch, (before, after) in zip(patches, pairwise(of_prefixes), strict=True)
        if _KERNEL in patch.read_text("utf-8", errors="replace") and not before.red - after.red
    ]


def print_lint(
    console: Console, findings: Sequence[Violation], missing: Sequence[str], *, folder: str
) -> None:
    """Print a line for each finding: the patch's line, the upstream line, and what is wrong."""
    for finding in findings:
        style = "bold red" if finding.level == "must" else "yellow"
        line = Text(f"{folder}/{finding.patch}:{finding.line}: ")
        line.append(f"{finding.level} [{finding.rule}]", style=style)
        where = f" {finding.file}:{finding.file_line}:" if finding.file else ""
        line.append(f"{where} {finding.text}")
        say(console, line)
    for text in missing:
        say(console, f"not checked: {text}", "yellow")
    counts = {level: sum(f.level == level for f in findings) for level in ("must", "should")}
    words = ", ".join(f"{n} {level}" for level, n in counts.items())
    say(console, words, "bold red" if counts["must"] else "bold")


def document(
    findings: Sequence[Violation], missing: Sequence[str], *, upstream: str, series: str
) -> dict[str, Any]:
    """Return the JSON document."""
    return {
        "schema": SCHEMA,
        "upstream": upstream,
        "series": series,
        "findings": [asdict(finding) for finding in findings],
        "not_checked": list(missing),
    }
