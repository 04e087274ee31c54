"""`doctor`: what a run uses on this machine, and what is wrong with it."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import click

from fa_harness.build import builder as build
from fa_harness.build import toolchain
from fa_harness.build.library import Library, held
from fa_harness.build.names import MUTANTS, WHOLE, library_names
from fa_harness.case.suites import suite
from fa_harness.config import FILE
from fa_harness.engine.runner import Runner
from fa_harness.errors import FaHarnessError, SetupError
from fa_harness.machine import cpu_features, cpu_model, usable_cores
from fa_harness.project import HOME_VARIABLE, Project, find_project
from fa_harness.series import series, tree
from fa_harness.speed import baseline
from fa_harness.speed.gate import speed_incomparable
from fa_harness.upstream import fetch, source
from fa_harness.upstream.pins import Pin

Status = Literal["ok", "note", "problem"]

NEEDED_BYTES = 500 << 20
"""Archive, tree and one build folder, with some room."""

FEATURES = re.compile(r"(avx|amx|asimd|sve)\w*|sse4_2|fma|f16c|bmi2|fphp|i8mm|sme2?|vxe2?|v")
"""The instruction set extensions that ggml has kernels for, of all architectures."""

TryLibrary = Callable[[Library], str | None]
"""Runs a small computation on a library in a process of its own; says why it died, or None."""


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """One thing that a run would use.

    Attributes:
        name: what it is (`CMake`, `library patched`).
        value: what was found; of a problem, what is wrong and what to do next.
        status: `problem` keeps runs from working, `note` is worth knowing.
    """

    name: str
    value: str
    status: Status = "ok"


@dataclass(frozen=True, kw_only=True)
class Report:
    """All findings, in the order in which a run needs the things."""

    findings: tuple[Diagnosis, ...]

    @property
    def problems(self) -> tuple[Diagnosis, ...]:
        """The findings that keep runs from working."""
        return tuple(found for found in self.findings if found.status == "problem")


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


def check(project: Project, *, try_library: TryLibrary | None = None) -> Report:
    """Look at everything that a run needs; changes nothing and uses no network.

    Args:
        project: the checkout to look at.
        try_library: shows whether this CPU really runs what a library was compiled to; without
            it libraries are looked at but not run.
    """
    findings = [
        _configuration(project),
        Diagnosis(name="patches", value=_patches(project)),
        _home(project),
        _probe("Python", _python),
        _probe("C compiler", lambda: toolchain.find_c_compiler().version),
        _probe("C++ compiler", lambda: toolchain.find_cxx_compiler().version),
        _probe("CMake", lambda: toolchain.find_cmake().version),
        _probe("Ninja", lambda: toolchain.find_ninja().version),
        _probe("git", lambda: toolchain.find_git().version),
        Diagnosis(name="compiler cache", value=toolchain.find_launcher() or "none (optional)"),
        _probe("upstream", lambda: _upstream(project)),
        _probe("patch series", lambda: _series(project)),
        *_libraries(project, try_library),
        Diagnosis(name="CPU", value=f"{cpu_model()} ({platform.machine()})"),
        Diagnosis(name="CPU features", value=_features()),
        _cores(),
        _disk(project),
    ]
    return Report(findings=tuple(findings))


def _configuration(project: Project) -> Diagnosis:
    file = project.config.file
    return Diagnosis(name="configuration", value=str(file or f"none (fa-harness init: {FILE})"))


def _patches(project: Project) -> str:
    if not project.config.has_series:
        return f"none ({project.config.where('series')})"
    return f"{project.patches}{' (of the installed package)' * project.is_installed}"


def _home(project: Project) -> Diagnosis:
    there = project.existing_home
    if not os.access(there, os.W_OK | os.X_OK):
        value = f"{there} cannot be written; make it writable, or set {HOME_VARIABLE}"
        return Diagnosis(name="sources, builds", value=value, status="problem")
    value = f"{project.home} ({HOME_VARIABLE} moves them)"
    return Diagnosis(name="sources, builds", value=value)


def _probe(name: str, look: Callable[[], str]) -> Diagnosis:
    try:
        return Diagnosis(name=name, value=look())
    except FaHarnessError as error:
        return Diagnosis(name=name, value=str(error), status="problem")


def _python() -> str:
    toolchain.find_python_headers()
    return f"{platform.python_version()} ({sys.executable})"


def _upstream(project: Project) -> str:
    found = source.find_source(project)
    if not isinstance(found.origin, Pin):
        where = f"UPSTREAM_DIR={os.environ['UPSTREAM_DIR']}"
    elif fetch.cached(project, found.origin):
        where = "fetched"
    else:
        where = "not fetched yet"
    return f"{found.label} {found.commit} ({where})"


def _series(project: Project) -> str:
    found = source.find_source(project)
    patches = series.series_for(project, found)
    prepared = tree.current_tree(project, found, patches)
    if prepared and (said := tree.note(found, patches, prepared.applied)):
        return said.removeprefix("series: ")
    return f"{len(patches.patches)} patches ({'applied' if prepared else 'not applied yet'})"


def _libraries(project: Project, try_library: TryLibrary | None) -> Iterator[Diagnosis]:
    try:
        patches = series.series_for(project, source.find_source(project))
    except FaHarnessError:
        return  # the finding "patch series" has it already
    for name in library_names(patches):
        if name in (f"{len(patches.patches):04}", *WHOLE[1:], MUTANTS):
            continue  # what `patched` is, too; what checks the harness is not missed
        yield _library(project, name, try_library)


def _library(project: Project, name: str, try_library: TryLibrary | None) -> Diagnosis:
    label = f"library {name}"
    try:
        library = build.find(project, name)
        stale = build.is_stale(project, library)
    except FaHarnessError as error:
        return Diagnosis(name=label, value=str(error), status="note")
    died = try_library(library) if try_library else None
    if died:
        value = (
            f"does not run on this machine: {died}; build it without the features that this CPU "
            "lists but does not have (CFLAGS and CXXFLAGS, such as -mno-amx-tile)"
        )
        return Diagnosis(name=label, value=value, status="problem")
    if stale:
        value = f"stale ({stale}): fa-harness build {name}"
        return Diagnosis(name=label, value=value, status="note")
    return Diagnosis(name=label, value="current, runs here" if try_library else "current")


def _features() -> str:
    return " ".join(name for name in cpu_features() if FEATURES.fullmatch(name)) or "unknown"


def _cores() -> Diagnosis:
    usable, present = usable_cores(), os.cpu_count() or 1
    if usable < present:
        value = f"{usable} usable of {present} (affinity or CPU quota)"
        return Diagnosis(name="cores", value=value, status="note")
    return Diagnosis(name="cores", value=str(usable))


def _disk(project: Project) -> Diagnosis:
    free = shutil.disk_usage(project.existing_home).free
    if free < NEEDED_BYTES:
        value = f"{free >> 20} MiB free, a build needs {NEEDED_BYTES >> 20}; free some space"
        return Diagnosis(name="disk", value=value, status="problem")
    return Diagnosis(name="disk", value=f"{free >> 30} GiB free")


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
        with held(build.find(project, "patched")) as library, Runner(library.module_path) as runner:
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
