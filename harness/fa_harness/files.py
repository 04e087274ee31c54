"""Files that are written whole or not at all, whether one can be, their digests, and TOML."""

from __future__ import annotations

import errno
import hashlib
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from fa_harness.errors import SetupError, UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found,unused-ignore]


def check_writable(path: Path) -> None:
    """Refuse before a run a report that could not be written after it."""
    try:
        if path.is_dir():
            raise UsageError(f"report {path}: is a folder; name a file")
        if _is_device(path):
            if not os.access(path, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            return
        path = path.resolve()
        if not path.parent.is_dir():
            raise UsageError(f"report {path}: there is no folder {path.parent}; make it first")
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise UsageError(
            f"report {path}: cannot be written ({error.strerror}); name another file"
        ) from error


def write_report(path: Path, text: str, *, append: bool = False) -> None:
    """Write a report, into a file whole or not at all; a device or a pipe stays one."""
    try:
        if append or _is_device(path):
            with path.open("a" if append else "w", encoding="utf-8") as file:
                file.write(text)
        else:
            replace_file(path.resolve(), text)  # the file that a link leads to, not the link
    except OSError as error:
        raise SetupError(
            f"report {path}: cannot be written ({error.strerror}); make room or name another file"
        ) from error


def replace_file(path: Path, content: str | bytes) -> None:
    """Write a file under another name first, then put it in the place of the older one.

    Raises:
        OSError: It cannot be written; an older one is left as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        if isinstance(content, str):
            temporary.write_text(content, encoding="utf-8")
        else:
            temporary.write_bytes(content)
        temporary.replace(path)
    except BaseException:  # Ctrl-C, too
        temporary.unlink(missing_ok=True)
        raise


def sha256(path: Path) -> str:
    """Return the digest of a file, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 18):
            digest.update(chunk)
    return digest.hexdigest()


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file."""
    try:
        table: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SetupError(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SetupError(f"{path} is not valid TOML: {error}") from error
    return table


def _is_device(path: Path) -> bool:
    """Tell whether a path is a device or a pipe: something to write to, not to replace."""
    return path.exists() and not path.is_file()
