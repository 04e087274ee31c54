"""`vendor`: the sources, with the series on top."""

from __future__ import annotations

import click

from fa_harness.build import builder
from fa_harness.cli import options
from fa_harness.project import find_project


@click.command("vendor")
@options.verbose
def command(*, verbose: bool) -> None:
    """Fetch the upstream sources and apply the patch series."""
    project = find_project()
    tree = builder.vendor(project, verbose=verbose)
    click.echo(project.relative(tree.path), err=True)
