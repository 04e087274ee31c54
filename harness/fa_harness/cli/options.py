"""What commands share: options, and the records in which their values travel."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fa_harness.errors import SetupError, UsageError
from fa_harness.files import check_writable
from fa_harness.project import Project, find_project
from fa_harness.terminal import write_text
from fa_harness.upstream.source import NO_SERIES

if TYPE_CHECKING:
    from fa_harness.engine.session import Results
    from fa_harness.speed.gate import Gate

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def _joined(
    ctx: click.Context, param: click.Parameter, values: tuple[list[Any], ...]
) -> tuple[Any, ...]:
    return tuple(dict.fromkeys(item for value in values for item in value))


def _listed(
    read: Callable[[str], Any],
    *names: str,
    help: str,  # noqa: A002
    metavar: str = "N",
) -> Decorator:
    """Return an option that takes a comma list, and may be repeated."""

    def values_of(text: str) -> list[Any]:
        try:
            return [read(item) for item in text.split(",")]
        except ValueError:
            raise click.BadParameter(f"{text!r} is not a number or a list of numbers") from None

    return click.option(
        *names, type=values_of, multiple=True, callback=_joined, metavar=metavar, help=help
    )


numbers = functools.partial(_listed, int)
words = functools.partial(_listed, str)


def count(name: str, text: str, *, least: int = 1, **more: Any) -> Decorator:
    """Return an option that takes a number of things."""
    return click.option(
        name, type=click.IntRange(min=least), metavar=more.pop("metavar", "N"), help=text, **more
    )


def file(*names: str, text: str, metavar: str = "FILE", **more: Any) -> Decorator:
    """Return an option that takes a path."""
    return click.option(*names, type=PATH, metavar=metavar, help=text, **more)


def _definitions(
    ctx: click.Context, param: click.Parameter, values: tuple[str, ...]
) -> dict[str, str]:
    for value in values:
        if not value.partition("=")[0] or "=" not in value:
            raise click.BadParameter(f"{value!r} is not NAME=VALUE", ctx, param)
    return {name: text for name, _, text in (value.partition("=") for value in values)}


def _seconds(text: str) -> float:
    """Return a time that can be waited for: above 0, and no more than `poll` takes."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= 1e6:
        raise click.BadParameter(f"{text!r} is not a number of seconds above 0 and up to 1000000")
    return seconds


PATH = click.Path(path_type=Path)
SECONDS = _seconds

library = click.option("--library", default="patched", metavar="NAME", help="Library to use.")
series = click.option(
    "--series", metavar="NAME", help="Series to work on.  [default: that of the project]"
)
define = click.option(
    "-D",
    "--define",
    "options",
    multiple=True,
    callback=_definitions,
    metavar="NAME=VALUE",
    help="Use the library built with this CMake option, such as GGML_OPENMP=ON; repeatable.",
)


backend = click.option(
    "--backend",
    default="CPU",
    metavar="NAME",
    help="Device that computes, as `fa-harness devices` lists it.",
)


