"""Changing the series: patches become commits in a worktree, and the commits become patches again.

Every change is the same: take an upstream, pick commits on it one by one, and write what comes out
to `patches/`. It stops where a pick conflicts, or where the user wants to edit, and goes on from
there: what is still to be picked is kept in the tree's repository. Nothing in `patches/` changes
before the last pick.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from fa_harness.errors import FaHarnessError, SetupError, UsageError
from fa_harness.files import replace_file
from fa_harness.proc import ProgramError
from fa_harness.project import PATCHES, Project, locked, writing
from fa_harness.series.export import Changes, export
from fa_harness.series.series import Series, load_series, series_for
from fa_harness.series.tree import (
    BRANCH,
    REWORK,
    UPSTREAM_REF,
    Tree,
    are_same_patches,
    made_of,
    prepare_tree,
)
from fa_harness.upstream.git import git
from fa_harness.upstream.pins import Pin, set_default
from fa_harness.upstream.source import Source

_OLD_UPSTREAM = "refs/fa-harness/old-upstream"
_OLD_SERIES = "refs/fa-harness/old-series"


class ConflictError(FaHarnessError):
    """A patch does not go where it should; the message has the steps to take."""


@contextlib.contextmanager
def changing(project: Project, *sources: Source) -> Iterator[None]:
    """Hold `patches/`, the pins and the trees of upstreams, while they change."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(locked(project, PATCHES))
        # checkouts first, as one whose tree is prepared takes the pin's
        for source in sorted(sources, key=lambda each: (each.root is None, each.folder)):
            stack.enter_context(locked(project, source.folder))
        yield


@dataclass(frozen=True, kw_only=True)
class Rework:
    """A change of the series that has begun.

    Attributes:
        command: What the user called, as in `series edit`.
        series: Digests of the patches that it is a change of.
        todo: Commits that are still to be picked, in order.
        conflict_at: The commit that the first of those does not go on top of; empty while no pick
            has stopped.
        dropped: Titles of patches that changed nothing where they were picked.
    """

    command: str
    series: tuple[str, ...]
    todo: tuple[str, ...]
    conflict_at: str = ""
    dropped: tuple[str, ...] = ()


def worktree(project: Project, source: Source) -> Path:
    """Where a change is made, and a user edits."""
    return project.edits / source.folder


def find(series: Series, patch: str) -> int:
    """Return which patch is meant: its number, its file name, or the beginning of that.

    Raises:
        UsageError: None is, or several.
    """
    if re.fullmatch(r"\d{1,4}", patch) and 1 <= int(patch) <= len(series.names):
        return int(patch) - 1
    fitting = [i for i, name in enumerate(series.names) if name.startswith(patch)]
    if len(fitting) == 1:
        return fitting[0]
    what = "several patches begin" if fitting else "no patch is called or begins"
    raise UsageError(f"{what} with '{patch}': the series has {', '.join(series.names)}")


def edit(project: Project, source: Source, patch: str) -> Path:
    """Stop at a patch, for the user to change its commit or to add others after it.

    Returns:
        The worktree.

    Raises:
        UsageError: There is no such patch.
        SetupError: Another change has begun, or the series does not apply.
    """
    find(load_series(project), patch)  # before anything is waited for
    with changing(project, source):
        series = load_series(project)
        tree = _tree(project, source, series)
        at = find(series, patch) + 1
        return _begin(project, source, tree, "series edit", at, tree.commits[at + 1 :])


def refresh(project: Project, source: Source, *, line_numbers: bool = False) -> Changes:
    """Write the commits of the worktree, or else those of the tree's branch, to `patches/`.

    Args:
        project: The project.
        source: The upstream that the patches are for.
        line_numbers: Write patches, too, of which only line numbers changed.

    Raises:
        UsageError: There is no tree yet, the upstream has variants of patches, or line numbers
            are wanted while a change has begun.
        ConflictError: A later patch does not go on top of what was edited.
        SetupError: Something is not committed, or patches were changed meanwhile.
    """
    project.refuse_to_change_shipped(project.patches, "series refresh")
    path = project.sources / source.folder
    if (rework := begun(project, source)) is not None:
        if line_numbers:
            raise UsageError(
                f"'{rework.command}' has begun: fa-harness series refresh ends it, "
                "and the same with --line-numbers does the rest"
            )
        return go_on(project, source)
    if not (path / ".git").exists():
        raise UsageError(f"there is no tree of '{source.label}' yet; fa-harness vendor makes it")
    with changing(project, source):
        series = load_series(project)
        _refuse_variants(project, source, series)
        if made_of(project, source) != series.digests:
            raise SetupError(
                f"{project.relative(path)} was made of other patches than patches/ has now, and "
                "its commits would undo what changed; fa-harness vendor brings it up to date, "
                "unless it holds work of your own"
            )
        _refuse_uncommitted(project, path)
        changes = export(project, path, BRANCH, line_numbers=line_numbers)
        prepare_tree(project, source, load_series(project), exactly=True, is_exported=True)
    return changes


