"""What a person sees while the harness prepares: on standard error, bars on a terminal only."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

Advance = Callable[[float, float | None], None]
"""Called with what is done and the total, in the bar's unit; the total may be unknown."""


def _console() -> Console:
    # Made at each use, so that it follows a redirected standard error.
    return Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


def stage(text: str) -> None:
    """Print one line that says what happens now."""
    _console().print(text)


@contextlib.contextmanager
def bar(text: str, *, in_bytes: bool = False) -> Iterator[Advance]:
    """Show `text` with a bar on a terminal, as a single line elsewhere."""
    console = _console()
    if not console.is_terminal:
        stage(text)
        yield lambda _done, _total: None
        return
    count: ProgressColumn = DownloadColumn() if in_bytes else MofNCompleteColumn()
    columns = (TextColumn("{task.description}"), BarColumn(), count, TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(text, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def counter(console: Console) -> Progress:
    """Return a bar that counts below a table while it grows, on a terminal only."""
    return Progress(
        TextColumn("[progress.description]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
