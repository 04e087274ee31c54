"""The forms of a run's report by their names."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from fa_harness.engine.session import Results
from fa_harness.report import html, json, junit, markdown
from fa_harness.speed.gate import Gate

_FORMS: Mapping[str, Callable[[Results, Gate | None], str]] = {
    "json": json.render,
    "junit": junit.render,
    "markdown": markdown.render,
    "html": html.render,
    "summary": markdown.render,
}


def render(kind: str, results: Results, judged: Gate | None = None) -> str:
    """Return a report: `json`, `junit`, `markdown`, `html`, or a job's `summary`."""
    return _FORMS[kind](results, judged)
