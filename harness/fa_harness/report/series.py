"""What `fa-harness series` shows: the patches as a table and as JSON, and what a change did."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console
from rich.text import Text

from fa_harness.report.results import command
from fa_harness.series.lint import Finding
from fa_harness.series.rework import Changes
from fa_harness.series.status import Status

SCHEMA = "fa-harness.series/1"
LINT_SCHEMA = "fa-harness.lint/1"
CHECK_SCHEMA = "fa-harness.series-check/1"


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


@dataclass(frozen=True, kw_only=True)
class WrongCase:
    """A case that does not pass on an upstream."""

    case: str
    status: str
    reason: str
    is_upstreams: bool
    """Pristine upstream gets it wrong in the same way, without a state."""


@dataclass(frozen=True, kw_only=True)
class SuiteOutcome:
    """How a suite came out on an upstream."""

    cases: int
    wrong: tuple[WrongCase, ...]

    def __str__(self) -> str:
        """Return it in a few words."""
        own = sum(case.is_upstreams for case in self.wrong)
        ours = len(self.wrong) - own
        words = [f"{self.cases - len(self.wrong)} of {self.cases}"]
        words += [f"{ours} not"] if ours else []
        words += [f"{own} not upstream either"] if own else []
        return ", ".join(words)


@dataclass(frozen=True, kw_only=True)
class CheckedUpstream:
    """What became of the series on one upstream."""

    upstream: str
    ggml_version: str = ""
    patches: int = 0
    """Of the whole series."""
    applied: int = 0
    drift: int = 0
    """Lines by which the hunk that moved most is off."""
    variants: int = 0
    """Patches that have something else there."""
    problem: str = ""
    """Why it does not apply or does not build."""
    suites: Mapping[str, SuiteOutcome] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether it applies, builds, and gets nothing wrong that upstream gets right."""
        wrong = [case for outcome in self.suites.values() for case in outcome.wrong]
        return not self.problem and all(case.is_upstreams for case in wrong)


_MATRIX = ("upstream", "ggml", "patches", "variants", "drift")


def print_check(console: Console, checked: CheckedUpstream) -> None:
    """Print a line for an upstream, and what is wrong there below it."""
    style = "green" if checked.passed else "bold red"
    cells = _cells(checked)
    words = "  ".join(f"{name} {cell}" for name, cell in zip(_MATRIX[1:], cells[1:5], strict=True))
    line = Text(f"{cells[0]:18}  {words}")
    for suite, outcome in checked.suites.items():
        line.append(f"  {suite}: {outcome}", style=style)
    if checked.problem:
        line.append("  does not apply, build or load", style=style)
    console.print(line, soft_wrap=True)
    for text in checked.problem.splitlines():
        console.print(Text(f"    {text}"), soft_wrap=True)
    for outcome in checked.suites.values():
        for case in outcome.wrong:
            whose = ", upstream's own" if case.is_upstreams else ""
            repeat = command(
                "run", "--case", case.case,
                library="patched", options={}, environment={"UPSTREAM": checked.upstream},
            )  # fmt: skip
            console.print(Text(f"    {case.status}{whose}: {case.reason}"), soft_wrap=True)
            console.print(Text(f"      {repeat}", style="dim"), soft_wrap=True)


def markdown_check(checked: Sequence[CheckedUpstream], suites: Sequence[str]) -> str:
    """Return the matrix as a Markdown table."""
    head = [*_MATRIX, *suites]
    lines = [head, ["---"] * len(head)]
    for each in checked:
        lines.append([*_cells(each), *(str(each.suites.get(suite, "-")) for suite in suites)])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def render_check(checked: Sequence[CheckedUpstream]) -> str:
    """Return the JSON document, ending in a newline."""
    document = {
        "schema": CHECK_SCHEMA,
        "passed": all(each.passed for each in checked),
        "upstreams": [{**asdict(each), "passed": each.passed} for each in checked],
    }
    return json.dumps(document, indent=1) + "\n"


def _cells(checked: CheckedUpstream) -> list[str]:
    return [
        checked.upstream,
        checked.ggml_version or "-",
        f"{checked.applied} of {checked.patches}" if not checked.problem else "-",
        str(checked.variants),
        str(checked.drift),
    ]


