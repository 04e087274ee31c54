"""Which branches of attention a run took, in both directions, and which it did not.

A branch is one outcome of a condition, or one way out of a `switch`. Assertions are none: valid
inputs never take the other way. Nor is what the source does not show: branches in the text of a
macro, and those of calls that may throw.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fa_harness.build.library import Library
from fa_harness.errors import SetupError
from fa_harness.files import read_toml
from fa_harness.hunt import attention, gcov
from fa_harness.hunt.attention import FUNCTIONS, added, added_between, case_lines
from fa_harness.hunt.conditions import Statement, statements
from fa_harness.project import Project
from fa_harness.series.series import series_for
from fa_harness.series.tree import Tree, prepare_tree
from fa_harness.upstream.git import fetch, git
from fa_harness.upstream.pins import load_pins
from fa_harness.upstream.source import Source, find_source

REASONS = "coverage.toml"
"""In the folder of the series: why some branches need not be taken, by `Branch.name`."""

_PREFIX = "GCOV_PREFIX"
_ATTENTION = "attention"
_SOURCES = ("ggml/src", "ggml/src/ggml-cpu")
"""The folders of the sources that the library is built from."""


@dataclass(frozen=True, kw_only=True)
class Branch:
    """One way out of a decision."""

    file: str
    line: int
    function: str
    text: str
    """The condition."""
    direction: str
    """`true`, `false`, or the labels of a `switch`."""
    source: str
    """The line, or as many lines as the statement has, in one."""
    taken: int
    """How often."""
    place: int = 1
    """Which one of the same text and direction in the function it is."""
    reason: str = ""
    """Why it need not be taken; empty where nothing says so."""

    @property
    def name(self) -> str:
        """What it is called in the file of reasons, whatever its line is."""
        which = f" ({self.place})" if self.place > 1 else ""
        return f"{self.function}: {self.text}{which} is {self.direction}"


@dataclass(frozen=True, kw_only=True)
class Unentered:
    """A function that no case entered."""

    file: str
    line: int
    function: str


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """All branches of what was measured."""

    scope: str
    """What was measured: `attention`, or the lines that a checkout has changed."""
    note: str
    """Why all of attention was measured though a checkout was given; else empty."""
    branches: tuple[Branch, ...]
    functions: tuple[Unentered, ...]

    @property
    def taken(self) -> list[Branch]:
        """The branches that were taken."""
        return [branch for branch in self.branches if branch.taken]

    @property
    def accepted(self) -> list[Branch]:
        """Those that were not, and need not be."""
        return [branch for branch in self.branches if not branch.taken and branch.reason]

    @property
    def missed(self) -> list[Branch]:
        """Those that were not, for no reason."""
        return [branch for branch in self.branches if not branch.taken and not branch.reason]

    @property
    def contradicted(self) -> list[str]:
        """The names in the file of reasons of which each branch was taken after all."""
        names = {branch.name: True for branch in self.branches if branch.reason}
        names |= {branch.name: False for branch in self.accepted}
        return [name for name, always in names.items() if always]

    def to_json(self) -> dict[str, Any]:
        """Return what a run's JSON report says of it."""
        return {
            "scope": self.scope,
            "note": self.note,
            "branches": len(self.branches),
            "taken": len(self.taken),
            "accepted": len(self.accepted),
            "not_taken": len(self.missed),
            "missed": [_row(branch) for branch in self.missed],
            "accepted_branches": [
                {**_row(branch), "reason": branch.reason} for branch in self.accepted
            ],
            "contradicted": self.contradicted,
            "functions_never_entered": [asdict(function) for function in self.functions],
        }


def _row(branch: Branch) -> dict[str, Any]:
    row = asdict(branch)
    del row["taken"], row["reason"], row["place"]
    return row


@contextlib.contextmanager
def counted() -> Iterator[Path]:
    """Give a folder that holds what workers with the library `coverage` count in the block."""
    before = os.environ.get(_PREFIX)
    with tempfile.TemporaryDirectory(prefix="fa-harness-") as folder:
        os.environ[_PREFIX] = folder
        try:
            yield Path(folder)
        finally:
            if before is None:
                del os.environ[_PREFIX]
            else:
                os.environ[_PREFIX] = before


