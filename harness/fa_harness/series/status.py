"""Describe each patch: what it touches, whether upstream has it, how far its hunks are off."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from fa_harness.proc import ProgramError
from fa_harness.project import Project
from fa_harness.series.series import Series, series_for, title
from fa_harness.series.tree import UPSTREAM_REF, Tree, prepare_whole_tree
from fa_harness.upstream.git import git
from fa_harness.upstream.source import Source

_OFFSET = re.compile(r"Hunk #\d+ succeeded at \d+ \(offset (-?\d+) lines?\)")


@dataclass(frozen=True, kw_only=True)
class Touched:
    """A file that a patch touches."""

    path: str
    added: int  # lines
    removed: int


@dataclass(frozen=True, kw_only=True)
class Status:
    """One patch of the series."""

    name: str
    title: str
    files: tuple[Touched, ...]
    is_upstream: bool  # whether upstream already has the whole patch

    @property
    def size(self) -> int:
        """Lines added and removed."""
        return sum(each.added + each.removed for each in self.files)


def status(project: Project, source: Source) -> list[Status]:
    """Return the status of each patch of the last series."""
    stack = series_for(project, source)
    tree = prepare_whole_tree(project, source, stack)
    with TemporaryDirectory() as folder:
        index = Path(folder) / "index"
        git(tree.path, "read-tree", UPSTREAM_REF, index=index)
        return [
            Status(
                name=patch.name,
                title=title(patch),
                files=_touched(tree.path, patch),
                is_upstream=i < tree.applied.held or _is_in(tree.path, patch, index),
            )
            for i, patch in enumerate(stack.own.patches, stack.below)
        ]


def _touched(repository: Path, patch: Path) -> tuple[Touched, ...]:
    # Asks the patch, not its commit: a patch that the upstream has already has no commit.
    files = []
    for line in git(repository, "apply", "--numstat", patch).splitlines():
        added, removed, path = line.split("\t")
        n_added, n_removed = (0 if n == "-" else int(n) for n in (added, removed))  # - is binary
        files.append(Touched(path=path, added=n_added, removed=n_removed))
    return tuple(files)


def _is_in(repository: Path, patch: Path, index: Path) -> bool:
    """Return whether the patch can be reversed in an index."""
    try:
        git(repository, "apply", "--cached", "--check", "--reverse", patch, index=index)
    except ProgramError:
        return False
    return True


def drift(tree: Tree, series: Series) -> list[int]:
    """Return the largest offset of the hunks of each patch that applied as it is, in lines."""
    found = []
    with TemporaryDirectory() as folder:
        index = Path(folder) / "index"
        for i, patch in enumerate(series.patches):
            if series.label(i) in tree.applied.stacked:
                continue
            git(tree.path, "read-tree", tree.commits[i], index=index)
            said = git(tree.path, "apply", "--cached", "--check", "--verbose", patch, index=index)
            found.append(max((abs(int(n)) for n in _OFFSET.findall(said)), default=0))
    return found
