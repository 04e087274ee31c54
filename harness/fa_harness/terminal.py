"""Where commands print to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import Console

_WIDTH = 150
"""Columns of a table that goes to a pipe; on a terminal it is the terminal's."""


def make_console(*, stderr: bool) -> Console:
    """Return what a command prints its tables on."""
    from rich.console import Console

    console = Console(stderr=stderr, highlight=False)
    if not console.is_terminal:
        console = Console(stderr=stderr, highlight=False, width=_WIDTH)
    return console


def write_json(text: str, json_path: str | None) -> None:
    """Write a JSON document to where `--json` says: a file, `-` for standard output, or nowhere.

    Raises:
        SetupError: The file cannot be written; an older one is left as it was.
    """
    from fa_harness.files import write_report

    if json_path == "-":
        click.echo(text, nl=False)
    elif json_path is not None:
        write_report(Path(json_path), text)
