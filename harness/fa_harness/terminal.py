"""What a person sees: where tables go, and how far a step is. rich is imported where it is used."""

from __future__ import annotations

import contextlib
import functools
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

Advance = Callable[[float, float | None], None]
"""Called with what is done and the total, in the bar's unit; the total may be unknown."""

_WIDTH = 150
"""Columns of a table that goes to a pipe; on a terminal it is the terminal's."""
_LINE_SECONDS = 2.0
"""In a pipe, a step says how far it is at most this often."""


def make_console(*, stderr: bool) -> Console:
    """Return what a command prints its tables on."""
    from rich.console import Console

    console = Console(stderr=stderr, highlight=False)
    if console.is_terminal:
        return console
    return Console(stderr=stderr, highlight=False, width=_WIDTH)


def say(console: Console, text: str | Text, style: str = "") -> None:
    """Print a line, however long it is, as it is."""
    from rich.text import Text

    console.print(Text(text, style=style) if isinstance(text, str) else text, soft_wrap=True)


def write_json(document: Mapping[str, Any], path: str | None) -> None:
    """Write a JSON document to where `--json` says: a file, `-` for standard output, or nowhere."""
    if path is not None:
        write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", path)


def write_text(text: str, path: str, *, append: bool = False) -> None:
    """Write a report to a file, or to standard output for `-`; `append` adds to what is there."""
    from fa_harness.files import write_report

    if path == "-":
        click.echo(text, nl=False)
    else:
        write_report(Path(path), text, append=append)


def stage(text: str) -> None:
    """Print one line on standard error that says what happens now."""
    click.echo(text, err=True)


@functools.cache
def stage_once(text: str) -> None:
    """Print one line on standard error, however many things it is true of."""
    stage(text)


@contextlib.contextmanager
def bar(text: str, *, in_bytes: bool = False) -> Iterator[Advance]:
    """Show a step on standard error: a bar on a terminal, a line at each tenth of it elsewhere."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield _lines(text, in_bytes=in_bytes)
        return
    from rich import progress
    from rich.console import Console

    with progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.DownloadColumn() if in_bytes else progress.MofNCompleteColumn(),
        progress.TimeRemainingColumn(),
        console=Console(stderr=True, markup=False),
    ) as shown:
        task = shown.add_task(text, total=None)
        yield lambda done, total: shown.update(task, completed=done, total=total)


def _lines(text: str, *, in_bytes: bool) -> Advance:
    stage(text)
    tenth, last = 0, time.monotonic()

    def advance(done: float, total: float | None) -> None:
        nonlocal tenth, last
        now = time.monotonic()
        if total and tenth < 10 * done // total < 10 and now - last >= _LINE_SECONDS:
            tenth, last = int(10 * done // total), now
            in_mb = f"{done / 1e6:.1f} of {total / 1e6:.1f} MB"
            stage(f"{text}: {in_mb if in_bytes else f'{done:.0f} of {total:.0f}'}")

    return advance


@contextlib.contextmanager
def counted(console: Console, what: str, total: int) -> Iterator[Callable[[], None]]:
    """Count what is done below a table while it grows, on a terminal; yields what counts on."""
    from rich import progress

    with progress.Progress(
        progress.TextColumn("[progress.description]{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as shown:
        task = shown.add_task(what, total=total)
        yield lambda: shown.advance(task)


def say_summary(console: Console, head: str, rest: str, *, passed: bool) -> None:
    """Print the last line of a table: what was found, in its colour, then on what."""
    from rich.text import Text

    text = Text(head, style="bold green" if passed else "bold red")
    text.append(f" | {rest}", style="not bold default")
    say(console, text)


def number_of(n: int, what: str) -> str:
    """Return a number of things: `1 case`, `2 cases`."""
    return f"{n} {what}{'s' * (n != 1)}"
