"""What no case reached, as a person reads it."""

from __future__ import annotations

import itertools

from rich.console import Console

from fa_harness.hunt.coverage import Branch, Coverage
from fa_harness.terminal import say, say_summary

_SHOWN = 100
"""Most columns of a statement."""


def print_coverage(console: Console, coverage: Coverage) -> None:
    """Print the functions that were never entered, the branches not taken, and how many there are.

    The branches of a function that was never entered have no lines of their own.
    """
    never = {(function.file, function.function) for function in coverage.functions}
    for function in coverage.functions:
        say(console, f"never entered: {function.function} ({function.file}:{function.line})", "red")
    missed = [each for each in coverage.missed if (each.file, each.function) not in never]
    for (file, name), branches in itertools.groupby(
        missed, lambda each: (each.file, each.function)
    ):
        say(console, f"not taken in {name} ({file}):", "red")
        for branch in branches:
            say(console, f"  {branch.line:>6}  {_told(branch)}")
    for name in coverage.contradicted:
        say(console, f"accepted, but taken: {name}; take it out of the reasons", "yellow")
    if coverage.note:
        say(console, coverage.note, "yellow")
    head = f"{len(coverage.taken)} of {len(coverage.branches)} branches taken"
    rest = f"{len(coverage.missed)} not taken | of {coverage.scope}"
    if coverage.accepted:
        rest = f"{len(coverage.accepted)} accepted with reasons, {rest}"
    say_summary(console, f"coverage: {head}", rest, passed=not coverage.missed)


def _told(branch: Branch) -> str:
    """Return a branch and its statement, which says nothing more if the condition is all of it."""
    source = branch.source if len(branch.source) <= _SHOWN else f"{branch.source[: _SHOWN - 3]}..."
    if branch.direction in ("true", "false"):
        return f"{branch.text} is never {branch.direction}    | {source}"
    return f"{branch.direction}    | {source}"
