"""Git as the harness uses it: never the user's configuration, hooks, signatures or language."""

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
    # The folder may belong to another user, as in a container.
    "safe.directory": "*",
    "user.email": "fa-harness@localhost",
    "user.name": "fa-harness",
}

# Where git looks for the user's configuration; GIT_CONFIG_GLOBAL is unknown before git 2.32.
NO_HOME = "/nonexistent"

# How to reach a server is up to the user: certificates, and the program for ssh.
KEPT = ("GIT_SSL_", "GIT_SSH")

# Fixed, so that the same files and patches give the same commits everywhere.
DATE = "2000-01-01T00:00:00+00:00"


def git(
    repository: Path,
    *arguments: str | Path,
    index: Path | None = None,
    dated: bool = True,
    verbose: bool = False,
) -> str:
    """Run git in `repository`; returns what it printed.

    Args:
        repository: Where.
        arguments: Of git.
        index: Another index than the repository's.
        dated: Commits get the date that all of ours have, instead of now.
        verbose: Print the command.

    Raises:
        ProgramFailed: git failed.
        SetupError: there is no git.
    """
    settings = [word for key, value in CONFIG.items() for word in ("-c", f"{key}={value}")]
    # A hook's GIT_DIR and GIT_INDEX_FILE would send our commands to the user's repository.
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


def describe(checkout: Path) -> str:
    """A developer's commit, `-dirty` where files differ from it; empty if `checkout` has none."""
    try:
        commit = git(checkout, "rev-parse", "--short=9", "HEAD")
        changed = git(checkout, "status", "--porcelain", "--untracked-files=no")
    except SetupError:
        return ""
    return f"{commit}-dirty" if changed else commit


def check_out(repository: Path, content: str, folder: Path, *, verbose: bool = False) -> None:
    """Make a folder outside the repository hold a commit's files.

    Files that do not differ are not touched, so that a build in there compiles what changed. Only
    one process at a time may do it: the caller holds the lock.
    """
    index = folder.with_name(f"{folder.name}.index")
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    # Left by a killed git; the project's lock is ours, so nobody else is at it.
    index.with_name(f"{index.name}.lock").unlink(missing_ok=True)
    command = (f"--work-tree={folder}", "read-tree", "--reset", "-u", content)
    git(repository, *command, index=index, verbose=verbose)
