"""`fa-harness.toml`: what the commands take in a folder, and below it, where no flag says else."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from fa_harness.errors import UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found,unused-ignore]

FILE = "fa-harness.toml"
NO_SERIES = "none"
"""The value of `series` with which the sources are built as they are."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """What a `fa-harness.toml` says; paths are absolute, and None stands for the tool's own."""

    file: Path | None = None
    lines: Mapping[str, int] = field(default_factory=dict)
    """The line of each key, for messages."""
    sources: Path | None = None
    """A checkout of llama.cpp or ggml, to be built in place of a pinned upstream."""
    upstream: str | None = None
    patches: Path | None = None
    """The folder of the user's own series, each a folder in it."""
    series: str | None = None
    """The stack that commands take where nothing names another."""
    has_series: bool = True
    """Whether patches are applied at all."""
    suites: tuple[str, ...] = ()
    """Those that `run` takes."""
    baselines: Path | None = None
    build: Mapping[str, str] = field(default_factory=dict)
    """CMake options of every library."""

    def where(self, key: str) -> str:
        """Return how a message about a key begins: `FILE:LINE: KEY`."""
        return f"{self.file}:{self.lines[key]}: {key}"


def load_config(start: Path) -> Config:
    """Read the `fa-harness.toml` in a folder or the nearest one above it."""
    for folder in (start, *start.parents):
        if (folder / FILE).is_file():
            return _Reader(folder / FILE).config()
    return Config()


class _Reader:
    """One file, with the line of each key."""

    def __init__(self, file: Path) -> None:
        self._file = file
        try:
            self._text = file.read_text(encoding="utf-8")
        except OSError as error:
            raise UsageError(f"cannot read {file}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            line = file.read_bytes()[: error.start].count(b"\n") + 1
            raise UsageError(f"{file}:{line}: is not UTF-8; save the file as UTF-8") from error
        try:
            self._data: dict[str, Any] = tomllib.loads(self._text)
        except tomllib.TOMLDecodeError as error:
            found = re.search(r"at line (\d+)", str(error))
            lines = self._text.splitlines()
            line = int(found[1]) if found else len(lines)
            shown = lines[line - 1].strip() if 0 < line <= len(lines) else ""
            raise UsageError(
                f"{file}:{line}: '{shown}' is not valid TOML: {error}; correct the line"
            ) from error

    def config(self) -> Config:
        readers: dict[str, Callable[[str, Any], Any]] = {
            "sources": self._folder,
            "upstream": self._string,
            "patches": self._folder,
            "series": self._series,
            "suites": self._strings,
            "baselines": self._path,
            "build": self._options,
        }
        found: dict[str, Any] = {}
        for key, value in self._data.items():
            if key not in readers:
                self._refuse(key, f"is unknown; the keys are {', '.join(readers)}")
            found[key] = readers[key](key, value)
        if {"sources", "upstream"} <= set(found):
            self._refuse("upstream", "excludes sources; keep one of them")
        lines = {key: self._line(key) for key in found}
        has_series = "series" not in found or found["series"] is not None
        return Config(file=self._file, lines=lines, has_series=has_series, **found)

    def _string(self, key: str, value: Any) -> str:
        if not isinstance(value, str) or not value:
            self._refuse(key, f'is {_shown(value)}; write a text, such as {key} = "..."')
        return value

    def _strings(self, key: str, value: Any) -> tuple[str, ...]:
        if not isinstance(value, list) or not value or not all(isinstance(v, str) for v in value):
            self._refuse(key, f'is {_shown(value)}; write a list of names, such as ["smoke"]')
        return tuple(value)

    def _path(self, key: str, value: Any) -> Path:
        return (self._file.parent / Path(self._string(key, value)).expanduser()).resolve()

    def _folder(self, key: str, value: Any) -> Path:
        path = self._path(key, value)
        if not path.is_dir():
            self._refuse(key, f"there is no folder {path}; correct the path")
        return path

    def _series(self, key: str, value: Any) -> str | None:
        name = self._string(key, value)
        is_flat = (self._file.parent / name / "series").is_file()
        if is_flat and "patches" not in self._data:
            self._refuse(
                key,
                f"is the folder '{name}', and a series goes by its name: move its files to a "
                f'folder NAME in it, and write patches = "{name}" and series = "NAME"',
            )
        return None if name == NO_SERIES else name

    def _options(self, key: str, value: Any) -> dict[str, str]:
        if not isinstance(value, dict):
            self._refuse(key, f"is {_shown(value)}; write a table [build]")
        for name, setting in value.items():
            if not isinstance(setting, (str, int, float)):
                text = f"is {_shown(setting)}; write a text, a number, true or false"
                self._refuse(f"{key}.{name}", text)
        on = {True: "ON", False: "OFF"}
        return {
            name: on[setting] if isinstance(setting, bool) else str(setting)
            for name, setting in value.items()
        }

    def _refuse(self, key: str, problem: str) -> NoReturn:
        raise UsageError(f"{self._file}:{self._line(key)}: {key} {problem}")

    def _line(self, key: str) -> int:
        """Return the line that gives a key its value, or opens its table."""
        last = re.escape(key.rpartition(".")[2])
        whole = re.escape(key)
        spellings = (rf"""["']?{whole}["']?\s*=""", rf"\[{whole}\]", rf"{whole}\s*\.",
                     rf"""["']?{last}["']?\s*=""", rf""".*\b{last}["']?\s*=""")  # fmt: skip
        for spelling in spellings:
            for number, line in enumerate(self._text.splitlines(), start=1):
                if re.match(rf"\s*{spelling}", line):
                    return number
        return 1


def _shown(value: Any) -> str:
    return f"a table of {len(value)}" if isinstance(value, dict) else repr(value)