def print_status(
    console: Console, patches: Sequence[Status], colours: Sequence[Colours], *, suite: str | None
) -> None:
    """Print a line a patch, and its files below it.

    Args:
        console: Where to.
        patches: The series.
        colours: What the suite's cases did on each prefix, upstream as it is first; else empty.
        suite: The suite's name.
    """
    width = max((len(patch.title) for patch in patches), default=0)
    for i, patch in enumerate(patches):
        added = sum(file.added for file in patch.files)
        removed = sum(file.removed for file in patch.files)
        line = Text(f"{patch.name[:4]}  {patch.title:{width}}  +{added:<4} -{removed:<4}")
        if colours:
            line.append(f"  {_turned(colours[i], colours[i + 1])}")
        if patch.is_upstream:
            line.append("  upstream has it", style="yellow")
        console.print(line, soft_wrap=True)
        for file in patch.files:
            console.print(
                Text(f"      {file.path}  +{file.added} -{file.removed}", style="dim"),
                soft_wrap=True,
            )
    total = sum(patch.size for patch in patches)
    words = f"{len(patches)} patches, {total} lines"
    if colours:
        words += f" | suite {suite}: {colours[0]} -> {colours[-1]}"
    console.print(Text(words, style="bold"), soft_wrap=True)


def print_changes(console: Console, changes: Changes) -> None:
    """Print what a change of the series did to `patches/`."""
    for name in changes.written:
        console.print(Text(f"written: {name}"), soft_wrap=True)
    for before, after in changes.renamed:
        console.print(Text(f"renamed: {before} -> {after}"), soft_wrap=True)
    for name in changes.removed:
        console.print(Text(f"removed: {name}"), soft_wrap=True)
    for title in changes.dropped:
        console.print(
            Text(f"dropped: {title}: nothing of it is left, upstream has it", style="yellow"),
            soft_wrap=True,
        )
    if changes.range_diff:
        console.print(Text(changes.range_diff), soft_wrap=True)
    if not (changes.written or changes.renamed or changes.removed or changes.dropped):
        console.print(Text("nothing changed"), soft_wrap=True)


def print_lint(console: Console, findings: Sequence[Finding], missing: Sequence[str]) -> None:
    """Print a line for each finding: the patch's line, the upstream line, and what is wrong."""
    for finding in findings:
        style = "bold red" if finding.level == "must" else "yellow"
        line = Text(f"patches/{finding.patch}:{finding.line}: ")
        line.append(f"{finding.level} [{finding.rule}]", style=style)
        where = f" {finding.file}:{finding.file_line}:" if finding.file else ""
        line.append(f"{where} {finding.text}")
        console.print(line, soft_wrap=True)
    for text in missing:
        console.print(Text(f"not checked: {text}", style="yellow"), soft_wrap=True)
    counts = {level: sum(f.level == level for f in findings) for level in ("must", "should")}
    words = ", ".join(f"{n} {level}" for level, n in counts.items())
    console.print(Text(words, style="bold red" if counts["must"] else "bold"), soft_wrap=True)


def render_lint(findings: Sequence[Finding], missing: Sequence[str], *, upstream: str) -> str:
    """Return the JSON document, ending in a newline."""
    document = {
        "schema": LINT_SCHEMA,
        "upstream": upstream,
        "findings": [asdict(finding) for finding in findings],
        "not_checked": list(missing),
    }
    return json.dumps(document, indent=1) + "\n"


def render_status(
    patches: Sequence[Status], colours: Sequence[Colours], *, suite: str | None, upstream: str
) -> str:
    """Return the JSON document, ending in a newline."""
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "upstream": upstream,
        "suite": suite if colours else None,
        "patches": [
            {
                "name": patch.name,
                "title": patch.title,
                "files": [
                    {"path": file.path, "added": file.added, "removed": file.removed}
                    for file in patch.files
                ],
                "is_upstream": patch.is_upstream,
                "before": colours[i].counts if colours else None,
                "after": colours[i + 1].counts if colours else None,
                "turned_green": sorted(colours[i].red - colours[i + 1].red) if colours else None,
                "turned_red": sorted(colours[i + 1].red - colours[i].red) if colours else None,
            }
            for i, patch in enumerate(patches)
        ],
    }
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


def _turned(before: Colours, after: Colours) -> str:
    green, red = len(before.red - after.red), len(after.red - before.red)
    words = [f"{n} {word}" for n, word in ((green, "red -> green"), (red, "green -> red")) if n]
    return ", ".join(words) or "-"