def measure(project: Project, library: Library, counts: Path) -> Coverage:
    """Return the branches of what is measured, with the counts in a folder.

    Of a pin that is attention: its functions, and the lines of the series, or these alone where the
    series replaces the functions. Of a checkout it is what that has changed against the pin with
    its version of ggml; if it changed nothing or there is no such pin, it is attention.
    """
    source = find_source(project)
    tree = prepare_tree(project, source, series_for(project, source))
    files = gcov.read(library, counts)
    own, note = own_lines(project, source, tree)
    scope = f"what {source.label} has changed" if own else _ATTENTION
    is_replaced = attention.is_replaced(project)
    names = list(own) or [f"ggml/src/{name}" for _, name in attention.files(tree)]
    file_of_reasons = project.patches / REASONS
    reasons = read_toml(file_of_reasons) if file_of_reasons.is_file() else {}
    branches: list[Branch] = []
    functions: list[Unentered] = []
    for name in names:
        file = files.get(name)
        if file is None:
            continue  # not compiled on this machine, or without code
        text = git(tree.path, "show", f"{tree.commits[-1]}:{name}")
        lines = own[name] if own else {*added(tree, name)}
        if not own and not is_replaced:
            lines |= _lines_of_attention(text, file)
        branches += branches_of(name, text, file, lines)
        functions += [
            Unentered(file=name, line=function.lines.start, function=function.name)
            for function in file.functions
            if not function.entered and not lines.isdisjoint(function.lines)
            and (own or FUNCTIONS.search(function.name))
        ]  # fmt: skip
    return Coverage(
        scope=scope,
        note=note,
        branches=tuple(replace(each, reason=reasons.get(each.name, "")) for each in branches),
        functions=tuple(functions),
    )


def branches_of(name: str, text: str, file: gcov.File, lines: set[int]) -> Iterator[Branch]:
    """Yield the branches of those statements of a source file that are on some of the lines."""
    places: Counter[tuple[str, str, str]] = Counter()
    for statement in statements(text):
        counted = [file.lines[n] for n in statement.lines if n in file.lines]
        if statement.is_assertion or not counted or lines.isdisjoint(statement.lines):
            continue
        arcs = [count for line in counted for count in line.arcs]
        first = next(n for n in statement.lines if n in file.lines)
        for condition, direction, taken in _ways(statement, arcs):
            place = (counted[0].function, condition, direction)
            places[place] += 1
            yield Branch(
                file=name,
                line=first,
                function=counted[0].function,
                text=condition,
                direction=direction,
                source=statement.text,
                taken=taken,
                place=places[place],
            )


def _ways(statement: Statement, arcs: list[int]) -> Iterator[tuple[str, str, int]]:
    """Yield the text, the direction and the count of each way out of a statement's decisions."""
    decisions = statement.decisions
    ways = [(decision, way) for decision in decisions for way in decision.ways]
    if _has_value_of_its_own(statement, arcs):
        arcs = arcs[:-2]
    if len(ways) == len(arcs):
        for (decision, way), count in zip(ways, arcs, strict=True):
            if way:  # else it only aborts
                yield decision.text, way, count
    elif decisions:  # a macro, or what the compiler decides, is among them
        for i, count in enumerate(arcs, start=1):
            yield statement.text, f"way {i} of {len(arcs)}", count


def _has_value_of_its_own(statement: Statement, arcs: list[int]) -> bool:
    """Tell whether the last two arcs are those of the whole condition.

    Where a condition with several operands has a call, GCC first computes its value.
    """
    decisions = statement.decisions
    return (
        len(decisions) > 1
        and len(statement.lines) == 1
        and len(arcs) == 2 * len(decisions) + 2
        and not any(decision.is_switch for decision in decisions)
    )


def _lines_of_attention(text: str, file: gcov.File) -> set[int]:
    functions = [function.lines for function in file.functions if FUNCTIONS.search(function.name)]
    return {*case_lines(text), *(n for lines in functions for n in lines)}


def own_lines(project: Project, source: Source, tree: Tree) -> tuple[dict[str, set[int]], str]:
    """Return the lines of each file that a checkout has changed; if none, why all is measured."""
    if source.root is None:
        return {}, ""
    pins = load_pins(project.pins_file)
    candidates = [pins.get(), *pins.upstreams.values()]
    pin = next((pin for pin in candidates if pin.ggml_version == source.ggml_version), None)
    if pin is None:
        return {}, f"no pin has ggml {source.ggml_version}, so all of attention is measured"
    upstream = find_source(project, pin.name)
    try:
        before = prepare_tree(project, upstream, series_for(project, upstream))
    except SetupError as error:
        return {}, f"all of attention is measured, since what is new is not known: {error}"
    commit = before.commits[0]
    fetch(tree.path, before.path, commit)
    span = (tree.commits[0], tree.commits[-1])
    changed = git(tree.path, "diff", "--name-only", commit, span[0]).splitlines()
    own = {}
    for name in changed:
        if str(Path(name).parent) in _SOURCES:
            series = set(added(tree, name))
            lines = {n for n in added_between(tree, commit, span[1], name) if n not in series}
            if lines:
                own[name] = lines
    nothing = f"{source.label} has the kernel of {pin.name}, so all of attention is measured"
    return own, "" if own else nothing
