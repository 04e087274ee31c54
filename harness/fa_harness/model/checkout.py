"""The series as commits on a developer's own checkout of llama.cpp.

The commits are made in a repository of our own, which fetches the checkout's HEAD. In the end the
checkout gets them as one new branch. Its working tree, its index and its other branches do not
change.
"""

from __future__ import annotations

import email.utils
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from fa_harness import proc, terminal
from fa_harness.errors import FaHarnessError, SetupError, UsageError
from fa_harness.proc import ProgramError
from fa_harness.project import Project, writing
from fa_harness.series.series import Series, as_files_are, series_for, why_unfinished
from fa_harness.series.tree import fetch_tree
from fa_harness.upstream.git import git, make_repository, unmerged
from fa_harness.upstream.pins import load_pins
from fa_harness.upstream.source import find_source, source_of

_REFUSED = "; nothing was changed there"


@dataclass(frozen=True, kw_only=True)
class Checkout:
    """A developer's checkout of llama.cpp that can take a branch."""

    path: Path
    branch: str
    head: str
    author: tuple[str, str]  # name and e-mail address, from the developer's own git
    series: Series
    folder: str  # name of the folder for what is made from it


def open_checkout(project: Project, path: Path, new_branch: str) -> Checkout:
    """Look at a developer's checkout, which must be able to take a branch, without changing it."""
    path = path.expanduser().resolve()
    source = source_of(path)
    if not (path / "include" / "llama.h").is_file():
        raise SetupError(f"{path} is ggml without llama.cpp, whose programs give the evidence")
    no_git = f"{path} is no git repository; clone llama.cpp with git, and name that folder"
    top = _ask_or(SetupError(no_git), path, "rev-parse", "--show-toplevel")
    if Path(top).resolve() != path:
        raise SetupError(f"{path} lies inside the repository {top}; name a checkout of its own")
    changed = _ask(path, "status", "--porcelain", "--untracked-files=no").splitlines()
    if changed:
        files = ", ".join(line.strip().split(maxsplit=1)[-1] for line in changed[:3])
        raise SetupError(
            f"{path} holds changes that are not committed ({files}); commit or stash them, since "
            f"the evidence is of commits{_REFUSED}"
        )
    detached = (
        f"{path} has a detached HEAD; check out the branch that the patches go on "
        f"(git switch master){_REFUSED}"
    )
    branch = _ask_or(SetupError(detached), path, "symbolic-ref", "--quiet", "--short", "HEAD")
    no_name = f"--branch '{new_branch}': no branch can be called so"
    _ask_or(UsageError(no_name), path, "check-ref-format", "--branch", new_branch)
    if _ask(path, "for-each-ref", "--format=%(refname)", f"refs/heads/{new_branch}"):
        raise UsageError(
            f"{path} has a branch '{new_branch}' already; name another with --branch, or delete it"
        )
    series = series_for(project, source)
    if why := why_unfinished(series.patches):
        raise SetupError(why)
    return Checkout(
        path=path,
        branch=branch,
        head=_ask(path, "rev-parse", "HEAD"),
        author=_author(path),
        series=series,
        folder=source.folder,
    )


def make_commits(
    project: Project, checkout: Checkout, repository: Path, *, verbose: bool = False
) -> str:
    """Apply the series on the checkout's HEAD, in a repository of our own that is made anew.

    Return the last commit.
    """
    terminal.stage(f"applying the patch series on {checkout.path} ({checkout.head[:9]})")
    shutil.rmtree(repository, ignore_errors=True)
    with writing(repository):
        repository.mkdir(parents=True)
    make_repository(repository, verbose=verbose)
    # without the history: a clone of all of it takes a minute
    fetch = ("fetch", "--quiet", "--no-tags", "--depth=1")
    git(repository, *fetch, checkout.path.as_uri(), "HEAD", verbose=verbose)
    git(repository, "checkout", "--quiet", "-B", "series", "FETCH_HEAD", verbose=verbose)
    if git(repository, "rev-parse", "HEAD") != checkout.head:
        raise SetupError(f"{checkout.path} was changed meanwhile; run again")
    name, address = checkout.author
    settings = ("-c", f"user.name={name}", "-c", f"user.email={address}")
    for number, patch in enumerate(checkout.series.patches):
        mail = repository / ".git" / patch.name
        with writing(mail):
            mail.write_text(_signed(patch.read_text("utf-8"), checkout.author), encoding="utf-8")
        apply = (*settings, "am", "--quiet", "--3way", mail)
        try:
            try:
                git(repository, *apply, dated=False, verbose=verbose)
            except ProgramError as error:
                if "could not build fake ancestor" not in error.output:
                    raise
                git(repository, "am", "--abort", verbose=verbose)
                # the files that the patches were made for, which git needs to merge three-way
                pin = find_source(project, load_pins(project.pins_file).default)
                made_for, ref = as_files_are(project, pin), "refs/fa-harness/pin"
                fetch_tree(project, pin, made_for, repository, ref, verbose=verbose)
                git(repository, *apply, dated=False, verbose=verbose)
        except ProgramError as error:
            files = unmerged(repository)
            where = f"it conflicts in {', '.join(files)}" if files else error.output
            raise SetupError(
                f"patch '{patch.name}' does not apply on {checkout.path} after {number} patches: "
                f"{where}; bring the series up to date with "
                f"fa-harness series rebase --onto {checkout.path}{_REFUSED}"
            ) from error
    return git(repository, "rev-parse", "HEAD")


def make_branch(checkout: Checkout, repository: Path, branch: str) -> None:
    """Give the commits of `make_commits` to the checkout as a new branch."""
    fetch = ("fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--no-auto-maintenance")
    spec = f"series:refs/heads/{branch}"
    try:
        _ask(checkout.path, *fetch, repository.as_uri(), spec, writes=True)
    except ProgramError as error:
        raise SetupError(f"{checkout.path} does not take the branch '{branch}'\n{error}") from error


def _signed(mail: str, author: tuple[str, str]) -> str:
    """Return a patch with another author, and with the present time as its date."""
    head, blank, rest = mail.partition("\n\n")
    sender = email.utils.formataddr(author, charset="utf-8")
    # a function, since a name may hold a backslash
    head = re.sub(r"^From: .*(?:\n[ \t].*)*", lambda _: f"From: {sender}", head, flags=re.M)
    head = re.sub(r"^Date: .*", f"Date: {email.utils.formatdate(localtime=True)}", head, flags=re.M)
    return head + blank + rest


def _author(path: Path) -> tuple[str, str]:
    """Return the author that the developer's own git would record."""
    unknown = SetupError(
        f"git knows no author in {path}: git config user.name and user.email set one; the "
        f"commits are to be yours{_REFUSED}"
    )
    match = re.match(r"(.+) <(.+)> \d+ [+-]\d+", _ask_or(unknown, path, "var", "GIT_AUTHOR_IDENT"))
    if not match:
        raise unknown
    return match[1], match[2]


def _ask_or(refusal: FaHarnessError, path: Path, *arguments: str) -> str:
    """Run the developer's git, whose failure means something that is said better."""
    try:
        return _ask(path, *arguments)
    except ProgramError:
        raise refusal from None


def _ask(path: Path, *arguments: str, writes: bool = False) -> str:
    """Run the developer's git with their configuration; it takes no locks unless it writes."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    env |= {"LC_ALL": "C"} if writes else {"LC_ALL": "C", "GIT_OPTIONAL_LOCKS": "0"}
    return proc.run(["git", "-C", path, *arguments], env=env)
