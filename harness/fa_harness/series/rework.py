"""Change a series: patches become commits in a worktree, and the commits become patches again.

Every change works in the same way. It starts from what the series stands on, picks commits one by
one, and writes the result to the folder of the series. It stops if a pick conflicts, or if the user
wants to edit; the tree's repository keeps what is still to be picked. The patches do not change
before the last pick. A conflict that was resolved before is resolved in the same way, by git's
rerere.
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
from fa_harness.series import history
from fa_harness.series.applying import DoesNotApplyError, apply
from fa_harness.series.export import Changes, export
from fa_harness.series.history import Files
from fa_harness.series.series import Series, as_files_are, load_series, series_for
from fa_harness.series.tree import (
    BRANCH,
    REWORK,
    UPSTREAM_REF,
    Tree,
    are_same_patches,
    folder_of,
    noted_tree,
    prepare_tree,
    tree_at,
)
from fa_harness.stacks import DEFAULT, hold_on, names_in
from fa_harness.upstream.git import fetch, git, unmerged
from fa_harness.upstream.pins import Pin, set_default
from fa_harness.upstream.source import Source

_OLD_BASE = "refs/fa-harness/old-base"
_OLD_SERIES = "refs/fa-harness/old-series"


class ConflictError(FaHarnessError):
    """A patch does not apply in its new place; the message gives the next steps."""


@contextlib.contextmanager
def changing(project: Project, *sources: Source) -> Iterator[None]:
    """Hold the locks of `patches/`, the pins, and the trees of upstreams during a change."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(locked(project, PATCHES))
        # Checkouts come first: whoever prepares one also takes the lock of a pin.
        for source in sorted(sources, key=lambda each: (each.root is None, each.folder)):
            stack.enter_context(locked(project, source.folder))
        yield


@dataclass(frozen=True, kw_only=True)
class Rework:
    """A change of the series that has begun."""

    command: str  # as the user called it: `series edit`
    series: tuple[str, ...]  # the digests of the patches before the change
    todo: tuple[str, ...]  # the commits that are still to be picked, in order
    conflict_at: str = ""  # the commit on which the first conflicts; else empty
    dropped: tuple[str, ...] = ()  # titles of patches that changed nothing where they were picked
    remembered: tuple[str, ...] = ()  # those of patches whose conflicts were resolved as before
    base: str = UPSTREAM_REF  # the commit on which the series stands
    to_pin: str = ""  # the pin that becomes the default


def worktree(project: Project, source: Source) -> Path:
    """Return the folder in which a change is made and the user edits."""
    return project.edits / folder_of(project, source).name


def command_of(project: Project, command: str) -> str:
    """Return how a command of the group `series` is called for the project's series."""
    is_default = project.stack == (project.config.series or DEFAULT,)
    return f"fa-harness series {command}" + ("" if is_default else f" --series {project.series}")


def _apply(project: Project) -> str:
    return command_of(project, "apply") if project.series != DEFAULT else "fa-harness vendor"


def find(series: Series, patch: str) -> int:
    """Return the index of the patch with this number, file name or beginning of a file name."""
    if re.fullmatch(r"\d{1,4}", patch) and 1 <= int(patch) <= len(series.names):
        return int(patch) - 1
    fitting = [i for i, name in enumerate(series.names) if name.startswith(patch)]
    if len(fitting) == 1:
        return fitting[0]
    what = "several patches begin" if fitting else "no patch is called or begins"
    raise UsageError(f"{what} with '{patch}': the series has {', '.join(series.names)}")


def edit(project: Project, source: Source, patch: str) -> Path:
    """Stop at a patch, so that the user can change its commit or add others after it.

    Return the worktree.
    """
    find(load_series(project), patch)  # fails before it waits for a lock
    with changing(project, source):
        series = load_series(project)
        tree = _tree(project, source, series)
        return _begin(project, source, tree, "edit", find(series, patch) + 1)


