"""Apply patches to upstream as they are, or merge them with a checkout's own changes."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fa_harness import terminal
from fa_harness.errors import SetupError
from fa_harness.proc import ProgramError
from fa_harness.series.series import Series
from fa_harness.upstream.git import git, unmerged

_AM = (
    "am", "--quiet", "--no-3way", "--committer-date-is-author-date", "--no-gpg-sign",
    "--whitespace=nowarn",
)  # fmt: skip


class DoesNotApplyError(SetupError):
    """A patch does not apply as it is; the message says where.

    `patch` is its file name, `number` says how many patches come before it.
    """

    def __init__(self, message: str, *, patch: str, number: int) -> None:
        super().__init__(message)
        self.patch = patch
        self.number = number


@dataclass(frozen=True, kw_only=True)
class Applied:
    """The outcome of applying a series. State `n` has the first `n` patches."""

    commits: tuple[str, ...]  # of each state, from the files without a patch to the whole series
    contents: tuple[str, ...]  # git's ids of the files of each state; equal files have equal ids
    left_out: tuple[str, ...] = ()  # names of patches that do not apply; they change no state
    held: int = 0  # the number of patches that the files had; their states are as given
    is_merged: bool = False  # whether the others were merged: they do not apply as they are
    conflict: str = ""  # why the merge failed; every state is the files as given then
    stacked: tuple[str, ...] = ()  # patches that were merged with those of another series below

    @classmethod
    def of(cls, states: Sequence[tuple[str, str]], **more: Any) -> Applied:
        """Return the outcome with these states: the commit and its content of each."""
        commits, contents = zip(*states, strict=True)
        return cls(commits=commits, contents=contents, **more)

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
    leave_out: bool = False,
    verbose: bool = False,
) -> Applied:
    """Apply a series to the commit `start` as it is; context and white space must match exactly.

    The repository's checkout does not change, whether the patches apply or not. `onto` is the name
    of the commit in messages. With `leave_out`, patches that do not apply are left out, except the
    first. Any other patch that does not apply is a `DoesNotApplyError`.
    """
    left_out = []
    with worktree_of(repository, start, verbose=verbose) as worktree:
        states = [state(worktree)]
        for number, patch in enumerate(series.patches):
            try:
                am(worktree, series, number, onto=onto, verbose=verbose)
            except DoesNotApplyError as refusal:
                if number == 0 or not leave_out:
                    raise
                terminal.stage(f"{refusal}\nit is left out")
                left_out.append(patch.name)
                clear(worktree, verbose=verbose)
            states.append(state(worktree))
    return Applied.of(states, left_out=tuple(left_out))


def merge(
    repository: Path,
    start: str,
    series: Series,
    made_for: Sequence[str],
    *,
    onto: str,
    verbose: bool = False,
) -> Applied:
    """Merge a series three-way into the commit `start`, which may already have its first patches.

    `made_for` are the states of the upstream that the first patches were made for. Any further
    patches of the series are applied as they are, or else are a `DoesNotApplyError`.
    """
    held = _held(repository, start, made_for)
    n_merged = len(made_for) - 1
    with worktree_of(repository, start, verbose=verbose) as worktree:
        states = [state(worktree)] * (held + 1)
        for number, commit in enumerate(made_for[held + 1 :], held):
            try:
                pick(worktree, commit, verbose=verbose)
            except ProgramError:
                files = unmerged(worktree)
                if not files:
                    raise
                label = series.label(number).removesuffix(series.names[number][4:])
                conflict = f"patch {label} conflicts in {', '.join(files)}"
                as_given = [states[0]] * (len(series.patches) + 1)
                return Applied.of(as_given, held=held, conflict=conflict)
            states.append(state(worktree))
        for number in range(n_merged, len(series.patches)):
            am(worktree, series, number, onto=onto, verbose=verbose)
            states.append(state(worktree))
    return Applied.of(states, held=held, is_merged=held < n_merged)


def pick(worktree: Path, commit: str, *, verbose: bool = False) -> None:
    """Pick a commit, in the same way everywhere: what was resolved here before plays no part."""
    words = ("cherry-pick", "--allow-empty", "--keep-redundant-commits", commit)
    git(worktree, "-c", "rerere.enabled=false", *words, verbose=verbose)


def _held(repository: Path, start: str, made_for: Sequence[str]) -> int:
    """Return how many of the first patches a commit has: those of the state nearest to it.

    The distance is the number of lines that differ in the files of the patches. An edit of the
    user's own, or another version of upstream, adds about as many lines to each distance.
    """
    files = git(repository, "diff", "--name-only", made_for[0], made_for[-1]).splitlines()

    def distance(state: str) -> int:
        command = ("diff", "--numstat", "--no-renames", state, start, "--", *files)
        counts = (line.split("\t")[:2] for line in git(repository, *command).splitlines())
        return sum(int(n) for pair in counts for n in pair if n != "-")  # a binary file has -

    distances = [distance(state) for state in made_for]
    return distances.index(min(distances))


@contextlib.contextmanager
def worktree_of(repository: Path, start: str, *, verbose: bool) -> Iterator[Path]:
    """Give a worktree of a commit beside the repository, and delete it afterwards."""
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


def state(worktree: Path) -> tuple[str, str]:
    """Return the commit that is checked out, and git's id of its files."""
    commit, content = git(worktree, "rev-parse", "HEAD", "HEAD^{tree}").splitlines()
    return commit, content


