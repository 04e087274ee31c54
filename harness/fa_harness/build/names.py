"""The names of libraries, and the patches that each has."""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from fa_harness.build.coverage import COVERAGE
from fa_harness.build.sanitizers import SANITIZERS
from fa_harness.errors import UsageError
from fa_harness.project import Project
from fa_harness.series.series import Series, load_generated, load_museum, load_mutants
from fa_harness.upstream.source import NO_SERIES, chosen

WHOLE = ("patched", *SANITIZERS, COVERAGE)
"""Libraries that have every patch."""

MUTANTS = "mutants"
"""The library that has the whole series and a switch for deliberate faults."""
GENERATED = "generated"
"""Another one, with faults that were made by rule."""
MUSEUM = "museum"
"""Another one, with faults that kernels really had."""

_FAULTS = {MUTANTS: load_mutants, GENERATED: load_generated, MUSEUM: load_museum}


def library_names(series: Series) -> tuple[str, ...]:
    """Return all libraries: `pristine`, `0001`, ..., those of `WHOLE`, those with faults."""
    numbers = (f"{number:04}" for number in range(1, len(series.patches) + 1))
    return ("pristine", *numbers, *WHOLE, *_FAULTS)


def faults_of(project: Project, name: str) -> Series | None:
    """Return the patches that a library has on top of the series, which are faults."""
    return _FAULTS[name](project) if name in _FAULTS else None


def patches_of(project: Project, series: Series, name: str) -> Series:
    """Return the patches that the library `name` has."""
    names = library_names(series)
    if name not in names:
        raise UsageError(f"unknown library '{name}': the libraries are {', '.join(names)}")
    faults = faults_of(project, name)
    if faults is not None:
        return series.then(faults)
    return series if name in WHOLE else series.first(names.index(name))


def defined(options: Mapping[str, str]) -> list[str]:
    """Return CMake options as the command line takes them."""
    return [word for name, value in options.items() for word in ("-D", f"{name}={value}")]


def build_command(name: str, options: Mapping[str, str]) -> str:
    """Return the command that builds a library for the upstream that is chosen now."""
    as_it_is = ["--no-series"] if NO_SERIES in chosen() else []
    return shlex.join(["fa-harness", "build", name, *as_it_is, *defined(options)])