def refresh(project: Project, source: Source, *, line_numbers: bool = False) -> Changes:
    """Write the commits of the worktree, or else those of the tree's branch, to the patches.

    `line_numbers` also writes patches of which only line numbers changed.
    """
    project.refuse_to_change_shipped(project.patches, "series refresh")
    path = folder_of(project, source)
    if (rework := begun(project, source)) is not None:
        if line_numbers:
            raise UsageError(
                f"'{rework.command}' has begun: {command_of(project, 'refresh')} ends it, "
                "and the same with --line-numbers does the rest"
            )
        return go_on(project, source)
    if not (path / ".git").exists():
        raise UsageError(f"there is no tree of '{source.label}' yet; {_apply(project)} makes it")
    with changing(project, source):
        _refuse_variants(project, source, load_series(project))
        stack = as_files_are(project, source)
        tree = noted_tree(project, source)
        if tree is None or tree.series != stack.digests:
            raise SetupError(
                f"{project.relative(path)} was made of other patches than "
                f"{project.relative(project.patches)} has now, and its commits would undo what "
                f"changed; {_apply(project)} brings it up to date, unless it holds work of your own"
            )
        _refuse_uncommitted(project, path)
        _keep_followers(project, source)
        base, before = tree.commits[stack.below], Files.of(project)
        _refuse_without_base(project, path, base)
        changes = export(project, path, base, BRANCH, line_numbers=line_numbers)
        history.keep(project, "series refresh", before)
        stack = as_files_are(project, source)
        prepare_tree(project, source, stack, exactly=True, is_exported=True)
    return changes


def reorder(project: Project, source: Source, order: Sequence[str]) -> Changes:
    """Move patches to the front, in this order; the others follow as they were."""

    def reordered(series: Series) -> list[int]:
        first = [find(series, patch) for patch in order]
        if len(set(first)) != len(first):
            raise UsageError("a patch is named twice; name each once")
        return [*first, *(i for i in range(len(series.names)) if i not in first)]

    return _pick_anew(project, source, "reorder", reordered)


def drop(project: Project, source: Source, patches: Sequence[str]) -> Changes:
    """Remove patches from the series."""

    def kept(series: Series) -> list[int]:
        gone = {find(series, patch) for patch in patches}
        return [i for i in range(len(series.names)) if i not in gone]

    return _pick_anew(project, source, "drop", kept)


def add(project: Project, source: Source, mails: Sequence[Path], after: str | None) -> Changes:
    """Insert patches, files of `git format-patch`, after a patch; after the last for None."""

    def place_in(series: Series) -> int:
        return len(series.names) if after is None else find(series, after) + 1

    for mail in mails:
        if not mail.is_file():
            raise UsageError(f"there is no file {mail}; git format-patch makes one")
    place_in(load_series(project))  # fails before it waits for a lock
    with changing(project, source):
        series = load_series(project)
        tree = _tree(project, source, series)
        at = place_in(series)
        place = _begin(project, source, tree, "add", at)
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
        return _finish(project, source)


def rebase(project: Project, source: Source, onto: Source) -> Changes:
    """Move the series from one upstream to another, three-way.

    A series that stands on others may stay on its upstream: it is moved to what those are now. If
    the upstream is another pin, that becomes the default.
    """
    stays = source.digest == onto.digest
    if stays and len(project.stack) == 1:
        raise UsageError(f"the series is for '{onto.label}' already")
    if not stays and isinstance(onto.origin, Pin):
        project.refuse_to_change_shipped(project.pins_file, "series rebase")
    with changing(project, source, onto):
        series = load_series(project)
        old = _tree_of_before(project, source, series)
        stack = as_files_are(project, onto)
        if stays and old.series == stack.digests:
            raise UsageError(f"{project.series} is on {'+'.join(project.stack[:-1])} as it is now")
        _refuse_begun(project, onto)
        # The new tree has none of the series' own patches yet, because they may not apply.
        below = stack.first(stack.below)
        if old.path == folder_of(project, onto):  # which keeps them until the end
            applied = apply(old.path, UPSTREAM_REF, below, onto=onto.label)
            new = replace(old, applied=applied)
        else:
            new = prepare_tree(project, onto, below)
        base = old.commits[-len(series.patches) - 1]
        for name, commit in ((_OLD_BASE, base), (_OLD_SERIES, old.commits[-1])):
            fetch(new.path, old.path, f"+{commit}:{name}")
        todo = old.commits[len(old.commits) - len(series.patches) :]
        to_pin = onto.origin.name if isinstance(onto.origin, Pin) and not stays else ""
        _begin(project, onto, new, "rebase", 0, todo, to_pin=to_pin)
        return _finish(project, onto)


