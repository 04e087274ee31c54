"""How far the patches lie from where they were made, on another upstream."""

from __future__ import annotations

import re
from pathlib import Path
from tempfile import TemporaryDirectory

from fa_harness.series.series import Series
from fa_harness.series.tree import Tree
from fa_harness.upstream.git import git

_OFFSET = re.compile(r"Hunk #\d+ succeeded at \d+ \(offset (-?\d+) lines?\)")


def drift(tree: Tree, series: Series) -> list[int]:
    """Return for each patch the lines by which the hunk that moved most is off.

    Args:
        tree: Prepared with the series.
        series: The series.
    """
    found = []
    with TemporaryDirectory() as folder:
        index = Path(folder) / "index"
        for i, patch in enumerate(series.patches):
            git(tree.path, "read-tree", tree.commits[i], index=index)
            said = git(tree.path, "apply", "--cached", "--check", "--verbose", patch, index=index)
            found.append(max((abs(int(n)) for n in _OFFSET.findall(said)), default=0))
    return found
