"""What a compiler says of a copy of somebody's files, told of the files themselves."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fa_harness.proc import SHOWN_LINES
from fa_harness.upstream.git import git

_ERROR = re.compile(r"\berror: |^CMake Error|: undefined reference to ")
_LEADS_TO_ERROR = re.compile(r"In file included from |\s+from |\S+: In ")
_HUNK = re.compile(r"^@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@", re.MULTILINE)
_GUTTER = re.compile(r"^( *)(\d+)( \|)")


def first_errors(lines: list[str]) -> list[str]:
    """Return the lines of a build's output from its first error on, as many as are shown.

    Ninja prints a step that fails, the whole command and then what that has said.
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
    """A folder with a copy of a checkout's files, on which patches may lie.

    Attributes:
        path: The folder.
        seen_from: Where the compiler runs, which may name files relative to it.
        own: The files: place in the copy -> path.
        repository: Has both states of the files.
        before: The commit with the files as they are in the checkout.
        after: The commit or tree with the files as they are in the copy.
    """

    path: Path
    seen_from: Path
    own: Mapping[str, Path]
    repository: Path
    before: str
    after: str

    def told_of_own(self, lines: list[str]) -> list[str]:
        """Return lines of a compiler with the names and line numbers of the checkout's files.

        A line that a patch has added is in no file of the checkout; it is said where it would be.
        """
        prefixes = {str(self.path), os.path.relpath(self.path, self.seen_from)}
        either = "|".join(re.escape(prefix) for prefix in sorted(prefixes, key=len, reverse=True))
        place = re.compile(rf"(?<![\w./-])(?:{either})/([\w./+-]+):(\d+)?")
        lines_of = functools.cache(self._lines)
        told, spot = [], ""  # of the file that was named last
        for line in lines:
            added: list[str] = []

            def own(match: re.Match[str], added: list[str] = added) -> str:
                path = self.own.get(match[1])
                if path is None:
                    return match[0]
                if match[2] is None:
                    return f"{path}:"
                number, is_own = lines_of(match[1])(int(match[2]))
                if not is_own:
                    added.append(f" [a patch has added this line at {path}:{number}]")
                    return match[0]
                return f"{path}:{number}"

            places = [match for match in place.finditer(line) if match[1] in self.own]
            if places:
                spot = places[0][1]
                told.append("".join([place.sub(own, line), *added]))
            elif spot and (gutter := _GUTTER.match(line)):
                number, is_own = lines_of(spot)(int(gutter[2]))
                shown = str(number if is_own else gutter[2])
                width = len(gutter[1]) + len(gutter[2])
                told.append(shown.rjust(width) + line[gutter.end(2) :])
            else:
                told.append(line)
        return told

    def _lines(self, spot: str) -> _Lines:
        diff = git(self.repository, "diff", "--unified=0", self.before, self.after, "--", spot)
        return _Lines.of(diff)


@dataclass(frozen=True, kw_only=True)
class _Lines:
    """The lines of a file that a diff was made of.

    Attributes:
        hunks: Of each its first line and number of lines, before and after.
    """

    hunks: tuple[tuple[int, int, int, int], ...]

    @staticmethod
    def of(diff: str) -> _Lines:
        """Read a diff without context."""

        def numbers(match: re.Match[str]) -> tuple[int, int, int, int]:
            first, n, new_first, new_n = match.groups(default="1")
            return int(first), int(n), int(new_first), int(new_n)

        return _Lines(hunks=tuple(numbers(match) for match in _HUNK.finditer(diff)))

    def __call__(self, line: int) -> tuple[int, bool]:
        """Return the line that line `line` was before, and whether it was there.

        Where it was not, the first line after it that was.
        """
        was = line
        for first, n, new_first, new_n in self.hunks:
            # a hunk without lines stands for the gap after the line that it names
            next_old = first + n if n else first + 1
            next_new = new_first + new_n if new_n else new_first + 1
            if line < next_new:
                if new_n and line >= new_first:
                    return next_old, False
                break
            was = line - next_new + next_old
        return was, True
