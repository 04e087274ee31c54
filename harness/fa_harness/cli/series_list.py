"""`series list`: the series that there are, and where each is known to hold.

Its JSON has the schema `fa-harness.series-list/1`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import click
from rich.console import Console
from rich.text import Text

from fa_harness.cli import options
from fa_harness.errors import FaHarnessError
from fa_harness.project import Project, find_project
from fa_harness.series.outcomes import of_mutants, of_pin
from fa_harness.series.series import load_series
from fa_harness.stacks import About, names_in
from fa_harness.terminal import make_console, say, write_json
from fa_harness.upstream.pins import load_pins
from fa_harness.upstream.source import find_source

SCHEMA = "fa-harness.series-list/1"

_STYLE = {True: "green", False: "bold red", None: "dim"}


@click.command("list")
@options.json_path
@click.option("-v", "--verbose", is_flag=True, help="Print each pin, and why a series exists.")
def command(*, json_path: str | None, verbose: bool) -> None:
    """List the series: what each stands on, its patches, and where it holds.

    A series holds on a pin if `fa-harness series check` passed there with the patches as they are
    now. The mutants are those of the last `fa-harness mutants` with these patches.
    """
    project = find_project()
    rows = [_row(project, name) for name in names_in(project.series_folders)]
    console = make_console(stderr=json_path == "-")
    print_list(console, rows, verbose=verbose)
    write_json(document(rows), json_path)


@dataclass(frozen=True, kw_only=True)
class Row:
    """A series, and what is known of it."""

    about: About
    is_default: bool
    n_patch: int
    pins: dict[str, bool | None]
    """By pin, whether it holds there; None where that is not known."""
    mutants: dict[str, int] | None
    """How many of its mutants had which outcome; None where that is not known."""
    problem: str = ""
    """Why nothing is known."""

    @property
    def holds(self) -> bool | None:
        """Whether it holds on each of its pins; None where that is not known of some."""
        values = set(self.pins.values())
        return False if False in values else None if None in values or self.problem else True


def _row(project: Project, name: str) -> Row:
    is_default = name == project.series
    about = About(name=name, folder=project.folder_of(name))
    try:
        project = project.of(name)
        about, pins = project.about(), load_pins(project.pins_file)
        sources = {pin: find_source(project, pin) for pin in about.pins_of(tuple(pins.upstreams))}
        holds = {pin: of_pin(project, source) for pin, source in sources.items()}
        return Row(
            about=about,
            is_default=is_default,
            n_patch=len(load_series(project).patches),
            pins=holds,
            mutants=of_mutants(project, find_source(project)),
        )
    except FaHarnessError as error:
        return Row(
            about=about,
            is_default=is_default,
            n_patch=0,
            pins={},
            mutants=None,
            problem=str(error),
        )


def print_list(console: Console, rows: Sequence[Row], *, verbose: bool = False) -> None:
    """Print a line per series, and with `verbose` what it says of itself."""
    width = max((len(row.about.name) for row in rows), default=0)
    on = {row.about.name: " + ".join(row.about.on) or "pristine" for row in rows}
    on_width = max(map(len, on.values()), default=0)
    say(
        console,
        f"  {'series':{max(width, 6)}}  {'on':{on_width}}  patches  {'pins':18}  "
        f"{'mutants':16}  upstream",
        "bold",
    )
    for row in rows:
        name = row.about.name
        line = Text(f"{'*' if row.is_default else ' '} {name:{max(width, 6)}}  ")
        line.append(f"{on[name]:{on_width}}  {row.n_patch:7}  ")
        line.append(f"{_pins(row):18}  ", _STYLE[row.holds])
        line.append(f"{_mutants(row):16}  {row.about.upstream}")
        say(console, line)
        if row.problem:
            say(console, f"    {row.problem}", "bold red")
        if verbose:
            for text in (row.about.title, row.about.why):
                say(console, f"    {text}" if text else "    (series.toml does not say why)")
            for pin, holds in row.pins.items():
                words = {True: "holds", False: "does not hold", None: "not checked"}[holds]
                say(console, f"    {pin:20}  {words}", _STYLE[holds])


def document(rows: Sequence[Row]) -> dict[str, Any]:
    """Return the JSON document."""
    return {
        "schema": SCHEMA,
        "series": [
            {
                "name": row.about.name,
                "is_default": row.is_default,
                "title": row.about.title,
                "why": row.about.why,
                "on": list(row.about.on),
                "patches": row.n_patch,
                "suites": list(row.about.suites),
                "pins": row.pins,
                "holds": row.holds,
                "mutants": row.mutants,
                "upstream": asdict(row.about.upstream),
                "problem": row.problem,
            }
            for row in rows
        ],
    }


def _pins(row: Row) -> str:
    n_good, n = sum(each is True for each in row.pins.values()), len(row.pins)
    n_unknown = sum(each is None for each in row.pins.values())
    if n_unknown == n:
        return f"{n} not checked"
    return f"{n_good} of {n} hold" + (f", {n_unknown} ?" if n_unknown else "")


def _mutants(row: Row) -> str:
    if not row.mutants:
        return "not run" if row.about.folder.joinpath("mutants").is_dir() else "none"
    return f"{row.mutants.get('killed', 0)} of {sum(row.mutants.values())} killed"
