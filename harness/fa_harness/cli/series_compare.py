"""`series compare`: a series with how it was before.

Its JSON has the schema `fa-harness.series-compare/1`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import click
from rich.console import Console
from rich.text import Text

from fa_harness.cli import options
from fa_harness.cli.series_status import Colours, colours, turned
from fa_harness.project import Project
from fa_harness.series.earlier import earlier, range_diff
from fa_harness.series.series import series_for, title
from fa_harness.terminal import make_console, say, write_json
from fa_harness.upstream.source import Source, find_source

SCHEMA = "fa-harness.series-compare/1"

_WIDTH = 66
"""Characters of a patch's title."""


@click.command("compare")
@click.argument("old", metavar="OLD")
@click.option(
    "--suite", metavar="NAME", help="Also run this suite on each prefix of both, then and now."
)
@options.series
@options.json_path
def command(*, old: str, suite: str | None, series: str | None, json_path: str | None) -> None:
    """Compare a series with how it was before.

    OLD is a revision of the repository that the series is in, such as HEAD~1, or a folder with the
    patches of then. Both are applied on the same upstream. Shown is git's range-diff and, with
    --suite, what each patch does to the cases: then and now.
    """
    project = options.project_of(series)
    source = find_source(project)
    before = earlier(project, old)
    console = make_console(stderr=json_path == "-")
    difference = range_diff(project, source, before)
    say(console, difference or "the patches are the same")
    effects = compare(project, before, source, suite) if suite else []
    if suite:
        print_effects(console, effects, suite)
    found = document(difference, effects, old=old, suite=suite, series=project.series)
    write_json(found, json_path)


@dataclass(frozen=True, kw_only=True)
class Effect:
    """What a patch does to the cases of a suite, then and now; None where there was no such one."""

    title: str
    then: tuple[Colours, Colours] | None
    now: tuple[Colours, Colours] | None


def compare(project: Project, before: Project, source: Source, suite: str) -> list[Effect]:
    """Run a suite on each prefix of a series as it was and as it is.

    Patches are the same if their titles are. Those of now come first, in their order.
    """
    found = {}
    for each in (before, project):
        titles = [title(patch) for patch in series_for(each, source).own.patches]
        of_prefixes = colours(each, suite)
        found[each.series] = dict(zip(titles, pairwise(of_prefixes), strict=True))
    then, now = found[before.series], found[project.series]
    return [
        Effect(title=each, then=then.get(each), now=now.get(each))
        for each in dict.fromkeys((*now, *then))
    ]


def print_effects(console: Console, effects: Sequence[Effect], suite: str) -> None:
    """Print a line per patch: what it turned then, and what it turns now."""
    say(console, f"{'suite ' + suite:{_WIDTH}}  {'then':28}  now", "bold")
    for effect in effects:
        words = [
            "not there" if pair is None else turned(*pair) for pair in (effect.then, effect.now)
        ]
        style = "" if words[0] == words[1] else "yellow"
        shown = effect.title
        if len(shown) > _WIDTH:
            shown = f"{shown[: _WIDTH - 2]}.."
        say(console, Text(f"{shown:{_WIDTH}}  {words[0]:28}  {words[1]}", style))


def document(
    difference: str, effects: Sequence[Effect], *, old: str, suite: str | None, series: str
) -> dict[str, Any]:
    """Return the JSON document."""
    return {
        "schema": SCHEMA,
        "series": series,
        "old": old,
        "suite": suite,
        "range_diff": difference.splitlines(),
        "patches": [
            {"title": each.title, "then": _turns(each.then), "now": _turns(each.now)}
            for each in effects
        ],
    }


def _turns(pair: tuple[Colours, Colours] | None) -> dict[str, list[str]] | None:
    if pair is None:
        return None
    before, after = pair
    return {
        "turned_green": sorted(before.red - after.red),
        "turned_red": sorted(after.red - before.red),
    }
