"""Patches on upstream: applied as they are, or merged with what a checkout has of its own."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fa_harness import terminal
from fa_harness.errors import SetupError
from fa_harness.proc import ProgramError
from fa_harness.series.series import Series
from fa_harness.upstream.git import git


class DoesNotApplyError(SetupError):
    """A patch does not fit the files as it is; the message says where.

    Attributes:
        patch: its file name.
    """

    def __init__(self, message: str, *, patch: str) -> None:
        super().__init__(message)
        self.patch = patch


@dataclass(frozen=True, kw_only=True)
class Applied:
    """What came of applying a series: state `n` has its first `n` patches.

    Attributes:
        commits: of each state, from the files without a patch to the whole series.
        contents: git's ids of the files of each state; equal files, equal id.
        left_out: file names of patches that do not apply; their states are those before them.
        held: patches that the files had already; their states are the files as they were.
        is_merged: the others were merged, since they do not apply as they are.
        conflict: why they could not be; every state is the files as they were then.
    """

    commits: tuple[str, ...]
    contents: tuple[str, ...]
    left_out: tuple[str, ...] = ()
    held: int = 0
    is_merged: bool = False
    conflict: str = ""

    @property
    def is_exact(self) -> bool:
        """Whether each patch was applied as it is."""
        return not (self.held or self.is_merged or self.conflict)


def apply(
    repository: Path,
    start: str,
    series: Series,
    *,
    onto: str,
    n_needed: int | None = None,
    verbose: bool = False,
) -> Applied:
    """Apply a series as it is on a commit, context and white space to the letter.

    What is checked out in the repository is not touched, whatever becomes of the patches.

    Args:
        repository: Has the commit.
        start: The commit.
        series: The patches.
        onto: What people call the commit.
        n_needed: Those after the first `n_needed` may be left out; None means that each is needed.
        verbose: Print every command.

    Raises:
        DoesNotApplyError: A needed patch does not.
    """
    with _worktree(repository, start, verbose=verbose) as worktree:
        states = [_state(worktree)]
        left_out = []
        for number, patch in enumerate(series.patches):
            try:
                _am(worktree, patch, verbose=verbose)
            except ProgramError as error:
                refusal = _refusal(worktree, patch, error.output, onto=onto, number=number)
                if n_needed is None or number < n_needed:
                    raise refusal from error
                terminal.stage(f"{refusal}\nit is left out")
                left_out.append(patch.name)
                git(worktree, "am", "--quit", verbose=verbose)
                git(worktree, "reset", "--quiet", "--hard", verbose=verbose)
                git(worktree, "clean", "--quiet", "--force", "-d", "-x", verbose=verbose)
            states.append(_state(worktree))
    return _applied(states, left_out=tuple(left_out))


def merge(
    repository: Path,
    start: str,
    series: Series,
    made_for: Sequence[str],
    *,
    onto: str,
    verbose: bool = False,
) -> Applied:
    """Merge a series three-way into a commit that may have its first patches already.

    Args:
        repository: Has the commit, and those that the patches were made for.
        start: The commit.
        series: The patches.
        made_for: The states of the upstream that the first patches were made for, all of them
            commits. Further patches of the series are applied as they are.
        onto: What people call the commit.
        verbose: Print every command.

    Raises:
        DoesNotApplyError: One of the further patches does not apply.
    """
    held = _held(repository, start, made_for)
    n_merged = len(made_for) - 1
    with _worktree(repository, start, verbose=verbose) as worktree:
        states = [_state(worktree)] * (held + 1)
        for patch, commit in zip(series.patches[held:n_merged], made_for[held + 1 :], strict=True):
            try:
                pick = ("cherry-pick", "--allow-empty", "--keep-redundant-commits", commit)
                git(worktree, *pick, verbose=verbose)
            except ProgramError:
                files = git(worktree, "diff", "--name-only", "--diff-filter=U").split()
                if not files:
                    raise
                conflict = f"patch {patch.name[:4]} conflicts in {', '.join(files)}"
                as_it_was = [states[0]] * (len(series.patches) + 1)
                return _applied(as_it_was, held=held, conflict=conflict)
            states.append(_state(worktree))
        for number, patch in enumerate(series.patches[n_merged:], n_merged):
            try:
                _am(worktree, patch, verbose=verbose)
            except ProgramError as error:
                raise _refusal(worktree, patch, error.output, onto=onto, number=number) from error
            states.append(_state(worktree))
    return _applied(states, held=held, is_merged=held < n_merged)


def _held(repository: Path, start: str, made_for: Sequence[str]) -> int:
    """How many of the first patches a commit has: those of the state that it differs least from.

    The lines that differ are counted in the files that the patches touch. An edit of the user's
    own, or another version of upstream, adds about as many to each state.
    """
    files = git(repository, "diff", "--name-only", made_for[0], made_for[-1]).splitlines()

    def distance(state: str) -> int:
        command = ("diff", "--numstat", "--no-renames", state, start, "--", *files)
        counts = (line.split("\t")[:2] for line in git(repository, *command).splitlines())
        return sum(int(n) for pair in counts for n in pair if n != "-")  # - is of binary files

    distances = [distance(state) for state in made_for]
    return distances.index(min(distances))


def _applied(
    states: Sequence[tuple[str, str]],
    *,
    left_out: tuple[str, ...] = (),
    held: int = 0,
    is_merged: bool = False,
    conflict: str = "",
) -> Applied:
    commits, contents = zip(*states, strict=True)
    return Applied(
        commits=commits,
        contents=contents,
        left_out=left_out,
        held=held,
        is_merged=is_merged,
        conflict=conflict,
    )


@contextlib.contextmanager
def _worktree(repository: Path, start: str, *, verbose: bool) -> Iterator[Path]:
    """Give a worktree of a commit beside the repository, which is deleted again."""
    worktree = repository.with_name(f".{repository.name}.am")
    shutil.rmtree(worktree, ignore_errors=True)
    git(repository, "worktree", "prune", verbose=verbose)
    add = ("worktree", "add", "--quiet", "--detach", worktree, start)
    git(repository, *add, verbose=verbose)
    try:
        yield worktree
    finally:
        shutil.rmtree(worktree, ignore_errors=True)
        git(repository, "worktree", "prune", verbose=verbose)


def _state(worktree: Path) -> tuple[str, str]:
    """The commit that is checked out, and git's id of its files."""
    commit, content = git(worktree, "rev-parse", "HEAD", "HEAD^{tree}").splitlines()
    return commit, content


