"""Libraries by name, as they were built: those that are not current are refused."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator, Mapping

from fa_harness.build import builder as build
from fa_harness.build.library import Library, held
from fa_harness.build.names import defined
from fa_harness.errors import SetupError
from fa_harness.project import Project, find_project


def current_library(name: str, options: Mapping[str, str]) -> Library:
    """Return a library as it was built.

    Raises:
        UsageError: There is no library of that name.
        SetupError: It is not built, or not current.
    """
    project = find_project()
    library = build.find(project, name, options=options)
    _check_current(project, library, options)
    return library


@contextlib.contextmanager
def held_library(name: str, options: Mapping[str, str]) -> Iterator[Library]:
    """Give a library whose files stay what they are while it runs, built anew or not.

    Raises:
        UsageError: There is no library of that name.
        SetupError: It is not built, or not current.
    """
    project = find_project()
    with held(build.find(project, name, options=options)) as library:
        _check_current(project, library, options)
        yield library


def _check_current(project: Project, library: Library, options: Mapping[str, str]) -> None:
    stale = build.is_stale(project, library, options=options)
    if stale:
        again = shlex.join(["fa-harness", "build", library.name, *defined(options)])
        raise SetupError(f"library {library.name!r} is not current: {stale}; run `{again}`")
