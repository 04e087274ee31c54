"""A series as it was before: in a revision of its git repository, or in a folder."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from fa_harness.errors import UsageError
from fa_harness.proc import ProgramError
from fa_harness.project import Project, writing
from fa_harness.series.series import series_for
from fa_harness.series.tree import fetch_tree, prepare_tree
from fa_harness.stacks import ORDER
from fa_harness.upstream.git import check_out, git
from fa_harness.upstream.source import Source

_OLD = "refs/fa-harness/compared"
_NOT_APPLIED = ("mutants", "museum", "experimental")
"""What the folder of a series has beside it."""


def earlier(project: Project, old: str) -> Project:
    """Return a project whose last series is called `old-NAME` and is what NAME was.

    `old` is a folder with a series, or a revision of the repository that the series is in.

    Raises:
        UsageError: There is no such folder and no such revision, or the series is not in it.
    """
    name = f"old-{project.series}"
    folder = project.build / "compared" / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.with_name(f"{name}.index").unlink(missing_ok=True)  # git's note of what is there
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        if (Path(old) / ORDER).is_file():
            shutil.copytree(old, folder, ignore=shutil.ignore_patterns(*_NOT_APPLIED))
        else:
            check_out(project.patches, _content(project, old), folder)
    return replace(project, more_series=(folder.parent,)).of(name)


def range_diff(project: Project, source: Source, before: Project) -> str:
    """Return git's comparison of the patches that a series had with those that it has now."""
    now, then = series_for(project, source), series_for(before, source)
    tree = prepare_tree(project, source, now)
    old = fetch_tree(before, source, then, tree.path, _OLD, verbose=False)
    ranges = (
        f"{old.commits[then.below]}..{old.commits[-1]}",
        f"{tree.commits[now.below]}..{tree.commits[-1]}",
    )
    return git(tree.path, "range-diff", "--no-color", *ranges)


def _content(project: Project, revision: str) -> str:
    """Return git's id of the files that the series' folder had in a revision."""
    place = project.patches
    try:
        git(place, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
    except ProgramError as error:
        raise UsageError(
            f"'{revision}' is no folder with a series and no revision of the repository of "
            f"{place}; name one of them, such as HEAD~1"
        ) from error
    try:
        git(place, "cat-file", "-e", f"{revision}:./{ORDER}")
    except ProgramError as error:
        raise UsageError(
            f"{project.relative(place)} was no series in {revision}: it had no file '{ORDER}'; "
            "name a revision that has it, or a folder with the patches of then"
        ) from error
    return git(place, "rev-parse", f"{revision}:./")
