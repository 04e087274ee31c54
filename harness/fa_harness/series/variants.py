"""Read and apply the variants of patches for older upstreams.

`series.toml` has a table `[[variants]]` for each patch and each ggml version below which the patch
needs something else: other hunks, other diffs of some files, or fewer files. The message and the
rest are the patch's own. If several tables apply to an upstream, the one with the lowest version
comes last.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomlkit

from fa_harness.errors import SetupError
from fa_harness.files import replace_file
from fa_harness.project import writing
from fa_harness.stacks import About

Version = tuple[int, ...]
_KEYS = {"patch": str, "below": str, "files": str, "hunks": str, "without": list, "first": int}
WHOLE = ""
"""The patch of a table for the series as a whole, which limits it to its `first` patches."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A difference of one patch on older upstreams, or a limit of the series."""

    patch: str  # the file name; `WHOLE` for the series as a whole
    below: Version  # the first ggml version that does not need it
    files: Path | None = None  # diffs that replace the patch's diffs of the same files
    hunks: Path | None = None  # hunks that replace those that share the most lines with them
    without: tuple[str, ...] = ()  # files that the upstream lacks
    first: int | None = None  # the number of patches in the series


def parse_version(text: str) -> Version:
    """Return a version to compare: 0.9.8 is below 0.20, and an unknown version below all."""
    return tuple(int(number) for number in re.findall(r"\d+", text)) or (0,)


def load_variants(about: About) -> tuple[Variant, ...]:
    """Return the variants that a series names."""
    return tuple(_variant(about.file, table) for table in about.variants)


def rename(about: About, names: Mapping[str, str]) -> None:
    """Rename patches in the tables of `series.toml` as they were renamed: old -> new."""
    if not any(table.get("patch") in names for table in about.variants):
        return
    document = tomlkit.parse(about.file.read_text(encoding="utf-8"))
    for table in document["variants"]:
        if table.get("patch") in names:
            table["patch"] = names[table["patch"]]
    with writing(about.file):
        replace_file(about.file, tomlkit.dumps(document))


def of_version(variants: Sequence[Variant], patch: str, version: Version) -> list[Variant]:
    """Return the variants of a patch that apply to a version, the lowest last."""
    holding = [v for v in variants if v.patch == patch and version < v.below]
    return sorted(holding, key=lambda variant: variant.below, reverse=True)


def compose(mail: str, variant: Variant) -> str:
    """Return a patch as a variant changes it."""
    head, sections = _sections(mail)
    files, hunks = _read(variant.files), _read(variant.hunks)
    unknown = sorted({*files, *hunks, *variant.without} - set(sections))
    if unknown:
        raise SetupError(
            f"{variant.patch} does not touch {', '.join(unknown)}; correct its variant in "
            "series.toml"
        )
    sections |= files
    for name, text in hunks.items():
        sections[name] = _with_hunks(sections[name], text, f"{variant.hunks}: {name}")
    return head + "".join(text for name, text in sections.items() if name not in variant.without)


def _read(diffs: Path | None) -> dict[str, str]:
    """Return the diff of each file."""
    if diffs is None:
        return {}
    try:
        return _sections(diffs.read_text(encoding="utf-8"))[1]
    except OSError as error:
        raise SetupError(f"cannot read {diffs}: {error.strerror}") from error


def _with_hunks(own: str, others: str, where: str) -> str:
    """Return a file's diff with hunks replaced by those that share most lines with them."""
    head, *hunks = _hunks(own)
    instead: dict[int, str] = {}
    for other in _hunks(others)[1:]:
        common = [len(_lines(other) & _lines(hunk)) for hunk in hunks]
        i = common.index(max(common))
        if not common[i] or i in instead:
            line = other.partition("\n")[0]
            raise SetupError(
                f"{where}: no hunk of the patch is left that has a line of '{line}'; "
                "correct it, or take files for hunks in series.toml"
            )
        instead[i] = other
    return head + "".join(instead.get(i, hunk) for i, hunk in enumerate(hunks))


def _hunks(diff: str) -> list[str]:
    """Split a file's diff into its head and its hunks."""
    return re.split(r"^(?=@@ )", diff, flags=re.MULTILINE)


def _lines(hunk: str) -> set[str]:
    """Return the lines of a hunk without blank ones, which would match any hunk."""
    return {line for line in hunk.splitlines()[1:] if line[1:].strip()}


def _sections(text: str) -> tuple[str, dict[str, str]]:
    """Split a patch into the text before its diffs, and the diff of each file."""
    head, *parts = re.split(r"^(?=diff --git )", text, flags=re.MULTILINE)
    sections = {}
    for part in parts:
        match = re.match(r"diff --git a/(\S+) b/\S+\n", part)
        if match:
            sections[match[1]] = part if part.endswith("\n") else part + "\n"
    return head, sections


def _variant(path: Path, table: Any) -> Variant:
    patch = table.get("patch", WHOLE) if isinstance(table, dict) else WHOLE
    where = f"{path}: variant of '{patch}'" if patch else f"{path}: variant of the series"
    if not isinstance(table, dict):
        raise SetupError(f"{where}: must be a table [[variants]]")
    for key, value in table.items():
        if key not in _KEYS:
            raise SetupError(f"{where}: unknown key '{key}'; known: {', '.join(_KEYS)}")
        if not isinstance(value, _KEYS[key]):
            raise SetupError(f"{where}: {key} must be a {_KEYS[key].__name__}, not {value!r}")
    if "below" not in table:
        raise SetupError(f"{where}: below is missing, the first ggml version that needs none")
    if (patch == WHOLE) != ("first" in table):
        raise SetupError(f"{where}: write either patch, or first for the series as a whole")
    files, hunks = table.get("files"), table.get("hunks")
    return Variant(
        patch=patch,
        below=parse_version(table["below"]),
        files=path.parent / files if files else None,
        hunks=path.parent / hunks if hunks else None,
        without=tuple(table.get("without", ())),
        first=table.get("first"),
    )