def reorder(project: Project, source: Source, order: Sequence[str]) -> Changes:
    """Bring patches into another order; those that are not named stay behind them as they were.

    Raises:
        UsageError: A patch is not there, or named twice.
        ConflictError: One does not go on top of another.
    """

    def reordered(series: Series) -> list[int]:
        first = [find(series, patch) for patch in order]
        if len(set(first)) != len(first):
            raise UsageError("a patch is named twice; name each once")
        return [*first, *(i for i in range(len(series.names)) if i not in first)]

    return _of(project, source, "series reorder", reordered)


def drop(project: Project, source: Source, patches: Sequence[str]) -> Changes:
    """Take patches out of the series.

    Raises:
        UsageError: A patch is not there.
        ConflictError: A later one needs one of them.
    """

    def kept(series: Series) -> list[int]:
        gone = {find(series, patch) for patch in patches}
        return [i for i in range(len(series.names)) if i not in gone]

    return _of(project, source, "series drop", kept)


def add(project: Project, source: Source, mails: Sequence[Path], after: str | None) -> Changes:
    """Put patches into the series, at its end or after one of it.

    Args:
        project: Where `patches/` is.
        source: The upstream.
        mails: Files as `git format-patch` writes them.
        after: The patch that they come after; None for the last.

    Raises:
        UsageError: A file cannot be read, or the patch is not there.
        ConflictError: One does not apply, or a later one does not go on top of it.
    """
    for mail in mails:
        if not mail.is_file():
            raise UsageError(f"there is no file {mail}; git format-patch makes one")
    _place_after(load_series(project), after)  # before anything is waited for
    with changing(project, source):
        return _add(project, source, mails, after)


def _place_after(series: Series, after: str | None) -> int:
    return len(series.names) if after is None else find(series, after) + 1


def _add(project: Project, source: Source, mails: Sequence[Path], after: str | None) -> Changes:
    series = load_series(project)
    tree = _tree(project, source, series)
    at = _place_after(series, after)
    place = _begin(project, source, tree, "series add", at, tree.commits[at + 1 :])
    for mail in mails:
        try:
            git(place, "am", "--quiet", "--3way", mail.resolve())
        except ProgramError as error:
            reason = "; ".join(line for line in error.output.splitlines() if "error" in line)
            abort(project, source)
            raise ConflictError(
                f"patch '{mail.name}' does not apply after {at} patches of the series: "
                f"{reason or 'it is no mail of git format-patch'}; nothing was changed"
            ) from error
    return _go_on(project, source, tree.path)


def rebase(project: Project, source: Source, onto: Source) -> Changes:
    """Move the series to another upstream, three-way: git knows what each patch was made for.

    A pin that it was moved to becomes the default one.

    Args:
        project: Where `patches/` is.
        source: The upstream that the series is for.
        onto: The other one.

    Raises:
        UsageError: Both are the same, or `source` has variants of patches.
        ConflictError: A patch does not go on top of the other upstream.
        SetupError: Another change has begun, or an upstream cannot be had.
    """
    if source.digest == onto.digest:
        raise UsageError(f"the series is for '{onto.label}' already")
    if isinstance(onto.origin, Pin):
        project.refuse_to_change_shipped(project.pins_file, "series rebase")
    with changing(project, source, onto):
        series = load_series(project)
        old = _tree(project, source, series)
        _refuse_begun(project, onto)
        # only the upstream: its tree may not take the patches
        new = prepare_tree(project, onto, series.first(0))
        for name, commit in ((_OLD_UPSTREAM, old.commits[0]), (_OLD_SERIES, old.commits[-1])):
            git(new.path, "fetch", "--quiet", "--no-tags", old.path, f"+{commit}:{name}")
        _begin(project, onto, new, "series rebase", 0, old.commits[1:])
        return _go_on(project, onto, new.path)


