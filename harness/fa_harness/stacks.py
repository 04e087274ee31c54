"""Series of patches by name: where each lies, what it says of itself, and stacks of several.

A series is a folder with a file `series`, the order of its patches, and a file `series.toml`. A
stack is several series, one on the other. Its name joins theirs: `state+fast`.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomlkit

from fa_harness.errors import SetupError, UsageError
from fa_harness.files import read_toml, replace_file

DEFAULT = "state"
"""The stack that commands take where nothing names another."""
ORDER = "series"
"""The file with the order of a series' patches, one file name a line."""
ABOUT = "series.toml"
"""The file in which a series says what it is."""
EVERY_PIN = "all"
RESERVED = {
    "all", "asan-ubsan", "coverage", "generated", "museum", "mutants", "none", "patched",
    "pristine", "tsan",
}  # fmt: skip
"""Names of libraries, which no series may have."""

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9._-]*")
_SUITES = ("seed", "smoke")


@dataclass(frozen=True, kw_only=True)
class Fate:
    """What became of a series upstream; empty where nothing did."""

    issue: str = ""
    pull_request: str = ""
    merged: str = ""  # the version or commit of upstream that has it

    def __str__(self) -> str:
        """Return the furthest that it came."""
        found = {"merged in": self.merged, "pull request": self.pull_request, "issue": self.issue}
        return next((f"{word} {value}" for word, value in found.items() if value), "not sent")


@dataclass(frozen=True, kw_only=True)
class Accepted:
    """More instructions of one call than the gate allows, accepted with a reason."""

    case: str  # one of the rows that the gate counts
    times: float  # the instructions of upstream's call
    why: str


@dataclass(frozen=True, kw_only=True)
class About:
    """What a series says of itself."""

    name: str
    folder: Path
    title: str = ""
    why: str = ""  # why it exists, and how to tell that it is no longer needed
    on: tuple[str, ...] = ()  # the series that it stands on, in order; none for pristine upstream
    joins: bool = False  # it belongs to every stack that has all of these
    whole: bool = False  # its patches change llama.cpp beside ggml, so a tree has all files of it
    pins: tuple[str, ...] = (EVERY_PIN,)  # on which it must hold
    suites: tuple[str, ...] = _SUITES  # that it must pass there
    modes: tuple[str, ...] = ()  # in which cases are computed, if it has no state; else empty
    upstream: Fate = field(default_factory=Fate)
    accepted: tuple[Accepted, ...] = ()  # what it costs a call that does not use it
    variants: tuple[Any, ...] = ()  # as the file has them; `series/variants.py` reads them

    @property
    def file(self) -> Path:
        """The file that says it, which may be missing."""
        return self.folder / ABOUT

    def pins_of(self, known: Sequence[str]) -> tuple[str, ...]:
        """Return the pins on which it must hold, of those that there are.

        Raises:
            SetupError: It names one that is not there.
        """
        if EVERY_PIN in self.pins:
            return tuple(known)
        for name in self.pins:
            if name not in known:
                raise SetupError(
                    f"{self.file}: pins: '{name}' is no pin; there are {', '.join(known)}"
                )
        return self.pins


def modes_of(folders: Sequence[Path], stack: Sequence[str]) -> tuple[str, ...]:
    """Return the modes that the series of a stack name; none where one of them names none."""
    of_each = [about(folder_of(folders, name)).modes for name in stack]
    return tuple(dict.fromkeys(itertools.chain(*of_each))) if all(of_each) else ()


def accepted_by(folders: Sequence[Path], stack: Sequence[str]) -> dict[str, Accepted]:
    """Return by case what the series of a stack accept; of two the last."""
    of_each = (about(folder_of(folders, name)).accepted for name in stack)
    return {each.case: each for each in itertools.chain(*of_each)}


def names_in(folders: Sequence[Path]) -> Iterator[str]:
    """Yield the names of the series in folders, the first folder's first."""
    seen: set[str] = set()
    for folder in folders:
        for file in sorted(folder.glob(f"*/{ORDER}")):
            if file.parent.name not in seen | RESERVED:
                seen.add(file.parent.name)
                yield file.parent.name


def folder_of(folders: Sequence[Path], name: str) -> Path:
    """Return the folder of a series: the first of `folders` that has it, else a new one's."""
    places = [folder / name for folder in folders]
    return next((place for place in places if (place / ORDER).is_file()), places[0])


