"""A built library and its record: all that the build half and the run half share."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fa_harness.errors import SetupError

RECORD = "library.json"

_ATTEMPTS = 20
_BETWEEN_ATTEMPTS = 0.05  # seconds; a library is replaced by two renames


@dataclass(frozen=True, kw_only=True)
class Library:
    """One build: an upstream, a prefix of a stack, build options, and its bindings."""

    name: str  # in full: `pristine`, `STACK` or `STACK@PART`
    path: Path  # the folder with the shared libraries, the bindings and `include/`
    module: str  # file name of the cffi extension module `_ggml` in that folder
    upstream: str  # name of the pin, or `dir:<folder>` for a developer's own checkout
    upstream_commit: str  # empty if it is not known
    ggml_version: str  # in ggml/CMakeLists.txt
    series: tuple[str, ...]  # file names of the patches in it, in order
    build: dict[str, Any]  # what made it: options, compilers, flags, launcher, CMake, Python
    inputs: dict[str, str]  # by what they are of, digests or versions; a change makes it stale
    compiled: tuple[str, ...]  # the source files that its last build compiled
    preload: tuple[str, ...] = ()  # the compiler's libraries that must be loaded before all else
    series_note: str = ""  # what became of the series, unless it was simply applied
    modes: tuple[str, ...] = ()  # that its series name, see `stacks.About`; empty for pristine

    @property
    def part(self) -> str:
        """What of its stack it is: the number of a patch, or what it is for; empty for all."""
        return self.name.partition("@")[2]

    @property
    def module_path(self) -> Path:
        """The cffi extension module, ready to be imported."""
        return self.path / self.module

    @property
    def include_dir(self) -> Path:
        """The public headers that the library was built from."""
        return self.path / "include"

    def to_json(self) -> dict[str, Any]:
        """Return what a run's report says of the library."""
        names = ("name", "upstream", "upstream_commit", "ggml_version")
        return {
            **{name: getattr(self, name) for name in names},
            "series": list(self.series),
            "series_note": self.series_note,
            "build": self.build,
        }


def save(library: Library) -> None:
    """Write the record into the library's own folder."""
    record = dataclasses.asdict(library)
    del record["path"]  # the folder is renamed into place afterwards, and may be moved
    text = json.dumps(record, indent=2, sort_keys=True) + "\n"
    (library.path / RECORD).write_text(text, encoding="utf-8")


def load(path: Path) -> Library:
    """Read the record in the folder `path`; `FileNotFoundError` if there is no library.

    A record that is damaged, or of another version of the harness, is a `SetupError`.
    """
    try:
        text = (path / RECORD).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise
    except (OSError, UnicodeDecodeError) as error:
        raise SetupError(f"cannot read {path / RECORD}: {error}; delete {path}") from error
    try:
        record = json.loads(text)
        for field in ("series", "compiled", "preload", "modes"):
            record[field] = tuple(record[field])
        return Library(path=path, **record)
    except (ValueError, TypeError, KeyError) as error:
        raise SetupError(
            f"{path / RECORD} is not a library record of this version; "
            f"delete {path} and build again"
        ) from error


@contextlib.contextmanager
def held(library: Library) -> Iterator[Library]:
    """Give a library whose files stay what they are, whatever a build puts in their place.

    Its files are links in a folder beside the library. The next process deletes what a killed one
    left there. A user who may not write there gets the library itself, and cannot replace it.
    """
    parent, prefix = library.path.parent, f".{library.name}.held-"
    try:
        for left_over in parent.glob(f"{prefix}*"):
            _delete_unless_held(left_over)
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        lock = os.open(folder, os.O_RDONLY)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            yield library
            return
        raise _cannot_hold(library, parent, error.strerror) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield _linked(library, folder / library.name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _cannot_hold(library: Library, folder: Path, reason: object) -> SetupError:
    return SetupError(
        f"library {library.name!r}: cannot be held in {folder} ({reason}); make room there, or "
        "build it again"
    )


def _linked(library: Library, target: Path) -> Library:
    """Link a library's files, or those of a new one that replaces it just now."""
    for _ in range(_ATTEMPTS):
        try:
            shutil.copytree(library.path, target, symlinks=True, copy_function=_link)
            return load(target)
        except (shutil.Error, FileNotFoundError) as error:
            failure = error
            shutil.rmtree(target, ignore_errors=True)
            time.sleep(_BETWEEN_ATTEMPTS)
    if library.path.exists() and isinstance(failure, shutil.Error):
        *_, (_, _, reason) = failure.args[0]
        raise _cannot_hold(library, target.parent, reason) from failure
    raise SetupError(f"library {library.name!r} went away from {library.path}; build it again")


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:  # a file system without links
        shutil.copy2(source, target)


def _delete_unless_held(folder: Path) -> None:
    try:
        lock = os.open(folder, os.O_RDONLY)
    except OSError:  # another process was faster
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    else:
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)
