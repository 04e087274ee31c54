"""Fetch a commit of any git repository as an archive like an sdist's."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import shutil
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from fa_harness import terminal
from fa_harness.errors import SetupError
from fa_harness.proc import ProgramError
from fa_harness.project import Project, locked, writing
from fa_harness.upstream.git import git, make_repository


def archive_name(commit: str) -> str:
    """Return the file name of a commit's archive in `vendor/cache/`."""
    return f"git-{commit}.tar.gz"


def fetch_commit(project: Project, owner: str, url: str, ref: str) -> tuple[str, Path]:
    """Fetch one commit without its history, and write its archive into `vendor/cache/`.

    The archive has the files as they are committed: the repository's attributes neither change a
    byte nor leave a file out. `owner` is how messages begin: `upstream 'NAME'`. `ref` is a branch,
    a tag, or a whole commit id. Return the commit's id, 40 hexadecimal digits, and the archive.
    """
    repository = project.cache / ".git-fetch"
    partial = project.cache / ".git-fetch.tar.gz"
    # The folder may belong to another user, and that git does not get `git.CONFIG` from ours.
    safe = ["--upload-pack=git -c 'safe.directory=*' upload-pack"]
    options = ("--depth=1", "--no-tags", *(safe if url.startswith("file://") else ()))
    with locked(project, "git-fetch"):
        shutil.rmtree(repository, ignore_errors=True)
        with writing(repository):
            repository.mkdir(parents=True)
        try:
            make_repository(repository, is_bare=True)
            terminal.stage(f"fetching {ref} from {url}")
            try:
                git(repository, "fetch", "--quiet", *options, "--", url, ref)
                commit = git(repository, "rev-parse", "--verify", "FETCH_HEAD^{commit}")
            except ProgramError as error:
                raise SetupError(
                    f"{owner}: git cannot fetch '{ref}' from {url} ({_reason(error)}); check the "
                    "network, and that the repository has this branch, tag or whole commit id; a "
                    "checkout of your own is used with UPSTREAM_DIR=/path"
                ) from error
            prefix, output = f"--prefix=git-{commit}/", f"--output={partial.resolve()}"
            git(repository, "archive", "--format=tar.gz", prefix, output, commit)
            target = project.cache / archive_name(commit)
            with writing(target):
                partial.replace(target)
        finally:
            shutil.rmtree(repository, ignore_errors=True)
            partial.unlink(missing_ok=True)
    return commit, target


@contextlib.contextmanager
def opened(archive: Path) -> Iterator[tarfile.TarFile]:
    """Open a .tar.gz, and turn any damage that is found while it is read into a SetupError."""
    try:
        with tarfile.open(archive, "r:gz") as tar:
            yield tar
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise SetupError(
            f"archive {archive} is damaged ({error}); delete it and fetch again"
        ) from error


def contents_sha256(archive: Path) -> str:
    """Return a digest of the paths, modes and contents of an archive's files.

    The archive's own digest would depend on the versions of git and zlib.
    """
    lines = []
    with opened(archive) as tar:
        for member in tar:
            if member.isdir():
                continue
            path = PurePosixPath(*PurePosixPath(member.name).parts[1:])
            if file := tar.extractfile(member) if member.isfile() else None:
                content = hashlib.sha256(file.read()).hexdigest()
                kind = "x" if member.mode & 0o100 else "-"
            else:
                content, kind = member.linkname, "l"
            lines.append(f"{path}\0{kind}\0{content}\n".encode("utf-8", "surrogateescape"))
    return hashlib.sha256(b"".join(sorted(lines))).hexdigest()


def head_of(checkout: Path) -> tuple[str, str]:
    """Return the URL of a checkout on this machine, and its commit."""
    unpinned = f"UPSTREAM_DIR={checkout} uses it as it is, without a pin"
    try:
        top = Path(git(checkout, "rev-parse", "--show-toplevel"))
        commit = git(checkout, "rev-parse", "--verify", "HEAD^{commit}")
        status = git(checkout, "status", "--porcelain", "--untracked-files=no")
    except ProgramError as error:
        raise SetupError(
            f"{checkout} is no git checkout with a commit ({_reason(error)}), so there is nothing "
            f"to pin; {unpinned}"
        ) from error
    if top.resolve() != checkout:
        raise SetupError(f"{checkout} is a folder of the git checkout {top}; name that; {unpinned}")
    if changed := [line.strip() for line in status.splitlines()]:
        raise SetupError(
            f"{checkout} has changes that are not committed ({', '.join(changed[:3])}"
            f"{', ...' if len(changed) > 3 else ''}), and a pin is of a commit; commit them, or "
            f"{unpinned}"
        )
    return checkout.as_uri(), commit


def _reason(error: ProgramError) -> str:
    """Return git's first error; the lines after it are guesses."""
    lines = [line for line in error.output.splitlines() if line.strip()]
    return next((line for line in lines if line.startswith(("fatal:", "error:"))), "no reason")
