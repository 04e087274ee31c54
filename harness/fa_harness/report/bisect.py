"""What `fa-harness bisect` shows: a line a library, then the patches that changed the colour."""

from __future__ import annotations

import json
from typing import Any

from rich.console import Console
from rich.text import Text

from fa_harness.hunt.bisect import Bisected, Prefix, Row, Turn
from fa_harness.report.console import STATUS_STYLE
from fa_harness.report.results import explain

SCHEMA = "fa-harness.bisect/1"

_WIDTHS = (8, 66, 11)
"""Of the library's name, the title and the status."""


def print_headings(console: Console) -> None:
    """Print the names of the columns."""
    console.print(Text(_line("library", "patch", "status", "modes"), style="bold"), soft_wrap=True)


def print_row(console: Console, row: Row) -> None:
    """Print a library's line, and what failed there below it."""
    verdict = row.verdict
    modes = ", ".join(verdict.modes) or "-"
    line = Text(_line(row.prefix.library, row.prefix.title, verdict.status, modes))
    start = sum(_WIDTHS[:2]) + 4
    line.stylize(STATUS_STYLE[verdict.status], start, start + len(verdict.status))
    console.print(line, soft_wrap=True)
    if row.is_red or verdict.status == "unsupported":
        for words in explain(verdict):
            console.print(Text(f"    {words}"), soft_wrap=True)


def print_turns(console: Console, bisected: Bisected) -> None:
    """Print which patches turned the case red or green."""
    if not bisected.turns:
        console.print(Text("never red", style="bold green"), soft_wrap=True)
    for i, turn in enumerate(bisected.turns):
        style = "bold red" if turn.to_red else "bold green"
        console.print(Text(_turn(turn, is_first=i == 0), style=style), soft_wrap=True)


def render(bisected: Bisected) -> str:
    """Return the JSON document, ending in a newline."""
    return json.dumps(document(bisected), indent=1, allow_nan=False) + "\n"


def document(bisected: Bisected) -> dict[str, Any]:
    """Return the document as plain data."""
    return {
        "schema": SCHEMA,
        "case": str(bisected.case),
        "upstream": bisected.upstream,
        "started": bisected.started.isoformat(timespec="seconds"),
        "seconds": round(bisected.seconds, 3),
        "passed": bisected.passed,
        "libraries": [
            {
                "library": row.prefix.library,
                "patch": row.prefix.patch,
                "title": row.prefix.title,
                "status": row.verdict.status,
                "modes": list(row.verdict.modes),
                "lacks": row.lacks,
                "reason": explain(row.verdict),
                "seconds": round(row.verdict.seconds, 4),
            }
            for row in bisected.rows
        ],
        "turns": [
            {
                "to": "red" if turn.to_red else "green",
                "library": turn.row.prefix.library,
                "patch": turn.row.prefix.patch,
            }
            for turn in bisected.turns
        ],
    }


def _line(*cells: str) -> str:
    *padded, last = cells
    columns = [
        f"{cell if len(cell) <= width else f'{cell[: width - 2]}..':<{width}}"
        for cell, width in zip(padded, _WIDTHS, strict=True)
    ]
    return "  ".join([*columns, last]).rstrip()


def _turn(turn: Turn, *, is_first: bool) -> str:
    if is_first:
        return f"first red: {_name(turn.row.prefix)}"
    return f"turned {'red' if turn.to_red else 'green'} by: {_name(turn.row.prefix)}"


def _name(prefix: Prefix) -> str:
    return prefix.patch.removesuffix(".patch") or f"{prefix.library}, upstream as it is"