def am(worktree: Path, series: Series, number: int, *, onto: str, verbose: bool) -> None:
    """Apply the patch that follows `number` others; one that does not apply leaves disorder."""
    patch = series.patches[number]
    try:
        git(worktree, *_AM, patch, verbose=verbose)
    except ProgramError as error:
        where = "\n".join(f"  {line}" for line in _rejects(worktree, patch, error.output))
        raise DoesNotApplyError(
            f"patch '{series.label(number)}' does not apply on upstream '{onto}' after "
            f"{_before(series, number)}:\n{where}",
            patch=patch.name,
            number=number,
        ) from error


def clear(worktree: Path, *, verbose: bool) -> None:
    """Clear up the disorder that a patch left which does not apply."""
    git(worktree, "am", "--quit", verbose=verbose)
    git(worktree, "reset", "--quiet", "--hard", verbose=verbose)
    git(worktree, "clean", "--quiet", "--force", "-d", "-x", verbose=verbose)


def _before(series: Series, number: int) -> str:
    """Return in words which patches come before one: `9 patches of state and 1 of fast`."""
    counts = Counter(series.owners[:number])
    if len(set(series.owners)) == 1 or not counts:
        return f"{number} patches of the series"
    (first, n), *others = counts.items()
    return " and ".join([f"{n} patches of {first}", *(f"{n} of {each}" for each, n in others)])


def _rejects(worktree: Path, patch: Path, am_output: str) -> list[str]:
    """Return the hunks that do not apply, or else the lines with errors; may ruin the worktree."""
    git(worktree, "reset", "--quiet", "--hard")
    try:
        output = git(worktree, "apply", "--reject", "--verbose", patch)
    except ProgramError as error:
        output = error.output
    lines: dict[str, list[str]] = {}
    rejected: dict[str, list[str]] = {}  # numbers of hunks
    n_hunk: Counter[str] = Counter()
    for line in output.splitlines():
        if match := re.fullmatch(r"error: patch failed: (.+):(\d+)", line):
            lines.setdefault(match[1], []).append(match[2])
        elif match := re.fullmatch(r"Applying patch (.+) with \d+ rejects?\.\.\.", line):
            rejected[file := match[1]] = []
        elif rejected and (match := re.match(r"(Hunk|Rejected hunk) #(\d+)", line)):
            n_hunk[file] += 1
            rejected[file] += [match[2]] if match[1] == "Rejected hunk" else []
    found = [
        f"{file}: hunk {number} of {n_hunk[file]}, line {line}"
        for file, numbers in rejected.items()
        for number, line in zip(numbers, lines[file], strict=True)
    ]
    return found or [line for line in (output + "\n" + am_output).splitlines() if "error" in line]
