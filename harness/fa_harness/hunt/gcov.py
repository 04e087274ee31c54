"""What gcov tells of a run: how often each arc was taken, and each function entered."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fa_harness import proc
from fa_harness.build.coverage import notes_of
from fa_harness.build.library import Library
from fa_harness.build.toolchain import Tool, find_gcov


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of a function, in all of its instances."""

    function: str
    arcs: tuple[int, ...]
    """How often each was taken, in gcov's order; none that an exception takes."""


@dataclass(frozen=True, kw_only=True)
class Function:
    """A function in all of its instances: those of a template, and those of several objects."""

    name: str
    lines: range
    entered: int


@dataclass(frozen=True, kw_only=True)
class File:
    """What was counted in a source file."""

    lines: Mapping[int, Line] = field(default_factory=dict)
    functions: tuple[Function, ...] = ()


def read(library: Library, counts: Path) -> dict[str, File]:
    """Return by source file what the processes have counted that ran with GCOV_PREFIX=`counts`.

    Raises:
        SetupError: There is no gcov of the compiler.
        ProgramError: gcov cannot read the counts.
    """
    written = list(counts.rglob("*.gcda"))
    with tempfile.TemporaryDirectory(prefix="fa-harness-") as temporary:
        names = []
        for i, (notes, end) in enumerate(notes_of(library.path)):
            folder = Path(temporary, str(i))  # two objects may have one name
            folder.mkdir()
            shutil.copy2(notes, folder)
            for path in written:
                if path.as_posix().endswith(f"/{end}"):
                    shutil.copy2(path, folder)
            names.append(f"{i}/{notes.name}")
        return merged(documents_of(find_gcov(), names, Path(temporary)))


def documents_of(gcov: Tool, notes: Sequence[str], folder: Path) -> list[dict[str, Any]]:
    """Return what gcov says of files of notes in a folder, beside which the counts are."""
    # in files, since warnings would get into what it prints
    options = ("--json-format", "--branch-probabilities", "--preserve-paths")
    proc.run([*gcov.command, *options, *notes], cwd=folder)
    documents = []
    for path in sorted(folder.glob("*.gcov.json.gz")):
        with gzip.open(path) as file:
            documents.append(json.load(file))
    return documents


def merged(documents: Iterable[Mapping[str, Any]]) -> dict[str, File]:
    """Return what gcov's documents, one per object, say of each source file below the tree."""
    entries = defaultdict(list)
    for document in documents:
        for entry in document["files"]:
            # other files have absolute paths
            if not entry["file"].startswith("/"):
                entries[entry["file"]].append(entry)
    return {name: _file(some) for name, some in entries.items()}


def _file(entries: Iterable[Mapping[str, Any]]) -> File:
    entered: dict[tuple[str, int, int], int] = defaultdict(int)
    arcs: dict[int, dict[tuple[str, int], list[Sequence[int]]]] = {}
    for entry in entries:
        names = {}
        for function in entry["functions"]:
            name = names[function["name"]] = plain_name(function["demangled_name"])
            key = (name, function["start_line"], function["end_line"])
            entered[key] += function["execution_count"]
        for line in entry["lines"]:
            found = _arcs(line["branches"])
            if found:
                function = names.get(line.get("function_name", ""), "")
                instances = arcs.setdefault(line["line_number"], defaultdict(list))
                instances[function, len(found)].append(found)
    lines = {}
    for number, instances in arcs.items():
        # what an instance decides when it is compiled has no arcs there
        function, size = max(instances, key=lambda each: each[1])
        summed = tuple(map(sum, zip(*instances[function, size], strict=True)))
        lines[number] = Line(function=function, arcs=summed)
    return File(
        lines=lines,
        functions=tuple(
            Function(name=name, lines=range(start, end + 1), entered=n)
            for (name, start, end), n in sorted(entered.items(), key=lambda each: each[0][1])
        ),
    )


def _arcs(branches: Sequence[Mapping[str, Any]]) -> list[int]:
    """Return the counts of a line's arcs without those of calls that may throw.

    Such a call has two, one behind the other; the one to what catches is marked.
    """
    counts, i = [], 0
    while i < len(branches):
        if any(branch["throw"] for branch in branches[i : i + 2]):
            i += 2
        else:
            counts.append(branches[i]["count"])
            i += 1
    return counts


def plain_name(demangled: str) -> str:
    """Return a function's name without arguments, template arguments and scope."""
    text = re.sub(r"\(anonymous namespace\)::", "", demangled)
    while text != (text := re.sub(r"<[^<>]*>", "", text)):
        pass
    found = re.match(r".*?([\w~]+)\s*(?:\(|\[|$)", text)
    return found[1] if found else demangled