def _am(worktree: Path, patch: Path, *, verbose: bool) -> None:
    git(
        worktree,
        "am",
        "--quiet",
        "--no-3way",
        "--committer-date-is-author-date",
        "--no-gpg-sign",
        "--whitespace=nowarn",
        patch,
        verbose=verbose,
    )


def _refusal(
    worktree: Path, patch: Path, am_output: str, *, onto: str, number: int
) -> DoesNotApplyError:
    where = "\n".join(f"  {line}" for line in _rejects(worktree, patch, am_output))
    return DoesNotApplyError(
        f"patch '{patch.name}' does not apply on upstream '{onto}' after {number} patches of the "
        f"series:\n{where}",
        patch=patch.name,
    )


def _rejects(worktree: Path, patch: Path, am_output: str) -> list[str]:
    """Which hunks of which files do not apply, in the throw-away `worktree`."""
    git(worktree, "reset", "--quiet", "--hard")
    try:
        output = git(worktree, "apply", "--reject", "--verbose", patch)
    except ProgramError as error:
        output = error.output
    lines: dict[str, list[str]] = {}
    hunks: dict[str, list[tuple[str, bool]]] = {}
    for line in output.splitlines():
        if match := re.fullmatch(r"error: patch failed: (.+):(\d+)", line):
            lines.setdefault(match[1], []).append(match[2])
        elif match := re.fullmatch(r"Applying patch (.+) with \d+ rejects?\.\.\.", line):
            hunks[file := match[1]] = []
        elif hunks and (match := re.match(r"(Hunk|Rejected hunk) #(\d+)", line)):
            hunks[file].append((match[2], match[1] == "Rejected hunk"))
    found = [
        f"{file}: hunk {number} of {len(of_file)}, line {line}"
        for file, of_file in hunks.items()
        for number, line in zip(
            [number for number, rejected in of_file if rejected], lines[file], strict=True
        )
    ]
    return found or [line for line in (output + "\n" + am_output).splitlines() if "error" in line]
