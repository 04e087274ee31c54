"""Libraries by name, held while they run: what is missing or stale is built first."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from fa_harness.build import builder as build
from fa_harness.build.library import Library, held
from fa_harness.errors import SetupError
from fa_harness.project import Project, find_project


@contextlib.contextmanager
def held_library(
    name: str, options: Mapping[str, str], *, start: Path | None = None
) -> Iterator[Library]:
    """Give a library that is current, and whose files stay what they are while it runs.

    Args:
        name: Which.
        options: CMake options that it is built with.
        start: The folder whose project is meant; None for the working directory.

    Raises:
        UsageError: There is no library of that name.
        SetupError: It cannot be built, or what it is made of changed meanwhile.
    """
    project = find_project(start)
    with built_libraries(project, [name], options=options) as [library]:
        stale = build.is_stale(project, library, options=options)
        if stale:
            raise SetupError(
                f"library {name!r} is no longer current: {stale} while it was built; run again"
            )
        yield library


@contextlib.contextmanager
def built_libraries(
    project: Project,
    names: Iterable[str],
    *,
    upstream: str | None = None,
    options: Mapping[str, str] = {},
) -> Iterator[list[Library]]:
    """Build libraries that are not current, and give all of them, held.

    Args:
        project: Where they are.
        names: Of libraries.
        upstream: Name of a pin; None for the usual one.
        options: CMake options that they are built with.

    Raises:
        UsageError: There is no library or upstream of that name.
        SetupError: One does not build.
    """
    libraries = build.build(project, names, upstream=upstream, options=options)
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(held(library)) for library in libraries]
