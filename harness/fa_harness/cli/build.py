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
    """Build libraries.

    \b
    NAME is one of
      pristine             upstream without the patches
      0001, 0002, ...      with the patches up to that one
      patched              with all patches (the default)
      mutants              with all patches and the mutants
      generated            with all patches and mutants made by rule
      museum               with all patches and faults that kernels really had
      asan-ubsan, tsan     patched, with sanitizers
      coverage             patched, counting its branches

    A library that is up to date is not built again. UPSTREAM_DIR=/path builds your own checkout
    instead of the pinned upstream; UPSTREAM=NAME builds another pin. The patches are merged
    three-way into a checkout, except those that it already has. If they conflict, or with
    --no-series, the checkout is built as it is.
    """
    project = find_project()
    for library in builder.build(project, names or ("patched",), options=options, verbose=verbose):
        click.echo(f"{library.name}: {project.relative(library.path)}", err=True)
