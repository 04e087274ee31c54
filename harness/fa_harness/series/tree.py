"""The tree: our own git repository with pristine upstream and a stack of series on top."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from fa_harness import terminal
from fa_harness.errors import SetupError
from fa_harness.files import replace_file, sha256
from fa_harness.project import Project, locked, writing
from fa_harness.series.applying import Applied, DoesNotApplyError, apply, merge, state
from fa_harness.series.series import Series, series_for
from fa_harness.series.stacking import merge_stack
from fa_harness.stacks import DEFAULT
from fa_harness.upstream import layout
from fa_harness.upstream.git import fetch, git, make_repository
from fa_harness.upstream.pins import Pin, load_pins
from fa_harness.upstream.source import Source, find_source, unpack

UPSTREAM_REF = "refs/fa-harness/upstream"
MADE_FOR_REF = "refs/fa-harness/made-for"
BRANCH = "series"
STATE = ".git/fa-harness.json"
REWORK = ".git/fa-harness-rework.json"
"""Exists while a change of the series is under way; its commits are in the repository."""


@dataclass(frozen=True, kw_only=True)
class Tree:
    """A prepared tree. State `n` of it is upstream with the first `n` patches."""

    path: Path  # the git repository; branch `series` is checked out
    source: str  # the digest of the source that it was made from
    series: tuple[str, ...]  # the digests of its patches, without further ones
    ggml_version: str  # as its files give it; empty if they do not
    applied: Applied

    @property
    def commits(self) -> tuple[str, ...]:
        """Of each state, from pristine upstream to the whole series."""
        return self.applied.commits

    @property
    def contents(self) -> tuple[str, ...]:
        """Git's ids of the files of each state; equal files have equal ids."""
        return self.applied.contents

    def patches(self, series: Series, n: int) -> tuple[str, ...]:
        """Return the file names of the patches that state `n` really has."""
        applied = self.applied
        last = applied.held if applied.conflict else max(n, applied.held)
        return tuple(name for name in series.names[:last] if name not in applied.left_out)


def folder_of(project: Project, source: Source) -> Path:
    """Return where the tree of a stack on an upstream lies: one repository for each."""
    is_plain = project.stack == (DEFAULT,)
    name = source.folder if is_plain else f"{source.folder}+{project.stack_name}"
    return project.sources / name


def note(source: Source, series: Series, applied: Applied) -> str:
    """Return one line on what became of the series, with the way out; empty if it just applied."""
    label, n, held = source.label, len(series.patches), applied.held
    if not source.takes_series:
        return (
            f"series: not applied, as asked for; {label} is taken as it is (NO_SERIES=0 applies it)"
        )
    if held == n and n:
        return f"series: {label} has all {n} patches already; it is taken as it is"
    has = f"{label} has the first {held} patches already; the others are " if held else ""
    if applied.conflict:
        return (
            f"series: {has}not applied, {applied.conflict}; {'it' if held else label} is taken as "
            f"it is (to resolve: fa-harness series rebase --onto {shlex.quote(source.name)})"
        )
    if applied.stacked:
        return f"series: merged with those below: {', '.join(applied.stacked)}"
    if applied.is_merged:
        what = has or f"{n} patches are "
        return f"series: {what}merged into {label} (--no-series takes it as it is)"
    return ""


def _rebase(series: Series, source: Source) -> str:
    of = [] if series.owners[-1] == DEFAULT else ["--series", series.owners[-1]]
    return shlex.join(["fa-harness", "series", "rebase", *of, "--onto", source.name])


def current_tree(project: Project, source: Source, series: Series) -> Tree | None:
    """Return the tree if it was prepared for this source and series; runs no program."""
    tree = tree_at(folder_of(project, source))
    if tree is None or (tree.source, tree.series) != (source.digest, series.digests):
        return None
    return tree


def prepare_tree(
    project: Project,
    source: Source,
    series: Series,
    *,
    exactly: bool = False,
    is_exported: bool = False,
    verbose: bool = False,
) -> Tree:
    """Make the tree current: unpack the source, apply the series.

    An interrupted run leaves no tree, or the one from before.

    On a pin, patches apply as they are. On a checkout, patches that do not are merged unless they
    have to apply `exactly`, and those that it already has are found. If they conflict, every state
    is the checkout as it is.

    `is_exported` says that the commits of the tree's branch were just written to the series.

    Raises:
        SetupError: A patch does not apply (the message says which, and where), the user would
            lose work in the tree, or the source cannot be fetched.
    """
    path = folder_of(project, source)
    with locked(project, source.folder):
        tree = current_tree(project, source, series)
        if tree is not None and (tree.applied.is_exact or not exactly):
            return tree
        old = tree_at(path)
        if old is None or old.source != source.digest:
            if (path / REWORK).exists():
                raise SetupError(
                    f"{source.label} has changed, and a change of the series has begun on it as it "
                    f"was, which is kept in {project.relative(path)}; end that first, with "
                    "--continue or --abort of its command"
                )
            if old is not None:
                _refuse_to_lose_work(project, path, old.commits[-1:], is_exported=is_exported)
            old = _make_tree(project, source, path, verbose=verbose)
        if series.patches:
            what = "the patch series" if len(project.stack) == 1 else project.stack_name
            terminal.stage(f"applying {what} on {source.label}")
        try:
            applied = apply(path, UPSTREAM_REF, series, onto=source.label, verbose=verbose)
        except DoesNotApplyError as error:
            applied = _merge(project, source, path, series, error, exactly=exactly, verbose=verbose)
        _refuse_changed(project, series)
        tips = (old.commits[-1], applied.commits[-1])
        _refuse_to_lose_work(project, path, tips, is_exported=is_exported)
        git(path, "checkout", "--quiet", "-B", BRANCH, applied.commits[-1], verbose=verbose)
        tree = replace(old, series=series.digests, applied=applied)
        _save(path, tree)
        if said := note(source, series, applied):
            terminal.stage_once(said)
        return tree


