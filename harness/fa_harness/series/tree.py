"""The tree: a git repository of our own with pristine upstream and the series on top."""

from __future__ import annotations

import json
import shlex
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from fa_harness import terminal
from fa_harness.errors import SetupError
from fa_harness.files import sha256
from fa_harness.project import Project, locked, writing
from fa_harness.series.applying import Applied, DoesNotApplyError, apply, merge
from fa_harness.series.series import Series, series_for
from fa_harness.upstream import layout
from fa_harness.upstream.git import git
from fa_harness.upstream.pins import Pin, load_pins
from fa_harness.upstream.source import Source, find_source, unpack

UPSTREAM_REF = "refs/fa-harness/upstream"
MADE_FOR_REF = "refs/fa-harness/made-for"
BRANCH = "series"
STATE = ".git/fa-harness.json"
REWORK = ".git/fa-harness-rework.json"
"""There while a change of the series has begun, whose commits are in the repository."""


@dataclass(frozen=True, kw_only=True)
class Tree:
    """A prepared tree. State `n` of it is upstream with the first `n` patches.

    Attributes:
        path: the git repository; branch `series` is checked out.
        ggml_version: as its files have it; empty where they do not say.
        applied: the states, and what became of the patches.
    """

    path: Path
    ggml_version: str
    applied: Applied

    @property
    def commits(self) -> tuple[str, ...]:
        """Of each state, from pristine upstream to the whole series."""
        return self.applied.commits

    @property
    def contents(self) -> tuple[str, ...]:
        """Git's ids of the files of each state; equal files, equal id."""
        return self.applied.contents

    def patches(self, series: Series, n: int) -> tuple[str, ...]:
        """The file names of the patches of the series that state `n` really has."""
        applied = self.applied
        last = applied.held if applied.conflict else max(n, applied.held)
        return tuple(name for name in series.names[:last] if name not in applied.left_out)


def note(source: Source, series: Series, applied: Applied) -> str:
    """One line on what became of the series, and how to ask for the other; empty where it is plain.

    Args:
        source: The upstream.
        series: What was to be applied.
        applied: What was.
    """
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
    if applied.is_merged:
        what = has or f"{n} patches are "
        return f"series: {what}merged into {label} (--no-series takes it as it is)"
    return ""


@dataclass(frozen=True, kw_only=True)
class _State:
    """What a tree was made from, kept in it, so that a look tells whether it is current."""

    source: str
    series: tuple[str, ...]
    ggml_version: str
    applied: Applied


