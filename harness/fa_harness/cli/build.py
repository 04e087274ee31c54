"""`build`: libraries by name, and programs of llama.cpp with a series."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import click

from fa_harness.build import builder
from fa_harness.build.names import PATCHED, find_name
from fa_harness.cli import options
from fa_harness.errors import UsageError
from fa_harness.model.llama import build_llama
from fa_harness.project import find_project


@click.command("build")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option(
    "--program",
    "programs",
    multiple=True,
    metavar="NAME",
    help="Build this program of llama.cpp, such as llama-server, instead of a library, and print "
    "its path; repeatable.",
)
@options.define
@options.no_series
@options.verbose
def command(
    *, names: tuple[str, ...], programs: tuple[str, ...], options: dict[str, str], verbose: bool
) -> None:
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

    --program llama-server builds that program of llama.cpp with the patches of NAME.
    """
    if programs:
        _build_programs(names, programs, options, verbose=verbose)
        return
    project = find_project()
    for library in builder.build(project, names or (PATCHED,), options=options, verbose=verbose):
        click.echo(f"{library.name}: {project.relative(library.path)}", err=True)


def _build_programs(
    names: Sequence[str], programs: Sequence[str], options: Mapping[str, str], *, verbose: bool
) -> None:
    if options:
        raise UsageError("--define: is for libraries; leave it out with --program")
    found = [find_name(find_project(), name) for name in names or (PATCHED,)]
    for name in found:
        if name.part:
            raise UsageError(
                f"--program: {name} is not a whole stack of series, which llama.cpp's programs are "
                "built with; name one, such as mixed"
            )
    for name in found:
        built = build_llama(name.project, programs, verbose=verbose)
        for program in programs:
            click.echo(built.program(program))