def _without_series(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        os.environ[NO_SERIES] = "1"  # repro lines name it, as they name UPSTREAM_DIR


no_series = click.option(
    "--no-series",
    is_flag=True,
    expose_value=False,
    callback=_without_series,
    help="Use upstream, or your checkout, without the patches.",
)
modes = words(
    "--mode",
    "modes",
    metavar="M",
    help="Compute only this mode: standard, full_state, segmented, merged, reduced, resumed, "
    "scheduled, mixed, fifo or preset.",
)
seed = click.option("--seed", type=int, metavar="S", help="Seed of the inputs.")
coverage = click.option(
    "--coverage",
    "with_coverage",
    is_flag=True,
    help="Name the branches of the kernel that no case takes.",
)
pattern = click.option(
    "-k",
    "pattern",
    metavar="WORDS|REGEX",
    help="Select cases: words of the table in any order ('tiled q8_0'), or a regular expression "
    "on the case string.",
)


def writable(ctx: click.Context, param: click.Parameter, path: str | None) -> str | None:
    """Refuse before a run a report that could not be written after it."""
    Reports(json=path).check()
    return path


json_path = click.option(
    "--json",
    "json_path",
    metavar="FILE",
    callback=writable,
    help="Write a JSON report; - is standard output.",
)
markdown = click.option(
    "--markdown",
    metavar="FILE",
    callback=writable,
    help="Write the results as a Markdown table; - is standard output.",
)
exit_first = click.option(
    "-x", "--exitfirst", "exit_first", is_flag=True, help="Stop at the first case that fails."
)
verbose = click.option("-v", "--verbose", is_flag=True, help="Print each command before it runs.")
list_only = click.option(
    "--list", "list_only", is_flag=True, help="Print the selected cases and exit."
)
llama_threads = count("--threads", "Threads of llama.cpp's programs.")
seconds = click.option("--seconds", type=SECONDS, default=60.0, metavar="S", help="Time limit.")


def suites(text: str) -> Decorator:
    """Return the option for the suites that a changed series has to pass."""
    of_series = "  [default: those in series.toml]"
    return click.option("--suite", "suites", multiple=True, metavar="NAME", help=text + of_series)


def project_of(series: str | None) -> Project:
    """Return the project with the series that an option names, on what that stands on."""
    if series and "+" in series:
        raise UsageError(f"--series {series}: names a stack; name one series, the last")
    return find_project(stack=series)


def model(*, required: bool) -> Decorator:
    """Return the options that say which model."""

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        terms = "Accept the licence terms of a model that is fetched."
        click.option("--accept-terms", is_flag=True, help=terms)(command)
        text = "A GGUF file, or gemma-3-270m or smollm2-135m, which are fetched."
        return click.option("--model", required=required, metavar="FILE|NAME", help=text)(command)

    return add


def as_record(record: Callable[..., Any], name: str, *options: Decorator) -> Decorator:
    """Add options to a command, whose parameter `name` gets their values as one record.

    The record is a dataclass whose fields have the options' names.
    """
    fields = {field.name for field in dataclasses.fields(record)}  # type: ignore[arg-type]

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def with_record(**values: Any) -> Any:
            own = {key: values.pop(key) for key in fields & values.keys()}
            return command(**values, **{name: record(**own)})

        for option in reversed(options):
            option(with_record)
        return with_record

    return decorate


@dataclass(frozen=True, kw_only=True)
class How:
    """How cases run, whichever they are."""

    library: str = "patched"
    options: Mapping[str, str] = field(default_factory=dict)
    """CMake options that the library was built with."""
    backend: str = "CPU"
    """The device that computes, as ggml's registry names it."""
    timeout: float | None = None
    """Seconds after which a case is given up; None for the usual ones."""
    exit_first: bool = False
    """Stop at the first case that neither passes nor is unsupported."""
    verbose: bool = False
    """Print repro lines of the cases that pass, too, and keep all outputs."""


library_of = as_record(How, "how", library, define, no_series)
"""The options of a command that takes a library as it is built."""
library_on = as_record(How, "how", library, define, no_series, backend)
"""The same of a command that computes on a device."""


@dataclass(frozen=True, kw_only=True)
class Reports:
    """Which forms of a run's report are written, and where: a file, `-` for standard output."""

    html: str | None = None
    markdown: str | None = None
    junit: str | None = None
    json: str | None = None
    summary: str | None = None
    """Markdown that is added to a file."""

    @property
    def to_stdout(self) -> bool:
        """Whether one goes to standard output, which then gets nothing else."""
        return "-" in self._wanted.values()

    @property
    def _wanted(self) -> dict[str, str]:
        return {form: path for form, path in vars(self).items() if path is not None}

    def check(self) -> None:
        """Refuse before a run what could not be written after it."""
        if list(self._wanted.values()).count("-") > 1:
            raise UsageError("only one report can go to standard output; name files for the others")
        if self.to_stdout and sys.stdout is None:
            raise UsageError("report -: standard output is closed; name a file")
        for path in self._wanted.values():
            if path != "-":
                check_writable(Path(path))

    def write(self, results: Results, gate: Gate | None = None) -> None:
        """Write each; one that cannot be written is an error, and keeps no other back."""
        from fa_harness.report.forms import render

        failures = []
        for form, path in self._wanted.items():
            text = render(form, results, gate)
            try:
                write_text(text, path, append=form == "summary")
            except SetupError as error:
                failures.append(error)
        if failures:
            raise failures[0]


_REPORTS = {
    "json": "a JSON report with all numbers",
    "junit": "a JUnit XML report",
    "markdown": "a Markdown report, as for a job summary",
    "html": "an HTML page with tables and pictures",
}
reports = as_record(
    Reports,
    "reports",
    *(
        click.option(f"--{form}", metavar="FILE", help=f"Write {what}; - is standard output.")
        for form, what in _REPORTS.items()
    ),
)
