"""`doctor`: what a run would use on this machine."""

from __future__ import annotations

import platform

import click

from fa_harness.build.builder import find
from fa_harness.build.library import Library, held
from fa_harness.case.suites import suite
from fa_harness.doctor import Diagnosis, check
from fa_harness.engine.runner import Runner
from fa_harness.errors import FaHarnessError, SetupError
from fa_harness.machine import cpu_model
from fa_harness.project import Project, find_project
from fa_harness.speed import baseline
from fa_harness.speed.gate import speed_incomparable

_STYLE = {"ok": "green", "note": "yellow", "problem": "red"}


@click.command("doctor")
def command() -> None:
    """Show what a run uses on this machine, and any problems."""
    project = find_project()
    report = check(project, try_library=try_library)
    for finding in (*report.findings, baseline_here(project)):
        mark = click.style(f"{finding.status:7}", fg=_STYLE[finding.status])
        click.echo(f"{mark}  {finding.name:16}  {finding.value}")
    if report.problems:
        raise click.exceptions.Exit(SetupError.exit_status)


def try_library(library: Library) -> str | None:
    """Run a few small cases on a library; return why it died, or None."""
    try:
        with held(library) as held_one, Runner(held_one.module_path) as runner:
            for verdict in runner.run(suite("smoke")[:8], modes=("standard",)):
                if verdict.status in ("crash", "timeout"):
                    return f"{verdict.status} in {verdict.case}: {verdict.reason}"
    except SetupError as error:
        return str(error)
    return None


def baseline_here(project: Project) -> Diagnosis:
    """Tell whether `gate` has a baseline to compare with on this machine."""
    name = "baseline"
    try:
        with held(find(project, "patched")) as library, Runner(library.module_path) as runner:
            class_ = baseline.machine_class(platform.machine(), runner.features)
        file = project.baselines / baseline.file_name(library.upstream, class_)
        found = baseline.load(file)
    except FileNotFoundError:
        shown = project.relative(file)
        missing = baseline.missing(shown, upstream=library.upstream, class_=class_)
        return Diagnosis(name=name, value=missing.text, status="note")
    except FaHarnessError as error:
        return Diagnosis(name=name, value=f"not known: {error}", status="note")
    no_speed = speed_incomparable(found, cpu_model())
    value = f"{project.relative(file)} (machine class {class_})"
    if no_speed is not None:
        return Diagnosis(
            name=name, value=f"{value}, speed not comparable: {no_speed}", status="note"
        )
    return Diagnosis(name=name, value=value)
