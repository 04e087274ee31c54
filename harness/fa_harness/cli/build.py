"""`build`: libraries by name."""

from __future__ import annotations

import click

from fa_harness.build import builder
from fa_harness.cli import options
from fa_harness.project import find_project


@click.command("build")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@options.define
@options.no_series
@options.verbose
def command(*, names: tuple[str, ...], options: dict[str, str], verbose: bool) -> None:
    """Build libraries by name [default: patched].

    pristine, 0001, 0002, ..., patched; mutants; asan-ubsan, tsan.

    A library that is current is left alone. UPSTREAM_DIR=/path builds a checkout of your own
    instead of the pinned upstream, UPSTREAM=NAME another pin. A checkout takes the patches by a
    three-way merge; those that it has already are found, and where they conflict, or with
    --no-series, it is built as it is.
    """
    project = find_project()
    for library in builder.build(project, names or ("patched",), options=options, verbose=verbose):
        click.echo(f"{library.name}: {project.relative(library.path)}", err=True)
