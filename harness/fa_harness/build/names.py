"""The names of libraries, and the patches that each has.

A library is called `STACK` or `STACK@PART`. The part is a number, the library's patches of the last
series, or says what the library is for. `pristine` has no patch. Short names are of the stack that
is the default: `patched` is the whole of it, `0002` is `STACK@0002`, `mutants` is `STACK@mutants`.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from fa_harness.build.coverage import COVERAGE
from fa_harness.build.sanitizers import SANITIZERS
from fa_harness.errors import UsageError
from fa_harness.project import Project
from fa_harness.series.series import Series, load_generated, load_museum, load_mutants
from fa_harness.upstream.source import NO_SERIES, chosen

PRISTINE = "pristine"
"""The library without a patch."""
PATCHED = "patched"
"""The short name of the library with the whole default stack."""
MUTANTS = "mutants"
"""The part that has the whole stack and a switch for deliberate faults."""
GENERATED = "generated"
"""Another one, with faults that were made by rule."""
MUSEUM = "museum"
"""Another one, with faults that kernels really had."""

_FAULTS = {MUTANTS: load_mutants, GENERATED: load_generated, MUSEUM: load_museum}
PARTS = (*SANITIZERS, COVERAGE, *_FAULTS)
"""What a library with every patch of a stack may be beside it."""


@dataclass(frozen=True, kw_only=True)
class Name:
    """The name of a library."""

    project: Project
    """With the library's stack."""
    part: str = ""
    """A number of four digits, one of `PARTS`, or `PRISTINE`; empty for the whole stack."""

    def __str__(self) -> str:
        """Return the full name, which means the same whatever the default stack is."""
        if self.part == PRISTINE:
            return PRISTINE
        return self.project.stack_name + (f"@{self.part}" if self.part else "")

    @property
    def folder(self) -> str:
        """The name of a folder that the compiler works in."""
        return str(self).replace("@", "-")

    def faults(self) -> Series | None:
        """Return the patches that the library has on top of the stack, which are faults."""
        return _FAULTS[self.part](self.project) if self.part in _FAULTS else None

    def patches(self, stack: Series) -> Series:
        """Return the library's patches, of those of its stack.

        Raises:
            UsageError: There are fewer.
        """
        if self.part == PRISTINE:
            return stack.first(0)
        if self.part.isdecimal():
            n, here = int(self.part), len(stack.own.patches)
            if not 1 <= n <= here:
                prefixes = f"{self.project.stack_name}@0001 to @{here:04}" if here else "none"
                raise UsageError(
                    f"unknown library '{self}': {self.project.series} has {here} patches here, so "
                    f"there are {prefixes}"
                )
            return stack.first(stack.below + n)
        faults = self.faults()
        return stack if faults is None else stack.then(faults)


def find_name(project: Project, text: str) -> Name:
    """Return the library that is called so on the command line.

    Raises:
        UsageError: There is no such stack or part.
    """
    if text == PRISTINE:
        return Name(project=project, part=PRISTINE)
    if text == PATCHED:
        return Name(project=project)
    if text in PARTS or re.fullmatch(r"\d{1,4}", text):
        return Name(project=project, part=_part(text))
    stack, at, part = text.partition("@")
    if part not in PARTS and not re.fullmatch(r"\d{1,4}", part) and at:
        raise UsageError(
            f"unknown library '{text}': behind @ comes the number of a patch, or one of "
            f"{', '.join(PARTS)}"
        )
    try:
        return Name(project=project.of(stack), part=_part(part))
    except UsageError as error:
        raise UsageError(
            f"unknown library '{text}': {error} (fa-harness build --help says how libraries are "
            "called)"
        ) from None


def _part(text: str) -> str:
    return f"{int(text):04}" if text.isdecimal() else text


def prefixes(project: Project, stack: Series) -> list[str]:
    """Return the library of each prefix of a stack, upstream as it is first, the whole one last."""
    names = [PRISTINE]
    for i, owner in enumerate(stack.owners):
        below = "+".join(project.stack[: project.stack.index(owner) + 1])
        is_last = i + 1 == len(stack.owners) or stack.owners[i + 1] != owner
        names.append(below if is_last else f"{below}@{stack.number(i):04}")
    return names


def defined(options: Mapping[str, str]) -> list[str]:
    """Return CMake options as the command line takes them."""
    return [word for name, value in options.items() for word in ("-D", f"{name}={value}")]


def build_command(name: str, options: Mapping[str, str]) -> str:
    """Return the command that builds a library for the upstream that is chosen now."""
    as_it_is = ["--no-series"] if NO_SERIES in chosen() else []
    return shlex.join(["fa-harness", "build", name, *as_it_is, *defined(options)])
