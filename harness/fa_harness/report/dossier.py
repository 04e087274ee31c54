"""The evidence as Markdown and as JSON: tables, commands and a checklist, no prose.

Schema `fa-harness.evidence/1`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence

from fa_harness.model.evidence import Evidence

SCHEMA = "fa-harness.evidence/1"

CHECKLIST = (
    "an issue comes first, with the reproduction above; the pull request names it",
    "searched for issues and pull requests on the same subject; none is open, or I wrote there",
    "how AI was used is disclosed, in the pull request and wherever else it is asked",
    "title, description, commit messages and answers are in my own words",
    "I have read every changed line and can explain it",
    "one fix or feature a pull request: which of these patches come first is decided",
    "the new cases of test-backend-ops are in the same pull request as what they test",
    "test-backend-ops ran on a second backend, too, where I have one",
    "upstream's own CI ran on my machine (ci/run.sh)",
    "speed and perplexity are measured on a quiet machine of mine, not copied from here",
    "titles have the form `<module> : <title>`",
)
"""What upstream's CONTRIBUTING asks of the author; a person ticks it."""


def render(evidence: Evidence) -> str:
    """Return the JSON document, ending in a newline."""
    document = {"schema": SCHEMA, "passed": evidence.passed, **dataclasses.asdict(evidence)}
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


def markdown(evidence: Evidence) -> str:
    """Return the document in Markdown, ending in a newline."""
    return "\n".join(_lines(evidence)) + "\n"


def _lines(evidence: Evidence) -> Iterator[str]:
    yield from (f"# {evidence.branch}", "")
    yield from _table(
        ("", ""),
        [
            ("base", evidence.base),
            ("tip", evidence.tip),
            *evidence.machine.items(),
            ("gathered with", f"fa-harness {evidence.tool_version}"),
        ],
    )
    yield from ("", "| commit | |", "| --- | --- |")
    for number, subject in enumerate(evidence.subjects, start=1):
        yield f"| {number} | {_text(subject)} |"
    yield ""
    variables = [f"{name}={value}" for name, value in evidence.variables.items()]
    yield from _commands([*variables, "", *evidence.build])
    for section in evidence.sections:
        yield from ("", f"## {section.title}", "")
        if section.rows:
            yield from _table(section.head, section.rows)
            yield ""
        if section.commands:
            yield from _commands(section.commands)
            yield ""
        if section.notes:
            yield from _notes(section.notes)
    yield from ("", "## Before the pull request", "")
    yield from (f"- [ ] {item}" for item in CHECKLIST)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(map(_text, head))} |"
    yield f"| {' | '.join('---' for _ in head)} |"
    for row in rows:
        yield f"| {' | '.join(map(_text, row))} |"


def _commands(lines: Sequence[str]) -> Iterator[str]:
    yield from ("```sh", *lines, "```")


_MOST = 40


def _notes(notes: Sequence[str]) -> Iterator[str]:
    """Notes as a block of text, so that case strings stay as they are."""
    yield from ("```", *notes[:_MOST])
    if len(notes) > _MOST:
        yield f"and {len(notes) - _MOST} more, in evidence.json"
    yield "```"


def _text(cell: str) -> str:
    return " ".join(cell.split()).replace("|", "\\|")