def current_tree(project: Project, source: Source, series: Series) -> Tree | None:
    """The tree, if it is prepared for exactly this source and series; runs no program."""
    path = project.sources / source.folder
    state = _load_state(path)
    if state is None or (state.source, state.series) != (source.digest, series.digests):
        return None
    return Tree(path=path, ggml_version=state.ggml_version, applied=state.applied)


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

    Interrupted at any point, it leaves either no tree or the one from before.

    Patches apply on a pin as they are. On a checkout they are merged where they do not; those that
    it has already are found. Where they conflict, every state is the checkout as it is.

    Args:
        project: Where it goes.
        source: The upstream.
        series: What is applied.
        exactly: Patches apply as they are on a checkout, too.
        is_exported: The commits of the tree's branch were just written to the series.
        verbose: Print every command.

    Raises:
        SetupError: a patch does not apply (the message says which, and where), the tree holds
            work of the user's own that would be lost, or the source cannot be had.
    """
    with locked(project, source.folder):
        tree = current_tree(project, source, series)
        if tree is None or (exactly and not tree.applied.is_exact):
            _prepare(
                project, source, series, exactly=exactly, is_exported=is_exported, verbose=verbose
            )
            tree = current_tree(project, source, series)
            assert tree is not None
        return tree


def _prepare(
    project: Project,
    source: Source,
    series: Series,
    *,
    exactly: bool,
    is_exported: bool,
    verbose: bool,
) -> None:
    path = project.sources / source.folder
    state = _load_state(path)
    if state is None or state.source != source.digest:
        if (path / REWORK).exists():
            raise SetupError(
                f"{source.label} has changed, and a change of the series has begun on it as it "
                f"was, which is kept in {project.relative(path)}; end that first, with --continue "
                "or --abort of its command"
            )
        if state is not None:
            tip = state.applied.commits[-1]
            _refuse_to_lose_work(project, path, state, tip, is_exported=is_exported)
        state = _make_repository(project, source, path, verbose=verbose)
    if series.patches:
        terminal.stage(f"applying the patch series on {source.label}")
    applied = _apply(project, source, path, series, exactly=exactly, verbose=verbose)
    _refuse_changed(project, series)
    tip = applied.commits[-1]
    _refuse_to_lose_work(project, path, state, tip, is_exported=is_exported)
    git(path, "checkout", "--quiet", "-B", BRANCH, tip, verbose=verbose)
    _save_state(path, replace(state, series=series.digests, applied=applied))
    if said := note(source, series, applied):
        terminal.stage_once(said)


def _refuse_changed(project: Project, series: Series) -> None:
    """Whoever changes the series does not wait for those who apply it elsewhere."""
    try:
        now = tuple(sha256(patch) for patch in series.patches)
    except OSError:
        now = ()
    if now != series.digests:
        raise SetupError(
            f"{project.relative(series.file.parent)} was changed while it was applied; run again"
        )


def _apply(
    project: Project,
    source: Source,
    repository: Path,
    series: Series,
    *,
    exactly: bool,
    verbose: bool,
) -> Applied:
    try:
        return apply(repository, UPSTREAM_REF, series, onto=source.label, verbose=verbose)
    except DoesNotApplyError as error:
        if exactly or isinstance(source.origin, Pin):
            raise _with_remedy(project, series, error) from error
        made_for = _states_made_for(project, source, repository, series, error, verbose=verbose)
        return merge(repository, UPSTREAM_REF, series, made_for, onto=source.label, verbose=verbose)


def _states_made_for(
    project: Project,
    source: Source,
    repository: Path,
    series: Series,
    refusal: DoesNotApplyError,
    *,
    verbose: bool,
) -> tuple[str, ...]:
    """Fetch the tree of the pin that the patches were made for; returns its states.

    It is the default pin, or another that gets the same variants of them.
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
        with locked(project, pin.folder):
            tree = prepare_tree(project, pin, of_pin, verbose=verbose)
            fetch = ("fetch", "--quiet", "--no-tags")
            spec = f"+{tree.commits[-1]}:{MADE_FOR_REF}"
            git(repository, *fetch, tree.path, spec, verbose=verbose)
    except SetupError as error:
        raise SetupError(
            f"patch '{refusal.patch}' does not apply on {source.label} as it is, and to merge it "
            f"takes the sources that it was made for:\n{error}\n"
            f"--no-series takes {source.label} as it is"
        ) from error
    return tree.commits


def _with_remedy(project: Project, series: Series, error: DoesNotApplyError) -> DoesNotApplyError:
    return DoesNotApplyError(
        f"{error}\nthe tree is as it was; bring the patch up to date, or correct "
        f"{project.relative(series.file)}",
        patch=error.patch,
    )


def extend_tree(
    project: Project, source: Source, tree: Tree, series: Series, *, verbose: bool = False
) -> Tree:
    """The tree with further states: its last one with the first patches of another series.

    They are commits of no branch: what is checked out, and what `current_tree` tells, stays.
    A patch that does not apply is left out, and said; not the first, which the others stand on.

    Raises:
        SetupError: the first patch does not apply.
    """
    terminal.stage(f"applying {project.relative(series.file.parent)} on the patch series")
    with locked(project, source.folder):
        start = tree.commits[-1]
        try:
            further = apply(
                tree.path, start, series, onto=source.label, n_needed=1, verbose=verbose
            )
        except DoesNotApplyError as error:
            raise _with_remedy(project, series, error) from error
    applied = replace(
        tree.applied,
        commits=tree.commits + further.commits[1:],
        contents=tree.contents + further.contents[1:],
        left_out=further.left_out,
    )
    return replace(tree, applied=applied)


