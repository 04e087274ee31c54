"""The pinned upstreams: what `vendor/upstreams.toml` says, checked."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any

import tomlkit

from fa_harness.errors import SetupError, UsageError
from fa_harness.files import replace_file
from fa_harness.project import writing
from fa_harness.upstream.repository import archive_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found,unused-ignore]


@dataclass(frozen=True, kw_only=True)
class Pin:
    """One upstream: an sdist or a git commit that is known by its sha256.

    Attributes:
        name: what the user calls it; also a folder's name.
        package: the sdist's project on the package index; empty for a commit.
        version: its version there.
        sha256: of the sdist, or of a commit's files (`repository.contents_sha256`), 64
            hexadecimal digits.
        root: where llama.cpp or ggml lies below the archive's top folder.
        git: URL of the repository that the commit is fetched from; empty for an sdist.
        commit: upstream's commit, empty where it is not known; of `git`, all 40 digits of it.
        ggml_version: ggml's own version, empty where it has none.
        variants_as: the version by which it gets variants of patches, where it has none.
    """

    name: str
    package: str = ""
    version: str = ""
    sha256: str
    root: str
    git: str = ""
    commit: str = ""
    ggml_version: str = ""
    variants_as: str = ""

    @property
    def archive_name(self) -> str:
        """The archive's file name; an sdist's in the form that package indexes give it today."""
        if self.git:
            return archive_name(self.commit)
        return f"{re.sub(r'[-_.]+', '_', self.package).lower()}-{self.version}.tar.gz"


OF_SDIST = ("package", "version")
OF_COMMIT = ("git", "commit")
OF_BOTH = ("sha256", "root")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
"""What a pin may be called: its name is a folder's, too."""
KNOWN = tuple(field.name for field in fields(Pin) if field.name != "name")


@dataclass(frozen=True, kw_only=True)
class Pins:
    """All pinned upstreams, and which one is meant where none is named."""

    default: str
    upstreams: dict[str, Pin]

    def get(self, name: str | None = None) -> Pin:
        """The pin called `name`, the default one for None.

        Raises:
            UsageError: there is no such pin.
        """
        name = name or self.default
        if name not in self.upstreams:
            raise UsageError(
                f"unknown upstream '{name}': vendor/upstreams.toml has "
                f"{', '.join(sorted(self.upstreams))}"
            )
        return self.upstreams[name]


def load_pins(path: Path) -> Pins:
    """Read `vendor/upstreams.toml`.

    Raises:
        SetupError: the file is missing or says something that cannot be; the message names the
            upstream and the key.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SetupError(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SetupError(f"{path} is not valid TOML: {error}") from error
    unknown = sorted(set(data) - {"default", "upstreams"})
    if unknown:
        raise SetupError(f"{path}: unknown key '{unknown[0]}'; known: default, upstreams")
    tables = data.get("upstreams")
    if not isinstance(tables, dict) or not tables:
        raise SetupError(f'{path}: no upstream; add a table [upstreams."NAME"]')
    upstreams = {name: _pin(path, name, table) for name, table in tables.items()}
    default = data.get("default")
    if default not in upstreams:
        raise SetupError(
            f"{path}: default is {default!r}, but the upstreams are {', '.join(sorted(upstreams))}"
        )
    return Pins(default=default, upstreams=upstreams)


def set_default(path: Path, name: str) -> None:
    """Make another pin the one that is meant where none is named; the rest stays as it is."""
    pins = tomlkit.parse(path.read_text(encoding="utf-8"))
    pins["default"] = name
    with writing(path):
        replace_file(path.resolve(), tomlkit.dumps(pins))


def _pin(path: Path, name: str, table: Any) -> Pin:
    where = f"{path}: upstream '{name}'"
    if not NAME.fullmatch(name):
        raise SetupError(f"{where}: the name must be usable as a folder's name")
    if not isinstance(table, dict):
        raise SetupError(f'{where}: must be a table [upstreams."{name}"]')
    for key, value in table.items():
        if key not in KNOWN:
            raise SetupError(f"{where}: unknown key '{key}'; known: {', '.join(KNOWN)}")
        if not isinstance(value, str):
            raise SetupError(f"{where}: {key} must be a string, not {value!r}")
    if "git" in table and (other := set(OF_SDIST) & set(table)):
        raise SetupError(f"{where}: has git and {min(other)}; it is an sdist or a commit, not both")
    for key in (*(OF_COMMIT if "git" in table else OF_SDIST), *OF_BOTH):
        if not table.get(key):
            raise SetupError(f"{where}: {key} is missing")
    pin = Pin(name=name, **table)
    if not re.fullmatch(r"[0-9a-f]{64}", pin.sha256):
        raise SetupError(
            f"{where}: sha256 must be 64 hexadecimal digits in lower case, not '{pin.sha256}'"
        )
    if pin.git and not re.fullmatch(r"[0-9a-f]{40}", pin.commit):
        raise SetupError(
            f"{where}: commit must be 40 hexadecimal digits in lower case, not '{pin.commit}'"
        )
    root = PurePosixPath(pin.root)
    if root.is_absolute() or ".." in root.parts:
        raise SetupError(f"{where}: root must lie inside the archive, not '{pin.root}'")
    return pin
