"""`bisect`: a case on the library of each prefix of a stack."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click
from rich.console import Console
from rich.text import Text

from fa_harness.build.named import built_libraries
from fa_harness.build.names import PATCHED, find_name, prefixes
from fa_harness.case import captures
from fa_harness.case.case import Case
from fa_harness.cli import options
from fa_harness.engine.runner import Runner
from fa_harness.engine.session import Clock
from fa_harness.hunt.bisect import Bisected, Prefix, PrefixVerdict, run_on
from fa_harness.judge.words import explain
from fa_harness.project import Project, find_project
from fa_harness.report.console import STATUS_STYLE
from fa_harness.series.series import Series, series_for, title
from fa_harness.terminal import make_console, say, write_json
from fa_harness.upstream.source import find_source

SCHEMA = "fa-harness.bisect/1"

_WIDTH = 10
"""Least characters of a library's name."""


@click.command("bisect")
@click.option(
    "--case",
    "case_string",
    required=True,
    metavar="STRING",
    help="A case, given as reports print it.",
)
@click.option(
    "--library",
    default=PATCHED,
    metavar="NAME",
    help="Walk the patches of this library.",
)
@options.define
@options.no_series
@options.json_path
def command(
    *, case_string: str, library: str, options: Mapping[str, str], json_path: str | None
) -> bool:
    """Find the patch that broke or fixed a case.

    The case runs on the library of each prefix of the series, or of the stack that --library names:
    pristine, state@0001, state@0002, ..., state, in the modes that each library offers. Exit code
    1: it fails on the last one.
    """
    case = captures.checked(Case.parse(case_string))
    console = make_console(stderr=json_path == "-")
    bisected = bisect_case(case, library=library, options=options, console=console)
    write_json(document(bisected), json_path)
    return bisected.passed


def bisect_case(
    case: Case, *, library: str = PATCHED, options: Mapping[str, str] = {}, console: Console
) -> Bisected:
    """Run a case on each library with some of the first patches of one, and print each."""
    project = find_project()
    name = find_name(project, library)
    stack = series_for(name.project, find_source(project))
    wanted = prefixes_of(name.project, stack)[: len(name.patches(stack).patches) + 1]
    names = [prefix.library for prefix in wanted]
    rows = []
    with built_libraries(project, names, options=options) as libraries:
        clock = Clock(libraries[-1], options)
        width = max(_WIDTH, *map(len, names))
        print_headings(console, width)
        for prefix, built in zip(wanted, libraries, strict=True):
            with Runner(built.module_path) as runner:
                rows.append(run_on(prefix, runner, case))
            print_row(console, rows[-1], width)
    bisected = Bisected(**clock.fields(), case=case, rows=tuple(rows))
    print_turns(console, bisected)
    return bisected


def prefixes_of(project: Project, stack: Series) -> list[Prefix]:
    """Return the library of each prefix of a stack."""
    pristine, *names = prefixes(project, stack)
    return [
        Prefix(library=pristine, patch="", title="upstream as it is"),
        *(
            Prefix(library=name, patch=stack.label(i), title=title(stack.patches[i]))
            for i, name in enumerate(names)
        ),
    ]


def print_headings(console: Console, width: int = _WIDTH) -> None:
    """Print the names of the columns."""
    say(console, f"{'library':{width}}  {'patch':66}  {'status':11}  modes", "bold")


def print_row(console: Console, row: PrefixVerdict, width: int = _WIDTH) -> None:
    """Print a library's line, and what failed there below it."""
    verdict, title = row.verdict, row.prefix.title
    shown = title if len(title) <= 66 else f"{title[:64]}.."
    line = Text(f"{row.prefix.library:{width}}  {shown:66}  ")
    line.append(verdict.status, STATUS_STYLE[verdict.status])
    line.append(f"{'':{11 - len(verdict.status)}}  {', '.join(verdict.modes) or '-'}")
    say(console, line)
    if row.is_red or verdict.status == "unsupported":
        for words in explain(verdict):
            say(console, f"    {words}")


def print_turns(console: Console, bisected: Bisected) -> None:
    """Print which patches turned the case red or green."""
    if not bisected.turns:
        say(console, "never red", "bold green")
    for i, turn in enumerate(bisected.turns):
        colour = "red" if turn.to_red else "green"
        words = "first red" if i == 0 else f"turned {colour} by"
        prefix = turn.row.prefix
        name = prefix.patch.removesuffix(".patch") or f"{prefix.library}, upstream as it is"
        say(console, f"{words}: {name}", f"bold {colour}")


def document(bisected: Bisected) -> dict[str, Any]:
    """Return the document as plain data."""
    return {
        "schema": SCHEMA,
        "case": str(bisected.case),
        "upstream": bisected.library["upstream"],
        "started": bisected.started.isoformat(timespec="seconds"),
        "seconds": round(bisected.seconds, 3),
        "passed": bisected.passed,
        "libraries": [
            {
                **vars(row.prefix),
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