def made_of(project: Project, source: Source) -> tuple[str, ...]:
    """Return the digests of the patches that the tree was made of, if there is one."""
    state = _load_state(project.sources / source.folder)
    return state.series if state is not None else ()


def are_same_patches(repository: Path, tip: str, other: str) -> bool:
    """Tell whether the commits up to two of them are the same patches by the same authors."""

    def patches(last: str) -> str:
        # of each commit its files, author and message
        return git(repository, "log", "--format=%T %an <%ae>%n%B", f"{UPSTREAM_REF}..{last}")

    return tip == other or patches(tip) == patches(other)


def _load_state(path: Path) -> _State | None:
    try:
        record = json.loads((path / STATE).read_text(encoding="utf-8"))
        if "applied" not in record:  # by 0.1.0 and before
            record["applied"] = {key: record.pop(key) for key in ("commits", "contents")}
        applied = {"left_out": (), **record["applied"]}
        for field in ("commits", "contents", "left_out"):
            applied[field] = tuple(applied[field])
        record |= {"series": tuple(record["series"]), "applied": Applied(**applied)}
        return _State(**record)
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _save_state(path: Path, state: _State) -> None:
    part = path / f"{STATE}.part"
    with writing(part):
        part.write_text(json.dumps(asdict(state), indent=2) + "\n", encoding="utf-8")
        part.rename(path / STATE)


def _make_repository(project: Project, source: Source, path: Path, *, verbose: bool) -> _State:
    """A new repository at `path` with one commit: upstream as it came."""
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
    git(partial, "init", "--quiet", verbose=verbose)
    (partial / ".git" / "info").mkdir(exist_ok=True)
    # Upstream's own attributes must not change a byte of its files.
    (partial / ".git" / "info" / "attributes").write_text("* -text -ident -filter\n")
    git(partial, "symbolic-ref", "HEAD", "refs/heads/upstream", verbose=verbose)
    git(partial, "add", "--all", "--force", verbose=verbose)
    message = f"upstream : {source.label} {source.commit}".strip()
    git(partial, "commit", "--quiet", "--message", message, verbose=verbose)
    git(partial, "update-ref", UPSTREAM_REF, "HEAD", verbose=verbose)
    git(partial, "checkout", "--quiet", "-B", BRANCH, verbose=verbose)
    state = _State(
        source=source.digest,
        series=(),
        ggml_version=version,
        applied=Applied(
            commits=(git(partial, "rev-parse", "HEAD"),),
            contents=(git(partial, "rev-parse", "HEAD^{tree}"),),
        ),
    )
    _save_state(partial, state)
    old = path.with_name(f".{path.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        path.rename(old)
    partial.rename(path)
    shutil.rmtree(old, ignore_errors=True)
    return state


def _refuse_to_lose_work(
    project: Project, path: Path, state: _State, new_tip: str, *, is_exported: bool
) -> None:
    """A developer may edit and commit in the tree; a refresh must not throw that away."""
    changed = git(path, "status", "--porcelain", "--untracked-files=no")
    tip = git(path, "rev-parse", BRANCH)
    known = (state.applied.commits[-1], new_tip)
    is_known = is_exported or any(are_same_patches(path, tip, each) for each in known)
    if changed or not is_known:
        what = ", ".join(changed.split("\n")) if changed else f"commits on branch '{BRANCH}'"
        raise SetupError(
            f"{project.relative(path)} holds work of your own, which a refresh would lose "
            f"({what}); export it to patches/ (git format-patch), or delete the folder, and "
            "run again"
        )
