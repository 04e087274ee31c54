"""`doctor`: what a run uses on this machine, and what is wrong with it."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import click

from fa_harness.build import builder as build
from fa_harness.build import toolchain
from fa_harness.build.library import Library, held
from fa_harness.build.names import PATCHED, prefixes
from fa_harness.case.suites import suite
from fa_harness.config import FILE
from fa_harness.engine.runner import Runner
from fa_harness.errors import FaHarnessError, SetupError
from fa_harness.machine import cpu_features, cpu_model, usable_cores
from fa_harness.project import HOME_VARIABLE, Project, find_project
from fa_harness.series import series, tree
from fa_harness.speed import baseline
from fa_harness.speed.ratios import speed_incomparable
from fa_harness.upstream import fetch, source
from fa_harness.upstream.pins import Pin

NEEDED_BYTES = 500 << 20
"""Archive, tree and one build folder, with some room."""

FEATURES = re.compile(r"(avx|amx|asimd|sve)\w*|sse4_2|fma|f16c|bmi2|fphp|i8mm|sme2?|vxe2?|v")
"""The instruction set extensions that ggml has kernels for, of all architectures."""

TryLibrary = Callable[[Library], str | None]
"""Runs a small computation on a library in a process of its own; says why it died, or None."""

_STYLE = {"ok": "green", "note": "yellow", "problem": "red"}


class NoteError(FaHarnessError):
    """Something worth knowing, which keeps no run from working."""


@dataclass(frozen=True)
class Finding:
    """One thing that a run would use."""

    name: str
    """What it is (`CMake`, `library patched`)."""
    value: str
    """What was found; of a problem, what is wrong and what to do next."""
    status: str = "ok"
    """`ok`, `note`, or `problem`, which keeps runs from working."""


@click.command("doctor")
def command() -> None:
    """Show what a run uses on this machine, and any problems."""
    project = find_project()
    findings = [*check(project, try_library), look("baseline", lambda: baseline_here(project))]
    for finding in findings:
        mark = click.style(f"{finding.status:7}", fg=_STYLE[finding.status])
        click.echo(f"{mark}  {finding.name:16}  {finding.value}")
    if any(finding.status == "problem" for finding in findings):
        sys.exit(SetupError.exit_status)


def look(name: str, at: Callable[[], str]) -> Finding:
    """Return what a function finds: its value, a `NoteError`, or another error."""
    try:
        return Finding(name, at())
    except NoteError as note:
        return Finding(name, str(note), "note")
    except FaHarnessError as error:
        return Finding(name, str(error), "problem")


def check(project: Project, try_library: TryLibrary | None = None) -> list[Finding]:
    """Look at everything that a run needs, in that order; changes nothing and uses no network.

    Without `try_library`, libraries are looked at but not run.
    """
    first: dict[str, Callable[[], str]] = {
        "configuration": lambda: str(project.config.file or f"none (fa-harness init: {FILE})"),
        "patches": lambda: _patches(project),
        "sources, builds": lambda: _home(project),
        "Python": _python,
        "C compiler": lambda: toolchain.find_c_compiler().version,
        "C++ compiler": lambda: toolchain.find_cxx_compiler().version,
        "CMake": lambda: toolchain.find_cmake().version,
        "Ninja": lambda: toolchain.find_ninja().version,
        "git": lambda: toolchain.find_git().version,
        "compiler cache": lambda: toolchain.find_launcher() or "none (optional)",
        "valgrind": lambda: shutil.which("valgrind") or "none (optional: counts instructions)",
        "upstream": lambda: _upstream(project),
        "patch series": lambda: _series(project),
    }
    libraries = {
        f"library {name}": partial(_library, project, name, try_library)
        for name in _libraries(project)
    }
    last = {
        "CPU": lambda: f"{cpu_model()} ({platform.machine()})",
        "CPU features": _features,
        "cores": _cores,
        "disk": lambda: _disk(project),
    }
    return [look(name, at) for name, at in (first | libraries | last).items()]


def _patches(project: Project) -> str:
    if not project.config.has_series:
        return f"none ({project.config.where('series')})"
    return f"{project.patches}{' (of the installed package)' * project.is_installed}"


def _home(project: Project) -> str:
    there = project.existing_home
    if not os.access(there, os.W_OK | os.X_OK):
        raise SetupError(f"{there} cannot be written; make it writable, or set {HOME_VARIABLE}")
    return f"{project.home} ({HOME_VARIABLE} moves them)"


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


def _libraries(project: Project) -> list[str]:
    try:
        patches = series.series_for(project, source.find_source(project))
    except FaHarnessError:
        return []  # the finding "patch series" has it already
    return prefixes(project, patches)


def _library(project: Project, name: str, try_library: TryLibrary | None) -> str:
    try:
        library = build.find(project, name)
        stale = build.is_stale(project, library)
    except FaHarnessError as error:
        raise NoteError(str(error)) from error
    if try_library and (died := try_library(library)):
        raise SetupError(
            f"does not run on this machine: {died}; build it without the features that this CPU "
            "lists but does not have (CFLAGS and CXXFLAGS, such as -mno-amx-tile)"
        )
    if stale:
        raise NoteError(f"stale ({stale}): fa-harness build {name}")
    return "current, runs here" if try_library else "current"


def _features() -> str:
    return " ".join(name for name in cpu_features() if FEATURES.fullmatch(name)) or "unknown"


def _cores() -> str:
    usable, present = usable_cores(), os.cpu_count() or 1
    if usable < present:
        raise NoteError(f"{usable} usable of {present} (affinity or CPU quota)")
    return str(usable)


def _disk(project: Project) -> str:
    free = shutil.disk_usage(project.existing_home).free
    if free < NEEDED_BYTES:
        raise SetupError(
            f"{free >> 20} MiB free, a build needs {NEEDED_BYTES >> 20}; free some space"
        )
    return f"{free >> 30} GiB free"


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


def baseline_here(project: Project) -> str:
    """Tell whether `gate` has a baseline to compare with on this machine."""
    try:
        with held(build.find(project, PATCHED)) as library, Runner(library.module_path) as runner:
            class_ = baseline.machine_class(platform.machine(), runner.features)
        file = project.baselines / baseline.file_name(library.upstream, class_)
        found = baseline.load(file)
    except FileNotFoundError:
        shown = project.relative(file)
        missing = baseline.missing(shown, upstream=library.upstream, class_=class_)
        raise NoteError(missing.text) from None
    except FaHarnessError as error:
        raise NoteError(f"not known: {error}") from error
    value = f"{project.relative(file)} (machine class {class_})"
    no_speed = speed_incomparable(found, cpu_model())
    if no_speed is not None:
        raise NoteError(f"{value}, speed not comparable: {no_speed}")
    return value