def prepare_whole_tree(project: Project, source: Source, series: Series) -> Tree:
    """Make the tree current as `prepare_tree` does, say what was merged, and refuse a conflict."""
    tree = prepare_tree(project, source, series)
    if tree.applied.conflict:
        raise SetupError(
            f"the patch series cannot be merged into {source.label}: {tree.applied.conflict}; to "
            f"resolve: {_rebase(series, source)}"
        )
    if not tree.applied.is_exact:
        terminal.stage_once(note(source, series, tree.applied))
    return tree


def _refuse_changed(project: Project, series: Series) -> None:
    """Refuse a series that changed since it was read: changing it takes no lock of the trees."""
    try:
        now = tuple(sha256(patch) for patch in series.patches)
    except OSError:
        now = ()
    if now != series.digests:
        raise SetupError(
            f"{project.relative(series.file.parent)} was changed while it was applied; run again"
        )


def _merge(
    project: Project,
    source: Source,
    repository: Path,
    series: Series,
    refusal: DoesNotApplyError,
    *,
    exactly: bool,
    verbose: bool,
) -> Applied:
    """Merge patches that do not apply as they are: with other series, or with a checkout."""
    if not (exactly or isinstance(source.origin, Pin)):
        return _merge_into_checkout(project, source, repository, series, refusal, verbose=verbose)

    def commits_of(owner: str, refusal: DoesNotApplyError) -> Sequence[str]:
        if owner not in project.stack:  # patches that a series has beside its own
            raise _with_remedy(project, series, refusal) from refusal
        alone = project.of(owner)
        if {*alone.stack} == {*project.stack[: project.stack.index(owner) + 1]}:
            raise _with_remedy(project, series, refusal) from refusal
        own = series_for(alone, source)
        ref = f"{MADE_FOR_REF}-{owner}"
        tree = fetch_tree(alone, source, own, repository, ref, verbose=verbose)
        return tree.commits[own.below + 1 :]

    if refusal.number < series.owners.count(series.owners[0]):
        raise _with_remedy(project, series, refusal) from refusal
    onto = source.label
    return merge_stack(repository, UPSTREAM_REF, series, commits_of, onto=onto, verbose=verbose)


def _merge_into_checkout(
    project: Project,
    source: Source,
    repository: Path,
    series: Series,
    refusal: DoesNotApplyError,
    *,
    verbose: bool,
) -> Applied:
    """Merge the series, with the sources of the pin that the patches were made for.

    It is the default pin, or another pin with the same variants of the patches.
    """
    pins = load_pins(project.pins_file)
    for name in dict.fromkeys((pins.default, *pins.upstreams)):
        pin = find_source(project, name)
        of_pin = series_for(project, pin)
        if series.digests[: len(of_pin.digests)] == of_pin.digests:
            break
    else:
        raise refusal
    terminal.stage(f"merging the patch series, which was made for {pin.label}")
    try:
        tree = fetch_tree(project, pin, of_pin, repository, MADE_FOR_REF, verbose=verbose)
    except SetupError as error:
        raise SetupError(
            f"patch '{refusal.patch}' does not apply on {source.label} as it is, and to merge it "
            f"takes the sources that it was made for:\n{error}\n"
            f"--no-series takes {source.label} as it is"
        ) from error
    onto = source.label
    return merge(repository, UPSTREAM_REF, series, tree.commits, onto=onto, verbose=verbose)


def fetch_tree(
    project: Project, source: Source, series: Series, into: Path, ref: str, *, verbose: bool
) -> Tree:
    """Make a tree current, and fetch all of its states into another repository."""
    with locked(project, source.folder):
        tree = prepare_tree(project, source, series, verbose=verbose)
        fetch(into, tree.path, f"+{tree.commits[-1]}:{ref}", verbose=verbose)
    return tree


def _with_remedy(project: Project, series: Series, error: DoesNotApplyError) -> DoesNotApplyError:
    owner, first = series.owners[error.number], series.owners[0]
    remedy = "bring the patch up to date"
    if owner != first and owner in project.stack:
        remedy = f"fa-harness series rebase --series {owner} puts it on what it stands on now"
    return DoesNotApplyError(
        f"{error}\nthe tree is as it was; {remedy}, or correct {project.relative(series.file)}",
        patch=error.patch,
        number=error.number,
    )


