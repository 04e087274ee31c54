"""What a compiler says of a copy of somebody's files, told of the files themselves."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fa_harness.proc import SHOWN_LINES
from fa_harness.series.tree import Tree
from fa_harness.upstream.git import check_out, git
from fa_harness.upstream.pins import Pin
from fa_harness.upstream.source import Source

_ERROR = re.compile(r"\berror: |^CMake Error|: undefined reference to ")
_LEADS_TO_ERROR = re.compile(r"In file included from |\s+from |\S+: In ")
_HUNK = re.compile(r"^@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@", re.MULTILINE)
_GUTTER = re.compile(r"^( *)(\d+)( \|)")


def first_errors(lines: list[str]) -> list[str]:
    """Return the lines of a build's output from its first error on, as many as are shown.

    For a step that fails, Ninja prints one line with its name, one with the command, then the
    output of the command.
    """
    failed = next((i for i, line in enumerate(lines) if line.startswith("FAILED: ")), -2)
    said = lines[failed + 2 :]
    start = next((i for i, line in enumerate(said) if _ERROR.search(line)), len(said))
    if start == len(said):
        return lines[-SHOWN_LINES:]
    while start and _LEADS_TO_ERROR.match(said[start - 1]):
        start -= 1
    return said[start : start + SHOWN_LINES]


@dataclass(frozen=True, kw_only=True)
class Copy:
    """The sources of a build folder: a copy of somebody's files, on which patches may lie."""

    src: Path  # the copy
    cmake: Path  # where the compiler runs, which may name files relative to this folder
    own: Mapping[str, Path]  # the files that were copied, by place in the copy; none for a pin
    repository: Path  # has both states of the files
    before: str  # the commit with the files as they were copied
    after: str  # the commit or tree with the files as they are in the copy

    @classmethod
    def of(cls, source: Source, tree: Tree, state: str, folder: Path) -> Copy:
        """Return the copy of a state of a tree, a commit or its content, in a build folder."""
        return cls(
            src=folder / "src",
            cmake=folder / "cmake",
            own={} if isinstance(source.origin, Pin) else source.origin,
            repository=tree.path,
            before=tree.commits[0],
            after=state,
        )

    def check_out(self, *, verbose: bool) -> None:
        """Make the copy; the caller holds a lock."""
        check_out(self.repository, self.after, self.src, verbose=verbose)

    def excerpt(self, lines: list[str]) -> list[str]:
        """Return what an error shows of a build's output."""
        return self.told_of_own(first_errors(lines))

    def told_of_own(self, lines: list[str]) -> list[str]:
        """Return lines of a compiler with the names and line numbers of the files themselves.

        A line that a patch has added is in none of them; the place where it would be is named.
        """
        prefixes = {str(self.src), os.path.relpath(self.src, self.cmake)}
        either = "|".join(re.escape(prefix) for prefix in sorted(prefixes, key=len, reverse=True))
        place = re.compile(rf"(?<![\w./-])(?:{either})/([\w./+-]+):(\d+)?")
        hunks_of = functools.cache(self._hunks)
        told, spot = [], ""  # of the file that was named last
        for line in lines:
            added: list[str] = []

            def own(match: re.Match[str], added: list[str] = added) -> str:
                path = self.own.get(match[1])
                if path is None:
                    return match[0]
                if match[2] is None:
                    return f"{path}:"
                number, is_own = _before(hunks_of(match[1]), int(match[2]))
                if is_own:
                    return f"{path}:{number}"
                added.append(f" [a patch has added this line at {path}:{number}]")
                return match[0]

            places = [match for match in place.finditer(line) if match[1] in self.own]
            if places:
                spot = places[0][1]
                told.append("".join([place.sub(own, line), *added]))
            elif spot and (gutter := _GUTTER.match(line)):
                number, is_own = _before(hunks_of(spot), int(gutter[2]))
                shown = str(number if is_own else gutter[2])
                width = len(gutter[1]) + len(gutter[2])
                told.append(shown.rjust(width) + line[gutter.end(2) :])
            else:
                told.append(line)
        return told

    def _hunks(self, spot: str) -> list[list[int]]:
        """Return each hunk's first line and number of lines, before and after."""
        diff = git(self.repository, "diff", "--unified=0", self.before, self.after, "--", spot)
        return [[int(n) for n in match.groups(default="1")] for match in _HUNK.finditer(diff)]


def _before(hunks: Sequence[Sequence[int]], line: int) -> tuple[int, bool]:
    """Return the number that a line had before the hunks, and whether it was there.

    For a line that was not there, the number is that of the first line after it that was.
    """
    was = line
    for first, n, new_first, new_n in hunks:
        # a hunk without lines stands for the gap after the line that it names
        next_old = first + n if n else first + 1
        next_new = new_first + new_n if new_n else new_first + 1
        if line < next_new:
            if new_n and line >= new_first:
                return next_old, False
            break
        was = line - next_new + next_old
    return was, True
