"""Where things are in a checkout, and how two runs in it keep out of each other's way."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fa_harness import terminal
from fa_harness.errors import SetupError

PATCHES = "patches"
"""The lock of whoever changes the series or the pins."""

_held: set[tuple[int, Path]] = set()
"""Which thread holds which lock."""


@dataclass(frozen=True, kw_only=True)
class Project:
    """A checkout of the harness: its patches, its pins, and the folders that it fills."""

    root: Path

    @property
    def patches(self) -> Path:
        """The folder of the patch series."""
        return self.root / "patches"

    @property
    def series_file(self) -> Path:
        """The order of the patches, one file name a line."""
        return self.patches / "series"

    @property
    def mutants(self) -> Path:
        """The folder of the patches that put mutants into the patched library."""
        return self.patches / "mutants"

    @property
    def pins_file(self) -> Path:
        """The pinned upstreams."""
        return self.root / "vendor" / "upstreams.toml"

    @property
    def cache(self) -> Path:
        """Downloaded archives, each verified against its pin."""
        return self.root / "vendor" / "cache"

    @property
    def sources(self) -> Path:
        """Trees: one git repository per upstream."""
        return self.root / "vendor" / "src"

    @property
    def baselines(self) -> Path:
        """What gates compare with, one file per upstream and machine class."""
        return self.root / "baselines"

    @property
    def build(self) -> Path:
        """Everything that compilers make."""
        return self.root / "build"

    def relative(self, path: Path) -> str:
        """`path` as messages show it: relative to the root where it lies inside."""
        return str(path.relative_to(self.root)) if path.is_relative_to(self.root) else str(path)


def find_project(start: Path | None = None) -> Project:
    """The project around `start` (the working directory), else the one this package lies in.

    Raises:
        SetupError: neither holds `patches/series` and `vendor/upstreams.toml`.
    """
    start = (start or Path.cwd()).resolve()
    for root in (start, *start.parents, *Path(__file__).resolve().parents):
        project = Project(root=root)
        if project.series_file.is_file() and project.pins_file.is_file():
            return project
    raise SetupError(
        f"no project at {start} or above: there is no folder with patches/series and "
        "vendor/upstreams.toml; run inside a checkout of fa-harness"
    )


@contextlib.contextmanager
def locked(project: Project, what: str) -> Iterator[None]:
    """Hold one of the project's locks: one process at a time changes what it is named after.

    The lock is the kernel's, so a killed process leaves none behind. A thread that holds it may
    take it again. Who takes several takes them in this order: `PATCHES`, a build folder, the tree
    of a checkout, that of a pin, an archive.

    Args:
        project: Whose.
        what: A tree's folder, a build folder, `PATCHES`, or a file, as people know it.
    """
    path = project.build / ".locks" / f"{what.replace('/', '+')}.lock"
    key = (threading.get_ident(), path)
    if key in _held:
        yield
        return
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 32, 0).decode().strip() or "unknown"
            terminal.stage(f"waiting for another fa-harness (pid {holder}), which works on {what}")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        _held.add(key)
        yield
    finally:
        _held.discard(key)
        os.close(descriptor)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a failure to write at `path` (full disk, no permission) into a SetupError."""
    try:
        yield
    except OSError as error:
        # shutil.Error lists the errors of many files, each as a text
        full = error.errno in (errno.ENOSPC, errno.EDQUOT) or os.strerror(errno.ENOSPC) in str(
            error
        )
        if full:
            raise SetupError(
                f"cannot write {path}: the disk is full; free some space and run again"
            ) from error
        raise SetupError(
            f"cannot write {error.filename or path}: {error.strerror or error}"
        ) from error
