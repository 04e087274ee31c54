"""Read and check the pinned upstreams in `vendor/upstreams.toml`."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any

import tomlkit

from fa_harness.errors import SetupError, UsageError
from fa_harness.files import read_toml, replace_file
from fa_harness.project import writing
from fa_harness.upstream.repository import archive_name

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
"""The names that a pin may have; a folder gets the same name."""


@dataclass(frozen=True, kw_only=True)
class Pin:
    """One upstream, or peer: an sdist or a git commit, known by its sha256."""

    name: str
    kind: str = "upstream"  # or "peer": how messages begin
    package: str = ""  # the sdist's project on the package index; empty for a commit
    version: str = ""  # the sdist's version there
    sha256: str  # of the sdist, or of a commit's files (`repository.contents_sha256`)
    root: str  # the folder of llama.cpp or ggml below the archive's top folder
    git: str = ""  # the URL of the commit's repository; empty for an sdist
    commit: str = ""  # upstream's: all 40 digits with `git`; empty if not known
    ggml_version: str = ""  # empty if ggml has none
    variants_as: str = ""  # the version that selects variants of patches if `ggml_version` is empty

    @property
    def archive_name(self) -> str:
        """The archive's file name; an sdist's is in the form that indexes use today."""
        if self.git:
            return archive_name(self.commit)
        return f"{re.sub(r'[-_.]+', '_', self.package).lower()}-{self.version}.tar.gz"

    @property
    def origin(self) -> tuple[str, str]:
        """What is pinned: a commit of a repository, or a version of a package."""
        return (self.git, self.commit) if self.git else (self.package, self.version)


@dataclass(frozen=True, kw_only=True)
class Pins:
    """All pinned upstreams, the name of the default one, and the peers of `bench --peer`."""

    default: str
    upstreams: dict[str, Pin]
    peers: dict[str, Pin]

    def get(self, name: str | None = None) -> Pin:
        """Return a pin, the default one for None."""
        name = name or self.default
        if name not in self.upstreams:
            raise UsageError(
                f"unknown upstream '{name}': vendor/upstreams.toml has "
                f"{', '.join(sorted(self.upstreams))}"
            )
        return self.upstreams[name]


def load_pins(path: Path) -> Pins:
    """Read `vendor/upstreams.toml`."""
    data = read_toml(path)
    unknown = sorted(set(data) - {"default", "upstreams", "peers"})
    if unknown:
        raise SetupError(f"{path}: unknown key '{unknown[0]}'; known: default, upstreams, peers")
    tables = data.get("upstreams")
    if not isinstance(tables, dict) or not tables:
        raise SetupError(f'{path}: no upstream; add a table [upstreams."NAME"]')
    upstreams = {name: _pin(path, name, table) for name, table in tables.items()}
    peers = {
        name: _pin(path, name, table, kind="peer") for name, table in data.get("peers", {}).items()
    }
    default: Any = data.get("default")
    if default not in upstreams:
        raise SetupError(
            f"{path}: default is {default!r}, but the upstreams are {', '.join(sorted(upstreams))}"
        )
    return Pins(default=default, upstreams=upstreams, peers=peers)


def set_default(path: Path, name: str) -> None:
    """Change the default pin; the rest of the file keeps every byte."""
    pins = tomlkit.parse(path.read_text(encoding="utf-8"))
    pins["default"] = name
    with writing(path):
        replace_file(path.resolve(), tomlkit.dumps(pins))


def _pin(path: Path, name: str, table: Any, *, kind: str = "upstream") -> Pin:
    where = f"{path}: {kind} '{name}'"
    if not NAME.fullmatch(name):
        raise SetupError(f"{where}: the name must be usable as a folder's name")
    if not isinstance(table, dict):
        raise SetupError(f'{where}: must be a table [{kind}s."{name}"]')
    known = [field.name for field in fields(Pin) if field.name not in ("name", "kind")]
    for key, value in table.items():
        if key not in known:
            raise SetupError(f"{where}: unknown key '{key}'; known: {', '.join(known)}")
        if not isinstance(value, str):
            raise SetupError(f"{where}: {key} must be a string, not {value!r}")
    if "git" in table and (other := {"package", "version"} & set(table)):
        raise SetupError(f"{where}: has git and {min(other)}; it is an sdist or a commit, not both")
    needed = ("git", "commit") if "git" in table else ("package", "version")
    for key in (*needed, "sha256", "root"):
        if not table.get(key):
            raise SetupError(f"{where}: {key} is missing")
    pin = Pin(name=name, kind=kind, **table)
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
