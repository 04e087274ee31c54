"""The tree: a git repository of our own with pristine upstream and the series on top."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from fa_harness import terminal
from fa_harness.errors import SetupError
from fa_harness.proc import ProgramError
from fa_harness.project import Project, writing
from fa_harness.series.series import Series
from fa_harness.upstream import layout
from fa_harness.upstream.git import git
from fa_harness.upstream.source import Source, unpack

UPSTREAM_REF = "refs/fa-harness/upstream"
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
        commits: of each state, from pristine upstream to the whole series.
        contents: git's ids of the files of each state; equal files, equal id.
        left_out: file names of patches that do not apply; their states are those before them.
    """

    path: Path
    ggml_version: str
    commits: tuple[str, ...]
    contents: tuple[str, ...]
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class _State:
    """What a tree was made from, kept in it, so that a look tells whether it is current."""

    source: str
    series: tuple[str, ...]
    ggml_version: str
    commits: tuple[str, ...]
    contents: tuple[str, ...]


def current_tree(project: Project, source: Source, series: Series) -> Tree | None:
    """The tree, if it is prepared for exactly this source and series; runs no program."""
    path = project.sources / source.folder
    state = _load_state(path)
    if state is None or (state.source, state.series) != (source.digest, series.digests):
        return None
    return Tree(
        path=path,
        ggml_version=state.ggml_version,
        commits=state.commits,
        contents=state.contents,
    )


def prepare_tree(
    project: Project,
    source: Source,
    series: Series,
    *,
    is_exported: bool = False,
    verbose: bool = False,
) -> Tree:
    """Make the tree current: unpack the source, apply the series. The caller holds the lock.

    Interrupted at any point, it leaves either no tree or the one from before.

    Args:
        project: Where it goes.
        source: The upstream.
        series: What is applied.
        is_exported: The commits of the tree's branch were just written to the series.
        verbose: Print every command.

    Raises:
        SetupError: a patch does not apply (the message says which, and where), the tree holds
            work of the user's own that would be lost, or the source cannot be had.
    """
    tree = current_tree(project, source, series)
    if tree is not None:
        return tree
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
            _refuse_to_lose_work(project, path, state, state.commits[-1], is_exported=is_exported)
        state = _make_repository(project, source, path, verbose=verbose)
    if series.patches:
        terminal.stage(f"applying the patch series on {source.label}")
    applied = _apply(project, source, path, UPSTREAM_REF, series, verbose=verbose)
    _refuse_to_lose_work(project, path, state, applied.commits[-1], is_exported=is_exported)
    git(path, "checkout", "--quiet", "-B", BRANCH, applied.commits[-1], verbose=verbose)
    _save_state(
        path,
        _State(
            source=source.digest,
            series=series.digests,
            ggml_version=state.ggml_version,
            commits=applied.commits,
            contents=applied.contents,
        ),
    )
    tree = current_tree(project, source, series)
    assert tree is not None
    return tree


def extend_tree(
    project: Project, source: Source, tree: Tree, series: Series, *, verbose: bool = False
) -> Tree:
    """The tree with further states: its last one with the first patches of another series.

    They are commits of no branch: what is checked out, and what `current_tree` tells, stays.
    The caller holds the lock. A patch that does not apply is left out, and said; not the first,
    which the others stand on.

    Raises:
        SetupError: the first patch does not apply.
    """
    terminal.stage(f"applying {project.relative(series.file.parent)} on the patch series")
    start = tree.commits[-1]
    applied = _apply(project, source, tree.path, start, series, n_needed=1, verbose=verbose)
    return replace(
        tree,
        commits=tree.commits + applied.commits[1:],
        contents=tree.contents + applied.contents[1:],
        left_out=applied.left_out,
    )


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
        for field in ("series", "commits", "contents"):
            record[field] = tuple(record[field])
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
    version = layout.ggml_version(partial)
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
        commits=(git(partial, "rev-parse", "HEAD"),),
        contents=(git(partial, "rev-parse", "HEAD^{tree}"),),
    )
    _save_state(partial, state)
    old = path.with_name(f".{path.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        path.rename(old)
    partial.rename(path)
    shutil.rmtree(old, ignore_errors=True)
    return state


@dataclass(frozen=True, kw_only=True)
class _Applied:
    """What came of applying a series; the fields are those of `Tree`."""

    commits: tuple[str, ...]
    contents: tuple[str, ...]
    left_out: tuple[str, ...]


def _apply(
    project: Project,
    source: Source,
    repository: Path,
    start: str,
    series: Series,
    *,
    n_needed: int | None = None,
    verbose: bool,
) -> _Applied:
    """Apply a series on `start` in a worktree of its own.

    The tree itself is not touched, whatever becomes of the patches. Those after the first
    `n_needed` may be left out; None means that each is needed.
    """
    worktree = repository.with_name(f".{repository.name}.am")
    shutil.rmtree(worktree, ignore_errors=True)
    git(repository, "worktree", "prune", verbose=verbose)
    git(
        repository,
        "worktree",
        "add",
        "--quiet",
        "--detach",
        worktree,
        start,
        verbose=verbose,
    )
    try:
        commits = [git(worktree, "rev-parse", "HEAD")]
        contents = [git(worktree, "rev-parse", "HEAD^{tree}")]
        left_out = []
        for number, patch in enumerate(series.patches):
            try:
                _apply_one(worktree, patch, verbose=verbose)
            except ProgramError as error:
                hunks = _rejects(worktree, patch, error.output)
                where = "\n".join(f"  {line}" for line in hunks)
                what = f"patch '{patch.name}' does not apply on upstream '{source.label}'"
                if n_needed is None or number < n_needed:
                    raise SetupError(
                        f"{what} after {number} patches of the series:\n{where}\n"
                        "the tree is as it was; bring the patch up to date, or correct "
                        f"{project.relative(series.file)}"
                    ) from error
                terminal.stage(f"{what} and is left out:\n{where}")
                left_out.append(patch.name)
                git(worktree, "am", "--quit", verbose=verbose)
                git(worktree, "reset", "--quiet", "--hard", verbose=verbose)
                git(worktree, "clean", "--quiet", "--force", "-d", "-x", verbose=verbose)
            commits.append(git(worktree, "rev-parse", "HEAD"))
            contents.append(git(worktree, "rev-parse", "HEAD^{tree}"))
    finally:
        shutil.rmtree(worktree, ignore_errors=True)
        git(repository, "worktree", "prune", verbose=verbose)
    return _Applied(commits=tuple(commits), contents=tuple(contents), left_out=tuple(left_out))


def _apply_one(worktree: Path, patch: Path, *, verbose: bool) -> None:
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


def _refuse_to_lose_work(
    project: Project, path: Path, state: _State, new_tip: str, *, is_exported: bool
) -> None:
    """A developer may edit and commit in the tree; a refresh must not throw that away."""
    changed = git(path, "status", "--porcelain", "--untracked-files=no")
    tip = git(path, "rev-parse", BRANCH)
    known = (state.commits[-1], new_tip)
    is_known = is_exported or any(are_same_patches(path, tip, each) for each in known)
    if changed or not is_known:
        what = ", ".join(changed.split("\n")) if changed else f"commits on branch '{BRANCH}'"
        raise SetupError(
            f"{project.relative(path)} holds work of your own, which a refresh would lose "
            f"({what}); export it to patches/ (git format-patch), or delete the folder, and "
            "run again"
        )
