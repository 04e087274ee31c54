"""Run git without the user's configuration, hooks, signatures and language."""

from __future__ import annotations

import os
from pathlib import Path

from fa_harness import proc
from fa_harness.errors import SetupError
from fa_harness.project import writing

CONFIG = {
    "advice.detachedHead": "false",
    "commit.gpgSign": "false",
    "core.autocrlf": "false",
    "core.hooksPath": os.devnull,
    "gc.auto": "0",
    # In a container the folder may belong to another user.
    "safe.directory": "*",
    "user.email": "fa-harness@localhost",
    "user.name": "fa-harness",
}

# Hides the user's configuration; GIT_CONFIG_GLOBAL would need git 2.32.
NO_HOME = "/nonexistent"

# The user decides how to reach a server: certificates and the ssh program.
KEPT = ("GIT_SSL_", "GIT_SSH")

# A fixed date gives the same commits everywhere for the same files and patches.
DATE = "2000-01-01T00:00:00+00:00"


def git(
    repository: Path,
    *arguments: str | Path,
    index: Path | None = None,
    dated: bool = True,
    verbose: bool = False,
) -> str:
    """Run git in a repository and return what it printed.

    `index` replaces the repository's index. `dated` gives commits `DATE` instead of today's date.
    If git fails, it is a `ProgramError`.
    """
    settings = [word for key, value in CONFIG.items() for word in ("-c", f"{key}={value}")]
    # If a hook starts us, its GIT_DIR and GIT_INDEX_FILE name the user's repository.
    env = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith("GIT_") or key.startswith(KEPT)
    }
    env |= {
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_TERMINAL_PROMPT": "0",
        "HOME": NO_HOME,
        "XDG_CONFIG_HOME": NO_HOME,
        "LC_ALL": "C",
    }
    if dated:
        env |= {"GIT_AUTHOR_DATE": DATE, "GIT_COMMITTER_DATE": DATE}
    if index is not None:
        env["GIT_INDEX_FILE"] = str(index)
    command = ["git", "-C", str(repository), *settings, *map(str, arguments)]
    return proc.run(command, env=env, verbose=verbose)


def make_repository(path: Path, *, is_bare: bool = False, verbose: bool = False) -> None:
    """Make a repository in a folder, in which upstream's own attributes change no file."""
    git(path, "init", "--quiet", *(["--bare"] if is_bare else []), verbose=verbose)
    info = (path if is_bare else path / ".git") / "info"
    with writing(info):
        info.mkdir(exist_ok=True)
        attributes = "* -text -ident -filter -export-subst -export-ignore\n"
        (info / "attributes").write_text(attributes, encoding="utf-8")


def fetch(repository: Path, url: str | Path, spec: str, *, verbose: bool = False) -> None:
    """Fetch a commit from another repository on this machine: `COMMIT`, or `+COMMIT:REF`."""
    git(repository, "fetch", "--quiet", "--no-tags", url, spec, verbose=verbose)


def unmerged(repository: Path) -> list[str]:
    """Return the files in which a merge or a pick conflicts."""
    return git(repository, "diff", "--name-only", "--diff-filter=U").split()


def describe(checkout: Path) -> str:
    """Return a checkout's commit, `-dirty` if files differ from it; empty if there is none."""
    try:
        commit = git(checkout, "rev-parse", "--short=9", "HEAD")
        changed = git(checkout, "status", "--porcelain", "--untracked-files=no")
    except SetupError:
        return ""
    return f"{commit}-dirty" if changed else commit


def check_out(repository: Path, content: str, folder: Path, *, verbose: bool = False) -> None:
    """Check out a commit's files into a folder outside the repository.

    Files that do not differ keep their time stamps, so a build there compiles only what changed.
    The caller holds the lock: two processes must not do this at once.
    """
    index = folder.with_name(f"{folder.name}.index")
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    # A killed git leaves its lock; we hold the project's, so no other git runs here.
    index.with_name(f"{index.name}.lock").unlink(missing_ok=True)
    command = (f"--work-tree={folder}", "read-tree", "--reset", "-u", content)
    git(repository, *command, index=index, verbose=verbose)
