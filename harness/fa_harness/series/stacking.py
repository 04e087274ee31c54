"""Put series on each other that were made apart: merge what does not apply as it is.

A patch that stands on other series applies on them. One that knows nothing of a series below it may
not. It is merged three-way then, with the commit that it is on its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from fa_harness.errors import SetupError
from fa_harness.proc import ProgramError
from fa_harness.series.applying import (
    Applied,
    DoesNotApplyError,
    am,
    clear,
    pick,
    state,
    worktree_of,
)
from fa_harness.series.series import Series, title
from fa_harness.upstream.git import git, unmerged

CommitsOf = Callable[[str, DoesNotApplyError], Sequence[str]]
"""Returns by a series' name the commits of its patches on its own, or raises the refusal."""

_INSERTED = re.compile(r"@@ -(\d+)(?:,\d+)? \+\d+(?:,\d+)? @@")


class StackConflictError(SetupError):
    """Patches of two series of a stack change the same lines."""


def merge_stack(
    repository: Path,
    start: str,
    series: Series,
    commits_of: CommitsOf,
    *,
    onto: str,
    verbose: bool = False,
) -> Applied:
    """Apply a stack to the commit `start`; merge the patches that do not apply as they are.

    Raises:
        StackConflictError: Two patches conflict.
        DoesNotApplyError: A patch does not apply, and there is nothing to merge it with.
    """
    stacked = []
    with worktree_of(repository, start, verbose=verbose) as worktree:
        states = [state(worktree)]
        for number, owner in enumerate(series.owners):
            try:
                am(worktree, series, number, onto=onto, verbose=verbose)
            except DoesNotApplyError as refusal:
                clear(worktree, verbose=verbose)
                commit = commits_of(owner, refusal)[series.number(number) - 1]
                _pick(worktree, commit, series, [commit for commit, _ in states])
                stacked.append(series.label(number))
            states.append(state(worktree))
    return Applied.of(states, stacked=tuple(stacked))


def _pick(worktree: Path, commit: str, series: Series, commits: Sequence[str]) -> None:
    try:
        pick(worktree, commit)
    except ProgramError:
        files = unmerged(worktree)
        if not files:
            raise
        number = len(commits) - 1
        lines = [
            line for file in files for line in _against(worktree, file, series, number, commits)
        ]
        owner = series.owners[number]
        others = "+".join(dict.fromkeys(series.owners[: number + 1 - series.number(number)]))
        raise StackConflictError(
            f"'{owner}' cannot be put on '{others}': patch {_named(series, number)} conflicts\n"
            + "\n".join(f"  {line}" for line in lines)
            + f"\nuse one of them without the other; or let '{owner}' stand on the other series "
            "(on = [...] in its series.toml) and bring its patches up to date: fa-harness series "
            f"rebase --series {owner}"
        ) from None


def _against(
    worktree: Path, file: str, series: Series, number: int, commits: Sequence[str]
) -> list[str]:
    """Return a line for each place of a file where a patch conflicts, with which others."""
    places = _conflicts(worktree, file)
    found = []
    for first, last in places or [(0, 0)]:
        options = [f"-L{first},{last}:{file}"] if places else []
        rest = [] if places else ["--", file]
        touching = git(
            worktree, "log", "--no-patch", "--format=%H", *options, f"{commits[0]}..HEAD", *rest
        ).splitlines()
        others = [
            _named(series, i)
            for i, commit in enumerate(commits[1:])
            if commit in touching and series.owners[i] != series.owners[number]
        ]
        where = f"{file}, line {first}" if places else file
        found.append(f"with {' and '.join(others) or 'upstream'} in {where}")
    return found


def _conflicts(worktree: Path, file: str) -> list[tuple[int, int]]:
    """Return the first and last line of each conflict, with one line around it, before the patch.

    Against that state, a conflict is what git has inserted: its marks and the other side.
    """
    n_line = git(worktree, "show", f"HEAD:{file}").count("\n") + 1
    places, line, first = [], 0, None
    for text in git(worktree, "diff", "-U0", "--ours", "--", file).splitlines():
        if inserted := _INSERTED.match(text):
            line = int(inserted[1])
        elif text.startswith("+<<<<<<< "):
            first = line
        elif text.rstrip() == "+=======" and first is not None:
            places.append((max(first, 1), min(line + 1, n_line)))
            first = None
    return places


def _named(series: Series, number: int) -> str:
    return f"{series.owners[number]}/{series.names[number][:4]} ({title(series.patches[number])})"
