"""Libraries by name, held while they run: what is missing or stale is built first."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from fa_harness.build import builder
from fa_harness.build.library import Library, held
from fa_harness.errors import SetupError
from fa_harness.project import Project, find_project


@contextlib.contextmanager
def held_library(
    name: str, options: Mapping[str, str], *, start: Path | None = None
) -> Iterator[Library]:
    """Give a library that is current, and whose files stay what they are while it runs.

    The library is that of the project around `start`, or around the working directory.
    """
    project = find_project(start)
    with built_libraries(project, [name], options=options) as [library]:
        stale = builder.is_stale(project, library, options=options)
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

    `upstream` is the name of a pin, or None for the chosen one.
    """
    libraries = builder.build(project, names, upstream=upstream, options=options)
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(held(library)) for library in libraries]
