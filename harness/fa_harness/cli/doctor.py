"""`doctor`: what a run would use on this machine."""

from __future__ import annotations

import click

from fa_harness.build.library import Library
from fa_harness.case.suites import suite
from fa_harness.doctor import check
from fa_harness.engine.runner import Runner
from fa_harness.errors import SetupError
from fa_harness.project import find_project

_STYLE = {"ok": "green", "note": "yellow", "problem": "red"}


@click.command("doctor")
def command() -> None:
    """Show what a run would use on this machine, and what is wrong with it."""
    report = check(find_project(), try_library=try_library)
    for finding in report.findings:
        mark = click.style(f"{finding.status:7}", fg=_STYLE[finding.status])
        click.echo(f"{mark}  {finding.name:16}  {finding.value}")
    if report.problems:
        raise click.exceptions.Exit(SetupError.exit_status)


def try_library(library: Library) -> str | None:
    """Run a few small cases on a library; return why it died, or None."""
    try:
        with Runner(library.module_path) as runner:
            for verdict in runner.run(suite("smoke")[:8], modes=("standard",)):
                if verdict.status in ("crash", "timeout"):
                    return f"{verdict.status} in {verdict.case}: {verdict.reason}"
    except SetupError as error:
        return str(error)
    return None
