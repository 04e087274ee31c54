"""`series test`: a command on the tree of each patch.

Its JSON has the schema `fa-harness.series-test/1`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import click
from rich.console import Console
from rich.text import Text

from fa_harness.cli import options
from fa_harness.series.trying import Tried, try_patches
from fa_harness.terminal import make_console, say, write_json
from fa_harness.upstream.source import find_source

SCHEMA = "fa-harness.series-test/1"

_WIDTH = 66
"""Characters of a patch's title."""


@click.command("test")
@click.argument("command_line", metavar="COMMAND")
@options.count("--jobs", "Patches that are tried at once.", default=1)
@click.option("--again", is_flag=True, help="Run the command where its result is known, too.")
@options.series
@options.json_path
def command(
    *, command_line: str, jobs: int, again: bool, series: str | None, json_path: str | None
) -> bool:
    """Run a command on the tree of each patch.

    COMMAND is a line of the shell. It runs in a folder with the sources as they are with the patch
    and those before it, and passes with status 0. Its result is kept by the content of the sources
    and the command, so that only patches that changed are tried again. Exit code 1: it fails on a
    patch.

    Example: fa-harness series test 'cmake -B b -S ggml && cmake --build b -j'
    """
    project = options.project_of(series)
    source = find_source(project)
    console = make_console(stderr=json_path == "-")
    tried = []
    for each in try_patches(project, source, command_line, jobs=jobs, anew=again):
        tried.append(each)
        print_tried(console, each)
    n_good = sum(each.passed for each in tried)
    passed = n_good == len(tried)
    style = "bold green" if passed else "bold red"
    say(console, f"{n_good} of {len(tried)} patches pass", style)
    found = document(tried, command_line, series=project.series, upstream=source.label)
    write_json(found, json_path)
    return passed


def print_tried(console: Console, tried: Tried) -> None:
    """Print a patch's line, and below it the end of what a command said that failed."""
    line = Text(f"{tried.patch[:4]}  {tried.title:{_WIDTH}}  ")
    line.append(_status(tried), "green" if tried.passed else "bold red")
    line.append("  known" if tried.is_kept else f"  {tried.seconds:.1f} s", "dim")
    say(console, line)
    for text in () if tried.passed else tried.output:
        say(console, f"      {text}")


def document(
    tried: Sequence[Tried], command_line: str, *, series: str, upstream: str
) -> dict[str, Any]:
    """Return the JSON document."""
    return {
        "schema": SCHEMA,
        "series": series,
        "upstream": upstream,
        "command": command_line,
        "passed": all(each.passed for each in tried),
        "patches": [
            {**asdict(each), "output": list(each.output), "passed": each.passed} for each in tried
        ],
    }


def _status(tried: Tried) -> str:
    if tried.passed:
        return "pass"
    return f"status {tried.status}" if tried.status > 0 else f"signal {-tried.status}"