def extend_tree(
    project: Project, source: Source, tree: Tree, series: Series, *, verbose: bool = False
) -> Tree:
    """Return the tree with more states: the patches of another series on top of the last.

    The new commits are on no branch; the checkout and `current_tree` do not change. A patch that
    does not apply is left out with a message, except the first, which the others need.
    """
    terminal.stage(f"applying {project.relative(series.file.parent)} on {project.stack_name}")
    with locked(project, source.folder):
        tip, onto = tree.commits[-1], source.label
        try:
            further = apply(tree.path, tip, series, onto=onto, leave_out=True, verbose=verbose)
        except DoesNotApplyError as error:
            raise _with_remedy(project, series, error) from error
    applied = replace(
        tree.applied,
        commits=tree.commits + further.commits[1:],
        contents=tree.contents + further.contents[1:],
        left_out=further.left_out,
    )
    return replace(tree, applied=applied)


def noted_tree(project: Project, source: Source) -> Tree | None:
    """Return the tree as it was prepared last, whatever has changed since, if there is one."""
    return tree_at(folder_of(project, source))


def are_same_patches(repository: Path, tip: str, other: str) -> bool:
    """Return whether two branches have the same patches by the same authors."""

    def patches(last: str) -> str:
        # the files, author and message of each commit
        return git(repository, "log", "--format=%T %an <%ae>%n%B", f"{UPSTREAM_REF}..{last}")

    return tip == other or patches(tip) == patches(other)


def tree_at(path: Path) -> Tree | None:
    """Read the record of a tree; None if there is no tree, or a damaged record."""
    try:
        record = json.loads((path / STATE).read_text(encoding="utf-8"))
        if "applied" not in record:  # written by 0.1.0 or older
            record["applied"] = {key: record.pop(key) for key in ("commits", "contents")}
        applied = {"left_out": (), "stacked": (), **record["applied"]}
        for field in ("commits", "contents", "left_out", "stacked"):
            applied[field] = tuple(applied[field])
        record |= {"series": tuple(record["series"]), "applied": Applied(**applied)}
        return Tree(path=path, **record)
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _save(path: Path, tree: Tree) -> None:
    record = asdict(tree)
    del record["path"]
    with writing(path / STATE):
        replace_file(path / STATE, json.dumps(record, indent=2) + "\n")


def _make_tree(project: Project, source: Source, path: Path, *, verbose: bool) -> Tree:
    """Make a tree with one commit, pristine upstream, in the place of an older one."""
    terminal.stage(f"unpacking {source.label}")
    partial = path.with_name(f".{path.name}.new")
    shutil.rmtree(partial, ignore_errors=True)
    with writing(partial):
        partial.parent.mkdir(parents=True, exist_ok=True)
    unpack(project, source, partial)
    listing = partial / "ggml" / "CMakeLists.txt"
    version = layout.version_in(listing.read_text("utf-8", errors="replace"))
    if source.ggml_version and version != source.ggml_version:
        shutil.rmtree(partial)
        raise SetupError(
            f"upstream '{source.label}': its ggml is version {version or 'unknown'}, "
            f"vendor/upstreams.toml says {source.ggml_version}; correct it there"
        )
    make_repository(partial, verbose=verbose)
    git(partial, "symbolic-ref", "HEAD", "refs/heads/upstream", verbose=verbose)
    git(partial, "add", "--all", "--force", verbose=verbose)
    message = f"upstream : {source.label} {source.commit}".strip()
    git(partial, "commit", "--quiet", "--message", message, verbose=verbose)
    git(partial, "update-ref", UPSTREAM_REF, "HEAD", verbose=verbose)
    git(partial, "checkout", "--quiet", "-B", BRANCH, verbose=verbose)
    tree = Tree(
        path=path,
        source=source.digest,
        series=(),
        ggml_version=version,
        applied=Applied.of([state(partial)]),
    )
    _save(partial, tree)
    old = path.with_name(f".{path.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        path.rename(old)
    partial.rename(path)
    shutil.rmtree(old, ignore_errors=True)
    return tree


def _refuse_to_lose_work(
    project: Project, path: Path, tips: Sequence[str], *, is_exported: bool
) -> None:
    """Refuse if the tree has edits, or commits that are neither exported nor in any of `tips`."""
    changed = git(path, "status", "--porcelain", "--untracked-files=no")
    tip = git(path, "rev-parse", BRANCH)
    is_known = is_exported or any(are_same_patches(path, tip, each) for each in tips)
    if changed or not is_known:
        what = ", ".join(changed.split("\n")) if changed else f"commits on branch '{BRANCH}'"
        raise SetupError(
            f"{project.relative(path)} holds work of your own, which a refresh would lose "
            f"({what}); export it to patches/ (git format-patch), or delete the folder, and "
            "run again"
        )