def go_on(project: Project, source: Source) -> Changes:
    """Go on after a conflict that the user has resolved.

    Raises:
        UsageError: Nothing has begun.
        ConflictError: It is not resolved, or there is another.
    """
    if begun(project, source) is None:
        raise UsageError(
            f"nothing to go on with: no change of the series has begun on '{source.label}'"
        )
    with changing(project, source):
        return _continue(project, source)


def _continue(project: Project, source: Source) -> Changes:
    path = project.sources / source.folder
    rework = _load(path)
    if rework is None:
        raise UsageError(f"the change of the series on '{source.label}' has ended meanwhile")
    place = worktree(project, source)
    if not _picking(place):
        if rework.conflict_at not in ("", git(place, "rev-parse", "HEAD")):
            # the user has made the commit
            _save(path, replace(rework, todo=rework.todo[1:], conflict_at=""))
    else:
        unmerged = git(place, "diff", "--name-only", "--diff-filter=U").split()
        if unmerged:
            raise ConflictError(_steps(project, source, rework, unmerged))
        if git(place, "status", "--porcelain", "--untracked-files=no"):
            git(place, "-c", "core.editor=true", "cherry-pick", "--continue")
        else:  # what is left of it was there already
            rework = replace(rework, dropped=(*rework.dropped, _subject(place, "CHERRY_PICK_HEAD")))
            git(place, "cherry-pick", "--skip")
        _save(path, replace(rework, todo=rework.todo[1:], conflict_at=""))
    _refuse_uncommitted(project, place)
    return _go_on(project, source, path)


def abort(project: Project, source: Source) -> None:
    """Give up a change that has begun; `patches/` is as it was.

    Raises:
        UsageError: Nothing has begun.
    """
    if begun(project, source) is None:
        raise UsageError(
            f"nothing to give up: no change of the series has begun on '{source.label}'"
        )
    with changing(project, source):
        _end(project, source, project.sources / source.folder)


def begun(project: Project, source: Source) -> Rework | None:
    """Return the change that has begun, if one has."""
    return _load(project.sources / source.folder)


# how it is done


def _tree(project: Project, source: Source, series: Series) -> Tree:
    project.refuse_to_change_shipped(project.patches, "this command")
    _refuse_variants(project, source, series)
    tree = prepare_tree(project, source, series, exactly=True)
    _refuse_begun(project, source)
    _refuse_uncommitted(project, tree.path)
    if not are_same_patches(tree.path, BRANCH, tree.commits[-1]):
        raise SetupError(
            f"{project.relative(tree.path)} has commits that are not in patches/; fa-harness "
            "series refresh writes them"
        )
    return tree


def _refuse_variants(project: Project, source: Source, series: Series) -> None:
    if series_for(project, source).digests != series.digests:
        raise UsageError(
            f"upstream '{source.label}' has variants of the patches (patches/variants.toml): "
            "change the series on the newest upstream, then the variants by hand"
        )


def _refuse_begun(project: Project, source: Source) -> None:
    rework = begun(project, source)
    if rework is not None:
        raise SetupError(
            f"'{rework.command}' has begun in {project.relative(worktree(project, source))}; "
            "end it with --continue or --abort"
        )


def _of(
    project: Project, source: Source, command: str, order: Callable[[Series], list[int]]
) -> Changes:
    order(load_series(project))  # before anything is waited for
    with changing(project, source):
        series = load_series(project)
        tree = _tree(project, source, series)
        _begin(project, source, tree, command, 0, [tree.commits[i + 1] for i in order(series)])
        return _go_on(project, source, tree.path)


def _begin(
    project: Project, source: Source, tree: Tree, command: str, n: int, todo: Sequence[str]
) -> Path:
    """Make the worktree with the first `n` patches.

    Raises:
        SetupError: Its folder is there, of a change that nothing is known of.
    """
    place = worktree(project, source)
    if place.exists():
        raise SetupError(
            f"{project.relative(place)} is there, though no change of the series has begun on "
            f"'{source.label}'; save what you need of it, delete the folder, and run again"
        )
    git(tree.path, "worktree", "prune")
    with writing(place):
        place.parent.mkdir(parents=True, exist_ok=True)
    digests = load_series(project).digests
    _save(tree.path, Rework(command=command, series=digests, todo=tuple(todo)))
    git(tree.path, "worktree", "add", "--quiet", "--detach", place, tree.commits[n])
    return place