def _tree_of_before(project: Project, source: Source, series: Series) -> Tree:
    """Return a tree that has the patches of the series, if only on what it stood on before."""
    try:
        return _tree(project, source, series)
    except DoesNotApplyError:
        for path in sorted(project.sources.glob(f"{source.folder}*")):
            tree = tree_at(path)
            n = len(series.digests)
            if tree and n and tree.source == source.digest and tree.series[-n:] == series.digests:
                _refuse_begun(project, source)
                return tree
        raise


def go_on(project: Project, source: Source) -> Changes:
    """Continue after the user has resolved a conflict."""
    if begun(project, source) is None:
        raise UsageError(
            f"nothing to go on with: no change of the series has begun on '{source.label}'"
        )
    place = worktree(project, source)
    with changing(project, source):
        rework = begun(project, source)
        if rework is None:
            raise UsageError(f"the change of the series on '{source.label}' has ended meanwhile")
        picked = replace(rework, todo=rework.todo[1:], conflict_at="")
        if not _is_picking(place):
            if rework.conflict_at not in ("", git(place, "rev-parse", "HEAD")):
                _save(project, source, picked)  # the user has committed
        else:
            if files := unmerged(place):
                raise ConflictError(_steps(project, source, rework, files))
            if git(place, "status", "--porcelain", "--untracked-files=no"):
                git(place, "-c", "core.editor=true", "cherry-pick", "--continue")
            else:  # the rest of the patch was there already
                subject = _subject(place, "CHERRY_PICK_HEAD")
                picked = replace(picked, dropped=(*rework.dropped, subject))
                git(place, "cherry-pick", "--skip")
            _save(project, source, picked)
        _refuse_uncommitted(project, place)
        return _finish(project, source)


def abort(project: Project, source: Source) -> None:
    """Undo a change that has begun; `patches/` stays as it was."""
    if begun(project, source) is None:
        raise UsageError(
            f"nothing to give up: no change of the series has begun on '{source.label}'"
        )
    with changing(project, source):
        _end(project, source)


