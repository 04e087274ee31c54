"""Measure how far from their line numbers the patches apply on another upstream."""

from __future__ import annotations

import re
from pathlib import Path
from tempfile import TemporaryDirectory

from fa_harness.series.series import Series
from fa_harness.series.tree import Tree
from fa_harness.upstream.git import git

_OFFSET = re.compile(r"Hunk #\d+ succeeded at \d+ \(offset (-?\d+) lines?\)")


def drift(tree: Tree, series: Series) -> list[int]:
    """Return the largest offset of each patch's hunks in lines; the tree has the series."""
    found = []
    with TemporaryDirectory() as folder:
        index = Path(folder) / "index"
        for i, patch in enumerate(series.patches):
            git(tree.path, "read-tree", tree.commits[i], index=index)
            said = git(tree.path, "apply", "--cached", "--check", "--verbose", patch, index=index)
            found.append(max((abs(int(n)) for n in _OFFSET.findall(said)), default=0))
    return found