def _pick_all(project: Project, source: Source, path: Path) -> None:
    """Pick what is to be picked; what was picked is taken off the list at once."""
    place = worktree(project, source)
    while (rework := _load(path)) is not None and rework.todo:
        commit = rework.todo[0]
        try:
            git(place, "cherry-pick", "--allow-empty", commit)
        except ProgramError as error:
            unmerged = git(place, "diff", "--name-only", "--diff-filter=U").split()
            if not unmerged and "is now empty" in error.output:
                git(place, "cherry-pick", "--skip")
                dropped = (*rework.dropped, _subject(path, commit))
                _save(path, replace(rework, todo=rework.todo[1:], dropped=dropped))
                continue
            _save(path, replace(rework, conflict_at=git(place, "rev-parse", "HEAD")))
            raise ConflictError(_steps(project, source, rework, unmerged)) from error
        _save(path, replace(rework, todo=rework.todo[1:]))


def _go_on(project: Project, source: Source, path: Path) -> Changes:
    _pick_all(project, source, path)
    rework = _load(path)
    assert rework is not None
    if load_series(project).digests != rework.series:
        raise SetupError(
            f"patches/ was changed since '{rework.command}' has begun, which would undo that; put "
            "it back as it was (git stash, or git diff to save what is new), go on, and bring it "
            "in again; or --abort"
        )
    tip = git(worktree(project, source), "rev-parse", "HEAD")
    changes = export(project, path, tip)
    git(path, "checkout", "--quiet", "-B", BRANCH, tip)
    _end(project, source, path)
    prepare_tree(project, source, load_series(project), exactly=True, is_exported=True)
    changes = replace(changes, dropped=rework.dropped)
    if rework.command != "series rebase":
        return changes
    if isinstance(source.origin, Pin):
        set_default(project.pins_file, source.origin.name)
    old, new = (f"{_OLD_UPSTREAM}..{_OLD_SERIES}", f"{UPSTREAM_REF}..{BRANCH}")
    range_diff = git(path, "range-diff", "--no-color", old, new)
    return replace(changes, onto=source.name, range_diff=range_diff)


def _end(project: Project, source: Source, path: Path) -> None:
    _remove_worktree(path, worktree(project, source))
    (path / REWORK).unlink(missing_ok=True)


def _remove_worktree(repository: Path, path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
    git(repository, "worktree", "prune")


def _picking(place: Path) -> bool:
    return Path(
        git(place, "rev-parse", "--path-format=absolute", "--git-path", "CHERRY_PICK_HEAD")
    ).exists()


def _subject(repository: Path, commit: str) -> str:
    return git(repository, "log", "-1", "--format=%s", commit)


def _refuse_uncommitted(project: Project, place: Path) -> None:
    changed = git(place, "status", "--porcelain")
    if changed:
        files = ", ".join(line[3:] for line in changed.splitlines()[:3])
        raise SetupError(
            f"{project.relative(place)} holds what is not committed ({files}); commit it (git "
            "commit --amend adds it to the last patch), or git restore it, and run again"
        )


def _steps(project: Project, source: Source, rework: Rework, unmerged: Sequence[str]) -> str:
    place = worktree(project, source)
    subject = _subject(place, rework.todo[0])
    again = f"fa-harness {rework.command}"
    if not isinstance(source.origin, Pin):  # whose change it is that has begun
        again = f"UPSTREAM_DIR=/path/to/{source.label.removeprefix('dir:')} {again}"
    return "\n".join(
        [
            f"'{rework.command}': the patch '{subject}' conflicts in {', '.join(unmerged)}",
            f"  1. cd {project.relative(place)}",
            "  2. edit the files, take the marks <<<<<<< ======= >>>>>>> out",
            f"  3. git add {' '.join(unmerged)}",
            f"  4. {again} --continue",
            f"or {again} --abort: the patches are as they were",
        ]
    )


def _load(path: Path) -> Rework | None:
    try:
        record = json.loads((path / REWORK).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return Rework(
        command=record["command"],
        series=tuple(record["series"]),
        todo=tuple(record["todo"]),
        conflict_at=record["conflict_at"],
        dropped=tuple(record["dropped"]),
    )


def _save(path: Path, rework: Rework) -> None:
    with writing(path / REWORK):
        replace_file(path / REWORK, json.dumps(asdict(rework)) + "\n")
