"""What patches have otherwise on older upstreams, as small as it can be.

`patches/variants.toml` has a table for each patch and each ggml version below which it needs
something else: other diffs of some files, or none. The message and the rest are the patch's own. On
an upstream that is older than several, all of them hold, the oldest goes last. So a patch is
written once, and what differs stands by itself, once.
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
_KEYS = {"below": str, "files": str, "without": list, "first": int}
SERIES = "series"
"""The table of variants of the series as a whole: `first` of its patches."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """What a patch has otherwise on older upstreams, or how many patches there are."""

    patch: str
    """File name; `SERIES` for the series as a whole."""
    below: Version
    """The first ggml version that does not need it."""
    files: Path | None = None
    """Diffs of files, instead of the patch's."""
    without: tuple[str, ...] = ()
    """Files that the upstream does not have."""
    first: int | None = None
    """How many patches the series has there."""


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


def of_version(variants: Sequence[Variant], patch: str, version: Version) -> list[Variant]:
    """Return the variants of a patch that hold for a version, the oldest last."""
    holding = [v for v in variants if v.patch == patch and version < v.below]
    return sorted(holding, key=lambda variant: variant.below, reverse=True)


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
        raise SetupError(f"{where}: below is missing, the first ggml version that needs none")
    if (patch == SERIES) != ("first" in table):
        raise SetupError(f"{where}: first belongs to [[{SERIES}]], and to it alone")
    files = table.get("files")
    return Variant(
        patch=patch,
        below=parse_version(table["below"]),
        files=path.parent / files if files else None,
        without=tuple(table.get("without", ())),
        first=table.get("first"),
    )


def _list(tables: Any) -> list[Any]:
    return tables if isinstance(tables, list) else [tables]