def begun(project: Project, source: Source) -> Rework | None:
    """Return the change that has begun; None if there is none."""
    try:
        record = json.loads(_file(project, source).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    for field in ("series", "todo", "dropped", "remembered"):
        record[field] = tuple(record.get(field, ()))
    return Rework(**record)


def _file(project: Project, source: Source) -> Path:
    return folder_of(project, source) / REWORK


def _save(project: Project, source: Source, rework: Rework) -> None:
    path = _file(project, source)
    with writing(path):
        replace_file(path, json.dumps(asdict(rework)) + "\n")


def _tree(project: Project, source: Source, series: Series) -> Tree:
    """Return the tree that a change starts from; refuse to lose anything in it."""
    project.refuse_to_change_shipped(project.patches, "this command")
    _refuse_variants(project, source, series)
    tree = prepare_tree(project, source, as_files_are(project, source), exactly=True)
    _refuse_begun(project, source)
    _refuse_uncommitted(project, tree.path)
    if not are_same_patches(tree.path, BRANCH, tree.commits[-1]):
        raise SetupError(
            f"{project.relative(tree.path)} has commits that are not in "
            f"{project.relative(project.patches)}; {command_of(project, 'refresh')} writes them"
        )
    _keep_followers(project, source)
    return tree


def _refuse_variants(project: Project, source: Source, series: Series) -> None:
    if series_for(project, source).own.digests != series.digests:
        raise UsageError(
            f"upstream '{source.label}' has variants of the patches "
            f"({project.relative(project.about().file)}): change the series on the newest "
            "upstream, then the variants by hand"
        )


def _refuse_without_base(project: Project, path: Path, base: str) -> None:
    try:
        git(path, "merge-base", "--is-ancestor", base, BRANCH)
    except ProgramError:
        below = "+".join(project.stack[:-1]) or "upstream"
        raise SetupError(
            f"branch '{BRANCH}' of {project.relative(path)} no longer holds {below} as it was, on "
            f"which {project.series} stands; put its commits on {base[:9]} (git rebase), and run "
            "again"
        ) from None


def _refuse_begun(project: Project, source: Source) -> None:
    if rework := begun(project, source):
        raise SetupError(
            f"'{rework.command}' has begun in {project.relative(worktree(project, source))}; "
            "end it with --continue or --abort"
        )


def _refuse_uncommitted(project: Project, place: Path) -> None:
    changed = git(place, "status", "--porcelain")
    if changed:
        files = ", ".join(line[3:] for line in changed.splitlines()[:3])
        raise SetupError(
            f"{project.relative(place)} holds what is not committed ({files}); commit it (git "
            "commit --amend adds it to the last patch), or git restore it, and run again"
        )


def _pick_anew(
    project: Project, source: Source, command: str, order: Callable[[Series], list[int]]
) -> Changes:
    """Pick the patches in the order of the indices that `order` returns."""
    order(load_series(project))  # fails before it waits for a lock
    with changing(project, source):
        series = load_series(project)
        tree = _tree(project, source, series)
        own = tree.commits[-len(series.patches) :] if series.patches else ()
        _begin(project, source, tree, command, 0, [own[i] for i in order(series)])
        return _finish(project, source)


def _begin(
    project: Project,
    source: Source,
    tree: Tree,
    command: str,
    n: int,
    todo: Sequence[str] | None = None,
    *,
    to_pin: str = "",
) -> Path:
    """Make the worktree with the first `n` patches of the series on what it stands on.

    Without a `todo`, the others follow. `command` is that of the group `series`.
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
    below = as_files_are(project, source).below
    start = tree.commits[below + n]
    rework = Rework(
        command=f"series {command}",
        series=load_series(project).digests,
        todo=tuple(tree.commits[below + n + 1 :] if todo is None else todo),
        base=tree.commits[below],
        to_pin=to_pin,
    )
    _save(project, source, rework)
    _share_resolutions(project, tree.path)
    git(tree.path, "worktree", "add", "--quiet", "--detach", place, start)
    return place


def _keep_followers(project: Project, source: Source) -> None:
    """Make the trees of the series that stand on this one, from which a rebase lets them follow."""
    for name in names_in(project.series_folders):
        with contextlib.suppress(FaHarnessError):  # one that does not apply has none
            follower = project.of(name)
            if project.series in follower.stack[:-1]:
                prepare_tree(follower, source, series_for(follower, source))


def _share_resolutions(project: Project, repository: Path) -> None:
    """Let git note how conflicts are resolved, in a place that all trees share."""
    shared, own = project.sources / ".resolved", repository / ".git" / "rr-cache"
    with writing(shared):
        shared.mkdir(parents=True, exist_ok=True)
        if not own.is_symlink():
            shutil.rmtree(own, ignore_errors=True)
            own.symlink_to(shared.resolve())
    git(repository, "config", "rerere.enabled", "true")
    git(repository, "config", "rerere.autoUpdate", "true")


def _finish(project: Project, source: Source) -> Changes:
    """Pick what is left, and write the result to the folder of the series."""
    path, place = folder_of(project, source), worktree(project, source)
    rework = _pick_all(project, source)
    if load_series(project).digests != rework.series:
        raise SetupError(
            f"{project.relative(project.patches)} was changed since '{rework.command}' has begun, "
            "which would undo that; put it back as it was (git stash, or git diff to save what is "
            "new), go on, and bring it in again; or --abort"
        )
    tip, before = git(place, "rev-parse", "HEAD"), Files.of(project)
    changes = replace(
        export(project, path, rework.base, tip),
        dropped=rework.dropped,
        remembered=rework.remembered,
    )
    git(path, "checkout", "--quiet", "-B", BRANCH, tip)
    _end(project, source)
    stack = as_files_are(project, source)
    prepare_tree(project, source, stack, exactly=True, is_exported=True)
    if rework.to_pin:
        set_default(project.pins_file, rework.to_pin)
        hold_on(project.about(), rework.to_pin)
    history.keep(project, rework.command, before)
    if rework.command != "series rebase":
        return changes
    old, new = f"{_OLD_BASE}..{_OLD_SERIES}", f"{rework.base}..{BRANCH}"
    range_diff = git(path, "range-diff", "--no-color", old, new)
    return replace(changes, onto=source.name, range_diff=range_diff)


def _pick_all(project: Project, source: Source) -> Rework:
    """Pick the commits of the list, and take each off the list at once."""
    place = worktree(project, source)
    rework = begun(project, source)
    assert rework is not None
    while rework.todo:
        commit = rework.todo[0]
        picked = replace(rework, todo=rework.todo[1:])
        try:
            git(place, "cherry-pick", "--allow-empty", commit)
        except ProgramError as error:
            files = unmerged(place)
            if not files and _is_resolved(place):
                git(place, "-c", "core.editor=true", "cherry-pick", "--continue")
                picked = replace(picked, remembered=(*rework.remembered, _subject(place, commit)))
            elif files or "is now empty" not in error.output:
                stopped = replace(rework, conflict_at=git(place, "rev-parse", "HEAD"))
                _save(project, source, stopped)
                raise ConflictError(_steps(project, source, rework, files)) from error
            else:
                git(place, "cherry-pick", "--skip")
                picked = replace(picked, dropped=(*rework.dropped, _subject(place, commit)))
        _save(project, source, picked)
        rework = picked
    return rework


def _is_resolved(place: Path) -> bool:
    """Tell whether git has resolved the conflicts of a pick, which then waits to be committed."""
    return _is_picking(place) and bool(git(place, "diff", "--cached", "--name-only"))


def _is_picking(place: Path) -> bool:
    picking = ("rev-parse", "--path-format=absolute", "--git-path", "CHERRY_PICK_HEAD")
    return Path(git(place, *picking)).exists()


def undo(project: Project, source: Source) -> Changes:
    """Undo the last finished change of the series; the changes before it can be undone next."""
    project.refuse_to_change_shipped(project.patches, "series undo")
    history.last(project)  # fails before it waits for a lock
    with changing(project, source):
        _tree(project, source, load_series(project))
        change = history.undo(project)
    before, after = change.before.texts, change.after.texts
    return Changes(
        written=tuple(name for name in before if before[name] != after.get(name)),
        renamed=(),
        removed=tuple(name for name in after if name not in before),
        undone=change.command,
    )


def _end(project: Project, source: Source) -> None:
    shutil.rmtree(worktree(project, source), ignore_errors=True)
    git(folder_of(project, source), "worktree", "prune")
    _file(project, source).unlink(missing_ok=True)


def _subject(repository: Path, commit: str) -> str:
    return git(repository, "log", "-1", "--format=%s", commit)


def _steps(project: Project, source: Source, rework: Rework, files: Sequence[str]) -> str:
    place = worktree(project, source)
    subject = _subject(place, rework.todo[0])
    again = command_of(project, rework.command.removeprefix("series "))
    if not isinstance(source.origin, Pin):  # a change is found by its upstream
        again = f"UPSTREAM_DIR=/path/to/{source.label.removeprefix('dir:')} {again}"
    return "\n".join(
        [
            f"'{rework.command}': the patch '{subject}' conflicts in {', '.join(files)}",
            f"  1. cd {project.relative(place)}",
            "  2. edit the files, take the marks <<<<<<< ======= >>>>>>> out",
            f"  3. git add {' '.join(files)}",
            f"  4. {again} --continue",
            f"or {again} --abort: the patches are as they were",
        ]
    )
