"""What patches have otherwise on older upstreams, as small as it can be.

`patches/variants.toml` has a table for each patch and range of ggml versions. A variant replaces
the patch's diffs of some files by those of another file, and leaves others out; the message and the
rest are the patch's own. So a patch is written once, and what differs stands by itself.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fa_harness.errors import SetupError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found,unused-ignore]

Version = tuple[int, ...]
_KEYS = {"from": str, "below": str, "files": str, "without": list, "first": int}
SERIES = "series"
"""The table of variants of the series as a whole: `first` of its patches."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """What a patch has otherwise in a range of versions, or how many patches there are."""

    patch: str
    """File name; `SERIES` for the series as a whole."""
    start: Version
    """The first version."""
    stop: Version
    """The first that is too new."""
    files: Path | None = None
    """Diffs of files, instead of the patch's."""
    without: tuple[str, ...] = ()
    """Files that the upstream does not have."""
    first: int | None = None
    """How many patches the series has there."""

    def holds(self, version: Version) -> bool:
        """Tell whether a version is in the range."""
        return self.start <= version < self.stop


def parse_version(text: str) -> Version:
    """Return a version to compare: 0.9.8 is before 0.20, one that is not known before all."""
    return tuple(int(number) for number in re.findall(r"\d+", text)) or (0,)


def load_variants(patches: Path) -> tuple[Variant, ...]:
    """Read `variants.toml`; none if there is no such file.

    Args:
        patches: The folder of the series.

    Raises:
        SetupError: The file says something that cannot be.
    """
    path = patches / "variants.toml"
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise SetupError(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SetupError(f"{path} is not valid TOML: {error}") from error
    return tuple(
        _variant(path, patch, table) for patch, tables in data.items() for table in _list(tables)
    )


def of_version(variants: Sequence[Variant], patch: str, version: Version) -> Variant | None:
    """Return the variant of a patch that holds for a version, if one does."""
    return next((v for v in variants if v.patch == patch and v.holds(version)), None)


def compose(mail: str, variant: Variant) -> str:
    """Return a patch with the diffs that a variant has instead.

    Raises:
        SetupError: The variant is of a file that the patch does not touch.
    """
    head, sections = _sections(mail)
    instead: Mapping[str, str] = {}
    if variant.files is not None:
        try:
            instead = _sections(variant.files.read_text(encoding="utf-8"))[1]
        except OSError as error:
            raise SetupError(f"cannot read {variant.files}: {error.strerror}") from error
    unknown = sorted({*instead, *variant.without} - set(sections))
    if unknown:
        raise SetupError(
            f"{variant.patch} does not touch {', '.join(unknown)}; correct patches/variants.toml"
        )
    kept = {name: instead.get(name, text) for name, text in sections.items()}
    return head + "".join(text for name, text in kept.items() if name not in variant.without)


def _sections(text: str) -> tuple[str, dict[str, str]]:
    """Split a patch into what is before its diffs, and the diff of each file."""
    head, *parts = re.split(r"^(?=diff --git )", text, flags=re.MULTILINE)
    sections = {}
    for part in parts:
        match = re.match(r"diff --git a/(\S+) b/\S+\n", part)
        if match:
            sections[match[1]] = part if part.endswith("\n") else part + "\n"
    return head, sections


def _variant(path: Path, patch: str, table: Any) -> Variant:
    where = f"{path}: variant of '{patch}'"
    if not isinstance(table, dict):
        raise SetupError(f"{where}: must be a table [[{patch!r}]]")
    for key, value in table.items():
        if key not in _KEYS:
            raise SetupError(f"{where}: unknown key '{key}'; known: {', '.join(_KEYS)}")
        if not isinstance(value, _KEYS[key]):
            raise SetupError(f"{where}: {key} must be a {_KEYS[key].__name__}, not {value!r}")
    if "below" not in table:
        raise SetupError(f"{where}: below is missing, the first ggml version that is too new")
    if (patch == SERIES) != ("first" in table):
        raise SetupError(f"{where}: first belongs to [[{SERIES}]], and to it alone")
    files = table.get("files")
    return Variant(
        patch=patch,
        start=parse_version(table.get("from", "")),
        stop=parse_version(table["below"]),
        files=path.parent / files if files else None,
        without=tuple(table.get("without", ())),
        first=table.get("first"),
    )


def _list(tables: Any) -> list[Any]:
    return tables if isinstance(tables, list) else [tables]
