"""The report as Markdown, for the summary of a job: the verdict, what is wrong, details folded."""

from __future__ import annotations

import re
from collections.abc import Iterator

from fa_harness.case.case import Case
from fa_harness.case.label import label
from fa_harness.engine.session import Results
from fa_harness.report.troubles import (
    Trouble,
    headline,
    in_short,
    measured_in_words,
    origin,
    state,
    troubles,
    unchecked,
)
from fa_harness.speed.gate import Gate
from fa_harness.speed.instructions import Count
from fa_harness.speed.ratios import Ratio

_MOST = 30
"""Troubles with details; a summary may have 1 MiB."""
_MARKS = {"ok": "✅", "accepted": "✅", "regressed": "❌", "skipped": "⚪"}


def render(results: Results, gate: Gate | None = None) -> str:
    """Return the document, ending in a newline."""
    return "\n".join(_lines(results, gate)) + "\n"


def _lines(results: Results, gate: Gate | None) -> Iterator[str]:
    mark = {"good": "✅", "bad": "❌", "unchecked": "⚠️"}[state(results, gate)]
    yield from (f"## {mark} {_text(headline(results, gate))}", "")
    for line in unchecked(gate):
        yield from (f"**{_text(line)}**", "")
    yield from (_text(origin(results)), "")
    found = troubles(results, gate)
    if len(found) > 1:
        yield from (f"- **{_text(each)}**" for each in in_short(found))
        yield ""
    if found:
        yield from ("| what | case | why |", "| --- | --- | --- |")
        for each in found[:_MOST]:
            name = label(Case.parse(each.case))
            yield f"| **{_text(each.kind)}** | {_text(name)} | {_text(each.lines[0])} |"
        if len(found) > _MOST:
            yield f"| | {len(found) - _MOST} more | the other reports have them |"
        yield ""
    if gate:
        yield from ("| check | | |", "| --- | --- | --- |")
        for check in gate.checks:
            status = f"{_MARKS[check.status]} {check.status}"
            yield f"| {check.name} | {status} | {_text(check.reason)} |"
        if not gate.without_baseline:
            yield from ("", f"Baseline: {_text(gate.baseline)}")
        yield ""
        yield from (f"- {_text(note)}" for note in (*gate.unsupported, *gate.notes))
    if found:
        yield from _folded("Details", [line for each in found[:_MOST] for line in _details(each)])
    if gate and gate.ratios:
        head = ["| speed | to one call | was | | |", "| --- | --- | --- | --- | --- |"]
        yield from _folded("Speed", [*head, *map(_ratio, gate.ratios)])
    if gate and gate.counts:
        head = ["| instructions | | |", "| --- | --- | --- |"]
        yield from _folded("Instructions", [*head, *map(_count, gate.counts)])


def _details(trouble: Trouble) -> Iterator[str]:
    yield from (f"**{_text(trouble.title)}**", "", "```")
    yield from (_fenced(line) for line in "\n".join(trouble.lines).splitlines())
    yield from (_fenced(trouble.repro), "```", "")


def _ratio(ratio: Ratio) -> str:
    intervals = [
        f"{each.median:.3f} ({each.low:.3f} to {each.high:.3f})" if each else "-"
        for each in (ratio.now, ratio.before)
    ]
    name = f"{label(Case.parse(ratio.case))}, {measured_in_words(ratio)}"
    cells = [name, *intervals, f"{_MARKS[ratio.status]} {ratio.status}", ratio.reason]
    return f"| {' | '.join(map(_text, cells))} |"


def _count(count: Count) -> str:
    name = f"{label(Case.parse(count.case))}, {measured_in_words(count)}"
    cells = [name, f"{_MARKS[count.status]} {count.status}", count.reason]
    return f"| {' | '.join(map(_text, cells))} |"


def _folded(title: str, lines: list[str]) -> Iterator[str]:
    yield from ("", f"<details><summary>{title}</summary>", "", *lines, "", "</details>")


def _fenced(line: str) -> str:
    return line.replace("```", "'''")


def _text(text: str) -> str:
    """Return a text as Markdown shows it as it is, in one line."""
    flat = " ".join(text.split())
    return re.sub(r"([\\`*_{}\[\]<>|#~&$])", r"\\\1", flat)