def stack_of(folders: Sequence[Path], text: str) -> tuple[str, ...]:
    """Return the series of a stack in the order in which they are applied.

    `text` joins names with `+`. What a series stands on comes before it, whether it is named or
    not, so that `fast` on `state` is the stack `state+fast`. A series that joins others comes
    behind them, whether it is named or not.

    Raises:
        UsageError: There is no such series.
        SetupError: A `series.toml` says something that cannot be.
    """
    stack: list[str] = []
    for name in text.split("+"):
        _put(folders, name, stack, ())
    for name in names_in(folders) if len(stack) > 1 else ():  # one alone has nothing to join
        series = about(folder_of(folders, name))
        if series.joins and name not in stack and {*series.on} <= {*stack}:
            stack.append(name)
    return tuple(stack)


def _put(folders: Sequence[Path], name: str, stack: list[str], above: tuple[str, ...]) -> None:
    if name in stack:
        return
    if name in above:
        raise SetupError(
            f"series '{name}' stands on itself: {' on '.join((*above, name))}; correct "
            f"{folder_of(folders, name) / ABOUT}"
        )
    place = folder_of(folders, name)
    if not (place / ORDER).is_file():
        known = ", ".join(names_in(folders)) or "none"
        by = f", on which '{above[-1]}' stands" if above else ""
        raise UsageError(f"there is no series '{name}'{by}; there are: {known}")
    for below in about(place).on:
        _put(folders, below, stack, (*above, name))
    stack.append(name)


def about(folder: Path) -> About:
    """Read the `series.toml` in the folder of a series; without one, only its name is known.

    Raises:
        SetupError: It is not TOML, or says something that cannot be.
    """
    name, path = folder.name, folder / ABOUT
    if not _NAME.fullmatch(name) or name in RESERVED:
        why = "a library is called so" if name in RESERVED else "letters, digits, '.', '_' and '-'"
        raise SetupError(f"no series can be called '{name}' ({why}); rename {folder}")
    if not path.is_file():
        return About(name=name, folder=folder)
    data = read_toml(path)
    readers = {
        "title": _text,
        "why": _text,
        "on": _texts,
        "joins": _bool,
        "whole": _bool,
        "pins": _texts,
        "suites": _texts,
        "modes": _texts,
        "upstream": _fate,
        "accepted": _accepted,
        "variants": _tables,
    }
    for key in data:
        if key not in readers:
            raise SetupError(f"{path}: unknown key '{key}'; known: {', '.join(readers)}")
    for key in ("title", "why"):
        if not data.get(key):
            raise SetupError(f"{path}: {key} is missing; say it in one sentence")
    found: dict[str, Any] = {
        key: readers[key](f"{path}: {key}", value) for key, value in data.items()
    }
    return About(name=name, folder=folder, **found)


def hold_on(series: About, pin: str) -> None:
    """Add a pin to those on which a series must hold, in its file."""
    if EVERY_PIN in series.pins or pin in series.pins:
        return
    document = tomlkit.parse(series.file.read_text(encoding="utf-8"))
    document["pins"].append(pin)
    replace_file(series.file, tomlkit.dumps(document))


def _text(where: str, value: Any) -> str:
    if not isinstance(value, str):
        raise SetupError(f'{where} is {value!r}; write a text, such as "..."')
    return value


def _bool(where: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise SetupError(f"{where} is {value!r}; write true or false")
    return value


def _texts(where: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise SetupError(f'{where} is {value!r}; write a list of names, such as ["{DEFAULT}"]')
    return tuple(value)


def _fate(where: str, value: Any) -> Fate:
    known = ("issue", "pull_request", "merged")
    if not isinstance(value, dict):
        raise SetupError(f"{where} is {value!r}; write a table [upstream]")
    for key, text in value.items():
        if key not in known:
            raise SetupError(f"{where}: unknown key '{key}'; known: {', '.join(known)}")
        _text(f"{where}.{key}", text)
    return Fate(**value)


def _accepted(where: str, value: Any) -> tuple[Accepted, ...]:
    if not isinstance(value, list):
        raise SetupError(f"{where} is {value!r}; write tables [[accepted]]")
    found = []
    for table in value:
        known = ("case", "times", "why")
        if not isinstance(table, dict) or {*table} != {*known}:
            raise SetupError(f"{where} has {table!r}; give each table {', '.join(known)}")
        _text(f"{where}.case", table["case"])
        if not _text(f"{where}.why", table["why"]).strip():
            raise SetupError(f"{where}.why is empty; say why the cost is accepted")
        if not isinstance(table["times"], float) or not 1 < table["times"] < 2:
            raise SetupError(
                f"{where}.times is {table['times']!r}; write a number between 1 and 2, such as "
                "1.03 for 3 % more"
            )
        found.append(Accepted(**table))
    return tuple(found)


def _tables(where: str, value: Any) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise SetupError(f"{where} is {value!r}; write tables [[variants]]")
    return tuple(value)
