"""What is wrong, as workflow commands that GitHub Actions shows beside a pull request."""

from __future__ import annotations

from fa_harness.engine.session import Results
from fa_harness.report.troubles import headline, passed, troubles, unchecked
from fa_harness.speed.gate import Gate

MOST = 10
"""GitHub shows no more errors of a step."""


def render(results: Results, gate: Gate | None = None) -> str:
    """Return the commands, worst first, a line each; empty where all was checked and is well."""
    found = troubles(results, gate)
    lines = [
        f"::error title={_property(each.title)}::{_data(each.lines[0] + chr(10) + each.repro)}"
        for each in found[:MOST]
    ]
    if len(found) > MOST:
        lines.append(f"fa-harness: {len(found) - MOST} more; the report has them all")
    if not found and not passed(results, gate):
        lines.append(f"::error title=fa-harness::{_data(headline(results, gate))}")
    if gate is not None and unchecked(gate):
        level = "warning" if gate.without_baseline or gate.is_mostly_unchecked else "notice"
        text = "\n".join([headline(results, gate), *unchecked(gate)])
        lines.append(f"::{level} title=not checked::{_data(text)}")
    return "".join(f"{line}\n" for line in lines)


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
