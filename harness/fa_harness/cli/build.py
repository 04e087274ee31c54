"""`build`: libraries by name."""

from __future__ import annotations

import click

from fa_harness.build import builder
from fa_harness.build.names import PATCHED
from fa_harness.cli import options
from fa_harness.project import find_project


@click.command("build")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@options.define
@options.no_series
@options.verbose
def command(*, names: tuple[str, ...], options: dict[str, str], verbose: bool) -> None:
    """Build libraries.

    \b
    NAME is one of
      pristine             upstream without a patch
      state                a series with what it stands on (fa-harness series list)
      state+fast           a stack: several series, one on the other
      state@0002           the same, with the patches of the last series up to that one
      state@PART           with all patches, and with or for
        mutants              the mutants
        generated            mutants made by rule
        museum               faults that kernels really had
        asan-ubsan, tsan     sanitizers
        coverage             counting its branches
      patched, 0002, PART  short for the default series (patched is what is built without a name)

    A library that is up to date is not built again. UPSTREAM_DIR=/path builds your own checkout
    instead of the pinned upstream; UPSTREAM=NAME builds another pin. The patches are merged
    three-way into a checkout, except those that it already has. If they conflict, or with
    --no-series, the checkout is built as it is.
    """
    project = find_project()
    for library in builder.build(project, names or (PATCHED,), options=options, verbose=verbose):
        click.echo(f"{library.name}: {project.relative(library.path)}", err=True)
