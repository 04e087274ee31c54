"""The patch series: its order, its contents, and the names of the libraries made from it."""

from __future__ import annotations

import email
import email.policy
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from fa_harness.errors import SetupError, UsageError
from fa_harness.project import Project
from fa_harness.sanitizers import SANITIZERS

WHOLE = ("patched", *SANITIZERS)
"""Libraries that have every patch."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """The patches in the order of `patches/series`.

    Attributes:
        patches: their files.
        digests: sha256 of each, in the same order.
    """

    patches: tuple[Path, ...]
    digests: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The patches' file names."""
        return tuple(patch.name for patch in self.patches)


def load_series(project: Project) -> Series:
    """Read `patches/series`: one file name a line; blank lines and `#` comments are skipped.

    Raises:
        SetupError: the file, or a patch that it names, cannot be read, or is named twice.
    """
    path = project.series_file
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise SetupError(f"cannot read the patch series {path}: {error.strerror}") from error
    names = [name for line in lines if (name := line.partition("#")[0].strip())]
    for name in names:
        if names.count(name) > 1:
            raise SetupError(f"{path}: '{name}' is listed twice")
        if not (project.patches / name).is_file():
            raise SetupError(f"{path}: there is no patch '{name}' in {project.patches}")
    patches = tuple(project.patches / name for name in names)
    digests = tuple(hashlib.sha256(patch.read_bytes()).hexdigest() for patch in patches)
    return Series(patches=patches, digests=digests)


def title(patch: Path) -> str:
    """Return the first line of a patch's message."""
    subject = email.message_from_bytes(patch.read_bytes(), policy=email.policy.default)["Subject"]
    return re.sub(r"^\[PATCH[^]]*\]\s*", "", str(subject or patch.name))


def library_names(series: Series) -> tuple[str, ...]:
    """All libraries that can be built: `pristine`, `0001`, `0002`, ..., and those of `WHOLE`."""
    numbers = (f"{number:04}" for number in range(1, len(series.patches) + 1))
    return ("pristine", *numbers, *WHOLE)


def patch_count(series: Series, name: str) -> int:
    """How many patches of the series the library `name` has.

    Raises:
        UsageError: there is no such library.
    """
    names = library_names(series)
    if name not in names:
        raise UsageError(f"unknown library '{name}': the libraries are {', '.join(names)}")
    return len(series.patches) if name in WHOLE else names.index(name)
