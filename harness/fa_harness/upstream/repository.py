"""A commit of somebody's git repository, as an archive like that of an sdist."""

from __future__ import annotations

import gzip
import hashlib
import shutil
import tarfile
import zlib
from pathlib import Path, PurePosixPath

from fa_harness import terminal
from fa_harness.errors import SetupError
from fa_harness.proc import ProgramError
from fa_harness.project import Project, locked, writing
from fa_harness.upstream.git import git

_LOCAL = ["--upload-pack=git -c 'safe.directory=*' upload-pack"]
"""The folder may belong to another user; the other git does not get `git.CONFIG` from ours."""


def archive_name(commit: str) -> str:
    """The file name of a commit's archive in `vendor/cache/`."""
    return f"git-{commit}.tar.gz"


def fetch_commit(project: Project, owner: str, url: str, ref: str) -> tuple[str, Path]:
    """Fetch one commit without its history, and write its archive into `vendor/cache/`.

    The files are those that are committed: no attribute of the repository changes a byte of them
    or leaves one out.

    Args:
        project: Where the cache is.
        owner: Whose it is, as messages begin: `upstream 'NAME'`.
        url: Of the repository, in any form that git takes.
        ref: A branch, a tag, or a whole commit id.

    Returns:
        The commit's id, 40 hexadecimal digits, and the archive.

    Raises:
        SetupError: The repository or the commit cannot be had, or there is no git.
    """
    with locked(project, "git-fetch"):
        return _fetch_commit(project, owner, url, ref)


def _fetch_commit(project: Project, owner: str, url: str, ref: str) -> tuple[str, Path]:
    repository = project.cache / ".git-fetch"
    partial = project.cache / ".git-fetch.tar.gz"
    shutil.rmtree(repository, ignore_errors=True)
    with writing(repository):
        repository.mkdir(parents=True)
    try:
        git(repository, "init", "--quiet", "--bare")
        with writing(repository):
            (repository / "info").mkdir(exist_ok=True)
            attributes = "* -text -ident -filter -export-subst -export-ignore\n"
            (repository / "info" / "attributes").write_text(attributes)
        terminal.stage(f"fetching {ref} from {url}")
        try:
            local = _LOCAL if url.startswith("file://") else []
            git(repository, "fetch", "--quiet", "--depth=1", "--no-tags", *local, "--", url, ref)
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


def contents_sha256(archive: Path) -> str:
    """Return a digest of the files in an archive: their paths, modes and contents.

    That of the archive itself would be another with each version of git and zlib.

    Raises:
        SetupError: The archive is damaged.
    """
    lines = []
    try:
        with tarfile.open(archive, "r:gz") as tar:
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
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise SetupError(
            f"archive {archive} is damaged ({error}); delete it and fetch again"
        ) from error
    return hashlib.sha256(b"".join(sorted(lines))).hexdigest()


def head_of(checkout: Path) -> tuple[str, str]:
    """Return the URL of a checkout on this machine, and the commit that its files are of.

    Raises:
        SetupError: It is no git checkout, not the top of one, or has changes that are not
            committed.
    """
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
    """What git said first; what follows are its guesses."""
    lines = [line for line in error.output.splitlines() if line.strip()]
    return next((line for line in lines if line.startswith(("fatal:", "error:"))), "no reason")
